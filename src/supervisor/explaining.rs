//! Why a worker is fat: it is asked before it goes for its memory, when an operator wants to know,
//! and looked at from outside when it cannot say.

use std::time::Duration;

use super::{
    Supervisor,
    action::{About, Action, AgentAsk, Answer},
    asking::{Asking, LATE, Rung, TIME_LEFT_MIN, What},
    cause::Class,
    event::Agent,
    report::Cause,
    spec::Leaks,
    worker::Worker,
};
use crate::units::{ReportId, RequestId, Timestamp, WorkerId};

/// A job says what it holds when it has come this near to its cap: afterwards it cannot.
const JOB_REPORTS_AT: f64 = 0.7;
/// Reports that nobody asked for come no more often: each costs a worker up to its time box.
const REPORT_PAUSE: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Whether reports are made without an operator's request, at least those that need no help
    /// from the worker.
    pub(super) fn wants_reports(&self) -> bool {
        self.spec.wants_agent() && self.spec.leaks.ask != Leaks::Off
    }

    /// Whether workers are traced and asked why they have grown, without an operator's request. In
    /// a worker that serves this delays requests, so the configuration has to ask for it.
    pub(super) fn asks_automatically(&self) -> bool {
        let wanted = match self.spec.leaks.ask {
            Leaks::Auto => self.is_job(),
            Leaks::On | Leaks::Always => true,
            Leaks::Off => false,
        };
        wanted && self.spec.wants_agent()
    }

    fn number_report(&mut self) -> ReportId {
        let report = self.memo.next_report;
        self.memo.next_report = report.next();
        report
    }

    pub(super) fn ask_report(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        cause: Cause,
        left: Option<Duration>,
    ) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let room = self.room_of(worker);
        let mut about = about(worker, ReportId::default(), cause);
        let report = self.number_report();
        about.report = report;
        let time_box = match left {
            Some(left) => self.spec.leaks.time_box.min(left / 2),
            None => self.spec.leaks.time_box,
        };
        let what = What::Report {
            report,
            cause,
            outside: false,
        };
        let ask = AgentAsk::Report {
            about,
            room,
            time_box,
        };
        self.ask(now, id, what, ask);
    }

    /// An operator wants to know, whatever it costs.
    pub(super) fn on_report_asked(&mut self, now: Timestamp, request: RequestId, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            let answer = Answer::Unknown(format!("there is no worker {id} alive"));
            self.act(Action::Reply { request, answer });
            return;
        };
        worker.asked.requests.push(request);
        self.mind_requests(now, id);
    }

    /// Asks for what operators wait for, once the worker has answered what it was asked before.
    pub(super) fn mind_requests(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if worker.asked.asking.is_some() || worker.asked.requests.is_empty() {
            return;
        }
        let shares = self.shares_too_much(worker);
        if worker.asked.is_loaded() && shares.is_none() {
            self.ask_report(now, id, Cause::Request, None);
            return;
        }
        let silent = match &worker.asked.agent {
            _ if shares.is_some() => shares.unwrap_or_default(),
            Agent::Absent(why) => why.clone(),
            Agent::Unknown | Agent::Loaded if self.spec.wants_agent() => {
                "its agent was not found yet".to_owned()
            }
            Agent::Unknown | Agent::Loaded => "the agent is switched off".to_owned(),
        };
        let report = self.number_report();
        self.look_from_outside(now, id, (report, Cause::Request), silent);
    }

    /// What can be seen of a worker that does not answer.
    pub(super) fn look_from_outside(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (report, cause): (ReportId, Cause),
        silent: String,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let what = What::Report {
            report,
            cause,
            outside: true,
        };
        let until = now.later(LATE);
        worker.asked.asking = Some(Asking { what, until });
        let about = about(worker, report, cause);
        self.act(Action::KeepReport { about, silent });
    }

    pub(super) fn on_reported(&mut self, now: Timestamp, id: WorkerId, report: ReportId) {
        self.replan = true;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.asked.report = Some(report);
        let Some(Asking { what, .. }) = worker.asked.asking else {
            return;
        };
        let What::Report {
            report: asked,
            cause,
            ..
        } = what
        else {
            return;
        };
        if asked != report {
            return;
        }
        worker.asked.asking = None;
        worker.tracing.on_reported(now);
        if cause == Cause::Request {
            let requests = std::mem::take(&mut worker.asked.requests);
            self.answer_reports(requests, &Answer::Reported(report));
        } else {
            // One that was rescued and says why is not on the ladder: next time it collects again.
            if worker.memory.strikes() > 0 {
                worker.asked.rung.reported = true;
            }
            self.memo.report_after = now.later(REPORT_PAUSE);
            self.mind_requests(now, id);
        }
    }

    pub(super) fn answer_reports(&mut self, requests: Vec<RequestId>, answer: &Answer) {
        for request in requests {
            let answer = answer.clone();
            self.act(Action::Reply { request, answer });
        }
    }

    /// Whoever waits for this worker's report waits in vain.
    pub(super) fn refuse_reports(&mut self, worker: &Worker, why: &str) {
        let refused = Answer::Refused(format!("{}: {why}", worker.id));
        self.answer_reports(worker.asked.requests.clone(), &refused);
    }

    /// What a worker that nears its cap runs is noted, and a job says what it holds while it can.
    pub(super) fn mind_cap_ahead(&mut self, now: Timestamp, id: WorkerId) {
        let (job, report) = (self.is_job(), self.may_report(now));
        let wanted = self.wants_reports();
        let Some(cap) = self.limits.cap.bytes else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !wanted || matches!(worker.asked.agent, Agent::Absent(_)) {
            return;
        }
        let memory = worker.memory.value();
        if memory >= worker.asked.next_stack(cap) {
            worker.asked.noted = memory;
            self.act(Action::NoteStack { worker: id, memory });
        }
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let near = memory >= cap.scaled(JOB_REPORTS_AT);
        let first = worker.asked.report.is_none() && worker.asked.rung == Rung::default();
        let shares = self.shares_too_much(worker).is_some();
        if job && near && report && first && worker.asked.is_loaded() && !shares {
            let free = worker.asked.asking.is_none();
            let left = worker.memory.time_to(cap);
            if free && left.is_none_or(|left| left >= TIME_LEFT_MIN) {
                self.ask_report(now, id, Cause::Cap, left);
            }
        }
    }

    /// The report of a worker that has ended: the one it gave, or what was known of it if the
    /// kernel ended it at a limit. Whoever waits for one is told.
    pub(super) fn report_of_dead(&mut self, worker: &Worker, cause: Cause) -> Option<ReportId> {
        self.refuse_reports(worker, "it ended before it answered");
        let by_kernel = cause.class() == Class::Kernel;
        let wanted = self.wants_reports();
        if worker.asked.report.is_some() || !by_kernel || !wanted {
            return worker.asked.report;
        }
        let begun = worker.asked.asking.and_then(|asking| match asking.what {
            What::Report { report, .. } => Some(report),
            What::Collect | What::Open | What::Close => None,
        });
        let report = begun.unwrap_or_else(|| self.number_report());
        self.act(Action::KeepReport {
            about: about(worker, report, cause),
            silent: "the kernel ended it".to_owned(),
        });
        Some(report)
    }
}

fn about(worker: &Worker, report: ReportId, cause: Cause) -> About {
    About {
        report,
        worker: worker.id,
        pid: worker.pid,
        cause,
        private: worker.memory.value(),
        rss: worker.memory.last().unwrap_or_default().rss,
        baseline: worker.memory.baseline(),
        processes: worker.memory.processes(),
    }
}
