//! The template and the nests: start, restart and end; the end of the pool.

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

/// The default cap of a worker, as a part of the budget. The template and the nests use the rest.
const CAP_SHARE: f64 = 0.95;
/// How often in a row a template that was once ready may end before the pool gives up.
const TEMPLATE_ENDS_MAX: u32 = 50;
/// The pause before the first restart after a failed start. It doubles with each further failure.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

pub(super) fn backoff_after(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    BACKOFF.saturating_mul(doubled).min(BACKOFF_MAX)
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
            // The need of a task is unknown: one that runs alone may use nearly the whole budget.
            let cap = self.limits.budget.bytes.map(|it| it.scaled(CAP_SHARE));
            self.limits.cap = Effective {
                bytes: cap,
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
            self.clear(Next::Restart(Duration::ZERO));
        }
    }

    /// Kills the template and everything that it started.
    pub(super) fn clear(&mut self, next: Next) {
        self.phase = Phase::Clearing(next);
        self.actions.push_back(Action::EndTemplate);
    }

    /// Kills a template whose exit handlers take too long.
    pub(super) fn kill_late_template(&mut self, now: Timestamp) {
        if let Phase::Leaving(over, until) = self.phase
            && until <= now
        {
            self.clear(Next::End(over));
        }
    }

    pub(super) fn on_template_failed(&mut self, end: TemplateEnd) {
        if let Phase::Leaving(over, _) = self.phase {
            return self.clear(Next::End(over));
        }
        if matches!(
            self.phase,
            Phase::Clearing(_) | Phase::BackingOff(_) | Phase::Over
        ) {
            return;
        }
        self.template_failures = self.template_failures.saturating_add(1);
        let starts = self.phase == Phase::Starting;
        // An import that raises at the first start raises at the next. A template that was killed
        // may start, and imports that have succeeded once may succeed again.
        let restarts = match (end, self.has_imported) {
            (TemplateEnd::Refused, false) => 0,
            (TemplateEnd::Died(..), false) => STARTS_MAX - 1,
            (_, true) => TEMPLATE_ENDS_MAX,
        };
        let next = if self.template_failures > restarts {
            Next::End(Over::GaveUp)
        } else if starts {
            Next::Restart(backoff_after(self.template_failures))
        } else {
            Next::Restart(Duration::ZERO)
        };
        if let Next::Restart(pause) = next {
            self.actions.push_back(Action::TemplateAnew(end, pause));
        }
        self.clear(next);
    }

    pub(super) fn on_template_gone(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            // Its keeper was killed: nothing is left, and its exit status is unknown.
            self.on_template_failed(TemplateEnd::Died(Ended::Unseen, Oom::No));
        }
        let slots: Vec<_> = self.slots.keys().copied().collect();
        for slot in slots {
            self.on_nest_gone(now, slot, Oom::No);
        }
        match (self.phase, self.stop) {
            (Phase::Clearing(Next::Restart(_)), Some(over))
            | (Phase::Clearing(Next::End(over)) | Phase::Leaving(over, _), _) => self.end(over),
            (Phase::Clearing(Next::Restart(pause)), None) => {
                self.phase = Phase::BackingOff(now.later(pause));
            }
            (
                Phase::Idle | Phase::Starting | Phase::BackingOff(_) | Phase::Running | Phase::Over,
                _,
            ) => {}
        }
    }

    /// Starts the template again when its back-off is over.
    pub(super) fn start_after_backoff(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::BackingOff(until) if until <= now) {
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
            slot.sample_at = now;
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
            slot.into_iter().for_each(|slot| slot.refusals = 0);
            self.deaths = 0;
            self.starts_failed = 0;
            self.template_failures = 0;
            self.dispatch = true;
        }
    }

    /// Begins no further task. The running ones are finished.
    pub(super) fn stop(&mut self, over: Over) {
        if self.stop.is_none() {
            self.stop = Some(over);
            for ticket in std::mem::take(&mut self.queue) {
                self.drop_waiting(ticket);
            }
            for ticket in std::mem::take(&mut self.alone) {
                self.drop_waiting(ticket);
            }
            let busy = self
                .workers
                .iter()
                .filter(|(_, worker)| !worker.window.is_empty());
            self.actions.extend(busy.map(|(id, _)| Action::Halt(*id)));
            match self.phase {
                Phase::Idle | Phase::BackingOff(_) => self.end(over),
                // No worker exists yet, so the imports are not waited for.
                Phase::Starting => self.clear(Next::End(over)),
                Phase::Running | Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over => {}
            }
            self.dispatch = true;
        }
    }

    /// Begins no further task, and kills the running ones.
    pub(super) fn stop_at_once(&mut self) {
        self.stop(Over::Stopped);
        let over = self.stop.unwrap_or(Over::Stopped);
        match self.phase {
            Phase::Idle | Phase::BackingOff(_) | Phase::Over => {}
            Phase::Clearing(_) => self.phase = Phase::Clearing(Next::End(over)),
            Phase::Leaving(over, _) => self.clear(Next::End(over)),
            Phase::Starting | Phase::Running => self.clear(Next::End(over)),
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
    use crate::{
        supervisor::pool::{
            LEAVE,
            event::{Event, WorkerEnd},
            fixture::{at, handle, handle_at, returned, running, starting},
        },
        units::Signal,
    };

    fn killed() -> Event {
        Event::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No))
    }

    /// Ends the template. Returns the pause before it is started again; `None`: the pool gives up.
    fn restarted(pool: &mut Pool, end: Event) -> Option<Duration> {
        handle(pool, end);
        let mut actions = handle(pool, Event::TemplateGone);
        let mut pause = Duration::ZERO;
        if let (Phase::BackingOff(_), Some(until)) = (pool.phase, pool.poll_deadline()) {
            pause = until.since(at(0));
            actions.extend(handle_at(pool, until, Event::Deadline));
        }
        let is_restarted = actions.contains(&Action::StartTemplate);
        let gives_up = actions.contains(&Action::Over(Over::GaveUp));
        assert_ne!(is_restarted, gives_up, "{actions:?}");
        is_restarted.then_some(pause)
    }

    #[test]
    fn a_template_that_is_killed_while_it_starts_is_restarted_after_growing_pauses() {
        let mut pool = starting(2);
        let pauses: Vec<_> = std::iter::from_fn(|| restarted(&mut pool, killed())).collect();
        assert_eq!(pauses, [100, 200].map(Duration::from_millis));
        let mut pool = starting(2);
        handle(&mut pool, Event::TemplateReady);
        // It was ready, so that it is restarted without a pause.
        assert_eq!(restarted(&mut pool, killed()), Some(Duration::ZERO));
        let pauses: Vec<_> = std::iter::from_fn(|| restarted(&mut pool, killed())).collect();
        assert_eq!(
            pauses.len() + 1,
            usize::try_from(TEMPLATE_ENDS_MAX).unwrap()
        );
        assert_eq!(pauses.first(), Some(&(2 * BACKOFF)));
        assert_eq!(pauses.iter().max(), Some(&BACKOFF_MAX));
    }

    #[test]
    fn a_template_whose_first_imports_raise_is_not_restarted() {
        let refused = || Event::TemplateFailed(TemplateEnd::Refused);
        assert_eq!(restarted(&mut starting(2), refused()), None);
        // Imports that have succeeded once may succeed again.
        let mut pool = starting(2);
        handle(&mut pool, Event::TemplateReady);
        assert!(restarted(&mut pool, killed()).is_some());
        assert!(restarted(&mut pool, refused()).is_some());
    }

    #[test]
    fn a_pool_that_is_stopped_during_the_back_off_of_its_template_ends() {
        let mut pool = starting(2);
        handle(&mut pool, killed());
        handle(&mut pool, Event::TemplateGone);
        assert!(matches!(pool.phase, Phase::BackingOff(_)));
        let actions = handle(&mut pool, Event::Stop);
        assert_eq!(actions, [Action::Over(Over::Stopped)]);
        assert_eq!(pool.poll_deadline(), None);
    }

    /// A pool of one worker whose only task has returned, and that worker.
    fn done() -> (Pool, WorkerId) {
        let (mut pool, worker) = running(1);
        handle(&mut pool, returned(worker, 10));
        (pool, worker)
    }

    #[test]
    fn a_pool_that_is_done_ends_its_workers_before_its_template() {
        let (mut pool, worker) = done();
        let actions = handle(&mut pool, Event::SourceEnded);
        assert_eq!(actions, [Action::Quit(worker)]);
        let left = Event::WorkerEnded(WorkerEnd {
            worker,
            ended: Ended::Exit(0),
            oom: Oom::No,
            peak: None,
            begun: 1,
            finished: 1,
            receiving: 0,
        });
        let actions = handle(&mut pool, left);
        assert_eq!(actions, [Action::QuitTemplate]);
        let end = Event::TemplateFailed(TemplateEnd::Died(Ended::Exit(0), Oom::No));
        assert_eq!(handle(&mut pool, end), [Action::EndTemplate]);
        let actions = handle(&mut pool, Event::TemplateGone);
        assert_eq!(actions, [Action::Over(Over::Done)]);
    }

    #[test]
    fn exit_handlers_that_hang_are_killed_after_their_time_limit() {
        let (mut pool, worker) = done();
        handle(&mut pool, Event::SourceEnded);
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, at(0).later(LEAVE));
        let actions = handle_at(&mut pool, late, Event::Deadline);
        assert!(actions.contains(&Action::KillWorker(worker)), "{actions:?}");
        assert_eq!(actions.last(), Some(&Action::QuitTemplate));
        // The same holds for the template.
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, at(0).later(LEAVE).later(LEAVE));
        let actions = handle_at(&mut pool, late, Event::Deadline);
        assert_eq!(actions, [Action::EndTemplate]);
    }

    #[test]
    fn a_second_stop_does_not_wait_for_exit_handlers() {
        let (mut pool, worker) = done();
        assert_eq!(handle(&mut pool, Event::Stop), [Action::Quit(worker)]);
        let actions = handle(&mut pool, Event::StopAtOnce);
        assert_eq!(actions, [Action::EndTemplate]);
    }
}
