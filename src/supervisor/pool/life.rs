//! The template, the nests, and the pool's own end.

use std::time::Duration;

use super::{
    Next, Phase, Pool, STARTS_MAX,
    event::{Action, Fate, Over, SlotId, TemplateEnd},
    worker::{Nest, Stage},
};
use crate::{
    supervisor::{
        event::{Ended, Oom},
        limits::{Circumstances, derive},
        report::Effective,
        spec::Limit,
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// The part of the budget that one worker may have: the rest is the template's and the nests'.
const ALONE: f64 = 0.95;
/// Once a template was ready, this many may end in a row before the pool gives up.
const KILLS_MAX: u32 = 50;
/// A template that ended while it started is started again after this time; it doubles with each
/// further end,
const REST: Duration = Duration::from_millis(100);
/// up to this.
const REST_MAX: Duration = Duration::from_secs(5);

pub(super) fn rest_after(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    REST.saturating_mul(doubled).min(REST_MAX)
}

impl Pool {
    pub(super) fn on_available(&mut self, available: Bytes) {
        let here = Circumstances {
            available,
            workers: Some(self.spec.workers),
            job: false,
        };
        self.limits = derive(&self.spec.memory, here);
        if (self.spec.memory.ceiling, self.spec.memory.cap) == (Limit::Auto, Limit::Auto) {
            // Nobody has said what a task may need: one that runs alone may have nearly all.
            let most = self.limits.budget.bytes.map(|it| it.scaled(ALONE));
            self.limits.cap = Effective {
                bytes: most,
                from: "nearly the budget".to_owned(),
            };
        }
        self.actions
            .push_back(Action::Budget(self.limits.budget.bytes));
        if self.phase == Phase::Idle {
            self.start_template();
        }
    }

    pub(super) fn on_template_ready(&mut self) {
        if self.phase != Phase::Starting {
            return;
        }
        self.phase = Phase::Running;
        self.has_imported = true;
        self.dispatch = true;
    }

    pub(super) fn on_template_unfit(&mut self) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Clearing(Next::Restart);
            self.actions.push_back(Action::EndTemplate);
        }
    }

    /// Ends what is left when all is done.
    fn clear(&mut self, over: Over) {
        self.phase = Phase::Clearing(Next::End(over));
        self.actions.push_back(Action::EndTemplate);
    }

    /// The template's exit handlers have had their time.
    pub(super) fn end_late(&mut self, now: Timestamp) {
        if let Phase::Leaving(over, until) = self.phase
            && until <= now
        {
            self.clear(over);
        }
    }

    pub(super) fn on_template_failed(&mut self, end: TemplateEnd) {
        if let Phase::Leaving(over, _) = self.phase {
            return self.clear(over);
        }
        if matches!(
            self.phase,
            Phase::Clearing(_) | Phase::Resting(_) | Phase::Over
        ) {
            return;
        }
        self.template_failures = self.template_failures.saturating_add(1);
        let starts = self.phase == Phase::Starting;
        // What cannot be imported the first time cannot be imported the second time. What was
        // killed while it started may start, and what was imported once can be imported again.
        let most = match (end, self.has_imported) {
            (TemplateEnd::Refused, false) => 0,
            (TemplateEnd::Died(..), false) => STARTS_MAX - 1,
            (_, true) => KILLS_MAX,
        };
        let next = if self.template_failures > most {
            Next::End(Over::GaveUp)
        } else if starts {
            Next::RestartAfter(rest_after(self.template_failures))
        } else {
            Next::Restart
        };
        let rest = match next {
            Next::Restart => Some(Duration::ZERO),
            Next::RestartAfter(rest) => Some(rest),
            Next::End(_) => None,
        };
        let anew = rest.map(|rest| Action::TemplateAnew(end, rest));
        self.actions.extend(anew);
        self.phase = Phase::Clearing(next);
        self.actions.push_back(Action::EndTemplate);
    }

    pub(super) fn on_template_gone(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            // Nothing is left, and nobody said how it ended: its keeper was killed.
            self.on_template_failed(TemplateEnd::Died(Ended::Unseen, Oom::No));
        }
        let slots: Vec<_> = self.slots.keys().copied().collect();
        for slot in slots {
            self.on_nest_gone(now, slot, Oom::No);
        }
        match (self.phase, self.stop) {
            (Phase::Clearing(Next::Restart | Next::RestartAfter(_)), Some(over))
            | (Phase::Clearing(Next::End(over)) | Phase::Leaving(over, _), _) => self.end(over),
            (Phase::Clearing(Next::Restart), None) => self.start_template(),
            (Phase::Clearing(Next::RestartAfter(rest)), None) => {
                self.phase = Phase::Resting(now.later(rest));
            }
            (
                Phase::Idle | Phase::Starting | Phase::Resting(_) | Phase::Running | Phase::Over,
                _,
            ) => {}
        }
    }

    /// Starts the template that could not start, once it has rested.
    pub(super) fn start_rested(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Resting(until) if until <= now) {
            self.start_template();
        }
    }

    fn start_template(&mut self) {
        self.phase = Phase::Starting;
        self.actions.push_back(Action::StartTemplate);
    }

    pub(super) fn on_nest_up(&mut self, now: Timestamp, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(&slot)
            && slot.nest == Nest::Asked
        {
            slot.nest = Nest::Up;
            slot.suspended = false;
            slot.memory = Bytes::ZERO;
            slot.look_at = now;
            self.dispatch = true;
        }
    }

    pub(super) fn on_ready(&mut self, now: Timestamp, id: WorkerId, base: Bytes) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.stage == Stage::Boots {
            worker.stage = Stage::Serves;
            worker.base = base;
            worker.front_since = now;
            let slot = self.slots.get_mut(&worker.slot);
            slot.into_iter().for_each(|slot| slot.refused = 0);
            self.deaths = 0;
            self.starts_failed = 0;
            self.template_failures = 0;
            self.dispatch = true;
        }
    }

    /// Begins nothing else; what has begun is finished.
    pub(super) fn stop(&mut self, over: Over) {
        if self.stop.is_none() {
            self.stop = Some(over);
            let waiting = self.queue.drain(..).chain(self.alone.drain(..));
            let begun = waiting.filter(|ticket| ticket.attempts() > 0);
            let abandoned = begun.map(|ticket| Action::Abandon(ticket.seq));
            self.actions.extend(abandoned);
            let busy = self
                .workers
                .iter()
                .filter(|(_, worker)| !worker.window.is_empty());
            self.actions.extend(busy.map(|(id, _)| Action::Halt(*id)));
            match self.phase {
                Phase::Idle | Phase::Resting(_) => self.end(over),
                // Nobody works while a template starts: what it imports is not waited for.
                Phase::Starting => self.clear(over),
                Phase::Running | Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over => {}
            }
            self.dispatch = true;
        }
    }

    /// Begins nothing else, and ends what has begun.
    pub(super) fn stop_at_once(&mut self) {
        self.stop(Over::Stopped);
        let over = self.stop.unwrap_or(Over::Stopped);
        match self.phase {
            Phase::Idle | Phase::Resting(_) | Phase::Over => {}
            Phase::Clearing(_) => self.phase = Phase::Clearing(Next::End(over)),
            Phase::Leaving(over, _) => self.clear(over),
            Phase::Starting | Phase::Running => self.clear(over),
        }
    }

    pub(super) fn end(&mut self, over: Over) {
        if over == Over::GaveUp {
            for ticket in std::mem::take(&mut self.queue)
                .into_iter()
                .chain(std::mem::take(&mut self.alone))
            {
                self.actions.push_back(Action::Fail {
                    seq: ticket.seq,
                    worker: None,
                    cause: Fate::StartFailed,
                    attempts: ticket.attempts(),
                    peak: None,
                    ran: Duration::ZERO,
                });
            }
        }
        self.phase = Phase::Over;
        self.actions.push_back(Action::Over(over));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{
        event::Ended,
        pool::{
            LEAVE,
            event::{Event, How},
            spec::PoolSpec,
        },
        spec::MemorySpec,
    };
    use crate::units::Signal;

    /// A pool whose template is being started.
    fn starting() -> Pool {
        let mut pool = Pool::new(PoolSpec {
            workers: 2,
            max_tasks: None,
            max_age: None,
            memory: MemorySpec::plain(),
            task_timeout: None,
            retries: 0,
            oom_retries: 1,
            batch: None,
            stop_on_error: false,
        });
        happens(&mut pool, Event::Available(Bytes::mib(1000)));
        pool
    }

    /// Hands in an event. The result: what the pool does about it.
    fn happens(pool: &mut Pool, event: Event) -> Vec<Action> {
        pool.handle_event(Timestamp::default(), event);
        std::iter::from_fn(|| pool.poll_action()).collect()
    }

    fn killed() -> Event {
        Event::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No))
    }

    /// The template ends. The result: after which time it is started anew; `None`: not at all.
    fn started_anew(pool: &mut Pool, end: Event) -> Option<Duration> {
        let mut now = Timestamp::default();
        happens(pool, end);
        let mut actions = happens(pool, Event::TemplateGone);
        let mut rested = Duration::ZERO;
        if let (Phase::Resting(_), Some(until)) = (pool.phase, pool.poll_deadline()) {
            rested = until.since(now);
            now = until;
            pool.handle_event(now, Event::Deadline);
            actions.extend(std::iter::from_fn(|| pool.poll_action()));
        }
        let anew = actions.contains(&Action::StartTemplate);
        let given_up = actions.contains(&Action::Over(Over::GaveUp));
        assert_ne!(anew, given_up, "{actions:?}");
        anew.then_some(rested)
    }

    #[test]
    fn a_template_that_is_killed_while_it_starts_is_started_again_with_growing_rests() {
        let mut pool = starting();
        let rests: Vec<_> = std::iter::from_fn(|| started_anew(&mut pool, killed())).collect();
        assert_eq!(rests, [100, 200].map(Duration::from_millis));
        let mut pool = starting();
        happens(&mut pool, Event::TemplateReady);
        // It served: there is no need to wait.
        assert_eq!(started_anew(&mut pool, killed()), Some(Duration::ZERO));
        let rests: Vec<_> = std::iter::from_fn(|| started_anew(&mut pool, killed())).collect();
        assert_eq!(
            rests.len() + 1,
            usize::try_from(KILLS_MAX).unwrap(),
            "not for ever"
        );
        assert_eq!(rests.first(), Some(&(2 * REST)));
        assert_eq!(rests.iter().max(), Some(&REST_MAX));
    }

    #[test]
    fn a_template_that_cannot_import_is_not_started_again() {
        let refused = || Event::TemplateFailed(TemplateEnd::Refused);
        assert_eq!(started_anew(&mut starting(), refused()), None);
        // What could be imported once may be imported again.
        let mut pool = starting();
        happens(&mut pool, Event::TemplateReady);
        assert!(started_anew(&mut pool, killed()).is_some());
        assert!(started_anew(&mut pool, refused()).is_some());
    }

    #[test]
    fn a_pool_that_is_stopped_while_its_template_rests_ends() {
        let mut pool = starting();
        happens(&mut pool, killed());
        happens(&mut pool, Event::TemplateGone);
        assert!(matches!(pool.phase, Phase::Resting(_)));
        let actions = happens(&mut pool, Event::Stop);
        assert_eq!(actions, [Action::Over(Over::Stopped)]);
        assert_eq!(pool.poll_deadline(), None);
    }

    /// Starts the worker that is to be forked. The result: it, and what the pool does then.
    fn forked(pool: &mut Pool, actions: &[Action]) -> (WorkerId, Vec<Action>) {
        let Some(&Action::Fork(slot, worker)) = actions.last() else {
            panic!("{actions:?}");
        };
        happens(pool, Event::Born { slot, worker });
        let base = Bytes::mib(10);
        (worker, happens(pool, Event::Ready { worker, base }))
    }

    #[test]
    fn a_worker_that_meets_its_cap_before_it_begins_a_task_is_no_attempt_of_it() {
        let mut pool = starting();
        happens(&mut pool, Event::TemplateReady);
        happens(&mut pool, Event::Came { seq: 1, key: 0 });
        let mut actions = happens(&mut pool, Event::NestUp(SlotId(0)));
        for begun in [0, 1, 1] {
            let (worker, sent) = forked(&mut pool, &actions);
            assert!(sent.contains(&Action::Send(worker, 1)), "{sent:?}");
            let met_its_cap = Event::WorkerEnded {
                worker,
                ended: Ended::Signal(Signal::KILL),
                oom: Oom::Cap,
                peak: None,
                begun,
                finished: 0,
                receiving: 0,
            };
            actions = happens(&mut pool, met_its_cap);
        }
        let attempts = actions.iter().find_map(|it| {
            if let Action::Fail { attempts, .. } = it {
                Some(*attempts)
            } else {
                None
            }
        });
        assert_eq!(attempts, Some(2), "{actions:?}");
    }

    /// A pool that has one worker and one task, which has returned, and whose source has no more.
    fn done() -> (Pool, WorkerId) {
        let mut pool = starting();
        happens(&mut pool, Event::TemplateReady);
        happens(&mut pool, Event::Came { seq: 1, key: 0 });
        let slot = SlotId(0);
        let actions = happens(&mut pool, Event::NestUp(slot));
        let Some(&Action::Fork(_, worker)) = actions.last() else {
            panic!("{actions:?}");
        };
        happens(&mut pool, Event::Born { slot, worker });
        let base = Bytes::mib(10);
        let actions = happens(&mut pool, Event::Ready { worker, base });
        assert!(actions.contains(&Action::Send(worker, 1)), "{actions:?}");
        let ended = Event::Ended {
            worker,
            seq: 1,
            how: How::Returned,
            micros: 10,
            peak: base,
        };
        happens(&mut pool, ended);
        (pool, worker)
    }

    #[test]
    fn a_pool_that_is_done_ends_the_rest_when_its_workers_have_run_their_exit_handlers() {
        let (mut pool, worker) = done();
        let actions = happens(&mut pool, Event::SourceEnded);
        assert_eq!(actions, [Action::Quit(worker)]);
        let left = Event::WorkerEnded {
            worker,
            ended: Ended::Exit(0),
            oom: Oom::No,
            peak: None,
            begun: 1,
            finished: 1,
            receiving: 0,
        };
        let actions = happens(&mut pool, left);
        assert_eq!(actions, [Action::QuitTemplate]);
        let end = Event::TemplateFailed(TemplateEnd::Died(Ended::Exit(0), Oom::No));
        assert_eq!(happens(&mut pool, end), [Action::EndTemplate]);
        let actions = happens(&mut pool, Event::TemplateGone);
        assert_eq!(actions, [Action::Over(Over::Done)]);
    }

    #[test]
    fn a_worker_whose_exit_handlers_hang_holds_up_the_end_only_for_its_time() {
        let (mut pool, worker) = done();
        happens(&mut pool, Event::SourceEnded);
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, Timestamp::default().later(LEAVE));
        pool.handle_event(late, Event::Deadline);
        let actions: Vec<_> = std::iter::from_fn(|| pool.poll_action()).collect();
        assert!(actions.contains(&Action::KillWorker(worker)), "{actions:?}");
        assert_eq!(actions.last(), Some(&Action::QuitTemplate));
        // And so do those of the template.
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, Timestamp::default().later(LEAVE).later(LEAVE));
        pool.handle_event(late, Event::Deadline);
        assert_eq!(pool.poll_action(), Some(Action::EndTemplate));
    }

    #[test]
    fn a_second_wish_to_stop_does_not_wait_for_exit_handlers() {
        let (mut pool, worker) = done();
        assert_eq!(happens(&mut pool, Event::Stop), [Action::Quit(worker)]);
        let actions = happens(&mut pool, Event::StopAtOnce);
        assert_eq!(actions, [Action::EndTemplate]);
    }
}
