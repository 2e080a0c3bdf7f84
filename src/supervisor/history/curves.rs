//! The service over time, at three resolutions.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// The resolution and the length of each curve, in seconds: 10 minutes, a day, 30 days.
const KINDS: [(u64, u64); 3] = [(1, 600), (60, 86_400), (900, 30 * 86_400)];

/// The curves, the finest first.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Curves(Vec<Curve>);

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Curve {
    /// The time between two points.
    every_s: u64,
    /// Oldest first. A time without an observation has no point.
    points: VecDeque<Point>,
}

/// One interval of a curve. In JSON it is a list: `[at, memory, workers, tasks, tasks_per_s]`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(from = "Listed", into = "Listed")]
struct Point {
    /// Its beginning in Unix seconds, a multiple of the resolution.
    at: u64,
    /// The largest sum of the private memory of all workers.
    memory: Bytes,
    /// The last number of workers.
    workers: usize,
    /// Requests or tasks done. `None`: they are not counted.
    tasks: Option<u64>,
    /// The same per second.
    rate: Option<f64>,
}

type Listed = (u64, Bytes, usize, Option<u64>, Option<f64>);

impl From<Listed> for Point {
    fn from((at, memory, workers, tasks, rate): Listed) -> Self {
        Self {
            at,
            memory,
            workers,
            tasks,
            rate,
        }
    }
}

impl From<Point> for Listed {
    fn from(point: Point) -> Self {
        let Point {
            at,
            memory,
            workers,
            tasks,
            rate,
        } = point;
        (at, memory, workers, tasks, rate)
    }
}

impl Default for Curves {
    fn default() -> Self {
        let curves = KINDS.map(|(every_s, _)| Curve {
            every_s,
            points: VecDeque::new(),
        });
        Self(curves.into())
    }
}

impl Curves {
    /// Adds an observation. `done`: tasks since the last one.
    pub(super) fn add(&mut self, at: u64, memory: Bytes, workers: usize, done: Option<u64>) {
        for (curve, (_, length)) in self.0.iter_mut().zip(KINDS) {
            curve.add(at, length, (memory, workers, done));
        }
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let known = self.0.iter().map(|curve| curve.every_s);
        if !known.eq(KINDS.map(|(every, _)| every)) {
            return Err("it has other curves");
        }
        let fits = |(curve, (every, length)): (&Curve, (u64, u64))| {
            let count = u64::try_from(curve.points.len()).unwrap_or(u64::MAX);
            let times = curve.points.iter().map(|point| point.at);
            count <= length / every + 1 && times.is_sorted_by(|one, next| one < next)
        };
        if self.0.iter().zip(KINDS).all(fits) {
            Ok(())
        } else {
            Err("its curves are not in order")
        }
    }
}

impl Curve {
    fn add(&mut self, at: u64, length: u64, seen: (Bytes, usize, Option<u64>)) {
        let (memory, workers, done) = seen;
        let begin = at - at % self.every_s;
        // The clock was set back: these points are in the future.
        while self.points.back().is_some_and(|last| last.at > begin) {
            self.points.pop_back();
        }
        let oldest = begin.saturating_sub(length);
        while self.points.front().is_some_and(|first| first.at < oldest) {
            self.points.pop_front();
        }
        let is_same = self.points.back().is_some_and(|last| last.at == begin);
        let before = is_same.then(|| self.points.pop_back()).flatten();
        let tasks = before.and_then(|before| before.tasks);
        let tasks = done.map(|done| done.saturating_add(tasks.unwrap_or(0)));
        self.points.push_back(Point {
            at: begin,
            memory: before.map_or(memory, |before| before.memory.max(memory)),
            workers,
            tasks,
            rate: tasks.map(|tasks| per_second(tasks, at - begin + 1)),
        });
    }
}

/// Rounded to hundredths, so that the documents stay short.
fn per_second(tasks: u64, seconds: u64) -> f64 {
    let float = |number| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    (float(tasks) / float(seconds) * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(curves: &Curves, which: usize) -> Vec<(u64, u64, Option<u64>, Option<f64>)> {
        let points = curves.0[which].points.iter();
        let shown = |point: &Point| (point.at, point.memory.get(), point.tasks, point.rate);
        points.map(shown).collect()
    }

    #[test]
    fn each_interval_has_its_largest_memory_and_its_tasks() {
        let mut curves = Curves::default();
        for (at, memory, done) in [(600, 5, 0), (601, 9, 10), (602, 7, 20), (660, 1, 2)] {
            curves.add(at, Bytes(memory), 2, Some(done));
        }
        assert_eq!(points(&curves, 0).len(), 4);
        let minutes = [(600, 9, Some(30), Some(10.0)), (660, 1, Some(2), Some(2.0))];
        assert_eq!(points(&curves, 1), minutes);
        assert_eq!(points(&curves, 2), [(0, 9, Some(32), Some(0.05))]);
        curves.check().unwrap();
    }

    #[test]
    fn a_curve_has_a_bounded_length() {
        let mut curves = Curves::default();
        for second in 0..2000 {
            curves.add(1_000_000 + second, Bytes(1), 1, None);
        }
        let lengths: Vec<_> = curves.0.iter().map(|curve| curve.points.len()).collect();
        assert_eq!(lengths, [601, 34, 3]);
        curves.add(9_000_000, Bytes(1), 1, None);
        assert_eq!(points(&curves, 0), [(9_000_000, 1, None, None)]);
        curves.check().unwrap();
    }

    #[test]
    fn points_after_a_clock_that_was_set_back_are_dropped() {
        let mut curves = Curves::default();
        curves.add(5000, Bytes(1), 1, None);
        curves.add(4000, Bytes(2), 1, None);
        assert_eq!(points(&curves, 0), [(4000, 2, None, None)]);
        curves.check().unwrap();
    }

    #[test]
    fn curves_that_are_not_in_order_are_refused() {
        let mut curves = Curves::default();
        curves.add(5000, Bytes(1), 1, None);
        let last = curves.0[0].points[0];
        curves.0[0].points.push_back(last);
        assert!(curves.check().is_err());
        curves.0[0].points = (0..700).map(|at| Point { at, ..last }).collect();
        assert!(curves.check().is_err());
        curves.0.pop();
        assert!(curves.check().is_err());
    }
}
