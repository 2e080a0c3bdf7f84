//! Forks that the kernel refuses because a limit on processes or memory is reached.

use super::{
    Next, Phase, Pool,
    input::{Over, SlotId},
    life::backoff_after,
    worker::Worker,
};
use crate::{
    supervisor::input::Oom,
    units::{Timestamp, WorkerId},
};

/// A pool without workers gives up after this many refusals in a row, which take about 6 seconds.
const REFUSALS_MAX: u32 = 7;

impl Pool {
    /// Tries again after a growing pause. The pool gives up if no other worker takes tasks.
    pub(super) fn on_fork_refused(&mut self, now: Timestamp, id: SlotId, worker: Option<WorkerId>) {
        match worker {
            Some(worker) => drop(self.workers.remove(&worker)),
            None => self.on_fork_server_gone(now, id, Oom::No),
        }
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let refusals = slot.on_fork_refused();
        slot.back_off(now.later(backoff_after(refusals)));
        let mut stages = self.workers.values().map(Worker::stage);
        let is_served = stages.any(|stage| stage.is_serving() || stage.is_retiring());
        if refusals >= REFUSALS_MAX && !is_served && self.phase == Phase::Running {
            self.clear(Next::End(Over::GaveUp));
        }
    }

    /// Allows forks in the slots whose pause is over.
    pub(super) fn end_backoff(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            if slot.end_back_off(now) {
                self.tasks.plan_dispatch();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        supervisor::pool::{
            fixture::{at, exited, handle_at, starting},
            input::{Action, Input},
        },
        units::Bytes,
    };

    /// Runs a pool of two slots for a minute. In slot 1 the fork of the fork server is refused if
    /// `fork_servers`, else the fork of the worker. In slot 0 the fork of the worker is refused
    /// unless `works`. Returns the number of refusals in slot 1, and whether the pool gave up.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is answered")]
    fn refused(works: bool, fork_servers: bool) -> (usize, bool) {
        let mut pool = starting(2);
        let end = at(60_000);
        let mut now = at(0);
        let mut refusals = 0;
        let mut inputs = vec![Input::TemplateReady];
        inputs.extend((1..=9).map(|seq| Input::TaskArrived { seq, key: 0 }));
        inputs.reverse();
        while now < end {
            let event = inputs.pop().unwrap_or(Input::Deadline);
            for action in handle_at(&mut pool, now, event) {
                let answer = match action {
                    Action::EndTemplate => return (refusals, true),
                    Action::SampleSlot(slot) => Input::Sampled(slot, Bytes::ZERO),
                    Action::StartForkServer(slot, _) if slot.0 == 0 || !fork_servers => {
                        Input::ForkServerUp(slot)
                    }
                    Action::StartForkServer(slot, _) => Input::ForkRefused(slot, None),
                    Action::Fork(slot, worker) if slot.0 == 0 && works => Input::Ready {
                        worker,
                        base: Bytes::ZERO,
                    },
                    Action::Fork(slot, worker) => Input::ForkRefused(slot, Some(worker)),
                    _ => continue,
                };
                refusals += usize::from(matches!(answer, Input::ForkRefused(SlotId(1), _)));
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
        for fork_servers in [true, false] {
            // After 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 seconds, and then every five seconds.
            assert_eq!(
                refused(true, fork_servers),
                (17, false),
                "fork servers: {fork_servers}"
            );
        }
    }

    #[test]
    fn a_worker_that_starts_ends_a_row_of_refusals() {
        let mut pool = starting(1);
        let mut now = at(0);
        let mut forks = 0;
        let mut inputs = vec![Input::TaskArrived { seq: 1, key: 0 }, Input::TemplateReady];
        while forks < 2 * REFUSALS_MAX {
            let event = inputs.pop().unwrap_or(Input::Deadline);
            for action in handle_at(&mut pool, now, event) {
                assert_ne!(action, Action::EndTemplate, "after {forks} forks");
                if let Action::StartForkServer(slot, _) = action {
                    inputs.push(Input::ForkServerUp(slot));
                }
                let Action::Fork(slot, worker) = action else {
                    continue;
                };
                forks += 1;
                if forks != REFUSALS_MAX {
                    inputs.push(Input::ForkRefused(slot, Some(worker)));
                    continue;
                }
                inputs.push(Input::WorkerEnded(exited(worker)));
                let base = Bytes::ZERO;
                inputs.push(Input::Ready { worker, base });
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
