//! Processes that outlive their worker are ended as configured, and no others.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        input::{Input, Leftover},
        spec,
    },
    units::{Bytes, Signal},
};

use super::Checker;
use crate::{
    record::{Record, Turn},
    world::World,
};

const IDLE: Duration = Duration::from_secs(5);

/// Only processes of the last `LeftBehind` are ended, and only when they are idle or memory is
/// short. At the end of a run no idle one is left.
#[derive(Default)]
pub(super) struct Leftovers {
    left: BTreeMap<i32, Leftover>,
}

impl Checker for Leftovers {
    fn name(&self) -> &'static str {
        "leftovers"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _world: &World) -> Result<(), String> {
        if let Some(Input::LeftBehind(found)) = &turn.input {
            let found = found.iter().cloned();
            self.left = found.map(|one| (one.pid, one)).collect();
        }
        for action in &turn.actions {
            let Action::EndLeftover { process, signal } = action else {
                continue;
            };
            let pid = process.0;
            let Some(one) = self.left.get(&pid) else {
                return Err(format!("{pid} is ended, and is not a leftover"));
            };
            if record.spec.recycle.leftovers == spec::Leftovers::Tell {
                return Err(format!(
                    "{pid} is ended, and the configuration says only to report it"
                ));
            }
            // SIGTERM is only for idle trees. When memory is short, a tree gets SIGKILL.
            if *signal == Signal::TERM && one.idle < IDLE {
                return Err(format!("{pid} got SIGTERM, and is not idle"));
            }
            if *signal == Signal::KILL && one.idle < IDLE && record.limits.budget.bytes.is_none() {
                return Err(format!(
                    "{pid} is killed while busy, and there is no budget"
                ));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, _world: &World) -> Result<(), String> {
        let ends = record.spec.recycle.leftovers == spec::Leftovers::End;
        if !ends || record.stopping.is_some() || !record.up {
            return Ok(());
        }
        let late = IDLE.saturating_mul(2);
        let idle = self.left.values().find(|one| one.idle > late);
        idle.map_or(Ok(()), |one| {
            let memory: Bytes = one.memory;
            Err(format!(
                "{} is idle, uses {memory}, and was not ended",
                one.pid
            ))
        })
    }
}
