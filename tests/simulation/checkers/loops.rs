//! What does not help does not go on for ever: starts of workers that end at once, and recycles of
//! workers that are over their ceiling soon after their start.

use std::time::Duration;

use supervise::{
    supervisor::{
        action::Action,
        event::Event,
        report::{Cause, Report},
    },
    units::RunId,
};

use super::Checker;
use crate::{
    books::{Books, Turn},
    world::World,
};

/// Workers that end before they are ready, one after the other, are warned of. Where no worker
/// serves, their server is ended.
#[derive(Default)]
pub(super) struct CannotStart {
    said: bool,
    /// `Books::unready` at the last turn.
    unready: u32,
    ended: Option<RunId>,
}

/// This many in a row are a loop.
const UNREADY_MAX: u32 = 5;

impl Checker for CannotStart {
    fn name(&self) -> &'static str {
        "cannot-start"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        let told = |report: &Report| match report {
            Report::Warning(text) => text.contains("workers cannot start"),
            _ => false,
        };
        let killed = |action: &Action| matches!(action, Action::KillRun { .. });
        if turn.reports.iter().any(told) {
            if self.said {
                return Err("workers that cannot start are warned of twice".to_owned());
            }
            self.said = true;
        }
        if turn.actions.iter().any(killed) {
            self.ended = Some(books.run);
        }
        // Whether the server is ended is decided when one more ends so.
        let more = books.unready > std::mem::replace(&mut self.unready, books.unready);
        if !books.up || books.stopping.is_some() || books.unready < UNREADY_MAX {
            return Ok(());
        }
        let many = books.unready;
        if !self.said {
            return Err(format!(
                "{many} workers ended before they were ready, and nothing is said"
            ));
        }
        if more && books.may_loop() && self.ended != Some(books.run) {
            return Err(format!(
                "{many} workers ended before they were ready, no worker serves, and it goes on"
            ));
        }
        Ok(())
    }
}

/// Only a few workers in a row are recycled at their ceiling soon after their start, unless they
/// are close to their cap. Leaking workers of a server are excepted, once one of them has grown
/// until it was close to its cap.
#[derive(Default)]
pub(super) struct InVain {
    in_a_row: u32,
    leaks: bool,
}

/// This many times `min_age` after its start, the growth of a program that is one worker is more
/// than its warm-up.
const EARLY_WHOLE: f64 = 1.5;

impl Checker for InVain {
    fn name(&self) -> &'static str {
        "in-vain"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        // With new limits or new workers, what did not help before may help now.
        let anew = turn
            .reports
            .iter()
            .any(|one| matches!(one, Report::Limits(_)));
        if anew || matches!(turn.event, Some(Event::Available(_))) {
            self.in_a_row = 0;
        }
        let times = if books.is_server() { 1.0 } else { EARLY_WHOLE };
        let early = books.spec.recycle.min_age.mul_f64(times);
        let ceiling = books.limits.ceiling.bytes.unwrap_or_default();
        for (_, seen) in books.alive().filter(|(_, seen)| seen.serves()) {
            let low = ceiling.scaled(1.0 - books.spec.recycle.jitter);
            let below = seen.value().is_some_and(|value| value < low);
            if below && turn.at.since(seen.at) >= early {
                self.in_a_row = 0;
            }
        }
        let cap = books.limits.cap.bytes.unwrap_or(ceiling.scaled(2.0));
        let near = ceiling.plus(cap.minus(ceiling).scaled(0.5));
        for (worker, cause) in turn.drains() {
            let Some(seen) = books.workers.get(&worker) else {
                continue;
            };
            if cause != Cause::Ceiling {
                continue;
            }
            let is_early = turn.at.since(seen.at) < early.saturating_sub(Duration::from_millis(1));
            let leaks = world
                .process(worker)
                .is_some_and(|process| process.rate() > 0.0);
            let leaks = leaks && books.is_server();
            if !is_early {
                self.in_a_row = 0;
            } else if seen.value().is_some_and(|value| value >= near) {
                self.leaks |= leaks;
            } else if !(self.leaks && leaks) {
                self.in_a_row += 1;
            }
        }
        // A new number of wanted workers is seen late, and the spare worker adds one.
        let most = 2 * (world.scenario.workers.max(world.wish) + 1) + 2;
        if self.in_a_row > most {
            return Err(format!(
                "{} workers in a row were recycled at the ceiling soon after their start",
                self.in_a_row
            ));
        }
        Ok(())
    }
}
