//! Whether the application can start. While it cannot, no worker is replaced that serves.
//!
//! A recycle ends a worker that serves and relies on another one to start. When that start fails
//! (a database is away, a deployment is half done), the next recycle would lose the next worker. So
//! after a failed start recycles are suspended; workers over their ceiling serve on under their
//! cap.
//!
//! Where other workers served on, the server itself starts the next worker, and recycling resumes
//! when one is ready. If nothing has been started for a while, recycling is tried again. Where the
//! failed start took the whole service down, the next one would do so as well: then the service has
//! to run for a while before it is recycled again, longer after each failure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    event::{Ended, Oom},
    report::{Cause, Report, SuspendedView},
    spec::{AgentLoad, Kind},
    worker::Worker,
};
use crate::units::{Signal, Timestamp, WorkerId};

/// The first wait after a failed start, and the longest; it doubles with each in a row. Longer than
/// the longest back-off of the agent (`boot_failures.py`), so that the server's own attempts come
/// first.
const WAIT_MIN: Duration = Duration::from_secs(40);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// What is known of the application's starts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Starts {
    /// Failed starts since the last recycle that worked.
    in_a_row: u32,
    total: u64,
    suspended: Option<Suspended>,
    /// A single program: the present start follows a recycle.
    pub(super) after_recycle: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Suspended {
    why: String,
    since: Timestamp,
    failed: Timestamp,
    /// Failed starts in a row before this suspension.
    #[serde(default)]
    before: u32,
    /// The failed start took the service down. It has run again since `up`, if at all.
    down: bool,
    up: Option<Timestamp>,
}

impl Starts {
    /// Notes a failed start. True if recycling was not suspended before.
    fn fail(&mut self, now: Timestamp, why: &str, down: bool) -> bool {
        self.total = self.total.saturating_add(1);
        let before = self.suspended.take();
        let first = before.is_none();
        let down = down || before.as_ref().is_some_and(|before| before.down);
        let in_a_row = before.as_ref().map_or(self.in_a_row, |one| one.before);
        // A service that is down is started again and again: that is one failed recycle, not many.
        // So are the workers that failed one by one until it was down.
        let counted = if down { in_a_row } else { self.in_a_row };
        self.in_a_row = counted.saturating_add(1);
        self.suspended = Some(Suspended {
            why: why.to_owned(),
            since: before.as_ref().map_or(now, |before| before.since),
            failed: now,
            before: in_a_row,
            down,
            up: None,
        });
        first
    }

    /// Notes a start that worked. True if recycling resumes by it.
    fn succeed(&mut self, now: Timestamp) -> bool {
        match &mut self.suspended {
            Some(suspended) if suspended.down => {
                suspended.up.get_or_insert(now);
                false
            }
            Some(_) => {
                self.suspended = None;
                self.in_a_row = 0;
                true
            }
            None => {
                self.in_a_row = 0;
                false
            }
        }
    }

    pub(super) const fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Whether a worker may be replaced for this cause. An operator may recycle a service that runs
    /// again, since an operator knows whether it can start now.
    pub(super) fn allows(&self, cause: Cause) -> bool {
        let operator = matches!(cause, Cause::Request | Cause::Reload);
        self.suspended
            .as_ref()
            .is_none_or(|suspended| operator && suspended.up.is_some())
    }

    const fn wait(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.in_a_row.saturating_sub(1));
        let wait = WAIT_MIN.saturating_mul(doubled);
        if wait.as_nanos() > WAIT_MAX.as_nanos() {
            WAIT_MAX
        } else {
            wait
        }
    }

    /// When recycling resumes if no start fails or works before. `starting`: a start is under way.
    fn resumes_at(&self, starting: bool) -> Option<Timestamp> {
        let suspended = self.suspended.as_ref()?;
        let since = if suspended.down {
            suspended.up
        } else {
            Some(suspended.failed).filter(|_| !starting)
        };
        Some(since?.later(self.wait()))
    }

    pub(super) fn view(&self, now: Timestamp) -> Option<SuspendedView> {
        self.suspended.as_ref().map(|suspended| SuspendedView {
            why: suspended.why.clone(),
            lasts: now.since(suspended.since),
            failures: self.in_a_row,
        })
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }
}

impl Supervisor {
    /// A worker of a server has ended. Its start has failed if it never served and ended without
    /// being asked to.
    pub(super) fn note_end_of_start(
        &mut self,
        now: Timestamp,
        worker: &Worker,
        (ended, oom): (Ended, Oom),
    ) {
        let server = matches!(self.spec.kind, Kind::Server(_));
        let asked = worker.expected.is_some() || ended == Ended::Signal(Signal::TERM);
        let runs = self.service.pid().is_some() && !self.service.is_stopping();
        // While no worker serves, none is recycled, and the server's own rules hold.
        let others_serve = self.workers.values().any(Worker::serves);
        if server && runs && worker.is_starting() && !asked && others_serve {
            let why = why_of(worker.id, Cause::of(ended, oom));
            self.suspend(now, &why, false);
        }
    }

    /// Warns that without the agent a failed start stops the workers that serve.
    pub(super) fn warn_of_no_guard(&mut self, why: &str) {
        if matches!(self.spec.kind, Kind::Server(_)) {
            let message = format!(
                "{why}: a worker that cannot boot makes gunicorn stop all the others, also when it \
                 replaces one that serves. hint: `agent.load = \"auto\"` prevents that"
            );
            self.warn_once("no guard", || message);
        }
    }

    /// The service went down because a start failed.
    pub(super) fn note_failed_whole(&mut self, now: Timestamp, why: &str) {
        self.suspend(now, why, true);
    }

    fn suspend(&mut self, now: Timestamp, why: &str, down: bool) {
        if self.starts.fail(now, why, down) {
            self.tell(Report::Suspended {
                why: why.to_owned(),
                down,
            });
        }
        if !down {
            self.refuse_recycles(&format!(
                "the application cannot start at the moment: {why}; the workers that serve stay"
            ));
        }
        self.replan = true;
    }

    /// A worker is ready: the application can start.
    pub(super) fn note_start(&mut self, now: Timestamp, worker: WorkerId) {
        if self.spec.agent.load == AgentLoad::Off {
            self.warn_of_no_guard("the agent is off");
        }
        if self.starts.succeed(now) {
            let why = format!("{worker} is ready");
            self.tell(Report::Resumed { why });
        }
    }

    /// Ends a suspension that has lasted long enough.
    pub(super) fn mind_suspension(&mut self, now: Timestamp) {
        if self.suspension_deadline().is_none_or(|at| now < at) {
            return;
        }
        let why = match self.starts.suspended.take() {
            Some(suspended) if suspended.down => {
                format!(
                    "the service has run for {}s again",
                    self.starts.wait().as_secs()
                )
            }
            _ => format!("no start has failed for {}s", self.starts.wait().as_secs()),
        };
        self.tell(Report::Resumed { why });
        self.replan = true;
    }

    pub(super) fn suspension_deadline(&self) -> Option<Timestamp> {
        self.starts.resumes_at(self.count().starting > 0)
    }
}

/// What became of a worker that never served.
pub(super) fn why_of(worker: WorkerId, cause: Cause) -> String {
    match cause {
        Cause::Exit(status) => format!("{worker} exited with status {status} before it was ready"),
        Cause::Signal(signal) => format!("{worker} was ended by {signal} before it was ready"),
        Cause::Cap => format!("{worker} reached its cap before it was ready"),
        Cause::BudgetKill => format!("{worker} was killed at the budget before it was ready"),
        Cause::Oom
        | Cause::Budget
        | Cause::Ceiling
        | Cause::Tasks
        | Cause::Age
        | Cause::Request
        | Cause::Reload
        | Cause::Scale
        | Cause::StartFailed
        | Cause::Unready
        | Cause::Hung
        | Cause::Stop
        | Cause::Unseen => format!("{worker} ended before it was ready ({cause})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    const STARTING: bool = true;
    const IDLE: bool = false;

    #[test]
    fn a_failed_start_suspends_until_one_works() {
        let mut starts = Starts::default();
        assert!(starts.allows(Cause::Ceiling));
        assert!(starts.fail(at(1), "w3", false));
        assert!(!starts.fail(at(2), "w4", false), "it is said once");
        for cause in [Cause::Ceiling, Cause::Budget, Cause::Age, Cause::Request] {
            assert!(!starts.allows(cause), "{cause}");
        }
        assert!(starts.succeed(at(3)));
        assert!(!starts.is_suspended() && starts.allows(Cause::Ceiling));
    }

    #[test]
    fn recycling_is_tried_again_where_nothing_is_started_later_after_each_failure() {
        let mut starts = Starts::default();
        starts.fail(at(0), "w3", false);
        assert_eq!(starts.resumes_at(STARTING), None);
        assert_eq!(starts.resumes_at(IDLE), Some(at(40)));
        starts.suspended = None;
        starts.fail(at(100), "w4", false);
        assert_eq!(starts.resumes_at(IDLE), Some(at(180)));
        for _ in 0..40 {
            starts.fail(at(200), "w5", false);
        }
        assert_eq!(starts.resumes_at(IDLE), Some(at(800)));
    }

    #[test]
    fn a_service_that_a_failed_start_took_down_has_to_run_for_a_while() {
        let mut starts = Starts::default();
        starts.fail(at(0), "w2", true);
        assert_eq!(starts.resumes_at(IDLE), None);
        assert!(!starts.succeed(at(10)), "that it runs is not enough");
        assert!(!starts.succeed(at(20)));
        assert_eq!(starts.resumes_at(STARTING), Some(at(50)));
        assert!(!starts.allows(Cause::Ceiling) && starts.allows(Cause::Request));
    }

    #[test]
    fn workers_that_fail_one_by_one_until_the_service_is_down_are_one_failed_recycle() {
        let mut starts = Starts::default();
        for second in 0..4 {
            starts.fail(at(second), "w15", false);
        }
        starts.fail(at(20), "the server stopped", true);
        starts.succeed(at(22));
        assert_eq!(starts.resumes_at(IDLE), Some(at(62)));
        starts.suspended = None;
        starts.fail(at(100), "w20", false);
        starts.fail(at(101), "the server stopped", true);
        starts.succeed(at(102));
        assert_eq!(starts.resumes_at(IDLE), Some(at(182)), "the next one waits");
    }

    #[test]
    fn a_start_that_works_makes_the_next_wait_the_shortest_again() {
        let mut starts = Starts::default();
        for second in 0..3 {
            starts.fail(at(second), "w2", true);
        }
        starts.succeed(at(5));
        assert_eq!(starts.resumes_at(IDLE), Some(at(45)), "one failed recycle");
        starts.suspended = None;
        starts.succeed(at(300));
        starts.fail(at(400), "w9", false);
        assert_eq!(starts.resumes_at(IDLE), Some(at(440)));
    }
}
