//! The history of a service, for its curves and for the limits that it needs: what the whole
//! service did over the last month, and what its last workers held.
//!
//! The driver observes the service each second. Everything here is bounded.

mod curves;
mod lives;
mod need;
pub mod suggestion;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor,
    event::{End, Limits},
};
use crate::units::{Bytes, Timestamp, WorkerId};

use curves::Curves;
use lives::Lives;

/// The version of the format. It increases with each change that an older reader cannot read.
const FORMAT: u32 = 1;

/// The service at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The limits in force.
    pub limits: Limits,
    /// `server`, `fleet`, `job` or `pool`.
    pub mode: String,
    /// Private memory of the server's own processes.
    pub server: Bytes,
    /// Private memory of all workers together.
    pub memory: Bytes,
    /// Requests or tasks done since the start of the service. `None`: they are not counted.
    pub tasks: Option<u64>,
    /// The live workers, oldest first.
    pub workers: Vec<Observed>,
}

/// One live worker at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Its id.
    pub worker: WorkerId,
    /// Its age.
    pub age: Duration,
    /// Requests or tasks that it has done. `None`: they are not counted.
    pub tasks: Option<u64>,
    /// The memory that is compared with its ceiling. `None`: there is no good figure now.
    pub memory: Option<Bytes>,
    /// It works, and is older than `recycle.min_age`.
    pub warm: bool,
}

/// The history of a service.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct History {
    format: u32,
    limits: InForce,
    curves: Curves,
    #[serde(flatten)]
    lives: Lives,
    /// The count of tasks at the last observation.
    #[serde(skip)]
    tasks: Option<u64>,
}

/// The limits in force at the last observation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct InForce {
    mode: String,
    available: Bytes,
    budget: Option<Bytes>,
    ceiling: Option<Bytes>,
    cap: Option<Bytes>,
    server: Bytes,
    workers: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            format: FORMAT,
            limits: InForce::default(),
            curves: Curves::default(),
            lives: Lives::default(),
            tasks: None,
        }
    }
}

impl History {
    /// Takes in what was observed at `at`, in Unix seconds.
    pub fn observe(&mut self, at: u64, observation: &Observation) {
        let limits = &observation.limits;
        self.limits = InForce {
            mode: observation.mode.clone(),
            available: limits.available,
            budget: limits.budget.bytes,
            ceiling: limits.ceiling.bytes,
            cap: limits.cap.bytes,
            server: observation.server,
            workers: observation.workers.len(),
        };
        let before = self.tasks.or(observation.tasks);
        self.tasks = observation.tasks;
        let done = observation.tasks.zip(before);
        let done = done.map(|(now, before)| now.saturating_sub(before));
        let workers = observation.workers.len();
        self.curves.add(at, observation.memory, workers, done);
        self.lives.observe(at, &observation.workers);
    }

    /// A worker has ended at `at`, in Unix seconds.
    pub fn on_ended(&mut self, at: u64, end: &End) {
        self.lives.on_ended(at, end);
    }

    /// Nothing was observed yet.
    pub fn is_empty(&self) -> bool {
        self.limits == InForce::default()
    }

    /// The workers that ran are gone, and it is unknown how they ended.
    pub fn on_restarted(&mut self) {
        self.lives.on_restarted();
    }

    /// Whether this is a history that a service has written.
    ///
    /// # Errors
    /// The reason why it is not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.format != FORMAT {
            return Err("another version wrote it");
        }
        self.curves.check()?;
        self.lives.check()
    }
}

impl Supervisor {
    /// What the history keeps of this moment.
    pub fn observe(&self, now: Timestamp) -> Observation {
        let workers = self.state.workers.values();
        Observation {
            limits: self.state.limits.clone(),
            mode: self.kind_name().to_owned(),
            server: self.state.usage.server(),
            memory: workers.fold(Bytes::ZERO, |sum, worker| {
                sum.plus(worker.memory().private())
            }),
            tasks: self.all_done(),
            workers: (self.state.workers.values())
                .map(|worker| Observed {
                    worker: worker.id(),
                    age: worker.age(now),
                    tasks: worker.counters().done(),
                    memory: (worker.memory().is_sure()).then(|| worker.memory().value()),
                    warm: worker.is_ready() && worker.ceiling_state().is_warm(),
                })
                .collect(),
        }
    }
}
