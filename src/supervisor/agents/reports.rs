//! Memory reports. A worker is asked for one when an operator requests it, and a job when it comes
//! near its cap. If the worker cannot answer, the report is made from outside.

use std::time::Duration;

use super::{LATE, collecting::TIME_LEFT_MIN};
use crate::supervisor::{
    Supervisor,
    action::{About, Action, AgentAsk, Answer, ReportWhen},
    cause::{Cause, Class},
    input::Agent,
    spec::Leaks,
    worker::{
        Worker,
        agent_requests::{Pending, ReportFrom, Request},
    },
};
use crate::units::{ReportId, RequestId, Timestamp, WorkerId};

/// The time limit of a report that has only figures, without a search for what holds the memory.
const FIGURES_TIME: Duration = Duration::from_millis(5);
/// A job makes a report when it holds this part of its cap, because it is killed at its cap.
const JOB_REPORTS_AT: f64 = 0.7;

impl Supervisor {
    /// Whether reports that need no help from the worker are made automatically.
    pub(crate) fn wants_reports(&self) -> bool {
        self.spec.wants_agent() && self.spec.leaks.ask != Leaks::Off
    }

    pub(super) fn may_report(&self, now: Timestamp) -> bool {
        self.wants_reports() && now >= self.state.agents.report_after
    }

    pub(crate) fn ask_report(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        cause: Cause,
        left: Option<Duration>,
    ) {
        let time_box = match left {
            Some(left) => self.spec.leaks.time_box.min(left / 2),
            None => self.spec.leaks.time_box,
        };
        self.ask_report_at(now, id, cause, (ReportWhen::Now, time_box));
    }

    /// Asks a worker that collects much garbage for the figures of a report, in an idle moment.
    pub(super) fn ask_figures(&mut self, now: Timestamp, id: WorkerId) {
        let time_box = self.spec.leaks.time_box.min(FIGURES_TIME);
        self.ask_report_at(now, id, Cause::Ceiling, (ReportWhen::Idle, time_box));
    }

    /// The worker served a request when it was asked for the figures. They are not worth a delay.
    pub(super) fn on_no_figures(&mut self, now: Timestamp, id: WorkerId) {
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.requests_mut().finish();
        }
        self.serve_report_requests(now, id);
    }

    fn ask_report_at(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        cause: Cause,
        (when, time_box): (ReportWhen, Duration),
    ) {
        let Some(worker) = self.state.workers.get(&id) else {
            return;
        };
        let room = self.room_of(worker);
        let report = self.state.agents.next_report();
        let request = Request::Report {
            report,
            cause,
            from: ReportFrom::Agent,
        };
        let ask = AgentAsk::Report {
            about: about(worker, report, cause),
            room,
            time_box,
            when,
        };
        self.ask(now, id, request, ask);
    }

    /// An operator requests a report.
    pub(crate) fn on_report_asked(&mut self, now: Timestamp, request: RequestId, id: WorkerId) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            let answer = Answer::Unknown(format!("there is no worker {id} alive"));
            self.act(Action::Reply { request, answer });
            return;
        };
        worker.requests_mut().wait(request);
        self.serve_report_requests(now, id);
    }

    /// Asks the worker for the report that operators wait for, once no other request is pending.
    pub(crate) fn serve_report_requests(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.state.workers.get(&id) else {
            return;
        };
        if !worker.requests().is_free() || worker.requests().waiting().is_empty() {
            return;
        }
        let shares = self.shares_too_much(worker);
        if worker.requests().is_loaded() && shares.is_none() {
            self.ask_report(now, id, Cause::Request, None);
            return;
        }
        let no_answer = match &worker.requests().agent() {
            _ if shares.is_some() => shares.unwrap_or_default(),
            Agent::Absent(why) => why.clone(),
            Agent::Unknown | Agent::Loaded if self.spec.wants_agent() => {
                "its agent was not found yet".to_owned()
            }
            Agent::Unknown | Agent::Loaded => "the agent is switched off".to_owned(),
        };
        let report = self.state.agents.next_report();
        self.report_from_outside(now, id, (report, Cause::Request), no_answer);
    }

    /// Makes a report of what can be seen from outside the worker. `no_answer`: why its agent does
    /// not make the report.
    pub(crate) fn report_from_outside(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (report, cause): (ReportId, Cause),
        no_answer: String,
    ) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let request = Request::Report {
            report,
            cause,
            from: ReportFrom::Outside,
        };
        let until = now.later(LATE);
        worker.requests_mut().begin(Pending { request, until });
        let about = about(worker, report, cause);
        self.act(Action::KeepReport {
            about,
            silent: no_answer,
        });
    }

    pub(crate) fn on_reported(&mut self, now: Timestamp, id: WorkerId, report: ReportId) {
        self.plan.touch();
        let pace = self.pace();
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        worker.requests_mut().keep_report(report);
        let Some(Pending {
            request:
                Request::Report {
                    report: asked,
                    cause,
                    from,
                },
            ..
        }) = worker.requests().pending()
        else {
            return;
        };
        if asked != report {
            return;
        }
        worker.requests_mut().finish();
        let is_whole = !worker.requests().is_withdrawn();
        worker.tracing_mut().on_reported(now, pace);
        if cause == Cause::Request || from == ReportFrom::DrainedAgent {
            let requests = worker.requests_mut().take_waiting();
            self.answer_reports(requests, &Answer::Reported(report));
        }
        // A report that was ended early explains little, so the next worker may report soon.
        if cause != Cause::Request && is_whole {
            self.state.agents.on_reported(now);
        }
        self.serve_report_requests(now, id);
    }

    pub(crate) fn answer_reports(&mut self, requests: Vec<RequestId>, answer: &Answer) {
        for request in requests {
            let answer = answer.clone();
            self.act(Action::Reply { request, answer });
        }
    }

    /// Refuses the operators' requests that wait for this worker's report.
    pub(crate) fn refuse_reports(&mut self, worker: &Worker, why: &str) {
        let refused = Answer::Refused(format!("{}: {why}", worker.id()));
        self.answer_reports(worker.requests().waiting().to_vec(), &refused);
    }

    /// Records the stack of a worker that comes near its cap, and asks a job for a report before it
    /// is killed at its cap.
    pub(crate) fn check_approach_to_cap(&mut self, now: Timestamp, id: WorkerId) {
        let (job, report) = (self.is_job(), self.may_report(now));
        let wanted = self.wants_reports();
        let Some(cap) = self.state.limits.cap.bytes else {
            return;
        };
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        if !wanted || matches!(worker.requests().agent(), Agent::Absent(_)) {
            return;
        }
        let memory = worker.memory().value();
        if memory >= worker.requests().next_stack(cap) {
            worker.requests_mut().on_stack_noted(memory);
            self.act(Action::NoteStack { worker: id, memory });
        }
        let Some(worker) = self.state.workers.get(&id) else {
            return;
        };
        let near = memory >= cap.scaled(JOB_REPORTS_AT);
        let first = worker.requests().report().is_none();
        let shares = self.shares_too_much(worker).is_some();
        if job && near && report && first && worker.requests().is_loaded() && !shares {
            let free = worker.requests().is_free();
            let left = worker.memory().time_to(cap);
            if free && left.is_none_or(|left| left >= TIME_LEFT_MIN) {
                self.ask_report(now, id, Cause::Cap, left);
            }
        }
    }

    /// The report of a worker that has ended: its own, or one from outside if the kernel killed it
    /// at a limit. Answers the operators' requests that wait for a report.
    pub(crate) fn report_of_ended_worker(
        &mut self,
        worker: &Worker,
        cause: Cause,
    ) -> Option<ReportId> {
        self.refuse_reports(worker, "it ended before it answered");
        let by_kernel = cause.class() == Class::Kernel;
        let wanted = self.wants_reports();
        if worker.requests().report().is_some() || !by_kernel || !wanted {
            return worker.requests().report();
        }
        let begun = worker
            .requests()
            .pending()
            .and_then(|pending| match pending.request {
                Request::Report { report, .. } => Some(report),
                Request::Collect | Request::Base | Request::Open | Request::Close => None,
            });
        let report = begun.unwrap_or_else(|| self.state.agents.next_report());
        self.act(Action::KeepReport {
            about: about(worker, report, cause),
            silent: "the kernel killed it".to_owned(),
        });
        Some(report)
    }
}

pub(super) fn about(worker: &Worker, report: ReportId, cause: Cause) -> About {
    About {
        report,
        worker: worker.id(),
        pid: worker.pid(),
        cause,
        private: worker.memory().value(),
        rss: worker.memory().last().unwrap_or_default().rss,
        baseline: worker.memory().baseline(),
        processes: worker.memory().processes(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Agents;
    use super::*;

    #[test]
    fn automatic_reports_become_rarer_until_the_application_is_loaded_again() {
        let mut agents = Agents::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            agents.on_reported(Timestamp::ZERO);
            let pause = agents.report_after.since(Timestamp::ZERO);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        agents.on_reload();
        assert_eq!(agents.report_after, Timestamp::ZERO);
        agents.on_reported(Timestamp::ZERO);
        let pause = agents.report_after.since(Timestamp::ZERO);
        assert_eq!(pause.as_secs(), 30);
    }
}
