//! Loops end: starts of workers that fail immediately, and recycles of workers that are over their
//! ceiling soon after their start.

use std::time::Duration;

use supervise::{
    supervisor::{action::Action, cause::Cause, event::Event, input::Input},
    units::RunId,
};

use super::Checker;
use crate::{
    record::{Record, Turn},
    world::World,
};

/// The decider warns when consecutive workers end before they are ready. If no worker serves, it
/// ends their server.
#[derive(Default)]
pub(super) struct CannotStart {
    has_warned: bool,
    /// `Record::unready` at the last turn.
    unready: u32,
    ended: Option<RunId>,
}

/// The number of consecutive failed workers that counts as a loop.
const UNREADY_MAX: u32 = 5;

impl Checker for CannotStart {
    fn name(&self) -> &'static str {
        "cannot-start"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        let warned = |event: &Event| match event {
            Event::Warning(text) => text.contains("workers cannot start"),
            _ => false,
        };
        let killed = |action: &Action| matches!(action, Action::KillRun { .. });
        if turn.events.iter().any(warned) {
            if self.has_warned {
                return Err("the warning that workers cannot start came twice".to_owned());
            }
            self.has_warned = true;
        }
        if turn.actions.iter().any(killed) {
            self.ended = Some(record.run);
        }
        // The decider decides about the server when one more worker fails.
        let more = record.unready > std::mem::replace(&mut self.unready, record.unready);
        if !record.up || record.stopping.is_some() || record.unready < UNREADY_MAX {
            return Ok(());
        }
        let many = record.unready;
        if !self.has_warned {
            return Err(format!(
                "{many} workers ended before they were ready, without a warning"
            ));
        }
        if more && record.may_loop() && self.ended != Some(record.run) {
            return Err(format!(
                "{many} workers ended before they were ready, no worker serves, and the server \
                 still runs"
            ));
        }
        Ok(())
    }
}

/// Only a few consecutive workers are recycled at their ceiling soon after their start, unless they
/// are close to their cap. This does not apply to leaking workers of a server once one of them has
/// grown close to its cap.
#[derive(Default)]
pub(super) struct RecycleLoop {
    consecutive: u32,
    leaks: bool,
}

/// A single program is warm this many times `min_age` after its start: growth after that is no
/// longer warm-up.
const EARLY_SINGLE: f64 = 1.5;

impl Checker for RecycleLoop {
    fn name(&self) -> &'static str {
        "recycle-loop"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        // With new limits or new workers, a recycle may help where it did not before.
        let anew = turn
            .events
            .iter()
            .any(|one| matches!(one, Event::Limits(_)));
        if anew || matches!(turn.input, Some(Input::Available(_))) {
            self.consecutive = 0;
        }
        let times = if record.is_server() {
            1.0
        } else {
            EARLY_SINGLE
        };
        let early = record.spec.recycle.min_age.mul_f64(times);
        let ceiling = record.limits.ceiling.bytes.unwrap_or_default();
        for (_, seen) in record.alive().filter(|(_, seen)| seen.serves()) {
            let low = ceiling.scaled(1.0 - record.spec.recycle.jitter);
            let below = seen.value().is_some_and(|value| value < low);
            if below && turn.at.since(seen.at) >= early {
                self.consecutive = 0;
            }
        }
        let cap = record.limits.cap.bytes.unwrap_or(ceiling.scaled(2.0));
        let near = ceiling.plus(cap.minus(ceiling).scaled(0.5));
        for (worker, cause) in turn.drains() {
            let Some(seen) = record.workers.get(&worker) else {
                continue;
            };
            if cause != Cause::Ceiling {
                continue;
            }
            let is_early = turn.at.since(seen.at) < early.saturating_sub(Duration::from_millis(1));
            let leaks = world
                .process(worker)
                .is_some_and(|process| process.rate() > 0.0);
            let leaks = leaks && record.is_server();
            if !is_early {
                self.consecutive = 0;
            } else if seen.value().is_some_and(|value| value >= near) {
                self.leaks |= leaks;
            } else if !(self.leaks && leaks) {
                self.consecutive += 1;
            }
        }
        // The decider learns late of a new number of wanted workers, and the surge worker adds one.
        let most = 2 * (world.scenario.workers.max(world.wanted) + 1) + 2;
        if self.consecutive > most {
            return Err(format!(
                "{} workers in a row were recycled at the ceiling soon after their start",
                self.consecutive
            ));
        }
        Ok(())
    }
}
