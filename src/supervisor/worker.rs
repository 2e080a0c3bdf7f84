//! One process life: its states, its memory, and why it is to go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    action::Priority,
    asking::Asked,
    counting::Counted,
    memory::Memory,
    report::{Cause, Limits, WorkerView},
    tracing::Tracing,
    wire::Wire,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// One worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) pid: i32,
    pub(super) slot: u32,
    pub(super) seen: Timestamp,
    pub(super) life: Life,
    pub(super) memory: Memory,
    /// An operator's wish that it be replaced.
    pub(super) wanted_gone: Option<Cause>,
    /// The passing of this limit was told; told once.
    pub(super) told_due: Option<Cause>,
    /// If it goes by itself now, this is why: its server was told to reload or to shrink.
    pub(super) expected: Option<Cause>,
    /// Its server was told so, and until then it is taken to be on its way out.
    pub(super) leaves_by: Option<Timestamp>,
    /// Its own part of the jitter, 0 to 1: limits are lowered by it, never raised.
    pub(super) jitter: f64,
    /// What it was asked, and said.
    pub(super) asked: Asked,
    /// How its growth is traced.
    pub(super) tracing: Tracing,
    /// What it has done.
    pub(super) counted: Counted,
    /// What it held when it began to serve.
    pub(super) birth: Option<Bytes>,
    /// Its warm-up is over.
    pub(super) warm: bool,
    /// Over its ceiling at birth: recycling cannot help.
    pub(super) born_fat: bool,
    /// It has been over its ceiling since then.
    #[serde(default)]
    pub(super) over_since: Option<Timestamp>,
    /// It has lived below its ceiling for long enough to show that recycling helps.
    #[serde(default)]
    pub(super) proved: bool,
    pub(super) priority: Priority,
    /// The cap the kernel was told, so that it is told only of changes.
    pub(super) cap: Option<Bytes>,
    /// Setting its cap has failed.
    #[serde(default)]
    pub(super) cap_failed: bool,
    pub(super) wire: Option<Wire>,
}

/// The states of a life. Each holds only what exists then.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Life {
    /// It boots.
    Starting,
    /// It serves.
    Ready {
        /// Since then.
        since: Timestamp,
    },
    /// It was asked to go.
    Draining(Drain),
}

/// A worker on its way out.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Drain {
    /// Why and how.
    pub(super) leave: Leave,
    /// Asked then.
    pub(super) since: Timestamp,
    /// Its memory then: an interpreter that ends frees before it goes.
    pub(super) memory: Bytes,
    /// It has been killed.
    pub(super) killed: bool,
    /// What it goes back to should its server retire another one instead.
    pub(super) ready_since: Timestamp,
}

/// Why and how a worker is to go.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Leave {
    /// Why.
    pub(super) cause: Cause,
    /// The limit it passed.
    pub(super) limit: Option<Bytes>,
    /// It is killed then.
    pub(super) until: Timestamp,
    /// Who ends it.
    pub(super) by: By,
}

/// Who ends a draining worker.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum By {
    /// A signal of ours to itself, or to the command it is.
    Signal,
    /// Its server, which was asked for one worker fewer.
    Server,
}

impl Worker {
    /// It serves, and nobody has told it to go.
    pub(super) const fn is_ready(&self) -> bool {
        self.serves() && self.leaves_by.is_none()
    }

    /// It has booted, and we have not asked it to go.
    pub(super) const fn serves(&self) -> bool {
        matches!(self.life, Life::Ready { .. })
    }

    /// It goes: we asked it to, or its server was told something that makes it.
    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self.life, Life::Draining(_)) || self.leaves_by.is_some()
    }

    pub(super) const fn is_starting(&self) -> bool {
        matches!(self.life, Life::Starting)
    }

    pub(super) const fn drain(&self) -> Option<&Drain> {
        match &self.life {
            Life::Draining(drain) => Some(drain),
            Life::Starting | Life::Ready { .. } => None,
        }
    }

    pub(super) const fn age(&self, now: Timestamp) -> Duration {
        now.since(self.seen)
    }

    /// The ceiling this worker is held against: the service's, lowered by its own jitter. A worker
    /// that is born between the two gets the whole.
    pub(super) fn ceiling(&self, ceiling: Option<Bytes>, jitter: f64) -> Option<Bytes> {
        if self.born_fat {
            return None;
        }
        let full = ceiling?;
        let lowered = full.scaled(1.0 - jitter * self.jitter);
        match self.birth {
            Some(birth) if birth >= lowered => Some(full),
            _ => Some(lowered),
        }
    }

    /// The next figure whose passing must be seen in time: its ceiling, or for a job the next step
    /// towards its cap.
    pub(super) fn watched(&self, limits: &Limits, jitter: f64) -> Option<Bytes> {
        let ceiling = self.ceiling(limits.ceiling.bytes, jitter);
        let step = || {
            let cap = limits.cap.bytes?;
            Some(self.asked.next_stack(cap)).filter(|step| *step < cap)
        };
        ceiling.or_else(step)
    }

    /// The age at which this worker is recycled, lowered by its own jitter.
    pub(super) fn max_age(&self, max_age: Option<Duration>, jitter: f64) -> Option<Duration> {
        Some(max_age?.mul_f64((1.0 - jitter * self.jitter).clamp(0.0, 1.0)))
    }

    pub(super) fn view(&self, now: Timestamp, ceiling: Option<Bytes>) -> WorkerView {
        let state = match self.life {
            Life::Starting => "starting",
            Life::Ready { .. } => "ready",
            Life::Draining(_) => "draining",
        };
        let growth = self.memory.baseline().unwrap_or_default();
        let growth = self.memory.value().minus(growth);
        WorkerView {
            id: self.id,
            pid: self.pid,
            slot: self.slot,
            state: state.to_owned(),
            age: self.age(now),
            tasks: self.counted.done(),
            tasks_per_s: self.counted.rate(),
            bytes_per_task: self.counted.bytes_per_task(growth),
            agent: self.asked.agent.clone(),
            traced: self.tracing.is_armed(),
            rescues: self.asked.rescues,
            processes: self.memory.last().map_or(1, |last| last.processes),
            memory: self.memory.view(ceiling),
        }
    }
}
