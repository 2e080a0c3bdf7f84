//! The report of a worker that is replaced for its memory. The worker makes it when it has answered
//! its last request and before it exits. Then its memory is still there, and no client waits for
//! it.

use std::time::Duration;

use super::reports::about;
use crate::supervisor::{
    Supervisor,
    action::{Action, AgentAsk, ReportWhen},
    event::Event,
    policy::candidates::Candidate,
    worker::{
        Worker,
        agent_requests::{Pending, ReportFrom, Request},
    },
};
use crate::units::{Timestamp, WorkerId};

/// The time limit if the replacement starts only after the worker's end.
const BEFORE_REPLACEMENT: Duration = Duration::from_millis(100);

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
    /// Leaves a request for a report for a worker that is about to be asked to exit.
    pub(crate) fn ask_last_report(
        &mut self,
        now: Timestamp,
        candidate: &Candidate,
        until: Timestamp,
    ) {
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return;
        };
        let reports = worker.requests().pending().is_some_and(|pending| {
            let request = pending.request;
            matches!(request, Request::Report { .. })
        });
        let can = worker.requests().is_loaded() && self.shares_too_much(worker).is_none();
        if !candidate.is_urgent() || !self.may_report(now) || reports || !can {
            return;
        }
        let time_box = if self.is_replaced_first() {
            self.spec.leaks.time_box
        } else {
            self.spec.leaks.time_box.min(BEFORE_REPLACEMENT)
        };
        let room = self.room_of(worker);
        let report = self.state.agents.next_report();
        let ask = AgentAsk::Report {
            about: about(worker, report, candidate.cause),
            room,
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
