//! Armed in time, free until then: when a worker goes on growing and its ceiling is in sight, its
//! allocations are traced in short windows, so that what grows from there on has its line.
//!
//! Growth alone is no reason. An application that warms up (lazy imports, caches that fill and
//! stay) grows as well, for minutes, and then stops, far below a ceiling of gigabytes. One that was
//! traced all that time took seven times as long to answer.
//!
//! A window of a tenth of a second each second keeps the cost of tracemalloc, which makes a request
//! several times as dear while it is on, below a seventh of the throughput.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    action::AgentAsk,
    asking::What,
    report::Report,
    spec::{Kind, Leaks},
    worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// The ceiling is in sight when it will be reached as soon as this, at the present pace ...
const IN_SIGHT: Duration = Duration::from_secs(60);
/// ... or when this part of the way to it is done.
const IN_SIGHT_PART: f64 = 0.5;
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

/// What tells a leak that is worth tracing from an application that warms up.
#[derive(Clone, Copy, Debug)]
struct State {
    value: Bytes,
    /// What it held before its first request, or later when it had warmed up.
    baseline: Option<Bytes>,
    limit: Bytes,
    /// It has grown in the latter half of the last minute.
    goes_on: bool,
    /// How long until it is at its limit, at the pace of the last minute.
    to_limit: Option<Duration>,
}

impl State {
    fn is_a_leak_in_sight(&self) -> bool {
        let baseline = self.baseline.unwrap_or_default();
        let way = self.limit.minus(baseline);
        let of_itself = self
            .baseline
            .map_or(GROWTH_MAX, |known| known.scaled(GROWTH_PART));
        let growth = of_itself.min(way.scaled(GROWTH_OF_ROOM)).max(GROWTH_MIN);
        let grown = self.value >= baseline.plus(growth);
        let soon = self.to_limit.is_some_and(|left| left <= IN_SIGHT);
        let near = self.value >= baseline.plus(way.scaled(IN_SIGHT_PART));
        grown && self.goes_on && (soon || near)
    }
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

/// Its agent can be asked now.
fn can_be_traced(worker: &Worker) -> bool {
    worker.asked.is_loaded() && worker.asked.asking.is_none() && worker.drain().is_none()
}

impl Supervisor {
    /// Opens and closes the windows that are due.
    pub(super) fn mind_tracing(&mut self, now: Timestamp) {
        let free = self.workers.values().filter(|worker| can_be_traced(worker));
        let free: Vec<_> = free.map(|worker| worker.id).collect();
        for id in free {
            self.step_tracing(now, id);
        }
    }

    pub(super) fn tracing_deadline(&self) -> Option<Timestamp> {
        let free = self.workers.values().filter(|worker| can_be_traced(worker));
        free.filter_map(|worker| worker.tracing.deadline()).min()
    }

    fn step_tracing(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let room = self.room_of(worker);
        let may_trace = self.asks_automatically() && self.shares_too_much(worker).is_none();
        match worker.tracing.phase {
            Phase::Idle => {
                let memory = worker.memory.value();
                let baseline = worker.memory.baseline().unwrap_or_default();
                if may_trace && self.is_to_be_armed(worker) {
                    self.tell(Report::Armed {
                        worker: id,
                        memory,
                        baseline,
                    });
                    self.open(now, id, room);
                }
            }
            Phase::Pausing { until } if until <= now => {
                if may_trace {
                    self.open(now, id, room);
                } else {
                    self.set_phase(id, Phase::Idle);
                }
            }
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
        // A job that is one program has no first request before which nothing counts. The workers
        // of a server have one even if it runs as a job, and until then they import and warm up.
        let one_program = self.is_job() && matches!(self.spec.kind, Kind::Single);
        let known = worker.birth.is_some() || one_program;
        if !known || !worker.memory.is_sure() {
            return false;
        }
        let value = worker.memory.value();
        let again = value >= worker.tracing.arm_at;
        if self.spec.leaks.ask == Leaks::Always {
            return again;
        }
        let Some(limit) = self.ceiling_of(worker).or(self.limits.cap.bytes) else {
            return false;
        };
        let state = State {
            value,
            baseline: worker.memory.baseline(),
            limit,
            goes_on: worker.memory.still_grows(),
            to_limit: worker.memory.time_to(limit),
        };
        again && state.is_a_leak_in_sight()
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
            self.mind_requests(now, id);
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
        self.mind_requests(now, id);
        self.replan = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker with a baseline of 60M that holds `value`, grows by `pace` a second, and is
    /// recycled at `limit`; all in MiB.
    fn state(value: u64, pace: u64, limit: u64) -> State {
        let left = (limit - value).checked_div(pace).map(Duration::from_secs);
        State {
            value: Bytes::mib(value),
            baseline: Some(Bytes::mib(60)),
            limit: Bytes::mib(limit),
            goes_on: pace > 0,
            to_limit: left,
        }
    }

    #[test]
    fn a_worker_that_warms_up_far_below_its_ceiling_is_not_traced() {
        // 12 MB a second up to 300 MB, and a ceiling of 7 GB.
        for value in (60..300).step_by(12) {
            assert!(!state(value, 12, 7000).is_a_leak_in_sight(), "{value}M");
        }
        assert!(!state(300, 0, 7000).is_a_leak_in_sight());
        // It has stopped just below its ceiling.
        assert!(!state(300, 0, 310).is_a_leak_in_sight());
    }

    #[test]
    fn a_leak_is_traced_once_its_ceiling_is_in_sight() {
        // By the forecast: 5 MB a second, 300 MB to go.
        assert!(state(75, 5, 300).is_a_leak_in_sight());
        assert!(!state(75, 3, 300).is_a_leak_in_sight());
        // A slow one by the way it has come.
        assert!(state(185, 1, 300).is_a_leak_in_sight());
        assert!(
            !state(64, 100, 300).is_a_leak_in_sight(),
            "growth of 4M is noise"
        );
    }
}
