//! How a worker's memory grows: over the last minute, and just now.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Timestamp};

/// Points kept for the slope; they are thinned, so that a minute of a quiet worker fits.
const POINTS_MAX: usize = 32;
/// Growth is recent for so long.
const RECENT: Duration = Duration::from_millis(250);
/// Points are kept at least so far apart.
const APART: Duration = Duration::from_millis(31);
/// How far back the slope reaches.
pub(super) const SLOPE_WINDOW: Duration = Duration::from_secs(60);

/// What it held, and when.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Growth {
    /// Oldest first; never longer than `POINTS_MAX`.
    points: VecDeque<(Timestamp, Bytes)>,
    /// The growth between the last two looks, bytes a second, whether both are kept or not.
    step: f64,
}

impl Growth {
    pub(super) const fn new() -> Self {
        Self {
            points: VecDeque::new(),
            step: 0.0,
        }
    }

    /// All points are thinned when there are too many, so they are ever further apart.
    ///
    /// RACE: a worker nears its ceiling so fast that it is looked at every half a millisecond, and
    /// stops growing just below it. Were all those looks kept, they would reach back no more than
    /// 40 ms, and before them would be a gap, up to the first point of all: its growth since then
    /// would be taken for that of the last quarter of a second, and it would go on being looked at
    /// as often for a minute. So the newest point takes the place of one too close before it.
    pub(super) fn note(&mut self, at: Timestamp, value: Bytes) {
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

    /// What was before has nothing to say about what comes.
    pub(super) fn forget(&mut self) {
        self.points.clear();
        self.step = 0.0;
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
        let Some(latest) = self.points.back() else {
            return 0.0;
        };
        let mut lately = self.points.iter().rev().skip(1);
        let lately = lately.find(|(at, _)| latest.0.since(*at) >= RECENT);
        let lately = lately.map_or(0.0, |from| slope(*from, *latest));
        self.step.max(lately)
    }
}

/// Growth in bytes a second from one point to another.
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

    /// Boots to 200 MiB in a second, then looks come every half a millisecond.
    fn booted(millis: u64) -> Growth {
        let mut growth = Growth::new();
        for tenth in 0..=10 {
            growth.note(at(tenth * 100_000), Bytes::mib(tenth * 20));
        }
        for look in 1..=millis * 2 {
            growth.note(at(1_000_000 + look * 500), Bytes::mib(200));
        }
        growth
    }

    #[test]
    fn what_grows_no_more_is_forgotten_however_often_one_looks() {
        assert!(booted(200).recent() > 0.0);
        assert!(booted(400).recent() <= 0.0);
        assert!(booted(2000).recent() <= 0.0);
        assert!(booted(2000).slope().is_some());
    }

    #[test]
    fn a_runaway_is_seen_one_look_after_it_began() {
        let mut growth = booted(2000);
        growth.note(at(3_000_500), Bytes::mib(201));
        let mib_per_second = growth.recent() / Bytes::mib(1).as_f64();
        assert!((mib_per_second - 2000.0).abs() < 1.0, "{mib_per_second}");
    }
}
