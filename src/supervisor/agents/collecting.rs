//! Collecting garbage in a worker over its limit, before it is replaced. If that frees enough, the
//! worker stays (DESIGN §6).

use std::time::Duration;

use super::IN_VAIN_MAX;
use crate::supervisor::{
    Supervisor,
    action::AgentAsk,
    cause::Cause,
    event::Event,
    policy::candidates::Candidate,
    worker::{Worker, agent_requests::Request},
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// A worker that will reach its cap sooner than this is replaced at once.
pub(super) const TIME_LEFT_MIN: Duration = Duration::from_millis(300);
/// A busy worker that will reach its cap sooner than this is not asked to collect garbage again ...
const WAITS_MIN: Duration = Duration::from_secs(3);
/// ... and neither is one that has grown by more than this over its ceiling, if the last collection
/// helped ...
const HELPED_GROWTH_MAX: Bytes = Bytes::mib(16);
/// ... if there was no collection yet ...
const UNKNOWN_GROWTH_MAX: Bytes = Bytes::mib(4);
/// ... or if the last collection freed little, or the last wait for one was in vain.
const IN_VAIN_GROWTH_MAX: Bytes = Bytes::mib(1);
/// After this many rescues of one worker, a report shows what is collected each time.
const RESCUES_REPORTED: u32 = 2;
/// A collection that freed less than this part of the worker's memory was in vain.
const FREED_MIN: f64 = 0.1;

/// The next step for a candidate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Replace the worker.
    Replace,
    /// Wait for the worker's answer to a pending request.
    Wait,
    /// The worker was busy. Ask it again at this time.
    WaitUntil(Timestamp),
    /// Let the worker collect garbage first.
    Collect,
    /// Replace the worker without asking it anything, because it shares so much memory that
    /// answering might kill it. The text says how much.
    ReplaceUnasked(String),
}

impl Supervisor {
    /// The next step for a worker over its limit.
    pub(crate) fn next_step(&self, now: Timestamp, candidate: &Candidate) -> Step {
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return Step::Replace;
        };
        if !candidate.is_urgent() || self.spec.dry_run {
            return Step::Replace;
        }
        if !worker.requests().is_free() {
            return Step::Wait;
        }
        let left = self.time_to_cap(worker);
        let hurry = left.is_some_and(|left| left < TIME_LEFT_MIN);
        if !worker.requests().is_loaded() || hurry {
            return Step::Replace;
        }
        if let Some(why) = self.shares_too_much(worker) {
            return Step::ReplaceUnasked(why);
        }
        let may_collect = candidate.cause == Cause::Ceiling && self.may_collect(now);
        let may_wait = left.is_none_or(|left| left > WAITS_MIN) && self.may_grow(now, worker);
        match worker.requests().collect_at() {
            // It was not asked yet. This costs no wait.
            Some(at) if may_collect && at == Timestamp::ZERO => Step::Collect,
            Some(at) if may_collect && may_wait && at <= now => Step::Collect,
            Some(at) if may_collect && may_wait => Step::WaitUntil(at),
            Some(_) | None => Step::Replace,
        }
    }

    pub(crate) fn collect_garbage(&mut self, now: Timestamp, id: WorkerId) {
        self.ask(now, id, Request::Collect, AgentAsk::Collect);
    }

    /// The worker serves a request, so it has not collected garbage.
    pub(super) fn on_busy(&mut self, now: Timestamp, id: WorkerId) {
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.requests_mut().finish();
            worker.requests_mut().on_busy(now);
        }
        self.plan.touch();
        self.serve_report_requests(now, id);
    }

    /// Warns once that a worker is replaced without being asked.
    pub(crate) fn warn_unasked(&mut self, id: WorkerId, why: &str) {
        if self.spec.memory.gc_first || self.wants_reports() {
            self.warn_once("shares too much", || {
                format!("{id} is replaced without collecting garbage or reporting: {why}")
            });
        }
    }

    /// Whether collecting garbage may make a replacement unnecessary: workers have an agent, and
    /// the last collection helped or there was none yet.
    pub(crate) fn may_be_rescued(&self) -> bool {
        let mut workers = self.state.workers.values();
        let loaded = workers.any(|worker| worker.requests().is_loaded());
        self.spec.memory.gc_first && loaded && self.state.agents.in_vain == 0
    }

    /// Whether a busy worker over its ceiling may grow until there is a moment without a request.
    /// What it collects then is worth more growth if that has kept it below its ceiling before.
    fn may_grow(&self, now: Timestamp, worker: &Worker) -> bool {
        let agents = &self.state.agents;
        let most = match (agents.in_vain, worker.requests().rescues()) {
            (0, 1..) => HELPED_GROWTH_MAX,
            (0, 0) if !agents.waited_in_vain => UNKNOWN_GROWTH_MAX,
            _ => IN_VAIN_GROWTH_MAX,
        };
        let over = worker.ceiling_state().over_since();
        let over = over.map_or(Duration::ZERO, |since| now.since(since));
        worker.memory().growth_within(over) <= most
    }

    /// A worker is replaced. Remembers whether it has waited for a moment without a request and had
    /// none: with clients that keep their connections open, no other worker will have one.
    pub(crate) fn note_vain_wait(&mut self, id: WorkerId) {
        let worker = self.state.workers.get(&id);
        if worker.is_some_and(|worker| worker.requests().waits_to_collect()) {
            self.state.agents.waited_in_vain = true;
        }
    }

    fn may_collect(&self, now: Timestamp) -> bool {
        let agents = &self.state.agents;
        let hopeless = agents.in_vain >= IN_VAIN_MAX && now < agents.collect_after;
        self.spec.memory.gc_first && !hopeless
    }

    /// How long until this worker reaches its cap at its current pace.
    fn time_to_cap(&self, worker: &Worker) -> Option<Duration> {
        worker.memory().time_to(self.state.limits.cap.bytes?)
    }

    /// A worker over its ceiling has collected garbage. It stays if it is now below its ceiling.
    pub(super) fn on_collected(&mut self, now: Timestamp, id: WorkerId, freed: Bytes) {
        let (full, jitter) = (self.state.limits.ceiling.bytes, self.spec.recycle.jitter);
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        worker.requests_mut().finish();
        let before = worker.memory().value();
        let memory = before.minus(freed);
        let ceiling = worker.ceiling(full, jitter);
        let below = ceiling.is_none_or(|ceiling| memory < ceiling.scaled(0.98));
        let lasted = worker.requests().rescue_lasted(now);
        self.plan.touch();
        if !below || freed == Bytes::ZERO || !lasted {
            worker.requests_mut().on_collected();
            if freed < before.scaled(FREED_MIN) {
                self.state.agents.on_collected_in_vain(now);
            }
            return;
        }
        let times = worker.requests_mut().on_rescued(now);
        worker.forget_announced();
        worker.memory_mut().on_freed(now);
        self.state.agents.on_rescued();
        self.emit(Event::Rescued {
            worker: id,
            freed,
            memory,
            times,
        });
        if times >= RESCUES_REPORTED && self.may_report(now) {
            self.ask_figures(now, id);
        }
        self.serve_report_requests(now, id);
    }
}

#[cfg(test)]
#[path = "collecting_tests.rs"]
mod tests;
