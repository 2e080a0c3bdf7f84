//! How fast a worker's memory grows: over the last minute, and recently.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Timestamp, scaled};

/// Points kept for the slope. Every other one is dropped when there are more, so that a minute of a
/// quiet worker fits.
const POINTS_MAX: usize = 32;
/// Growth within this time is recent.
const RECENT: Duration = Duration::from_millis(250);
/// The points that are kept are at least this far apart.
const APART: Duration = Duration::from_millis(31);
/// How far back the slope reaches.
pub(crate) const SLOPE_WINDOW: Duration = Duration::from_secs(60);

/// A worker's memory over time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Growth {
    /// Oldest first; never longer than `POINTS_MAX`.
    points: VecDeque<(Timestamp, Bytes)>,
    /// The growth between the last two samples in bytes per second, whether both are kept or not.
    step: f64,
}

impl Growth {
    pub(crate) const fn new() -> Self {
        Self {
            points: VecDeque::new(),
            step: 0.0,
        }
    }

    /// Adds a point. If there are too many points, every other one is dropped.
    ///
    /// RACE: a worker approaches its ceiling so fast that it is sampled every half a millisecond,
    /// and then stops growing just below its ceiling. If all these samples were kept, they would
    /// reach back only 40 ms, with a gap between them and the first point of all. The growth since
    /// that first point would be taken for the growth in the last quarter of a second, and the
    /// worker would be sampled every half a millisecond for another minute. So a new point replaces
    /// one that is too close before it.
    pub(crate) fn note(&mut self, at: Timestamp, value: Bytes) {
        while self
            .points
            .front()
            .is_some_and(|(old, _)| at.since(*old) > SLOPE_WINDOW)
        {
            self.points.pop_front();
        }
        let latest = self.points.back();
        self.step = latest.map_or(0.0, |latest| slope(*latest, (at, value)));
        let mut newest = self.points.iter().rev();
        if let (Some((last, _)), Some((before, _))) = (newest.next(), newest.next())
            && last.since(*before) < APART
        {
            self.points.pop_back();
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

    /// Forgets all points, because they say nothing about later growth.
    pub(crate) fn forget(&mut self) {
        self.points.clear();
        self.step = 0.0;
    }

    /// The time from the first point that is kept to `at`.
    pub(crate) fn lasts_until(&self, at: Timestamp) -> Duration {
        let first = self.points.front();
        first.map_or_else(
            || at.since(Timestamp::default()),
            |(first, _)| at.since(*first),
        )
    }

    /// Growth in bytes per second over the window, by least squares. `None`: there is less than a
    /// second of points.
    pub(crate) fn slope(&self) -> Option<f64> {
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

    /// It has grown in the second half of the points, so its growth is a leak and not its warm-up.
    pub(crate) fn goes_on(&self) -> bool {
        let then = self.points.get(self.points.len() / 2);
        let (Some((_, then)), Some((_, now))) = (then, self.points.back()) else {
            return false;
        };
        *now > then.scaled(1.01).max(then.plus(Bytes::mib(1)))
    }

    /// The steeper of two: the growth between the last two samples, which shows sudden growth after
    /// one sample, and the growth in the last quarter of a second, which includes growth in steps.
    /// The slope over the window is not used: a worker that has stopped growing just below its
    /// ceiling would be sampled a thousand times a second until the window has passed.
    pub(crate) fn recent(&self) -> f64 {
        let Some(latest) = self.points.back() else {
            return 0.0;
        };
        let mut lately = self.points.iter().rev().skip(1);
        let lately = lately.find(|(at, _)| latest.0.since(*at) >= RECENT);
        let lately = lately.map_or(0.0, |from| slope(*from, *latest));
        self.step.max(lately)
    }

    /// The growth to expect within this time at the recent pace.
    pub(crate) fn expected_within(&self, time: Duration) -> Bytes {
        Bytes(scaled(1, self.recent() * time.as_secs_f64()))
    }
}

/// Growth in bytes per second from one point to another.
fn slope((from, low): (Timestamp, Bytes), (to, high): (Timestamp, Bytes)) -> f64 {
    let elapsed = to.since(from).as_secs_f64();
    if elapsed > 0.0 {
        high.minus(low).as_f64() / elapsed
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_micros(micros))
    }

    /// A worker that boots to 200 MiB in a second and is then sampled every half a millisecond.
    fn booted(millis: u64) -> Growth {
        let mut growth = Growth::new();
        for tenth in 0..=10 {
            growth.note(at(tenth * 100_000), Bytes::mib(tenth * 20));
        }
        for sample in 1..=millis * 2 {
            growth.note(at(1_000_000 + sample * 500), Bytes::mib(200));
        }
        growth
    }

    #[test]
    fn growth_that_has_stopped_is_not_recent_even_if_samples_are_frequent() {
        assert!(booted(200).recent() > 0.0);
        assert!(booted(400).recent() <= 0.0);
        assert!(booted(2000).recent() <= 0.0);
        assert!(booted(2000).slope().is_some());
    }

    #[test]
    fn sudden_growth_is_seen_after_one_sample() {
        let mut growth = booted(2000);
        growth.note(at(3_000_500), Bytes::mib(201));
        let mib_per_second = growth.recent() / Bytes::mib(1).as_f64();
        assert!((mib_per_second - 2000.0).abs() < 1.0, "{mib_per_second}");
    }
}
