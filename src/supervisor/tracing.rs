//! Armed in time, free until then: when a worker has grown well above its baseline, its allocations
//! are traced in short windows, so that what grows from there on has its line.
//!
//! A window of a tenth of a second each second keeps the cost of tracemalloc, which makes a request
//! several times as dear while it is on, below a seventh of the throughput.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Supervisor, action::AgentAsk, asking::What, report::Report, spec::Leaks, worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// Growth below this is noise.
const GROWTH_MIN: Bytes = Bytes::mib(8);
/// And this is worth a look, whatever there is room for.
const GROWTH_MAX: Bytes = Bytes::mib(64);
/// A worker is armed when it has grown by this part of its baseline ...
const GROWTH_PART: f64 = 0.25;
/// ... or by this part of the way to its limit, whichever is less.
const GROWTH_OF_ROOM: f64 = 0.25;
/// So long a window is open.
const WINDOW: Duration = Duration::from_millis(100);
/// So long nothing is traced after it.
const PAUSE: Duration = Duration::from_millis(900);
/// After so many windows the worker is left alone until it has grown again.
const WINDOWS_MAX: u32 = 20;
/// A window that did not close is asked to again after this.
const CLOSE_AGAIN: Duration = Duration::from_millis(250);

/// Where the tracing of one worker is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Tracing {
    phase: Phase,
    windows: u32,
    /// Not armed again below this.
    arm_at: Bytes,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
enum Phase {
    /// Nothing is traced, and nothing will be until the worker has grown.
    #[default]
    Idle,
    /// Armed; the next window opens then.
    Pausing { until: Timestamp },
    /// A window was asked for.
    Opening,
    /// A window is open, and closes then.
    Open { until: Timestamp },
    /// It was asked to close.
    Closing,
}

impl Tracing {
    pub(super) fn is_armed(&self) -> bool {
        self.phase != Phase::Idle
    }

    pub(super) const fn deadline(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Pausing { until } | Phase::Open { until } => Some(until),
            Phase::Idle | Phase::Opening | Phase::Closing => None,
        }
    }

    /// A report ends the window that was open.
    pub(super) fn on_reported(&mut self, now: Timestamp) {
        if self.is_armed() {
            let until = now.later(PAUSE);
            self.phase = Phase::Pausing { until };
        }
    }

    /// A window that could not be opened is tried again later. One that could not be closed is open
    /// still, as far as we know, and is asked again soon.
    ///
    /// RACE: an interpreter that ends catches no signal any more, and its end is not yet told.
    /// Asked again at once it would be asked for ever, and we would hear of nothing else.
    pub(super) fn on_silence(&mut self, now: Timestamp, opening: bool) {
        self.phase = if opening {
            let until = now.later(PAUSE);
            Phase::Pausing { until }
        } else {
            let until = now.later(CLOSE_AGAIN);
            Phase::Open { until }
        };
    }
}

impl Supervisor {
    /// Opens and closes the windows that are due.
    pub(super) fn mind_tracing(&mut self, now: Timestamp) {
        if self.spec.leaks.ask == Leaks::Off {
            return;
        }
        let free = |worker: &&Worker| {
            worker.asked.is_loaded() && worker.asked.asking.is_none() && worker.drain().is_none()
        };
        let free: Vec<_> = self.workers.values().filter(free).map(|w| w.id).collect();
        for id in free {
            self.step_tracing(now, id);
        }
    }

    fn step_tracing(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let room = self.room_of(worker);
        match worker.tracing.phase {
            Phase::Idle => {
                let memory = worker.memory.value();
                let baseline = worker.memory.baseline().unwrap_or_default();
                if self.is_to_be_armed(worker) {
                    self.tell(Report::Armed {
                        worker: id,
                        memory,
                        baseline,
                    });
                    self.open(now, id, room);
                }
            }
            Phase::Pausing { until } if until <= now => self.open(now, id, room),
            Phase::Open { until } if until <= now => {
                self.set_phase(id, Phase::Closing);
                self.ask(now, id, What::Close, AgentAsk::Close);
            }
            Phase::Pausing { .. } | Phase::Open { .. } | Phase::Opening | Phase::Closing => {}
        }
    }

    fn open(&mut self, now: Timestamp, id: WorkerId, room: Bytes) {
        self.set_phase(id, Phase::Opening);
        self.ask(now, id, What::Open, AgentAsk::Open { room });
    }

    fn set_phase(&mut self, id: WorkerId, phase: Phase) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.tracing.phase = phase;
        }
    }

    fn is_to_be_armed(&self, worker: &Worker) -> bool {
        // A job has no first request before which nothing counts.
        let known = worker.birth.is_some() || self.is_job();
        if !known || !worker.memory.is_sure() {
            return false;
        }
        let value = worker.memory.value();
        let again = value >= worker.tracing.arm_at;
        if self.spec.leaks.ask == Leaks::On {
            return again;
        }
        let limit = self.ceiling_of(worker).or(self.limits.cap.bytes);
        let known = worker.memory.baseline();
        let baseline = known.unwrap_or_default();
        let of_itself = known.map_or(GROWTH_MAX, |known| known.scaled(GROWTH_PART));
        let of_room = limit.map_or(of_itself, |limit| {
            limit.minus(baseline).scaled(GROWTH_OF_ROOM)
        });
        let growth = of_itself.min(of_room).max(GROWTH_MIN);
        again && value >= baseline.plus(growth)
    }

    /// A window has opened, or closed.
    pub(super) fn on_window(&mut self, now: Timestamp, id: WorkerId, opened: bool) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.asked.asking = None;
        let value = worker.memory.value();
        let tracing = &mut worker.tracing;
        if opened {
            let until = now.later(WINDOW);
            tracing.phase = Phase::Open { until };
            return;
        }
        tracing.windows = tracing.windows.saturating_add(1);
        tracing.phase = if tracing.windows < WINDOWS_MAX {
            let until = now.later(PAUSE);
            Phase::Pausing { until }
        } else {
            tracing.windows = 0;
            tracing.arm_at = value.plus(value.scaled(GROWTH_PART).max(GROWTH_MIN));
            Phase::Idle
        };
        self.replan = true;
    }
}
