//! What follows when the command has ended: its remaining processes are ended, and then it is
//! started again or the supervisor exits.

use std::time::Duration;

use super::{Next, ORPHAN_GRACE, Phase, Stopping};
use crate::supervisor::{
    Supervisor,
    action::Action,
    cause::Cause,
    event::{End, Event, Who},
    input::{Ended, Oom},
    policy::end_loop::LoopCause,
    policy::restart::Verdict,
    spec::RestartWhen,
    worker::Worker,
};
use crate::units::{RunId, Timestamp};

const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;

impl Supervisor {
    pub(crate) fn on_command_ended(
        &mut self,
        now: Timestamp,
        run: RunId,
        (ended, oom): (Ended, Oom),
        successor: Option<i32>,
    ) {
        let Phase::Running { pid, since } = self.state.service.phase else {
            return;
        };
        if !self.state.service.is_current(run) {
            return;
        }
        if let Some(successor) = successor {
            self.state.service.phase = Phase::Running {
                pid: successor,
                since,
            };
            self.state.surge.forget(now);
            self.emit(Event::Warning(format!(
                "the server's first master (pid {pid}) ended; its second master (pid {successor}) \
                 continues"
            )));
            return;
        }
        if let Some(profile) = self.profile() {
            self.explain_server_end(now, ended, profile.boot_failures);
            let cause = match (&self.state.service.stop, self.state.service.loops) {
                (Some(_), _) | (_, Some(_)) => Cause::Stop,
                (None, None) => Cause::of(ended, oom),
            };
            if cause == Cause::BudgetKill {
                self.on_server_budget_kill(now);
            }
            // The end of the only copy is recorded already.
            if !self.is_fleet_of_one() {
                self.record_server_end(now, (pid, since), cause);
            }
        }
        let single = self.ends_with_worker();
        // RACE: the end of a single program comes as two inputs, for the command and for its
        // worker, in either order. The end was planned if the worker drains.
        if single && self.state.workers.values().any(Worker::is_leaving) {
            self.state.service.expect_end();
        }
        if single {
            self.note_failed_recycle(now, ended, since);
        }
        let next = self.what_follows(now, ended);
        self.state.service.ready = false;
        // Orphaned workers hold the listening socket. They only finish their current requests.
        let orphans: Vec<_> = self
            .state
            .workers
            .keys()
            .copied()
            .filter(|_| !single)
            .collect();
        let until = now.later(ORPHAN_GRACE.min(self.spec.stop.grace));
        self.withdraw_last_reports();
        for worker in &orphans {
            self.drain_by_signal(now, *worker, Cause::Stop, until);
        }
        let kill_at = if orphans.is_empty() { now } else { until };
        self.state.service.phase = Phase::Clearing {
            kill_at: Some(kill_at),
            next,
        };
    }

    fn record_server_end(&mut self, now: Timestamp, (pid, since): (i32, Timestamp), cause: Cause) {
        self.record_end(End {
            memory: self.state.usage.server(),
            peak: self.state.usage.server(),
            age: now.since(since),
            ..End::of(Who::Server, pid, cause, now)
        });
    }

    /// A single program that was recycled did not start again, or ended soon after its start.
    fn note_failed_recycle(&mut self, now: Timestamp, ended: Ended, since: Timestamp) {
        let expected =
            self.state.service.planned || self.state.service.stop.is_some() || self.is_job();
        let soon = !self.state.service.is_ready() || now.since(since) < self.spec.recycle.min_age;
        if self.state.starts.follows_recycle() && soon && !expected {
            let run = self.state.service.run;
            let cause = Cause::of(ended, Oom::No);
            let why = format!("{run} was started by a recycle and ended ({cause})");
            self.note_failed_service(now, &why);
        }
    }

    /// Warns if the server stopped because a worker could not boot. The server's own log hardly
    /// says so.
    fn explain_server_end(&mut self, now: Timestamp, ended: Ended, boot_failures: &[i32]) {
        let Ended::Exit(status) = ended else { return };
        if !boot_failures.contains(&status) || self.state.service.stop.is_some() {
            return;
        }
        if self.state.service.is_ready() {
            self.note_failed_service(now, "the server stopped because a worker could not boot");
        }
        let last = self
            .state
            .record
            .ends()
            .iter()
            .rev()
            .find(|end| end.cause == Cause::Exit(status))
            .cloned();
        let cap = self.state.limits.cap.bytes;
        let message = match (last, cap) {
            (Some(end), Some(cap)) if end.peak > cap.scaled(0.8) => format!(
                "the server stopped because {} could not boot (status {status}): it held {} of its \
                 cap of {cap}. hint: give a larger --cap",
                end.who, end.peak
            ),
            (Some(end), _) => format!(
                "the server stopped because {} could not boot (status {status}); its own log says \
                 why",
                end.who
            ),
            (None, _) => format!(
                "the server stopped because a worker could not boot (status {status}); its own log \
                 says why"
            ),
        };
        self.emit(Event::Warning(message));
    }

    pub(super) fn what_follows(&mut self, now: Timestamp, ended: Ended) -> Next {
        let status = match ended {
            Ended::Exit(status) => status,
            Ended::Signal(signal) => signal.0.saturating_add(128),
            Ended::Unseen => 70,
        };
        if let (Some(why), None) = (self.state.service.loops, &self.state.service.stop) {
            return self.after_loop(now, why);
        }
        if self.is_job() {
            return Next::Exit(status);
        }
        if self.state.service.stop.is_some() {
            return Next::Exit(0);
        }
        if self.state.service.planned {
            return Next::Start(now);
        }
        if self.spec.restart.when == RestartWhen::OnFailure && status == 0 {
            return Next::Exit(0);
        }
        self.after_unplanned_end(now)
    }

    /// What follows after the supervisor has ended the server because its workers ended in a loop.
    /// A job is not restarted.
    fn after_loop(&mut self, now: Timestamp, why: LoopCause) -> Next {
        if self.is_job() {
            return self.give_up();
        }
        let wait = match why {
            LoopCause::CannotStart => Duration::ZERO,
            LoopCause::BudgetIsFull => self.wait_after_kills(),
        };
        self.after_unplanned_end_at_least(now, wait)
    }

    pub(super) fn after_unplanned_end(&mut self, now: Timestamp) -> Next {
        self.after_unplanned_end_at_least(now, Duration::ZERO)
    }

    fn after_unplanned_end_at_least(&mut self, now: Timestamp, least: Duration) -> Next {
        match self.state.service.restarts.on_end(now) {
            Verdict::At(at) => {
                let at = at.max(now.later(least));
                let run = RunId(self.state.service.run.0.saturating_add(1));
                self.emit(Event::Restarting {
                    run,
                    after: at.since(now),
                });
                Next::Start(at)
            }
            Verdict::GiveUp => self.give_up(),
        }
    }

    pub(super) fn give_up(&mut self) -> Next {
        let policy = self.spec.restart;
        let last = self.last_reason();
        self.emit(Event::GaveUp {
            ends: policy.limit.saturating_add(1),
            window: policy.window,
            last,
        });
        Next::Exit(75)
    }

    /// How the last run ended, for the message that the supervisor gives up.
    fn last_reason(&self) -> String {
        let loops = self.state.service.loops.and_then(|why| match why {
            LoopCause::CannotStart => self.state.loops.unready_reason(),
            LoopCause::BudgetIsFull => Some("the budget is full".to_owned()),
        });
        let of_end = || {
            self.state
                .record
                .ends()
                .back()
                .map(|end| end.cause.in_words())
        };
        loops.or_else(of_end).unwrap_or_default()
    }

    /// Ends the service because its workers end while they boot, and their server would start
    /// others for ever.
    pub(crate) fn give_up_on_boots(&mut self) {
        if self.state.service.stop.is_some() || self.state.service.pid().is_none() {
            return;
        }
        let next = self.give_up();
        self.act(Action::KillRun {
            run: self.state.service.run,
        });
        self.state.service.stop = Some(Stopping::KILLED);
        self.state.service.phase = Phase::Clearing {
            kill_at: None,
            next,
        };
        self.refuse_asks("the service gave up");
    }

    pub(crate) fn on_run_over(&mut self, now: Timestamp, run: RunId) {
        if !self.state.service.is_current(run) {
            return;
        }
        let next = match self.state.service.phase {
            Phase::Clearing { next, .. } => next,
            // No process is left, and it is unknown how the command ended: its keeper was killed.
            Phase::Starting | Phase::Running { .. } => self.what_follows(now, Ended::Unseen),
            Phase::Idle | Phase::Waiting { .. } | Phase::Over => return,
        };
        self.state.usage.on_helpers(Vec::new());
        // No process of the run is alive. Workers without a known end have ended unseen.
        let left: Vec<_> = self.state.workers.keys().copied().collect();
        for worker in left {
            self.on_worker_ended(now, worker, (Ended::Unseen, Oom::No, None));
        }
        match (next, &self.state.service.stop) {
            (Next::Exit(status), _) => self.finish(status),
            (Next::Start(_), Some(_)) => self.finish(0),
            (Next::Start(at), None) => self.state.service.phase = Phase::Waiting { until: at },
        }
    }

    pub(crate) fn finish(&mut self, status: i32) {
        self.state.service.phase = Phase::Over;
        self.emit(Event::Stopped { status });
        self.answer_stops();
        self.refuse_asks("the service is over");
        self.close_termination_message(status);
        self.act(Action::Exit { status });
    }

    pub(crate) fn on_start_failed(&mut self, now: Timestamp, run: RunId, errno: i32, error: &str) {
        if !self.state.service.is_current(run) {
            return;
        }
        self.emit(Event::Warning(format!(
            "the command could not be started: {error}"
        )));
        let who = self
            .state
            .service
            .awaited
            .take()
            .map_or(Who::Server, Who::Worker);
        self.record_end(End::of(who, 0, Cause::StartFailed, now));
        let next = match errno {
            ENOENT => Next::Exit(127),
            EACCES | ENOEXEC => Next::Exit(126),
            // A lack of memory or processes passes. The next attempt comes after the usual delay.
            _ if self.is_job() => Next::Exit(125),
            _ => self.after_unplanned_end(now),
        };
        self.state.service.phase = Phase::Clearing {
            kill_at: None,
            next,
        };
    }
}
