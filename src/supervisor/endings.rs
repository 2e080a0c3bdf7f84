//! What follows when the command has ended: clearing away, another start, or the end of all.

use std::time::Duration;

use super::{
    Supervisor,
    action::Action,
    end_loop::LoopCause,
    event::{Ended, Oom},
    report::{Cause, End, Report, Who},
    restart::Verdict,
    service::{Next, ORPHAN_GRACE, Phase, Stopping},
    spec::{Kind, RestartWhen},
    worker::Worker,
};
use crate::units::{RunId, Timestamp};

impl Supervisor {
    pub(super) fn on_command_ended(
        &mut self,
        now: Timestamp,
        run: RunId,
        (ended, oom): (Ended, Oom),
        successor: Option<i32>,
    ) {
        let Phase::Running { pid, since } = self.service.phase else {
            return;
        };
        if !self.service.is_current(run) {
            return;
        }
        if let Some(successor) = successor {
            self.service.phase = Phase::Running {
                pid: successor,
                since,
            };
            self.spare.forget(now);
            self.tell(Report::Warning(format!(
                "the server's first master (pid {pid}) ended; its second one (pid {successor}) \
                 goes on"
            )));
            return;
        }
        if let Kind::Server(habits) = self.spec.kind {
            self.explain_server_end(now, ended, habits.boot_failures);
            let cause = match (&self.service.stop, self.service.loops) {
                (Some(_), _) | (_, Some(_)) => Cause::Stop,
                (None, None) => Cause::of(ended, oom),
            };
            if cause == Cause::BudgetKill {
                self.on_server_budget_kill(now);
            }
            self.record_end(End {
                who: Who::Server,
                pid,
                cause,
                memory: self.server_memory,
                peak: self.server_memory,
                limit: None,
                age: now.since(since),
                tasks: None,
                drain: None,
                killed: false,
                at: now,
                report: None,
            });
        }
        let single = matches!(self.spec.kind, Kind::Single);
        // RACE: a single program's end is told as the command's and as its worker's, in either
        // order. It was planned if its worker drains, whichever comes first.
        if single && self.workers.values().any(Worker::is_leaving) {
            self.service.expect_end();
        }
        if single {
            self.note_failed_recycle(now, ended, since);
        }
        let next = self.what_follows(now, ended);
        self.service.answers = false;
        // Orphaned workers hold the listening socket: they finish what is in flight, not more.
        let orphans: Vec<_> = self.workers.keys().copied().filter(|_| !single).collect();
        let until = now.later(ORPHAN_GRACE.min(self.spec.stop.grace));
        for worker in &orphans {
            self.send_away(now, *worker, Cause::Stop, until);
        }
        let kill_at = if orphans.is_empty() { now } else { until };
        self.service.phase = Phase::Clearing {
            kill_at: Some(kill_at),
            next,
        };
    }

    /// A single program that was recycled did not start again, or ended soon after its start.
    fn note_failed_recycle(&mut self, now: Timestamp, ended: Ended, since: Timestamp) {
        let expected = self.service.planned || self.service.stop.is_some() || self.is_job();
        let soon = !self.service.answers() || now.since(since) < self.spec.recycle.min_age;
        if self.starts.after_recycle && soon && !expected {
            let run = self.service.run;
            let cause = Cause::of(ended, Oom::No);
            let why = format!("{run} was started by a recycle and ended ({cause})");
            self.note_failed_whole(now, &why);
        }
    }

    /// A worker that could not boot stops the whole server: say so, for its log hardly does.
    fn explain_server_end(&mut self, now: Timestamp, ended: Ended, boot_failures: [i32; 2]) {
        let Ended::Exit(status) = ended else { return };
        if !boot_failures.contains(&status) || self.service.stop.is_some() {
            return;
        }
        if self.service.answers() {
            self.note_failed_whole(now, "the server stopped because a worker could not boot");
        }
        let last = self
            .ends
            .iter()
            .rev()
            .find(|end| end.cause == Cause::Exit(status))
            .cloned();
        let cap = self.limits.cap.bytes;
        let message = match (last, cap) {
            (Some(end), Some(cap)) if end.peak > cap.scaled(0.8) => format!(
                "the server stopped because {} could not boot (status {status}): it held {} of its \
                 cap of {cap}; give it a larger --cap",
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
        self.tell(Report::Warning(message));
    }

    pub(super) fn what_follows(&mut self, now: Timestamp, ended: Ended) -> Next {
        let status = match ended {
            Ended::Exit(status) => status,
            Ended::Signal(signal) => signal.0.saturating_add(128),
            Ended::Unseen => 70,
        };
        if let (Some(why), None) = (self.service.loops, &self.service.stop) {
            return self.after_loop(now, why);
        }
        if self.is_job() {
            return Next::Exit(status);
        }
        if self.service.stop.is_some() {
            return Next::Exit(0);
        }
        if self.service.planned {
            return Next::Start(now);
        }
        if self.spec.restart.when == RestartWhen::OnFailure && status == 0 {
            return Next::Exit(0);
        }
        self.after_unplanned_end(now)
    }

    /// We have ended a server because its workers ended in a loop. A job is not restarted.
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
        match self.service.restarts.on_end(now) {
            Verdict::At(at) => {
                let at = at.max(now.later(least));
                let run = RunId(self.service.run.0.saturating_add(1));
                self.tell(Report::Restarting {
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
        self.tell(Report::GaveUp {
            ends: policy.limit.saturating_add(1),
            window: policy.window,
            last,
        });
        Next::Exit(75)
    }

    /// How the last run ended, for the message that says that we give up.
    fn last_reason(&self) -> String {
        let loops = self.service.loops.and_then(|why| match why {
            LoopCause::CannotStart => self.ends_loop.unready_reason(),
            LoopCause::BudgetIsFull => Some("the budget is full".to_owned()),
        });
        let of_end = || self.ends.back().map(|end| end.cause.in_words());
        loops.or_else(of_end).unwrap_or_default()
    }

    /// Workers die while they boot, again and again: their server would go on for ever.
    pub(super) fn give_up_on_boots(&mut self) {
        if self.service.stop.is_some() || self.service.pid().is_none() {
            return;
        }
        let next = self.give_up();
        self.act(Action::KillRun {
            run: self.service.run,
        });
        self.service.stop = Some(Stopping::KILLED);
        self.service.phase = Phase::Clearing {
            kill_at: None,
            next,
        };
        self.refuse_asks("the service gave up");
    }

    pub(super) fn on_run_over(&mut self, now: Timestamp, run: RunId) {
        if !self.service.is_current(run) {
            return;
        }
        let next = match self.service.phase {
            Phase::Clearing { next, .. } => next,
            // Nothing is left, and nobody said how the command ended: its keeper was killed.
            Phase::Starting | Phase::Running { .. } => self.what_follows(now, Ended::Unseen),
            Phase::Idle | Phase::Waiting { .. } | Phase::Over => return,
        };
        // Nothing of the run is alive: what was not heard of has ended unseen.
        let left: Vec<_> = self.workers.keys().copied().collect();
        for worker in left {
            self.on_worker_ended(now, worker, (Ended::Unseen, Oom::No, None));
        }
        match (next, &self.service.stop) {
            (Next::Exit(status), _) => self.finish(status),
            (Next::Start(_), Some(_)) => self.finish(0),
            (Next::Start(at), None) => self.service.phase = Phase::Waiting { until: at },
        }
    }

    pub(super) fn finish(&mut self, status: i32) {
        self.service.phase = Phase::Over;
        self.tell(Report::Stopped { status });
        self.answer_stops();
        self.refuse_asks("the service is over");
        self.close_last_words(status);
        self.act(Action::Exit { status });
    }
}
