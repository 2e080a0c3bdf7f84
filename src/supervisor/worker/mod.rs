//! One worker: its lifecycle, its memory, its agent, and its settings in the kernel.

pub(crate) mod agent_requests;
mod all;
pub(crate) mod ceiling;
pub(crate) mod counters;
pub(crate) mod growth;
pub(crate) mod kernel;
pub(crate) mod lifecycle;
pub(crate) mod memory;
mod retry;
pub(crate) mod threshold;
pub(crate) mod tracing;

use std::time::Duration;

pub(crate) use all::Workers;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    cause::{Cause, Class},
    event::Limits,
    snapshot::WorkerView,
    worker::{
        agent_requests::AgentRequests,
        ceiling::CeilingState,
        counters::Counters,
        kernel::KernelSettings,
        lifecycle::{Drain, Life, Step},
        memory::Memory,
        tracing::Tracing,
    },
};
use crate::units::{Bytes, Timestamp, WorkerId, scaled};

/// One worker. Whether a server or the supervisor started it makes no difference here.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Worker {
    identity: Identity,
    life: Life,
    memory: Memory,
    #[serde(rename = "standing")]
    ceiling_state: CeilingState,
    kernel: KernelSettings,
    requests: AgentRequests,
    tracing: Tracing,
    counters: Counters,
    /// Why an operator wants it replaced.
    #[serde(rename = "wanted_gone")]
    requested_replacement: Option<Cause>,
    /// The last limit for which an event was written that the worker passed it.
    announced: Option<Cause>,
    /// What it says about itself (`STATUS=` of sd_notify(3)).
    #[serde(default)]
    status_text: Option<String>,
}

/// What stays the same from the start of a worker to its end.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Identity {
    pub(crate) id: WorkerId,
    pub(crate) pid: i32,
    pub(crate) slot: u32,
    pub(crate) seen: Timestamp,
    /// Its random part of the jitter, 0 to 1. Jitter lowers limits and never raises them.
    pub(crate) jitter: f64,
}

impl Worker {
    pub(crate) fn new(identity: Identity, memory: Memory, cap: Option<Bytes>) -> Self {
        Self {
            identity,
            life: Life::NEW,
            memory,
            ceiling_state: CeilingState::default(),
            kernel: KernelSettings::new(cap),
            requests: AgentRequests::new(identity.seen),
            tracing: Tracing::default(),
            counters: Counters::default(),
            requested_replacement: None,
            announced: None,
            status_text: None,
        }
    }

    pub(crate) const fn id(&self) -> WorkerId {
        self.identity.id
    }

    pub(crate) const fn pid(&self) -> i32 {
        self.identity.pid
    }

    pub(crate) const fn slot(&self) -> u32 {
        self.identity.slot
    }

    pub(crate) const fn seen(&self) -> Timestamp {
        self.identity.seen
    }

    pub(crate) const fn life(&self) -> Life {
        self.life
    }

    /// Returns true if the step changes its state.
    pub(crate) fn step(&mut self, now: Timestamp, step: Step) -> bool {
        let next = self.life.after(now, step);
        std::mem::replace(&mut self.life, next) != next
    }

    /// It serves, and it is not expected to exit.
    pub(crate) fn is_ready(&self) -> bool {
        self.serves() && self.life.leaves_by().is_none()
    }

    /// It has booted, and the supervisor has not asked it to exit.
    pub(crate) const fn serves(&self) -> bool {
        self.life.is_serving()
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.drain().is_some() || self.life.leaves_by().is_some()
    }

    pub(crate) const fn is_starting(&self) -> bool {
        self.life.is_starting()
    }

    pub(crate) const fn drain(&self) -> Option<Drain> {
        self.life.drain()
    }

    /// When it will be killed, if it has not exited by then.
    pub(crate) fn killed_at(&self) -> Option<Timestamp> {
        let drain = self.drain().filter(|drain| !drain.is_killed());
        drain.map(|drain| drain.leave().until)
    }

    pub(crate) const fn age(&self, now: Timestamp) -> Duration {
        now.since(self.identity.seen)
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    pub(crate) const fn ceiling_state(&self) -> &CeilingState {
        &self.ceiling_state
    }

    pub(crate) const fn ceiling_state_mut(&mut self) -> &mut CeilingState {
        &mut self.ceiling_state
    }

    pub(crate) const fn kernel(&self) -> &KernelSettings {
        &self.kernel
    }

    pub(crate) const fn kernel_mut(&mut self) -> &mut KernelSettings {
        &mut self.kernel
    }

    pub(crate) const fn requests(&self) -> &AgentRequests {
        &self.requests
    }

    pub(crate) const fn requests_mut(&mut self) -> &mut AgentRequests {
        &mut self.requests
    }

    pub(crate) const fn tracing(&self) -> &Tracing {
        &self.tracing
    }

    pub(crate) const fn tracing_mut(&mut self) -> &mut Tracing {
        &mut self.tracing
    }

    pub(crate) const fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) const fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    pub(crate) fn status_text(&self) -> Option<&str> {
        self.status_text.as_deref()
    }

    pub(crate) fn set_status_text(&mut self, text: Option<String>) {
        self.status_text = text;
    }

    pub(crate) const fn requested_replacement(&self) -> Option<Cause> {
        self.requested_replacement
    }

    /// An operator wants it replaced.
    pub(crate) const fn request_replacement(&mut self, cause: Cause) {
        self.requested_replacement = Some(cause);
    }

    /// Gives up the replacement that an operator wanted.
    pub(crate) fn withdraw_request(&mut self) {
        self.requested_replacement = None;
        let by_operator = |cause: &Cause| cause.class() == Class::Operator;
        self.announced = self.announced.filter(|cause| !by_operator(cause));
    }

    /// The worker has passed a limit. Returns true if an event should be written about it.
    pub(crate) fn announce(&mut self, cause: Cause) -> bool {
        self.announced.replace(cause) != Some(cause)
    }

    /// If the worker passes a limit again, another event is written.
    pub(crate) const fn forget_announced(&mut self) {
        self.announced = None;
    }

    /// From now on its growth, and its memory per task, are measured from its current memory.
    pub(crate) fn set_baseline(&mut self) {
        self.memory.set_baseline();
        self.counters.set_baseline();
    }

    /// The ceiling that applies to it, lowered by its part of the jitter and by what its report
    /// needs.
    pub(crate) fn ceiling(&self, ceiling: Option<Bytes>, jitter: f64) -> Option<Bytes> {
        let full = ceiling?;
        let lowered = full.scaled(1.0 - jitter * self.identity.jitter);
        let with_room = lowered.minus(self.tracing.room(full));
        self.ceiling_state.ceiling(full, [with_room, lowered])
    }

    /// What its samples are compared with: its ceiling, or else the next part of its cap at which
    /// its stack is recorded.
    pub(crate) fn watched(&self, limits: &Limits, jitter: f64) -> Option<Bytes> {
        let ceiling = self.ceiling(limits.ceiling.bytes, jitter);
        let step = || {
            let cap = limits.cap.bytes?;
            Some(self.requests.next_stack(cap)).filter(|step| *step < cap)
        };
        ceiling.or_else(step)
    }

    pub(crate) fn max_age(&self, max_age: Option<Duration>, jitter: f64) -> Option<Duration> {
        let part = 1.0 - jitter * self.identity.jitter;
        Some(max_age?.mul_f64(part.clamp(0.0, 1.0)))
    }

    /// The number of tasks after which it is recycled, lowered by its part of the jitter.
    pub(crate) fn max_tasks(&self, max_tasks: Option<u64>, jitter: f64) -> Option<u64> {
        let part = 1.0 - jitter * self.identity.jitter;
        Some(scaled(max_tasks?, part).max(1))
    }

    pub(crate) fn view(&self, now: Timestamp, ceiling: Option<Bytes>) -> WorkerView {
        let growth = self.memory.baseline().unwrap_or_default();
        let growth = self.memory.value().minus(growth);
        WorkerView {
            id: self.id(),
            pid: self.pid(),
            slot: self.slot(),
            state: self.life.name().to_owned(),
            age: self.age(now),
            tasks: self.counters.done(),
            tasks_per_s: self.counters.rate(),
            bytes_per_task: self.counters.bytes_per_task(growth),
            agent: self.requests.agent().clone(),
            traced: self.tracing.is_armed(),
            rescues: self.requests.rescues(),
            processes: self.memory.processes(),
            status_text: self.status_text.clone(),
            killed_in: self.killed_at().map(|at| at.since(now)),
            memory: self.memory.view(ceiling),
        }
    }
}
