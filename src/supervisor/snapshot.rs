//! The state of the whole service at one moment, for `status`, the control API and metrics.

use std::{collections::BTreeMap, time::Duration};

use crate::supervisor::{
    Supervisor,
    event::{End, Limits},
    input::{Agent, CapMechanism, Machine},
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// The state of a service at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The service's name.
    pub name: String,
    /// `server`, `fleet`, `job` or `pool`.
    pub mode: String,
    /// The command's main process, while there is one.
    pub command_pid: Option<i32>,
    /// The service is ready.
    pub ready: bool,
    /// It is being stopped.
    pub stopping: bool,
    /// The time until the command is killed, while the service stops.
    pub killed_in: Option<Duration>,
    /// What a server's main process says about itself (`STATUS=` of sd_notify(3)).
    pub status_text: Option<String>,
    /// What is wrong with the service at the moment: its workers cannot start, or something outside
    /// the workers fills the budget.
    pub problem: Option<String>,
    /// What enforces a cap on this machine.
    pub caps: CapMechanism,
    /// A cap is set, and the kernel enforces it for whole workers.
    pub enforced: bool,
    /// Why caps are not enforced. `None`: they are.
    pub why_not: Option<String>,
    /// Thresholds are in use.
    pub threshold: bool,
    /// What is compared with the ceiling: `private`, `rss`, `pss` or `cgroup`.
    pub measure: String,
    /// The limits in force.
    pub limits: Limits,
    /// Live workers, oldest first.
    pub workers: Vec<WorkerView>,
    /// Planned ends, by cause.
    pub recycles: BTreeMap<String, u64>,
    /// Unplanned ends, by cause.
    pub unplanned: BTreeMap<String, u64>,
    /// Starts of the command after the first.
    pub restarts: u64,
    /// The last ends, oldest first.
    pub ends: Vec<End>,
    /// Requests or tasks done by all workers, including those that have ended. `None`: they are not
    /// counted.
    pub requests: Option<u64>,
    /// The routes that have done requests, the one with the largest growth first.
    pub routes: Vec<RouteView>,
    /// How often a worker freed enough memory at its ceiling and was not replaced.
    pub rescues: u64,
    /// Recycling is suspended at the moment, because a start failed.
    pub suspended: Option<SuspendedView>,
    /// Starts of replacements that failed.
    pub failed_starts: u64,
    /// The server's processes that are neither its main process nor workers, with those below them.
    pub helpers: Vec<HelperView>,
    /// The kernel limits these by the budget. Otherwise nothing limits them.
    pub helpers_limited: bool,
    /// Processes that outlived their worker.
    pub leftovers: Vec<LeftoverView>,
    /// The number of leftovers that the supervisor has ended.
    pub leftovers_ended: u64,
    /// The tasks, if the service is a pool.
    pub pool: Option<PoolView>,
}

/// A route or a kind of tasks, in all workers together, since the start of the supervisor.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteView {
    /// Its name. It is chosen by the application.
    pub route: String,
    /// Requests or tasks done.
    pub requests: u64,
    /// The growth of workers that is attributed to these requests.
    pub growth: Bytes,
    /// The growth for each request, as estimated from the last minutes.
    pub per_request: Bytes,
    /// Its part of the growth of all routes, 0 to 1.
    pub share: f64,
    /// The growth for each request is at least four times its standard error.
    pub certain: bool,
}

/// The tasks of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolView {
    /// The function that it calls. `None`: an executor sends its functions.
    pub function: Option<String>,
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that a worker runs now.
    pub running: u64,
    /// Tasks that were read and have not begun.
    pub waiting: u64,
    /// Tasks that had begun when the pool stopped, and have no result.
    pub abandoned: u64,
}

/// Why recycling is suspended.
#[derive(Clone, Debug, PartialEq)]
pub struct SuspendedView {
    /// What failed to start, and how.
    pub why: String,
    /// How long recycling has been suspended.
    pub lasts: Duration,
    /// Failed starts in a row.
    pub failures: u32,
}

/// A process of a server that is neither its main process nor a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct HelperView {
    /// Its pid.
    pub pid: i32,
    /// What it is: `dirty arbiter`, `dirty worker`, `helper`.
    pub name: String,
    /// Its command line, for people.
    pub command: String,
    /// Its anonymous pages.
    pub memory: Bytes,
}

/// A process that outlived its worker, with its descendants.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftoverView {
    /// The worker that started it.
    pub worker: WorkerId,
    /// The topmost process.
    pub pid: i32,
    /// Its command line, for people.
    pub command: String,
    /// The memory of all these processes.
    pub memory: Bytes,
    /// Number of these processes.
    pub processes: u32,
    /// How long none of them has used CPU.
    pub idle: Duration,
}

/// One live worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// Its id.
    pub id: WorkerId,
    /// Its process.
    pub pid: i32,
    /// The number of its slot, from 0. A replacement may get the same slot.
    pub slot: u32,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Its age.
    pub age: Duration,
    /// Tasks or requests that it has done. `None`: they are not counted.
    pub tasks: Option<u64>,
    /// Its recent rate of tasks or requests per second.
    pub tasks_per_s: Option<f64>,
    /// Its growth since the baseline, for each task or request done since then.
    pub bytes_per_task: Option<f64>,
    /// Whether it has an agent.
    pub agent: Agent,
    /// Its allocations are traced at the moment.
    pub traced: bool,
    /// How often it freed enough memory at its ceiling and was not replaced.
    pub rescues: u32,
    /// Number of its processes.
    pub processes: u32,
    /// What it says about itself (`STATUS=` of sd_notify(3)).
    pub status_text: Option<String>,
    /// The time until it is killed, while it drains.
    pub killed_in: Option<Duration>,
    /// Its memory.
    pub memory: MemoryView,
}

#[cfg(test)]
impl WorkerView {
    /// A worker that serves.
    pub(crate) fn for_test() -> Self {
        Self {
            id: WorkerId::FIRST,
            pid: 41,
            slot: 0,
            state: "ready".to_owned(),
            age: Duration::from_millis(1500),
            tasks: Some(120),
            tasks_per_s: Some(2.5),
            bytes_per_task: Some(4096.0),
            agent: Agent::Loaded,
            traced: false,
            rescues: 0,
            processes: 1,
            status_text: None,
            killed_in: None,
            memory: MemoryView {
                private: Bytes(7),
                ..MemoryView::default()
            },
        }
    }
}

/// One worker's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryView {
    /// Private pages and swap: the last exact figure plus the growth seen in cheap samples since.
    pub private: Bytes,
    /// Resident pages.
    pub rss: Bytes,
    /// Proportional memory, estimated in the same way.
    pub pss: Option<Bytes>,
    /// The charge of its cgroup, without what the kernel can reclaim.
    pub cgroup: Option<Bytes>,
    /// The highest value of the configured measure.
    pub peak: Bytes,
    /// The memory after warm-up.
    pub baseline: Option<Bytes>,
    /// Growth in bytes per second.
    pub slope_bps: Option<f64>,
    /// The time until it reaches its ceiling at that slope.
    pub to_ceiling: Option<Duration>,
}

impl Supervisor {
    /// The state of the service now.
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let machine = self.here.machine.clone().unwrap_or_default();
        Snapshot {
            name: self.spec.name.clone(),
            mode: self.kind_name().to_owned(),
            command_pid: self.state.service.pid(),
            ready: self.state.service.is_ready() && !self.state.service.is_stopping(),
            stopping: self.state.service.is_stopping(),
            killed_in: self.command_killed_at().map(|at| at.since(now)),
            status_text: self.command_status(),
            problem: self.state.loops.problem(now),
            caps: machine.caps,
            enforced: self.state.limits.cap.bytes.is_some()
                && machine.caps != CapMechanism::Rlimit
                && !self.has_failed_caps(),
            why_not: self.why_not(&machine),
            threshold: machine.threshold && self.spec.memory.threshold,
            measure: self.spec.memory.measure.to_string(),
            limits: self.state.limits.clone(),
            workers: self
                .state
                .workers
                .values()
                .map(|worker| worker.view(now, self.ceiling_of(worker)))
                .collect(),
            recycles: self.state.record.recycles().clone(),
            unplanned: self.state.record.unplanned().clone(),
            restarts: self.state.service.restarts(),
            ends: self.state.record.ends().iter().cloned().collect(),
            requests: self.all_done(),
            routes: self.routes(),
            rescues: self.state.agents.rescues(),
            suspended: self.state.starts.view(now),
            failed_starts: self.state.starts.total(),
            helpers: self.state.usage.helpers().to_vec(),
            helpers_limited: machine.budget && self.state.limits.budget.bytes.is_some(),
            leftovers: self.state.leftovers.view(),
            leftovers_ended: self.state.leftovers.ended(),
            pool: None,
        }
    }

    fn why_not(&self, machine: &Machine) -> Option<String> {
        if self.state.limits.cap.bytes.is_none() {
            return Some("there is no cap: it is switched off".to_owned());
        }
        if self.has_failed_caps() {
            return Some("a cap could not be set; see the events".to_owned());
        }
        machine.why_not.clone()
    }

    fn has_failed_caps(&self) -> bool {
        self.state
            .workers
            .values()
            .any(|worker| worker.kernel().has_failed())
    }
}
