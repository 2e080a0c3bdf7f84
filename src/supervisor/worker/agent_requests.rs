//! Requests to one worker's agent: whether the worker has an agent, the pending request, and
//! whether the worker has collected garbage.
//!
//! Every request has a time limit, and a worker has at most one pending request. A worker that does
//! not answer is treated as if it had no agent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::retry::Retry;
use crate::supervisor::{cause::Cause, input::Agent};
use crate::units::{Bytes, ReportId, RequestId, Timestamp};

/// An interpreter may be slow to start. Until a worker is this old, its agent is searched for every
/// `FIND_AGAIN`.
const FIND_UNTIL: Duration = Duration::from_secs(15);
/// A worker that serves must be this old before a missing agent is warned about.
const FIND_SERVING: Duration = Duration::from_secs(3);
const FIND_AGAIN: Duration = Duration::from_secs(1);
const FIND_FIRST: Duration = Duration::from_millis(200);
/// An older worker without an agent is searched again this often, because it may have executed
/// another program.
const FIND_LATER: Duration = Duration::from_secs(60);
/// A worker that is over its ceiling again this soon after it freed memory is replaced.
const RESCUE_LASTS: Duration = Duration::from_secs(1);
/// A worker that serves a request is asked to collect garbage again after this time ...
const BUSY_AGAIN: Duration = Duration::from_millis(20);
/// ... at most this often.
const BUSY_MAX: u32 = 15;
/// A worker's stack is recorded when it holds this part of its cap, and then again at each further
/// `STACKS_EVERY`.
const STACKS_FROM: f64 = 0.4;
const STACKS_EVERY: f64 = 0.1;

/// A request that a worker has not answered yet.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Pending {
    pub(crate) request: Request,
    /// When the request is given up.
    pub(crate) until: Timestamp,
}

/// A request to a worker's agent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Request {
    /// Collect garbage.
    Collect,
    /// Take the figures that a report compares with.
    Base,
    /// Open a window of tracing.
    Open,
    /// Close the window.
    Close,
    /// Make a memory report.
    Report {
        report: ReportId,
        cause: Cause,
        from: ReportFrom,
    },
}

/// Who makes a report, and when.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum ReportFrom {
    /// The worker's agent, at once.
    Agent,
    /// The worker's agent, when the worker has answered its last request.
    DrainedAgent,
    /// The supervisor, from outside the worker, because the agent cannot answer.
    Outside,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct AgentRequests {
    agent: Agent,
    find_at: Timestamp,
    pending: Option<Pending>,
    /// Collecting garbage when it is over its ceiling (DESIGN §6).
    collecting: Retry,
    /// How often a collection freed enough memory, so that the worker was not replaced.
    rescues: u32,
    /// When that last happened.
    rescued_at: Option<Timestamp>,
    report: Option<ReportId>,
    /// The request that is pending was withdrawn.
    withdrawn: bool,
    /// The requests of operators that wait for a report.
    #[serde(skip)]
    waiting: Vec<RequestId>,
    /// Its memory when its stack was last recorded.
    noted: Bytes,
}

impl AgentRequests {
    pub(crate) fn new(seen: Timestamp) -> Self {
        Self {
            agent: Agent::Unknown,
            find_at: seen.later(FIND_FIRST),
            pending: None,
            collecting: Retry::default(),
            rescues: 0,
            rescued_at: None,
            report: None,
            withdrawn: false,
            waiting: Vec::new(),
            noted: Bytes::ZERO,
        }
    }

    pub(crate) const fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.agent == Agent::Loaded
    }

    /// When to search for its agent.
    pub(crate) const fn find_at(&self) -> Timestamp {
        self.find_at
    }

    /// It is time to search for its agent. Returns true if the agent is not known to be loaded.
    pub(crate) fn on_find(&mut self, now: Timestamp) -> bool {
        self.find_at = now.later(FIND_LATER);
        !self.is_loaded()
    }

    /// The result of a search for the agent of a worker of this age. Returns true if a missing
    /// agent should be warned about by now.
    pub(crate) fn on_found(
        &mut self,
        now: Timestamp,
        found: Agent,
        (age, serves): (Duration, bool),
    ) -> bool {
        let has_started = age >= FIND_UNTIL;
        if found != Agent::Loaded {
            let again = if has_started { FIND_LATER } else { FIND_AGAIN };
            self.find_at = now.later(again);
        }
        self.agent = found;
        // A worker that serves has loaded its application, so its interpreter started long ago.
        has_started || (serves && age >= FIND_SERVING)
    }

    pub(crate) const fn pending(&self) -> Option<Pending> {
        self.pending
    }

    /// No request is pending.
    pub(crate) const fn is_free(&self) -> bool {
        self.pending.is_none()
    }

    pub(crate) const fn begin(&mut self, pending: Pending) {
        self.pending = Some(pending);
        self.withdrawn = false;
    }

    /// Withdraws the pending request. Returns false if it was withdrawn before.
    pub(crate) const fn withdraw(&mut self) -> bool {
        let first = !self.withdrawn;
        self.withdrawn = true;
        first
    }

    pub(crate) const fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    /// The pending request is answered or given up.
    pub(crate) const fn finish(&mut self) -> Option<Pending> {
        self.pending.take()
    }

    /// When to ask it to collect garbage. `None`: that was not enough, or it is too busy.
    pub(crate) const fn collect_at(&self) -> Option<Timestamp> {
        self.collecting.at()
    }

    /// It was always busy when it was asked to collect garbage, and may be asked again.
    pub(crate) fn waits_to_collect(&self) -> bool {
        self.collecting.again_at().is_some()
    }

    /// Collecting garbage was not enough.
    pub(crate) const fn on_collected(&mut self) {
        self.collecting = Retry::Over;
    }

    /// It was busy when it was asked to collect garbage.
    pub(crate) fn on_busy(&mut self, now: Timestamp) {
        self.collecting.on_busy(now, BUSY_AGAIN, BUSY_MAX);
    }

    /// The worker is far below its ceiling. When it reaches the ceiling again, it collects garbage
    /// again.
    pub(crate) fn forget_collected(&mut self) {
        self.collecting = Retry::default();
    }

    /// Whether the last rescue kept the worker below its ceiling for long enough.
    pub(crate) fn rescue_lasted(&self, now: Timestamp) -> bool {
        let rescued = self.rescued_at;
        rescued.is_none_or(|at| now.since(at) >= RESCUE_LASTS)
    }

    /// The worker freed enough memory and is not replaced. Returns how often this has happened.
    pub(crate) fn on_rescued(&mut self, now: Timestamp) -> u32 {
        self.collecting = Retry::default();
        self.rescued_at = Some(now);
        self.rescues = self.rescues.saturating_add(1);
        self.rescues
    }

    pub(crate) const fn rescues(&self) -> u32 {
        self.rescues
    }

    pub(crate) const fn report(&self) -> Option<ReportId> {
        self.report
    }

    pub(crate) const fn keep_report(&mut self, report: ReportId) {
        self.report = Some(report);
    }

    /// An operator's request waits for a report.
    pub(crate) fn wait(&mut self, request: RequestId) {
        self.waiting.push(request);
    }

    pub(crate) fn waiting(&self) -> &[RequestId] {
        &self.waiting
    }

    /// Takes the waiting requests, to answer them.
    pub(crate) fn take_waiting(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.waiting)
    }

    /// The memory at which its stack is recorded next.
    pub(crate) fn next_stack(&self, cap: Bytes) -> Bytes {
        let next = self.noted.plus(cap.scaled(STACKS_EVERY));
        next.max(cap.scaled(STACKS_FROM))
    }

    pub(crate) const fn on_stack_noted(&mut self, memory: Bytes) {
        self.noted = memory;
    }
}
