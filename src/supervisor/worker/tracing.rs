//! Tracing of one worker's allocations. If a worker keeps growing and comes near its ceiling, its
//! allocations are traced in short windows, so that a report can name the source lines that grow.
//!
//! Growth alone is not enough. An application that warms up (lazy imports, caches that fill) also
//! grows for minutes, and then stops far below a ceiling of gigabytes. Tracing an application for
//! all that time made its requests seven times slower.
//!
//! tracemalloc makes requests several times slower while it is on. By default, a worker of a server
//! is traced for a twentieth of a second every ten seconds, which its clients do not notice. A
//! window of a tenth of a second in each second (`leaks.ask = on`) costs less than a seventh of the
//! throughput.
//!
//! Before the first window, such a worker takes the figures that its report compares with, in a
//! moment in which it is idle.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::retry::Retry;
use crate::units::{Bytes, Timestamp};

/// A worker is near its limit if it will reach it within this time at its current pace ...
const NEAR_LIMIT_TIME: Duration = Duration::from_secs(30);
/// ... or if it has grown by this part of the way to it.
const NEAR_LIMIT_PART: f64 = 0.5;
/// Growth below this is noise.
const GROWTH_MIN: Bytes = Bytes::mib(8);
/// The growth that is worth tracing if there is no baseline yet.
const GROWTH_MAX: Bytes = Bytes::mib(64);
/// A worker is armed when it has grown by this part of its baseline ...
const GROWTH_PART: f64 = 0.25;
/// ... or by this part of the way to its limit, whichever is less.
const GROWTH_OF_ROOM: f64 = 0.25;
/// A worker takes the figures that a report compares with when it has grown by this much.
const BASE_GROWTH: Bytes = Bytes::mib(4);
/// The time until a worker that was not idle is asked for them again.
const BASE_AGAIN: Duration = Duration::from_millis(25);
/// After this many requests, the worker is traced without them.
const BASE_TRIES: u32 = 60;
/// If no window could be opened, opening one is tried again after this time.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// After this many windows nothing is traced until the worker has grown again.
const WINDOWS_MAX: u32 = 20;
/// If a window could not be closed, closing it is tried again after this time.
const CLOSE_AGAIN: Duration = Duration::from_millis(250);
/// The last window should see this many requests ...
const LAST_TASKS: f64 = 4.0;
/// ... within these limits.
const LAST_MIN: Duration = Duration::from_millis(50);
const LAST_MAX: Duration = Duration::from_millis(250);
/// The last window is closed after this time if the worker does not leave.
const LAST_KEPT: Duration = Duration::from_secs(2);
/// A worker that is prepared for a report leaves this much earlier, so that it stays below its
/// ceiling in its last window and during the report ...
const REPORT_ROOM: Bytes = Bytes::mib(10);
/// ... but by at most this part of its ceiling.
const REPORT_ROOM_PART: f64 = 1.0 / 16.0;

/// The state of tracing one worker.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tracing {
    phase: Phase,
    windows: u32,
    /// Taking the figures that a report compares with.
    base: Retry,
    /// The worker is not armed again while it holds less than this.
    arm_at: Bytes,
    /// The window is the last one: the report that the worker makes before it exits closes it.
    #[serde(default)]
    last: bool,
    /// It was prepared for a report. That stays true if it has stopped growing: its ceiling must
    /// not rise between two samples.
    #[serde(default)]
    prepared: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
enum Phase {
    /// Nothing is traced until the worker has grown.
    #[default]
    Idle,
    /// The worker is armed. The next window opens at this time.
    Pausing { until: Timestamp },
    /// The agent was asked for the figures that a report compares with.
    Preparing,
    /// The agent was asked to open a window.
    Opening,
    /// A window is open, and closes at this time.
    Open { until: Timestamp },
    /// The agent was asked to close the window.
    Closing,
}

/// How long windows are open, and the time between two of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pace {
    window: Duration,
    pause: Duration,
}

impl Pace {
    /// The clients of a worker notice nothing.
    pub(crate) const SPARSE: Self = Self {
        window: Duration::from_millis(50),
        pause: Duration::from_millis(9950),
    };
    /// Reports name more lines.
    pub(crate) const DENSE: Self = Self {
        window: Duration::from_millis(100),
        pause: Duration::from_millis(900),
    };
}

/// What the last window of a worker that is about to leave needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LastWindow {
    /// It should be opened.
    Open,
    /// It has seen enough at this time.
    Until(Timestamp),
    /// It has seen enough, or could not be opened.
    Over,
}

/// How long the last window of a worker stays open that does this many tasks a second.
pub(crate) fn last_window(rate: Option<f64>) -> Duration {
    let wanted = rate.and_then(|rate| Duration::try_from_secs_f64(LAST_TASKS / rate).ok());
    wanted.unwrap_or(LAST_MAX).clamp(LAST_MIN, LAST_MAX)
}

/// What may be done with a worker now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct May {
    /// Its agent may be asked.
    pub(crate) trace: bool,
    /// It may be interrupted, so it takes a base with its first window.
    pub(crate) interrupt: bool,
}

/// The next step of a worker's tracing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Window {
    /// Take the figures that a report compares with, if the worker is idle.
    Base,
    /// Open the first window, because the worker leaks.
    Arm,
    Open,
    Close,
}

/// What distinguishes a leak that is worth tracing from an application that warms up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrowthState {
    pub(crate) value: Bytes,
    /// Its memory when it became ready, or later when its warm-up was over.
    pub(crate) baseline: Option<Bytes>,
    pub(crate) limit: Bytes,
    /// It has grown in the second half of the last minute.
    pub(crate) goes_on: bool,
    /// How long until it reaches its limit at the pace of the last minute.
    pub(crate) to_limit: Option<Duration>,
}

impl GrowthState {
    pub(crate) fn is_leak_near_limit(&self) -> bool {
        let baseline = self.baseline.unwrap_or_default();
        let way = self.limit.minus(baseline);
        let of_itself = self
            .baseline
            .map_or(GROWTH_MAX, |known| known.scaled(GROWTH_PART));
        let growth = of_itself.min(way.scaled(GROWTH_OF_ROOM)).max(GROWTH_MIN);
        let grown = self.value >= baseline.plus(growth);
        let soon = self.to_limit.is_some_and(|left| left <= NEAR_LIMIT_TIME);
        let near = self.value >= baseline.plus(way.scaled(NEAR_LIMIT_PART));
        grown && self.goes_on && (soon || near)
    }
}

impl Tracing {
    pub(crate) fn is_armed(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Preparing)
    }

    /// It is being prepared for a report: it has taken the figures that its report compares with,
    /// or is asked for them, or is traced.
    pub(crate) fn has_begun(&self) -> bool {
        self.base.at().is_none() || self.base.again_at().is_some() || self.phase != Phase::Idle
    }

    /// How much its ceiling is lowered for its report.
    pub(crate) fn room(&self, ceiling: Bytes) -> Bytes {
        if self.prepared {
            REPORT_ROOM.min(ceiling.scaled(REPORT_ROOM_PART))
        } else {
            Bytes::ZERO
        }
    }

    /// A window is open, or is about to open or to close.
    pub(crate) const fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Pausing { .. })
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Pausing { until } | Phase::Open { until } => Some(until),
            Phase::Idle => self.base.again_at(),
            Phase::Preparing | Phase::Opening | Phase::Closing => None,
        }
    }

    /// It has grown enough since it was last traced.
    pub(crate) fn may_arm(&self, memory: Bytes) -> bool {
        memory >= self.arm_at
    }

    /// The step that is due now. It counts as requested. `grows`: the worker has grown by
    /// [`BASE_GROWTH`]. `leaks`: the worker is worth tracing.
    pub(crate) fn step(
        &mut self,
        now: Timestamp,
        may: May,
        grows: impl FnOnce() -> bool,
        leaks: impl FnOnce() -> bool,
    ) -> Option<Window> {
        let (phase, window) = match (self.phase, self.base.at()) {
            (Phase::Idle, Some(at)) if !may.interrupt => {
                if at > now {
                    return None;
                }
                if may.trace && grows() {
                    (Phase::Preparing, Some(Window::Base))
                } else {
                    // It has stopped growing. It is asked again when it grows.
                    self.base = Retry::default();
                    return None;
                }
            }
            (Phase::Idle, _) if may.trace && leaks() => (Phase::Opening, Some(Window::Arm)),
            (Phase::Pausing { until }, _) if until <= now && may.trace => {
                (Phase::Opening, Some(Window::Open))
            }
            (Phase::Pausing { until }, _) if until <= now => (Phase::Idle, None),
            (Phase::Open { until }, _) if until <= now => (Phase::Closing, Some(Window::Close)),
            (
                same @ (Phase::Idle
                | Phase::Preparing
                | Phase::Pausing { .. }
                | Phase::Open { .. }
                | Phase::Opening
                | Phase::Closing),
                _,
            ) => (same, None),
        };
        self.phase = phase;
        self.prepared |= window.is_some();
        window
    }

    /// The worker has taken the figures that a report compares with, or was not idle.
    pub(crate) fn on_base(&mut self, now: Timestamp, taken: bool) {
        self.phase = Phase::Idle;
        if taken {
            self.base = Retry::Over;
        } else {
            self.base.on_busy(now, BASE_AGAIN, BASE_TRIES);
        }
    }

    pub(crate) fn on_opened(&mut self, now: Timestamp, pace: Pace) {
        let until = now.later(if self.last { LAST_KEPT } else { pace.window });
        self.phase = Phase::Open { until };
    }

    /// What the last window needs that should be open for this time. If it has to be opened, it
    /// counts as requested. A window that is open already becomes the last one.
    pub(crate) fn step_to_last(&mut self, now: Timestamp, length: Duration) -> LastWindow {
        match self.phase {
            Phase::Open { until } if self.last => {
                let left = until
                    .since(now)
                    .saturating_sub(LAST_KEPT.saturating_sub(length));
                if left.is_zero() {
                    LastWindow::Over
                } else {
                    LastWindow::Until(now.later(left))
                }
            }
            Phase::Idle | Phase::Pausing { .. } if !self.last => {
                self.last = true;
                self.phase = Phase::Opening;
                LastWindow::Open
            }
            Phase::Idle
            | Phase::Pausing { .. }
            | Phase::Open { .. }
            | Phase::Preparing
            | Phase::Opening
            | Phase::Closing => LastWindow::Over,
        }
    }

    /// A window has closed, while the worker holds this much memory.
    pub(crate) fn on_closed(&mut self, now: Timestamp, memory: Bytes, pace: Pace) {
        self.windows = self.windows.saturating_add(1);
        self.last = false;
        self.phase = if self.windows < WINDOWS_MAX {
            let until = now.later(pace.pause);
            Phase::Pausing { until }
        } else {
            self.windows = 0;
            self.arm_at = memory.plus(memory.scaled(GROWTH_PART).max(GROWTH_MIN));
            Phase::Idle
        };
    }

    /// A report has closed the window that was open.
    pub(crate) fn on_reported(&mut self, now: Timestamp, pace: Pace) {
        if self.is_armed() {
            let until = now.later(pace.pause);
            self.phase = Phase::Pausing { until };
        }
    }

    /// The agent did not answer. Opening a window is tried again later. A window that could not be
    /// closed counts as open, and closing it is tried again soon.
    ///
    /// RACE: an interpreter that is exiting no longer handles signals, and the supervisor has not
    /// learned of its end yet. If it were asked again at once, it would be asked in an endless
    /// loop, and nothing else would be handled.
    pub(crate) fn on_no_answer(&mut self, now: Timestamp, opening: bool) {
        self.phase = if opening {
            let until = now.later(OPEN_AGAIN);
            Phase::Pausing { until }
        } else {
            let until = now.later(CLOSE_AGAIN);
            Phase::Open { until }
        };
    }
}

/// Whether a worker that holds `value` has grown enough to take the figures that a report compares
/// with.
pub(crate) fn is_base_due(value: Bytes, baseline: Bytes) -> bool {
    value >= baseline.plus(BASE_GROWTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker with a baseline of 60M that holds `value`, grows by `pace` a second, and is
    /// recycled at `limit`; all in MiB.
    fn state(value: u64, pace: u64, limit: u64) -> GrowthState {
        let left = (limit - value).checked_div(pace).map(Duration::from_secs);
        GrowthState {
            value: Bytes::mib(value),
            baseline: Some(Bytes::mib(60)),
            limit: Bytes::mib(limit),
            goes_on: pace > 0,
            to_limit: left,
        }
    }

    #[test]
    fn a_worker_that_warms_up_far_below_its_ceiling_is_not_traced() {
        // It grows by 12 MB a second up to 300 MB. Its ceiling is 7 GB.
        for value in (60..300).step_by(12) {
            assert!(!state(value, 12, 7000).is_leak_near_limit(), "{value}M");
        }
        assert!(!state(300, 0, 7000).is_leak_near_limit());
        // It has stopped just below its ceiling.
        assert!(!state(300, 0, 310).is_leak_near_limit());
    }

    #[test]
    fn a_leak_is_traced_near_its_ceiling() {
        // By the forecast: at 8 MB a second it reaches 300 MB within half a minute.
        assert!(state(75, 8, 300).is_leak_near_limit());
        assert!(!state(75, 7, 300).is_leak_near_limit());
        // A slow leak, by the way it has come.
        assert!(state(185, 1, 300).is_leak_near_limit());
        assert!(
            !state(64, 100, 300).is_leak_near_limit(),
            "growth of 4M is noise"
        );
    }

    #[test]
    fn a_worker_that_is_prepared_for_a_report_leaves_a_little_earlier() {
        let mut tracing = Tracing::default();
        assert_eq!(tracing.room(Bytes::mib(160)), Bytes::ZERO);
        let may = May {
            trace: true,
            interrupt: false,
        };
        let now = Timestamp::ZERO.later(Duration::from_secs(1));
        let grows = tracing.step(now, may, || true, || false);
        assert_eq!(grows, Some(Window::Base));
        assert_eq!(tracing.step(now, may, || true, || false), None);
        tracing.on_base(now, false);
        // It has stopped growing.
        tracing.step(now.later(BASE_AGAIN), may, || false, || false);
        assert!(!tracing.has_begun());
        assert_eq!(tracing.room(Bytes::mib(64)), Bytes::mib(4));
        assert_eq!(tracing.room(Bytes::mib(1600)), REPORT_ROOM);
    }

    #[test]
    fn the_last_window_sees_a_few_requests_and_is_closed_if_the_worker_stays() {
        let length = last_window(Some(40.0));
        assert_eq!(length, Duration::from_millis(100));
        assert_eq!(last_window(Some(1000.0)), LAST_MIN);
        assert_eq!(last_window(Some(0.0)), LAST_MAX);
        assert_eq!(last_window(None), LAST_MAX);
        let mut tracing = Tracing::default();
        let now = Timestamp::ZERO.later(Duration::from_secs(9));
        assert_eq!(tracing.step_to_last(now, length), LastWindow::Open);
        tracing.on_opened(now, Pace::SPARSE);
        let enough = now.later(length);
        assert_eq!(tracing.step_to_last(now, length), LastWindow::Until(enough));
        assert_eq!(tracing.step_to_last(enough, length), LastWindow::Over);
        let kept = tracing.deadline().expect("it closes at some time");
        let may = May {
            trace: true,
            interrupt: false,
        };
        let step = tracing.step(kept, may, || true, || true);
        assert_eq!((kept, step), (now.later(LAST_KEPT), Some(Window::Close)));
        tracing.on_closed(kept, Bytes::ZERO, Pace::SPARSE);
        assert_eq!(tracing.step_to_last(kept, length), LastWindow::Open);
        tracing.on_no_answer(kept, true);
        assert_eq!(tracing.step_to_last(kept, length), LastWindow::Over);
    }
}
