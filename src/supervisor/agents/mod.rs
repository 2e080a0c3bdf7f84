//! The agents of all workers: finding them, sending them requests, and what their answers mean for
//! the whole service.

mod collecting;
mod counts;
mod last_reports;
mod reports;
mod sharing;
mod windows;

pub(crate) use collecting::Step;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor,
    action::{Action, AgentAsk, Answer},
    event::Event,
    input::{Agent, AgentAnswer},
    spec::AgentLoad,
    worker::{
        Worker,
        agent_requests::{Pending, ReportFrom, Request},
    },
};
use crate::units::{Bytes, ReportId, Timestamp, WorkerId};

/// `gc.collect()` takes 66 ms for a million objects, and a C call of the application may come
/// first.
const COLLECT_TIME: Duration = Duration::from_secs(2);
/// Opening a window takes a census: 60 ms for a million objects.
const WINDOW_TIME: Duration = Duration::from_secs(1);
/// An answer may come this much later than its time limit, because Python handles the signal only
/// between two bytecodes.
const LATE: Duration = Duration::from_secs(1);
/// After this many collections in a row that did not help, there is one collection per
/// `IN_VAIN_PAUSE`.
const IN_VAIN_MAX: u32 = 2;
const IN_VAIN_PAUSE: Duration = Duration::from_secs(3600);
/// The least time between two automatic reports. It doubles with each of them up to the maximum: a
/// leak is explained by a few reports, and each further one costs the same as the first.
const REPORT_PAUSE: Duration = Duration::from_secs(30);
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(600);

/// What the answers of all workers' agents mean for the service.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Agents {
    /// Collections in a row that did not help.
    in_vain: u32,
    /// The last worker that waited for a moment in which it could collect had none.
    #[serde(default)]
    waited_in_vain: bool,
    /// No earlier collection if too many did not help.
    collect_after: Timestamp,
    /// No earlier automatic report.
    report_after: Timestamp,
    /// Automatic reports since the application was loaded.
    #[serde(default)]
    reports: u32,
    next_report: ReportId,
    rescues: u64,
    /// When to read the workers' counters.
    #[serde(skip)]
    next_count: Option<Timestamp>,
    /// The tasks done by workers that have ended. `None`: no worker has counted tasks.
    dead_done: Option<u64>,
}

impl Agents {
    /// Sets the id of the next report. Reports of an earlier supervisor have the ids before.
    pub(crate) const fn number_from(&mut self, next: ReportId) {
        self.next_report = next;
    }

    /// How often a worker freed enough memory and was not replaced.
    pub(crate) const fn rescues(&self) -> u64 {
        self.rescues
    }

    const fn next_report(&mut self) -> ReportId {
        let report = self.next_report;
        self.next_report = report.next();
        report
    }

    /// An automatic report was made.
    fn on_reported(&mut self, now: Timestamp) {
        let pause = REPORT_PAUSE.saturating_mul(1 << self.reports.min(8));
        self.report_after = now.later(pause.min(REPORT_PAUSE_MAX));
        self.reports = self.reports.saturating_add(1);
    }

    /// The application is loaded again, perhaps in another version.
    pub(crate) const fn on_reload(&mut self) {
        self.report_after = Timestamp::ZERO;
        self.reports = 0;
    }

    fn on_collected_in_vain(&mut self, now: Timestamp) {
        self.in_vain = self.in_vain.saturating_add(1);
        self.collect_after = now.later(IN_VAIN_PAUSE);
    }

    const fn on_rescued(&mut self) {
        self.in_vain = 0;
        self.waited_in_vain = false;
        self.rescues = self.rescues.saturating_add(1);
    }
}

impl Supervisor {
    /// Searches for the agents whose search is due.
    pub(crate) fn find_agents(&mut self, now: Timestamp) {
        for (&id, worker) in self.state.workers.iter_mut() {
            let requests = worker.requests_mut();
            if requests.find_at() <= now && requests.on_find(now) {
                self.out.act(Action::FindAgent { worker: id });
            }
        }
    }

    /// When to search for an agent next.
    pub(crate) fn find_agents_at(&self) -> Option<Timestamp> {
        let workers = self.state.workers.values();
        let find = workers.map(|worker| worker.requests().find_at());
        find.min().filter(|_| self.spec.wants_agent())
    }

    /// Gives up requests that were not answered within their time limit.
    pub(crate) fn give_up_requests(&mut self, now: Timestamp) {
        let late = |worker: &&Worker| {
            let pending = worker.requests().pending();
            pending.is_some_and(|pending| pending.until <= now)
        };
        let late = self.state.workers.values().filter(late);
        let late: Vec<_> = late.map(Worker::id).collect();
        for id in late {
            self.on_no_answer(now, id, "it did not answer within its time limit");
        }
    }

    /// When the next request is given up.
    pub(crate) fn give_up_requests_at(&self) -> Option<Timestamp> {
        let workers = self.state.workers.values();
        let pending = workers.filter_map(|worker| worker.requests().pending());
        pending.map(|pending| pending.until).min()
    }

    pub(crate) fn on_agent_found(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (found, expected): (Agent, bool),
    ) {
        let must = self.spec.agent.load == AgentLoad::On;
        let guards = self.profile().is_some();
        let wanted = must || expected || guards || self.spec.recycle.max_tasks.is_some();
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        // An agent that answered may turn out to speak another protocol. Then it counts as absent.
        if worker.requests().is_loaded() && found == Agent::Loaded {
            return;
        }
        let life = (
            worker.age(now),
            worker.ceiling_state().memory_when_ready().is_some(),
        );
        let late = worker.requests_mut().on_found(now, found.clone(), life);
        if let Agent::Absent(why) = found
            && wanted
            && late
        {
            let off: Vec<_> = self.spec.needs_agent().collect();
            self.warn_once("agent", || {
                let off = off.join(", ");
                format!("the agent is not in {id}: {why}; not available without it: {off}")
            });
        }
    }

    /// How much more memory a worker may allocate before it reaches its cap. The kernel compares
    /// the charge of the cgroup with the cap, and the charge may differ from the measure.
    fn room_of(&self, worker: &Worker) -> Bytes {
        let cap = self.state.limits.cap.bytes;
        let cap = cap.unwrap_or(self.state.limits.available);
        let room = cap.minus(worker.memory().value());
        let by_group = worker.kernel().cap().zip(worker.memory().held());
        by_group.map_or(room, |(cap, held)| room.min(cap.minus(held)))
    }

    fn ask(&mut self, now: Timestamp, id: WorkerId, request: Request, ask: AgentAsk) {
        let within = match &ask {
            AgentAsk::Collect => COLLECT_TIME,
            AgentAsk::Base | AgentAsk::Open { .. } | AgentAsk::Close => WINDOW_TIME,
            AgentAsk::Report { time_box, .. } => *time_box,
        };
        let until = now.later(within.saturating_add(LATE));
        self.ask_until(id, Pending { request, until }, ask);
    }

    fn ask_until(&mut self, id: WorkerId, pending: Pending, ask: AgentAsk) {
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.requests_mut().begin(pending);
            self.out.act(Action::AskAgent { worker: id, ask });
        }
    }

    pub(crate) fn on_agent_answered(&mut self, now: Timestamp, id: WorkerId, answer: AgentAnswer) {
        if let AgentAnswer::Reported {
            report,
            cause,
            summary,
        } = answer
        {
            // A worker that has ended gets its event too, because its report is kept.
            self.emit(Event::Reported {
                report,
                worker: id,
                cause,
                summary,
            });
            self.on_reported(now, id, report);
            return;
        }
        let worker = self.state.workers.get(&id);
        let Some(pending) = worker.and_then(|worker| worker.requests().pending()) else {
            return;
        };
        match (answer, pending.request) {
            (AgentAnswer::Collected { before, after }, Request::Collect) => {
                self.on_collected(now, id, before.minus(after));
            }
            (AgentAnswer::Busy, Request::Collect) => self.on_busy(now, id),
            (AgentAnswer::Busy, Request::Report { .. }) => self.on_no_figures(now, id),
            (AgentAnswer::Base { taken }, Request::Base) => self.on_base(now, id, taken),
            (AgentAnswer::Opened, Request::Open) => self.on_window(now, id, true),
            (AgentAnswer::Closed, Request::Close) => self.on_window(now, id, false),
            (AgentAnswer::Failed(why), _) => self.on_no_answer(now, id, &why),
            // RACE: this is the answer to an earlier request that was given up.
            (
                AgentAnswer::Collected { .. }
                | AgentAnswer::Busy
                | AgentAnswer::Base { .. }
                | AgentAnswer::Opened
                | AgentAnswer::Closed
                | AgentAnswer::Reported { .. },
                _,
            ) => {}
        }
    }

    /// The worker could not be asked, or did not answer in time. Goes on without the answer.
    fn on_no_answer(&mut self, now: Timestamp, id: WorkerId, why: &str) {
        self.plan.touch();
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let Some(pending) = worker.requests_mut().finish() else {
            return;
        };
        match pending.request {
            Request::Collect => {
                worker.requests_mut().on_collected();
                self.state.agents.on_collected_in_vain(now);
            }
            Request::Base => worker.tracing_mut().on_base(now, false),
            Request::Open => worker.tracing_mut().on_no_answer(now, true),
            Request::Close => worker.tracing_mut().on_no_answer(now, false),
            Request::Report {
                report,
                cause,
                from: ReportFrom::Agent,
            } => {
                self.report_from_outside(now, id, (report, cause), why.to_owned());
                return;
            }
            Request::Report {
                from: ReportFrom::DrainedAgent,
                ..
            } => self.no_last_report(id, why),
            Request::Report {
                from: ReportFrom::Outside,
                ..
            } => {
                let waiting = worker.requests_mut().take_waiting();
                self.answer_reports(waiting, &Answer::Refused(why.to_owned()));
            }
        }
        self.serve_report_requests(now, id);
    }
}
