//! Processes that outlive their worker are ended as configured, and no others.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        event::{Event, Leftover},
        spec,
    },
    units::{Bytes, Signal},
};

use super::Checker;
use crate::{
    books::{Books, Turn},
    world::World,
};

const IDLE: Duration = Duration::from_secs(5);

/// Only processes of the last `LeftBehind` are ended: when they are idle, or when memory is short.
/// At the end of a run no idle one is left.
#[derive(Default)]
pub(super) struct Leftovers {
    left: BTreeMap<i32, Leftover>,
}

impl Checker for Leftovers {
    fn name(&self) -> &'static str {
        "leftovers"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _world: &World) -> Result<(), String> {
        if let Some(Event::LeftBehind(found)) = &turn.event {
            let found = found.iter().cloned();
            self.left = found.map(|one| (one.pid, one)).collect();
        }
        for action in &turn.actions {
            let Action::EndLeftover { process, signal } = action else {
                continue;
            };
            let pid = process.0;
            let Some(one) = self.left.get(&pid) else {
                return Err(format!("{pid} is ended and was not left over"));
            };
            if books.spec.recycle.leftovers == spec::Leftovers::Tell {
                return Err(format!("{pid} is ended, and was only to be told of"));
            }
            // A tree is asked only for being idle; where memory is short it is killed at once.
            if *signal == Signal::TERM && one.idle < IDLE {
                return Err(format!("{pid} is asked to end and still works"));
            }
            if *signal == Signal::KILL && one.idle < IDLE && books.limits.budget.bytes.is_none() {
                return Err(format!("{pid} is killed, and there is no budget to meet"));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, _world: &World) -> Result<(), String> {
        let ends = books.spec.recycle.leftovers == spec::Leftovers::End;
        if !ends || books.stopping.is_some() || !books.up {
            return Ok(());
        }
        let late = IDLE.saturating_mul(2);
        let idle = self.left.values().find(|one| one.idle > late);
        idle.map_or(Ok(()), |one| {
            let memory: Bytes = one.memory;
            Err(format!("{} is idle, holds {memory} and was left", one.pid))
        })
    }
}
