//! Whether the application can start. While it cannot, workers that serve are not replaced.
//!
//! A recycle ends a worker that serves and relies on another one to start. When that start fails
//! (the database is down, a deployment is half done), the next recycle would lose the next worker.
//! So recycling is suspended after a failed start. Workers over their ceiling keep serving, limited
//! by their cap.
//!
//! If other workers kept serving, the server itself starts the next worker, and recycling resumes
//! when a worker is ready. If no worker has been started for a while, recycling is tried again. If
//! the failed start took the whole service down, the next recycle is likely to do so as well. Then
//! the service has to run for a while before its workers are recycled again. That time grows with
//! each failure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor,
    cause::Cause,
    event::Event,
    input::{Ended, Oom},
    snapshot::SuspendedView,
    spec::AgentLoad,
    worker::Worker,
};
use crate::units::{Signal, Timestamp, WorkerId};

/// The first wait after a failed start. It is longer than the longest back-off of the agent
/// (`boot_failures.py`), so that the server's own attempts come first.
const WAIT_MIN: Duration = Duration::from_secs(40);
/// The wait doubles with each failed start in a row, up to this.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The outcome of the application's starts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Starts {
    /// Failed starts since the last recycle that succeeded.
    in_a_row: u32,
    total: u64,
    suspended: Option<Suspended>,
    /// The command is a single program, and its current start follows a recycle.
    after_recycle: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Suspended {
    why: String,
    since: Timestamp,
    failed: Timestamp,
    /// Failed starts in a row before this suspension.
    #[serde(default)]
    before: u32,
    /// The failed start took the service down.
    down: bool,
    /// Since when the service runs again. `None`: it does not.
    up: Option<Timestamp>,
}

impl Starts {
    /// Records a failed start. Returns true if recycling was not suspended before.
    fn fail(&mut self, now: Timestamp, why: &str, down: bool) -> bool {
        self.total = self.total.saturating_add(1);
        let before = self.suspended.take();
        let first = before.is_none();
        let down = down || before.as_ref().is_some_and(|before| before.down);
        let in_a_row = before.as_ref().map_or(self.in_a_row, |one| one.before);
        // A service that is down is started again and again: all these starts are one failed
        // recycle. The workers that failed one by one until the service was down belong to it too.
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

    /// Records a start that succeeded. Returns true if recycling resumes because of it.
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

    pub(crate) const fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Whether a worker may be replaced for this cause. An operator may recycle a service as soon
    /// as it runs again, because an operator knows whether the application can start now.
    pub(crate) fn allows(&self, cause: Cause) -> bool {
        let operator = matches!(cause, Cause::Request | Cause::Reload);
        self.suspended
            .as_ref()
            .is_none_or(|suspended| operator && suspended.up.is_some())
    }

    /// The command is being started. `planned`: it was recycled.
    pub(crate) const fn on_start(&mut self, planned: bool) {
        self.after_recycle = planned;
    }

    pub(crate) const fn follows_recycle(&self) -> bool {
        self.after_recycle
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

    /// When recycling resumes if no start fails or succeeds before. `starting`: a worker is
    /// starting.
    fn resumes_at(&self, starting: bool) -> Option<Timestamp> {
        let suspended = self.suspended.as_ref()?;
        let since = if suspended.down {
            suspended.up
        } else {
            Some(suspended.failed).filter(|_| !starting)
        };
        Some(since?.later(self.wait()))
    }

    pub(crate) fn view(&self, now: Timestamp) -> Option<SuspendedView> {
        self.suspended.as_ref().map(|suspended| SuspendedView {
            why: suspended.why.clone(),
            lasts: now.since(suspended.since),
            failures: self.in_a_row,
        })
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}

impl Supervisor {
    /// Suspends recycling if a server's worker ended before it was ready, without being asked to
    /// exit.
    pub(crate) fn check_failed_start(
        &mut self,
        now: Timestamp,
        worker: &Worker,
        (ended, oom): (Ended, Oom),
    ) {
        let server = self.profile().is_some();
        let asked = worker.life().expected().is_some() || ended == Ended::Signal(Signal::TERM);
        let runs = self.state.service.pid().is_some() && !self.state.service.is_stopping();
        // If no worker serves, none is recycled, and the server decides what to do next.
        let others_serve = self.state.workers.values().any(Worker::serves);
        if server && runs && worker.is_starting() && !asked && others_serve {
            let happened = Cause::of(ended, oom).as_verb();
            let why = format!("{} {happened} before it was ready", worker.id());
            self.suspend(now, &why, false);
        }
    }

    /// Warns if one failed start makes the server stop all its workers.
    fn warn_of_missing_guard(&mut self) {
        let Some(server) = self.profile() else {
            return;
        };
        let is_off = self.spec.agent.load == AgentLoad::Off;
        if server.boot_failures.is_empty() || (server.is_guarded && !is_off) {
            return;
        }
        let (why, hint) = if server.is_guarded {
            let hint = " hint: `agent.load = \"auto\"` prevents that";
            ("the agent is off", hint)
        } else {
            ("the agent cannot prevent it", "")
        };
        let name = server.name;
        self.warn_once("no guard", || {
            format!(
                "{why}: a worker that cannot boot makes {name} stop all its workers, even if it \
                 was started to replace one that serves.{hint}"
            )
        });
    }

    /// The service went down because a start failed.
    pub(crate) fn note_failed_service(&mut self, now: Timestamp, why: &str) {
        self.suspend(now, why, true);
    }

    /// Suspends recycling: the application cannot start. `down`: the service went down.
    pub(crate) fn suspend(&mut self, now: Timestamp, why: &str, down: bool) {
        if self.state.starts.fail(now, why, down) {
            self.emit(Event::Suspended {
                why: why.to_owned(),
                down,
            });
        }
        if !down {
            self.refuse_recycles(&format!(
                "the application cannot start at the moment: {why}; workers that serve are not \
                 replaced"
            ));
        }
        self.plan.touch();
    }

    /// A worker is ready, so the application can start.
    pub(crate) fn note_successful_start(&mut self, now: Timestamp, worker: WorkerId) {
        self.warn_of_missing_guard();
        if self.state.starts.succeed(now) {
            let why = format!("{worker} is ready");
            self.emit(Event::Resumed { why });
        }
    }

    /// Ends the suspension when its time is over.
    pub(crate) fn resume(&mut self) {
        let why = match self.state.starts.suspended.take() {
            Some(suspended) if suspended.down => {
                format!(
                    "the service has been running again for {}s",
                    self.state.starts.wait().as_secs()
                )
            }
            _ => format!(
                "no start has failed for {}s",
                self.state.starts.wait().as_secs()
            ),
        };
        self.emit(Event::Resumed { why });
        self.plan.touch();
    }

    pub(crate) fn resume_at(&self) -> Option<Timestamp> {
        self.state.starts.resumes_at(self.count().starting > 0)
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
    fn a_failed_start_suspends_recycling_until_a_start_succeeds() {
        let mut starts = Starts::default();
        assert!(starts.allows(Cause::Ceiling));
        assert!(starts.fail(at(1), "w3", false));
        assert!(!starts.fail(at(2), "w4", false), "already suspended");
        for cause in [Cause::Ceiling, Cause::Budget, Cause::Age, Cause::Request] {
            assert!(!starts.allows(cause), "{cause}");
        }
        assert!(starts.succeed(at(3)));
        assert!(!starts.is_suspended() && starts.allows(Cause::Ceiling));
    }

    #[test]
    fn recycling_resumes_after_a_wait_that_doubles_with_each_failure() {
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
    fn a_service_that_a_failed_start_took_down_must_run_before_recycling_resumes() {
        let mut starts = Starts::default();
        starts.fail(at(0), "w2", true);
        assert_eq!(starts.resumes_at(IDLE), None);
        assert!(!starts.succeed(at(10)), "one start is not enough");
        assert!(!starts.succeed(at(20)));
        assert_eq!(starts.resumes_at(STARTING), Some(at(50)));
        assert!(!starts.allows(Cause::Ceiling) && starts.allows(Cause::Request));
    }

    #[test]
    fn workers_that_fail_until_the_service_is_down_count_as_one_failed_recycle() {
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
        assert_eq!(starts.resumes_at(IDLE), Some(at(182)), "the wait doubles");
    }

    #[test]
    fn a_successful_start_resets_the_wait() {
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
