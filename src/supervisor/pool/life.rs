//! The start, restart and end of the template and the fork servers, and the end of the pool.

use std::time::Duration;

use super::{
    Next, Phase, Pool, STARTS_MAX,
    input::{Action, Fate, Over, SlotId, TemplateEnd},
    slot::Slot,
};
use crate::{
    supervisor::{
        event::{Effective, Event, Limits},
        input::{Ended, Oom},
        policy::limits::{Circumstances, derive},
        spec::Limit,
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// The default cap of a worker, as a part of the budget. The template and the fork servers use the
/// rest.
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
            lifted: false,
        };
        let mut limits = derive(&self.spec.memory, here);
        if (self.spec.memory.ceiling, self.spec.memory.cap) == (Limit::Auto, Limit::Auto) {
            // It is unknown how much memory a task needs. A task that runs alone may use nearly the
            // whole budget.
            let cap = Effective {
                bytes: limits.budget.bytes.map(|it| it.scaled(CAP_SHARE)),
                from: "nearly the budget".to_owned(),
            };
            limits = Limits { cap, ..limits };
        }
        let before = std::mem::replace(&mut self.limits, limits);
        if self.limits != before {
            self.emit(Event::Limits(self.limits.clone()));
        }
        self.act(Action::Budget(self.limits.budget.bytes));
        if self.phase == Phase::Idle {
            self.start_template();
        }
    }

    pub(super) fn on_template_ready(&mut self) {
        if self.phase != Phase::Starting {
            return;
        }
        self.set_phase(Phase::Running);
        self.starts.on_template_ready();
        self.plan_dispatch();
    }

    pub(super) fn on_template_unfit(&mut self) {
        if self.phase == Phase::Starting {
            self.clear(Next::Restart(Duration::ZERO));
        }
    }

    /// Kills the template and everything that it started.
    pub(super) fn clear(&mut self, next: Next) {
        self.set_phase(Phase::Clearing(next));
        self.act(Action::EndTemplate);
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
        let failures = self.starts.on_template_failed();
        let starts = self.phase == Phase::Starting;
        // An import that raises at the first start raises at the next start as well. A template
        // that was killed may start the next time, and imports that have succeeded once may succeed
        // again.
        let restarts = match (end, self.starts.has_imported()) {
            (TemplateEnd::Refused, false) => 0,
            (TemplateEnd::Died(..), false) => STARTS_MAX - 1,
            (_, true) => TEMPLATE_ENDS_MAX,
        };
        let next = if failures > restarts {
            Next::End(Over::GaveUp)
        } else if starts {
            Next::Restart(backoff_after(failures))
        } else {
            Next::Restart(Duration::ZERO)
        };
        if let Next::Restart(pause) = next {
            self.act(Action::TemplateRestarts(end, pause));
        }
        self.clear(next);
    }

    pub(super) fn on_template_gone(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            // Its keeper was killed: no process is left, and its exit status is unknown.
            self.on_template_failed(TemplateEnd::Died(Ended::Unseen, Oom::No));
        }
        let slots: Vec<_> = self.slots.keys().copied().collect();
        for slot in slots {
            self.on_fork_server_gone(now, slot, Oom::No);
        }
        match (self.phase, self.stop) {
            (Phase::Clearing(Next::Restart(_)), Some(over))
            | (Phase::Clearing(Next::End(over)) | Phase::Leaving(over, _), _) => self.end(over),
            (Phase::Clearing(Next::Restart(pause)), None) => {
                self.set_phase(Phase::BackingOff(now.later(pause)));
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
        self.set_phase(Phase::Starting);
        self.act(Action::StartTemplate);
    }

    pub(super) fn on_fork_server_up(&mut self, now: Timestamp, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(&slot)
            && slot.on_fork_server_up(now)
        {
            self.plan_dispatch();
        }
    }

    pub(super) fn on_forked(&mut self, id: WorkerId, pid: i32) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.on_forked(pid);
            let slot = self.slots.get_mut(&worker.slot());
            slot.into_iter().for_each(Slot::forget_oom);
            self.emit(Event::WorkerSeen { worker: id, pid });
        }
    }

    pub(super) fn on_ready(&mut self, now: Timestamp, id: WorkerId, base: Bytes) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.on_ready(now, base) {
            let after = worker.age(now);
            let slot = self.slots.get_mut(&worker.slot());
            if let Some(slot) = slot {
                slot.on_worker_ready();
                slot.forget_oom();
            }
            self.starts.on_worker_ready();
            self.emit(Event::WorkerReady { worker: id, after });
            self.plan_dispatch();
        }
    }

    /// Stops the pool: running tasks are finished, and no other task begins.
    pub(super) fn stop(&mut self, over: Over) {
        if self.stop.is_none() {
            self.stop = Some(over);
            self.emit(Event::Stopping);
            for ticket in std::mem::take(&mut self.tasks.queue) {
                self.drop_waiting(ticket);
            }
            for ticket in std::mem::take(&mut self.tasks.alone) {
                self.drop_waiting(ticket);
            }
            for (id, worker) in &self.workers {
                if !worker.is_idle() {
                    self.out.act(Action::Halt(*id));
                }
            }
            match self.phase {
                Phase::Idle | Phase::BackingOff(_) => self.end(over),
                // No worker exists yet, so the imports are not waited for.
                Phase::Starting => self.clear(Next::End(over)),
                Phase::Running | Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over => {}
            }
            self.plan_dispatch();
        }
    }

    /// Stops the pool and kills running tasks.
    pub(super) fn stop_at_once(&mut self) {
        self.stop(Over::Stopped);
        let over = self.stop.unwrap_or(Over::Stopped);
        match self.phase {
            Phase::Idle | Phase::BackingOff(_) | Phase::Over => {}
            Phase::Clearing(_) => self.set_phase(Phase::Clearing(Next::End(over))),
            Phase::Leaving(over, _) => self.clear(Next::End(over)),
            Phase::Starting | Phase::Running => self.clear(Next::End(over)),
        }
    }

    pub(super) fn end(&mut self, over: Over) {
        if over == Over::GaveUp {
            for ticket in std::mem::take(&mut self.tasks.queue)
                .into_iter()
                .chain(std::mem::take(&mut self.tasks.alone))
            {
                self.tasks.on_failed();
                self.act(Action::Fail {
                    seq: ticket.seq(),
                    worker: None,
                    cause: Fate::StartFailed,
                    attempts: ticket.attempts(),
                    peak: None,
                    ran: Duration::ZERO,
                });
            }
        }
        self.set_phase(Phase::Over);
        self.act(Action::Over(over));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        supervisor::pool::{
            LEAVE,
            fixture::{at, exited, handle, handle_at, returned, running, running_with, starting},
            input::{Input, WorkerEnd},
        },
        units::Signal,
    };

    fn killed() -> Input {
        Input::TemplateFailed(TemplateEnd::Died(Ended::Signal(Signal::KILL), Oom::No))
    }

    /// Ends the template. Returns the pause before it is restarted. `None`: the pool gives up.
    fn restarted(pool: &mut Pool, end: Input) -> Option<Duration> {
        handle(pool, end);
        let mut actions = handle(pool, Input::TemplateGone);
        let mut pause = Duration::ZERO;
        if let (Phase::BackingOff(_), Some(until)) = (pool.phase, pool.poll_deadline()) {
            pause = until.since(at(0));
            actions.extend(handle_at(pool, until, Input::Deadline));
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
        handle(&mut pool, Input::TemplateReady);
        // The template was ready before, so it is restarted without a pause.
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
        let refused = || Input::TemplateFailed(TemplateEnd::Refused);
        assert_eq!(restarted(&mut starting(2), refused()), None);
        // Imports that have succeeded once may succeed again.
        let mut pool = starting(2);
        handle(&mut pool, Input::TemplateReady);
        assert!(restarted(&mut pool, killed()).is_some());
        assert!(restarted(&mut pool, refused()).is_some());
    }

    #[test]
    fn a_pool_that_is_stopped_during_the_back_off_of_its_template_ends() {
        let mut pool = starting(2);
        handle(&mut pool, killed());
        handle(&mut pool, Input::TemplateGone);
        assert!(matches!(pool.phase, Phase::BackingOff(_)));
        let actions = handle(&mut pool, Input::Stop);
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
        let actions = handle(&mut pool, Input::SourceEnded);
        assert_eq!(actions, [Action::Quit(worker)]);
        let left = Input::WorkerEnded(WorkerEnd {
            begun: 1,
            finished: 1,
            ..exited(worker)
        });
        let actions = handle(&mut pool, left);
        assert_eq!(actions, [Action::QuitTemplate]);
        let end = Input::TemplateFailed(TemplateEnd::Died(Ended::Exit(0), Oom::No));
        assert_eq!(handle(&mut pool, end), [Action::EndTemplate]);
        let actions = handle(&mut pool, Input::TemplateGone);
        assert_eq!(actions, [Action::Over(Over::Done)]);
    }

    #[test]
    fn a_retired_worker_that_did_not_begin_its_last_task_has_time_for_its_exit_handlers() {
        let (mut pool, worker) = running_with(2, 2);
        handle(&mut pool, Input::Recycle(worker));
        handle(&mut pool, Input::Stop);
        handle(&mut pool, returned(worker, 10));
        let actions = handle(&mut pool, Input::NotBegun { worker, seq: 2 });
        assert_eq!(actions, []);
        assert_eq!(pool.poll_deadline(), Some(at(0).later(LEAVE)));
    }

    #[test]
    fn exit_handlers_that_hang_are_killed_after_their_time_limit() {
        let (mut pool, worker) = done();
        handle(&mut pool, Input::SourceEnded);
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, at(0).later(LEAVE));
        let actions = handle_at(&mut pool, late, Input::Deadline);
        assert!(actions.contains(&Action::KillWorker(worker)), "{actions:?}");
        assert_eq!(actions.last(), Some(&Action::QuitTemplate));
        // The same holds for the template.
        let late = pool.poll_deadline().unwrap();
        assert_eq!(late, at(0).later(LEAVE).later(LEAVE));
        let actions = handle_at(&mut pool, late, Input::Deadline);
        assert_eq!(actions, [Action::EndTemplate]);
    }

    #[test]
    fn a_second_stop_does_not_wait_for_exit_handlers() {
        let (mut pool, worker) = done();
        assert_eq!(handle(&mut pool, Input::Stop), [Action::Quit(worker)]);
        let actions = handle(&mut pool, Input::StopAtOnce);
        assert_eq!(actions, [Action::EndTemplate]);
    }
}
