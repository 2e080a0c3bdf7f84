//! Forks that the kernel refuses because a limit on processes or memory is reached.

use super::{
    Next, Phase, Pool,
    event::{Over, SlotId},
    life::backoff_after,
    worker::Stage,
};
use crate::{
    supervisor::event::Oom,
    units::{Timestamp, WorkerId},
};

/// Refusals in a row, which take about 6 seconds, after which a pool without workers gives up.
const REFUSALS_MAX: u32 = 7;

impl Pool {
    /// Tries again after a growing pause. The pool gives up only if no other worker takes tasks.
    pub(super) fn on_fork_refused(&mut self, now: Timestamp, id: SlotId, worker: Option<WorkerId>) {
        match worker {
            Some(worker) => drop(self.workers.remove(&worker)),
            None => self.on_nest_gone(now, id, Oom::No),
        }
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.refusals = slot.refusals.saturating_add(1);
        let refusals = slot.refusals;
        slot.backoff_until = Some(now.later(backoff_after(refusals)));
        let serves = |stage| matches!(stage, Stage::Serves | Stage::Retires);
        let is_served = self.workers.values().any(|worker| serves(worker.stage));
        if refusals >= REFUSALS_MAX && !is_served && self.phase == Phase::Running {
            self.clear(Next::End(Over::GaveUp));
        }
    }

    /// Lets slots fork again whose pause is over.
    pub(super) fn end_backoff(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            if slot.backoff_until.is_some_and(|until| until <= now) {
                slot.backoff_until = None;
                self.dispatch = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        supervisor::{
            event::{Ended, Oom},
            pool::{
                event::{Action, Event, WorkerEnd},
                fixture::{at, handle_at, starting},
            },
        },
        units::Bytes,
    };

    /// Runs a pool of two slots for a minute. In slot 1 the fork of the nest is refused if `nests`,
    /// else the fork of the worker; in slot 0 the fork of the worker is refused unless `works`. The
    /// result: the number of refusals in slot 1, and whether the pool gave up.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is answered")]
    fn refused(works: bool, nests: bool) -> (usize, bool) {
        let mut pool = starting(2);
        let end = at(60_000);
        let mut now = at(0);
        let mut refusals = 0;
        let mut inputs = vec![Event::TemplateReady];
        inputs.extend((1..=9).map(|seq| Event::Came { seq, key: 0 }));
        inputs.reverse();
        while now < end {
            let event = inputs.pop().unwrap_or(Event::Deadline);
            for action in handle_at(&mut pool, now, event) {
                let answer = match action {
                    Action::EndTemplate => return (refusals, true),
                    Action::Look(slot) => Event::Sampled(slot, Bytes::ZERO),
                    Action::RaiseNest(slot, _) if slot.0 == 0 || !nests => Event::NestUp(slot),
                    Action::RaiseNest(slot, _) => Event::ForkRefused(slot, None),
                    Action::Fork(slot, worker) if slot.0 == 0 && works => Event::Ready {
                        worker,
                        base: Bytes::ZERO,
                    },
                    Action::Fork(slot, worker) => Event::ForkRefused(slot, Some(worker)),
                    _ => continue,
                };
                refusals += usize::from(matches!(answer, Event::ForkRefused(SlotId(1), _)));
                inputs.push(answer);
            }
            if inputs.is_empty() {
                now = pool.poll_deadline().unwrap_or(end).max(now);
            }
        }
        (refusals, false)
    }

    #[test]
    fn a_refused_fork_is_tried_again_after_growing_pauses() {
        for nests in [true, false] {
            // After 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 seconds, and then every five.
            assert_eq!(refused(true, nests), (17, false), "nests: {nests}");
        }
    }

    #[test]
    fn a_worker_that_starts_ends_a_row_of_refusals() {
        let mut pool = starting(1);
        let mut now = at(0);
        let mut forks = 0;
        let mut inputs = vec![Event::Came { seq: 1, key: 0 }, Event::TemplateReady];
        while forks < 2 * REFUSALS_MAX {
            let event = inputs.pop().unwrap_or(Event::Deadline);
            for action in handle_at(&mut pool, now, event) {
                assert_ne!(action, Action::EndTemplate, "after {forks} forks");
                if let Action::RaiseNest(slot, _) = action {
                    inputs.push(Event::NestUp(slot));
                }
                let Action::Fork(slot, worker) = action else {
                    continue;
                };
                forks += 1;
                if forks != REFUSALS_MAX {
                    inputs.push(Event::ForkRefused(slot, Some(worker)));
                    continue;
                }
                inputs.push(Event::WorkerEnded(WorkerEnd {
                    worker,
                    ended: Ended::Exit(0),
                    oom: Oom::No,
                    peak: None,
                    begun: 0,
                    finished: 0,
                    receiving: 0,
                }));
                let base = Bytes::ZERO;
                inputs.push(Event::Ready { worker, base });
            }
            if inputs.is_empty() {
                now = pool.poll_deadline().unwrap_or(now);
            }
        }
    }

    #[test]
    fn a_pool_without_workers_gives_up_after_seven_refused_forks() {
        assert_eq!(refused(false, false), (7, true));
    }
}
