//! Forks that the system refuses: no more processes, or no memory for one.

use super::{
    Next, Phase, Pool,
    event::{Action, Over, SlotId},
    life::rest_after,
    worker::Stage,
};
use crate::units::{Timestamp, WorkerId};

/// A slot may be refused so often in a row, within some 6 seconds, before the pool is given up.
const REFUSALS_MAX: u32 = 7;

impl Pool {
    /// Asks again after a growing pause. As long as another worker does tasks there is no hurry.
    pub(super) fn on_fork_refused(&mut self, now: Timestamp, id: SlotId, worker: Option<WorkerId>) {
        match worker {
            Some(worker) => drop(self.workers.remove(&worker)),
            None => self.on_nest_gone(now, id, crate::supervisor::event::Oom::No),
        }
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.refused = slot.refused.saturating_add(1);
        slot.rests_until = Some(now.later(rest_after(slot.refused)));
        let serves = |stage| matches!(stage, Stage::Serves | Stage::Retires);
        let alone = !self.workers.values().any(|worker| serves(worker.stage));
        if slot.refused >= REFUSALS_MAX && alone && self.phase == Phase::Running {
            self.phase = Phase::Clearing(Next::End(Over::GaveUp));
            self.actions.push_back(Action::EndTemplate);
        }
    }

    /// What has rested is asked again.
    pub(super) fn wake_rested(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            if slot.rests_until.is_some_and(|until| until <= now) {
                slot.rests_until = None;
                self.dispatch = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        supervisor::{
            pool::{event::Event, spec::PoolSpec},
            spec::MemorySpec,
        },
        units::Bytes,
    };

    /// A pool of two, of which the first works if `works`; the second cannot be forked from now on.
    /// The result: how often it was asked for up to `seconds`, and whether the pool was given up.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is answered")]
    fn refused(works: bool, nests: bool, seconds: u64) -> (usize, bool) {
        let mut pool = Pool::new(PoolSpec {
            workers: 2,
            max_tasks: None,
            max_age: None,
            memory: MemorySpec::plain(),
            task_timeout: None,
            retries: 0,
            oom_retries: 1,
            batch: Some(1),
            stop_on_error: false,
        });
        let begin = Timestamp::default();
        let end = begin.later(Duration::from_secs(seconds));
        let mut now = begin;
        let mut asked = 0;
        let mut news: Vec<Event> = vec![Event::Available(Bytes::mib(4000)), Event::TemplateReady];
        news.extend((1..=9).map(|seq| Event::Came { seq, key: 0 }));
        news.reverse();
        while now < end {
            pool.handle_event(now, news.pop().unwrap_or(Event::Deadline));
            while let Some(action) = pool.poll_action() {
                let refused = match action {
                    Action::EndTemplate => return (asked, true),
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
                asked += usize::from(matches!(refused, Event::ForkRefused(SlotId(1), _)));
                news.push(refused);
            }
            if news.is_empty() {
                now = pool.poll_deadline().unwrap_or(end).max(now);
            }
        }
        (asked, false)
    }

    #[test]
    fn a_refused_fork_is_asked_for_again_after_growing_pauses() {
        for nests in [true, false] {
            // 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 seconds, and then every five.
            assert_eq!(refused(true, nests, 60), (17, false), "nests: {nests}");
        }
    }

    #[test]
    fn without_any_worker_refused_forks_end_the_pool() {
        let (asked, given_up) = refused(false, false, 60);
        assert!(given_up);
        assert_eq!(asked, 7);
    }
}
