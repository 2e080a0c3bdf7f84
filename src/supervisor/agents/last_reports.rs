//! The report of a worker that is replaced for its memory. The worker makes it when it has answered
//! its last request and before it exits. Then its memory is still there, and no client waits for
//! it.

use std::time::Duration;

use super::{reports::about, windows::ONE_REPORT};
use crate::supervisor::{
    Supervisor,
    action::{Action, AgentAsk, ReportWhen},
    event::Event,
    policy::candidates::Candidate,
    worker::{
        Worker,
        agent_requests::{Pending, ReportFrom, Request},
        tracing::{LastWindow, last_window},
    },
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// The time limit if the replacement starts only after the worker's end.
const BEFORE_REPLACEMENT: Duration = Duration::from_millis(100);
/// A worker that would grow by more than this in its last window has none.
const LAST_GROWTH_MAX: Bytes = Bytes::mib(4);

/// The request for a last report, if it is pending.
fn last_report(worker: &Worker) -> Option<Request> {
    let request = worker.requests().pending()?.request;
    match request {
        Request::Report {
            from: ReportFrom::DrainedAgent,
            ..
        } => Some(request),
        Request::Report {
            from: ReportFrom::Agent | ReportFrom::Outside,
            ..
        }
        | Request::Collect
        | Request::Base
        | Request::Open
        | Request::Close => None,
    }
}

impl Supervisor {
    /// The worker that should make a last report when this candidate leaves.
    fn last_reporter(&self, now: Timestamp, candidate: &Candidate) -> Option<&Worker> {
        let worker = self.state.workers.get(&candidate.worker)?;
        let reports = worker.requests().pending().is_some_and(|pending| {
            let request = pending.request;
            matches!(request, Request::Report { .. })
        });
        let can = worker.requests().is_loaded() && self.shares_too_much(worker).is_none();
        // The report of a worker that is prepared says more, and comes within a minute.
        let other = !worker.tracing().has_begun() && self.another_will_report(worker, ONE_REPORT);
        let may = self.may_report(now) && !other;
        (candidate.is_urgent() && may && !reports && can).then_some(worker)
    }

    /// Traces what a worker allocates in the last requests before it leaves, so that its report can
    /// name the lines of the newest objects. Returns true while the worker should stay for that.
    ///
    /// RACE: the worker may end before the window opens, or its replacement may become unnecessary.
    /// A window that no report closes is closed like any other.
    pub(crate) fn waits_for_last_window(&mut self, now: Timestamp, candidate: &Candidate) -> bool {
        let Some(worker) = self.last_reporter(now, candidate) else {
            return false;
        };
        let length = last_window(worker.counters().rate());
        let growth = worker.memory().growth_within(length);
        if !worker.requests().is_free() || growth > LAST_GROWTH_MAX {
            return false;
        }
        let room = self.room_of(worker);
        let Some(worker) = self.state.workers.get_mut(&candidate.worker) else {
            return false;
        };
        match worker.tracing_mut().step_to_last(now, length) {
            LastWindow::Open => {
                let base = false;
                let open = AgentAsk::Open { room, base };
                self.ask(now, candidate.worker, Request::Open, open);
                true
            }
            LastWindow::Until(at) => {
                self.wake_at(now, at);
                true
            }
            LastWindow::Over => false,
        }
    }

    /// Leaves a request for a report for a worker that is about to be asked to exit.
    pub(crate) fn ask_last_report(
        &mut self,
        now: Timestamp,
        candidate: &Candidate,
        until: Timestamp,
    ) {
        if self.last_reporter(now, candidate).is_none() {
            return;
        }
        let time_box = if self.is_replaced_first() {
            self.spec.leaks.time_box
        } else {
            self.spec.leaks.time_box.min(BEFORE_REPLACEMENT)
        };
        let report = self.state.agents.next_report();
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return;
        };
        let ask = AgentAsk::Report {
            about: about(worker, report, candidate.cause),
            room: self.room_of(worker),
            time_box,
            when: ReportWhen::AfterDrain,
        };
        let request = Request::Report {
            report,
            cause: candidate.cause,
            from: ReportFrom::DrainedAgent,
        };
        // RACE: a request to open or close a window of tracing may be pending. It is replaced. The
        // agent ignores a signal that comes while this request is there, and the report closes the
        // window.
        self.ask_until(candidate.worker, Pending { request, until }, ask);
    }

    /// Withdraws the requests for last reports, because the workers should exit without delay: the
    /// service stops or reloads, or another worker has to be replaced. A report that has begun is
    /// ended at once, and is taken as it is.
    pub(crate) fn withdraw_last_reports(&mut self) {
        let workers = self.state.workers.values_mut();
        for worker in workers.filter(|worker| last_report(worker).is_some()) {
            if worker.requests_mut().withdraw() {
                let worker = worker.id();
                self.out.act(Action::WithdrawReport { worker });
            }
        }
    }

    /// A worker has made no last report.
    pub(super) fn no_last_report(&mut self, worker: WorkerId, why: &str) {
        self.emit(Event::Reason {
            worker: Some(worker),
            text: format!("{worker}: no report of its memory: {why}"),
        });
    }

    /// A worker has ended. Says so if it has not made the report that it was asked for.
    pub(crate) fn note_missing_last_report(&mut self, worker: &Worker) {
        if last_report(worker).is_some() {
            self.no_last_report(worker.id(), "it exited before it made one");
        }
    }
}

#[cfg(test)]
#[path = "last_reports_tests.rs"]
mod tests;
