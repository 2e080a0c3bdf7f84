//! The windows of tracing of all workers that leak.

use std::time::Duration;

use crate::supervisor::{
    Supervisor,
    action::AgentAsk,
    event::Event,
    spec::Leaks,
    worker::{
        Worker,
        agent_requests::Request,
        tracing::{GrowthState, May, Pace, Window, is_base_due},
    },
};
use crate::units::{Timestamp, WorkerId};

/// A worker is prepared for a report at most this long before a report may be made.
const PREPARED_BEFORE: Duration = Duration::from_secs(10);
/// Of workers that reach their limits within this time, one reports.
pub(super) const ONE_REPORT: Duration = Duration::from_secs(60);

/// Whether the worker's agent can be asked now.
fn can_be_traced(worker: &Worker) -> bool {
    worker.requests().is_loaded() && worker.requests().is_free() && worker.drain().is_none()
}

impl Supervisor {
    /// Opens and closes the windows that are due, and starts tracing workers that leak.
    pub(crate) fn trace(&mut self, now: Timestamp) {
        let workers = self.state.workers.values();
        let free: Vec<_> = workers
            .filter(|worker| can_be_traced(worker))
            .map(Worker::id)
            .collect();
        for id in free {
            self.trace_worker(now, id);
        }
    }

    /// When to open or close a window next.
    pub(crate) fn trace_at(&self) -> Option<Timestamp> {
        let workers = self.state.workers.values();
        workers
            .filter(|worker| can_be_traced(worker))
            .filter_map(|worker| worker.tracing().deadline())
            .min()
    }

    fn trace_worker(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.state.workers.get(&id) else {
            return;
        };
        let room = self.room_of(worker);
        let memory = worker.memory().value();
        let baseline = worker.memory().baseline().unwrap_or_default();
        let may = May {
            trace: self.wants_windows(now, worker),
            interrupt: self.is_job(),
        };
        let known = worker.ceiling_state().memory_when_ready().is_some();
        let sure = known && worker.memory().is_sure();
        let always = self.spec.leaks.ask == Leaks::Always;
        let grows = sure && (always || is_base_due(memory, baseline));
        let leaks = may.trace && !worker.tracing().is_armed() && self.is_worth_tracing(worker);
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        let Some(window) = worker.tracing_mut().step(now, may, || grows, || leaks) else {
            return;
        };
        let open = AgentAsk::Open {
            room,
            base: may.interrupt,
        };
        match window {
            Window::Base => self.ask(now, id, Request::Base, AgentAsk::Base),
            Window::Arm => {
                self.emit(Event::Armed {
                    worker: id,
                    memory,
                    baseline,
                });
                self.ask(now, id, Request::Open, open);
            }
            Window::Open => self.ask(now, id, Request::Open, open),
            Window::Close => self.ask(now, id, Request::Close, AgentAsk::Close),
        }
    }

    /// Whether preparing the worker for a report would help: its agent may be asked, and it will
    /// probably make the next report.
    fn wants_windows(&self, now: Timestamp, worker: &Worker) -> bool {
        let left = self.time_to_limit(worker);
        let soon = left.unwrap_or_default().min(PREPARED_BEFORE);
        let until = left.unwrap_or(Duration::MAX).saturating_add(ONE_REPORT);
        let next = self.may_report(now.later(soon)) && !self.another_will_report(worker, until);
        let often = self.pace() == Pace::DENSE;
        self.wants_reports() && (often || next) && self.shares_too_much(worker).is_none()
    }

    /// Whether another worker is prepared for a report, and will probably leave within this time.
    /// Only one of them will report, and so only one should be prepared.
    pub(super) fn another_will_report(&self, worker: &Worker, within: Duration) -> bool {
        // RACE: two workers may have begun at the same time. The first one goes on.
        let begun = worker.tracing().has_begun();
        let is_before = |other: &Worker| other.id() < worker.id() || !begun;
        let mut others = self.state.workers.values().filter(|other| {
            other.id() != worker.id() && other.tracing().has_begun() && other.drain().is_none()
        });
        others.any(|other| {
            let left = self.time_to_limit(other);
            is_before(other) && left.is_some_and(|left| left <= within)
        })
    }

    fn time_to_limit(&self, worker: &Worker) -> Option<Duration> {
        let limit = self.ceiling_of(worker).or(self.state.limits.cap.bytes)?;
        worker.memory().time_to(limit)
    }

    /// How often the workers are traced.
    pub(super) const fn pace(&self) -> Pace {
        match self.spec.leaks.ask {
            Leaks::Auto | Leaks::Off if !self.is_job() => Pace::SPARSE,
            Leaks::Auto | Leaks::Off | Leaks::On | Leaks::Always => Pace::DENSE,
        }
    }

    /// A worker has taken the figures that a report compares with, or was not idle.
    pub(super) fn on_base(&mut self, now: Timestamp, id: WorkerId, taken: bool) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        worker.requests_mut().finish();
        worker.tracing_mut().on_base(now, taken);
        self.plan.touch();
        self.serve_report_requests(now, id);
    }

    fn is_worth_tracing(&self, worker: &Worker) -> bool {
        // A job that is a single program never becomes ready, so its growth counts from the start.
        // The workers of a server become ready even in a job; until then they import and warm up.
        let one_program = self.is_job() && self.is_whole_program();
        let known = worker.ceiling_state().memory_when_ready().is_some() || one_program;
        if !known || !worker.memory().is_sure() {
            return false;
        }
        let value = worker.memory().value();
        if !worker.tracing().may_arm(value) || self.spec.leaks.ask == Leaks::Always {
            return worker.tracing().may_arm(value);
        }
        let ceiling = self.ceiling_of(worker);
        let Some(limit) = ceiling.or(self.state.limits.cap.bytes) else {
            return false;
        };
        let growth = GrowthState {
            value,
            baseline: worker.memory().baseline(),
            limit,
            goes_on: worker.memory().still_grows(),
            to_limit: worker.memory().time_to(limit),
        };
        growth.is_leak_near_limit()
    }

    /// A window has opened, or closed.
    pub(super) fn on_window(&mut self, now: Timestamp, id: WorkerId, opened: bool) {
        let pace = self.pace();
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        worker.requests_mut().finish();
        let memory = worker.memory().value();
        if opened {
            worker.tracing_mut().on_opened(now, pace);
        } else {
            worker.tracing_mut().on_closed(now, memory, pace);
            self.plan.touch();
        }
        self.serve_report_requests(now, id);
    }
}
