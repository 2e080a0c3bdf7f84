//! How a worker's memory grows: over the last minute, and just now.

use std::{collections::VecDeque, time::Duration};

use crate::units::{Bytes, Timestamp};

/// Points kept for the slope; they are thinned, so that a minute of a quiet worker fits.
const POINTS_MAX: usize = 32;
/// Growth is recent for so long.
const RECENT: Duration = Duration::from_millis(250);
/// How far back the slope reaches.
pub(super) const SLOPE_WINDOW: Duration = Duration::from_secs(60);

/// What it held, and when.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    /// Oldest first; never longer than `POINTS_MAX`.
    points: VecDeque<(Timestamp, Bytes)>,
}

impl Growth {
    pub(super) const fn new() -> Self {
        Self {
            points: VecDeque::new(),
        }
    }

    /// Points are kept at least a thirty-second of the window apart, unless the worker is young or
    /// grows so fast that the window is short.
    pub(super) fn note(&mut self, at: Timestamp, value: Bytes) {
        while self
            .points
            .front()
            .is_some_and(|(old, _)| at.since(*old) > SLOPE_WINDOW)
        {
            self.points.pop_front();
        }
        if self.points.len() >= POINTS_MAX {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.points.push_back((at, value));
    }

    /// What was before has nothing to say about what comes.
    pub(super) fn forget(&mut self) {
        self.points.clear();
    }

    /// From the first point that is remembered to `at`.
    pub(super) fn lasts_until(&self, at: Timestamp) -> Duration {
        let first = self.points.front();
        first.map_or_else(
            || at.since(Timestamp::default()),
            |(first, _)| at.since(*first),
        )
    }

    /// Growth in bytes a second over the window, by least squares; `None` before there is a second
    /// of points.
    pub(super) fn slope(&self) -> Option<f64> {
        let (first, _) = self.points.front()?;
        let (latest, _) = self.points.back()?;
        if self.points.len() < 3 || latest.since(*first) < Duration::from_millis(900) {
            return None;
        }
        let xy = || {
            self.points
                .iter()
                .map(|(at, value)| (at.since(*first).as_secs_f64(), value.as_f64()))
        };
        let count = f64::from(u32::try_from(self.points.len()).unwrap_or(u32::MAX));
        let mean_x = xy().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = xy().map(|(_, y)| y).sum::<f64>() / count;
        let covariance: f64 = xy().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let variance: f64 = xy().map(|(x, _)| (x - mean_x).powi(2)).sum();
        (variance > 0.0).then(|| covariance / variance)
    }

    /// It has grown in the latter half of what is remembered: a leak, not the price of warming up.
    pub(super) fn goes_on(&self) -> bool {
        let then = self.points.get(self.points.len() / 2);
        let (Some((_, then)), Some((_, now))) = (then, self.points.back()) else {
            return false;
        };
        *now > then.scaled(1.01).max(then.plus(Bytes::mib(1)))
    }

    /// The steeper of the growth between the last two points, which sees a runaway one look after
    /// it began, and that of the last quarter of a second, which does not miss growth that comes in
    /// steps. Not the slope over the window: a worker that has stopped growing just below its
    /// ceiling would be looked at a thousand times a second for as long as that remembers.
    pub(super) fn recent(&self) -> f64 {
        let Some((to, high)) = self.points.back() else {
            return 0.0;
        };
        let slope = |from: &Timestamp, low: &Bytes| {
            let elapsed = to.since(*from).as_secs_f64();
            if elapsed > 0.0 {
                high.minus(*low).as_f64() / elapsed
            } else {
                0.0
            }
        };
        let mut earlier = self.points.iter().rev().skip(1);
        let Some((from, low)) = earlier.next() else {
            return 0.0;
        };
        let step = slope(from, low);
        let lately = self.points.iter().rev();
        let lately = lately.skip(1).find(|(at, _)| to.since(*at) >= RECENT);
        step.max(lately.map_or(0.0, |(from, low)| slope(from, low)))
    }
}
