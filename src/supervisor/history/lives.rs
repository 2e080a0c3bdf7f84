//! The lives of workers: what each one held while it worked, and why it ended.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Observed;
use crate::supervisor::{
    cause::{Cause, Class},
    event::{End, Who},
};
use crate::units::{Bytes, WorkerId};

/// Ended lives that are kept.
const ENDED_MAX: usize = 256;
/// Running lives in a file that are believed.
const RUNNING_MAX: usize = 1 << 16;
/// Points of one life. When there are more, each two neighbours become one.
const POINTS_MAX: usize = 24;
/// No life is so long that its points are further apart. Sums of them do not overflow.
const EVERY_MAX_S: u64 = 1 << 32;

/// The last lives, and those that still run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Lives {
    /// Oldest first.
    ended: VecDeque<Life>,
    /// By identity.
    running: Vec<Life>,
}

/// The life of one worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Life {
    #[serde(with = "as_text")]
    worker: WorkerId,
    /// When it ended, or was observed last, in Unix seconds.
    at: u64,
    age_s: u64,
    tasks: Option<u64>,
    /// Its memory when its warm-up was over.
    warm: Option<Point>,
    /// The highest memory before that.
    boot_peak: Bytes,
    /// The highest memory at all.
    peak: Bytes,
    /// Why it ended. `None`: it still runs, or its end was not observed.
    cause: Option<String>,
    /// The kernel killed it for its memory, so it may have needed more.
    cut: bool,
    /// Each point stands for this time.
    every_s: u64,
    /// After warm-up, oldest first. Never more than `POINTS_MAX`.
    points: Vec<Point>,
}

/// The highest memory within an interval. In JSON it is a list: `[age_s, tasks, memory]`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(from = "(u64, u64, Bytes)", into = "(u64, u64, Bytes)")]
pub(super) struct Point {
    /// The age of the worker.
    pub(super) age_s: u64,
    /// The tasks that it had done. 0: they are not counted.
    pub(super) tasks: u64,
    pub(super) memory: Bytes,
}

impl From<(u64, u64, Bytes)> for Point {
    fn from((age_s, tasks, memory): (u64, u64, Bytes)) -> Self {
        Self {
            age_s,
            tasks,
            memory,
        }
    }
}

impl From<Point> for (u64, u64, Bytes) {
    fn from(point: Point) -> Self {
        (point.age_s, point.tasks, point.memory)
    }
}

impl Lives {
    /// Takes in all live workers. A worker that is missing and has no end was none.
    pub(super) fn observe(&mut self, at: u64, workers: &[Observed]) {
        for seen in workers {
            let found = self
                .running
                .binary_search_by_key(&seen.worker, |life| life.worker);
            let index = found.unwrap_or_else(|index| {
                self.running.insert(index, Life::new(seen.worker));
                index
            });
            if let Some(life) = self.running.get_mut(index) {
                life.observe(at, seen);
            }
        }
        self.running.retain(|life| {
            let found = workers.binary_search_by_key(&life.worker, |seen| seen.worker);
            found.is_ok()
        });
    }

    pub(super) fn on_ended(&mut self, at: u64, end: &End) {
        let Who::Worker(worker) = end.who else { return };
        let found = self
            .running
            .binary_search_by_key(&worker, |life| life.worker);
        let mut life = match found {
            Ok(index) => self.running.remove(index),
            Err(_) => Life::new(worker),
        };
        life.end(at, end);
        self.keep(life);
    }

    /// The workers that ran are gone.
    pub(super) fn on_restarted(&mut self) {
        for life in std::mem::take(&mut self.running) {
            self.keep(life);
        }
    }

    fn keep(&mut self, life: Life) {
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(life);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Life> {
        self.ended.iter().chain(&self.running)
    }

    pub(super) const fn ended(&self) -> &VecDeque<Life> {
        &self.ended
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.ended.len() > ENDED_MAX || self.running.len() > RUNNING_MAX {
            return Err("it has too many workers");
        }
        let ids = self.running.iter().map(|life| life.worker);
        if !ids.is_sorted_by(|one, next| one < next) {
            return Err("its workers are not in order");
        }
        if self.all().all(Life::is_sound) {
            Ok(())
        } else {
            Err("a worker in it is not sound")
        }
    }
}

impl Life {
    const fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            at: 0,
            age_s: 0,
            tasks: None,
            warm: None,
            boot_peak: Bytes::ZERO,
            peak: Bytes::ZERO,
            cause: None,
            cut: false,
            every_s: 1,
            points: Vec::new(),
        }
    }

    fn observe(&mut self, at: u64, seen: &Observed) {
        self.at = at;
        self.age_s = seen.age.as_secs();
        self.tasks = seen.tasks;
        let Some(memory) = seen.memory else { return };
        self.peak = self.peak.max(memory);
        // The first task loads what all tasks need.
        if seen.warm && seen.tasks != Some(0) {
            self.add(memory);
        } else if self.points.is_empty() {
            self.boot_peak = self.boot_peak.max(memory);
        }
    }

    fn end(&mut self, at: u64, end: &End) {
        self.at = at;
        self.age_s = end.age.as_secs();
        self.tasks = end.tasks.or(self.tasks);
        self.peak = self.peak.max(end.peak);
        self.cut = is_cut(end.cause);
        self.cause = Some(end.cause.to_string());
        if self.points.is_empty() {
            self.boot_peak = self.peak;
        } else if self.cut {
            // What killed it grew between two observations.
            self.add(end.peak);
        }
    }

    /// Adds the memory at its present age.
    fn add(&mut self, memory: Bytes) {
        let point = Point {
            age_s: self.age_s,
            tasks: self.tasks.unwrap_or(0),
            memory,
        };
        self.warm.get_or_insert(point);
        let mut points = std::mem::take(&mut self.points);
        points.push(point);
        self.points = merged(points, self.every_s);
        while self.points.len() > POINTS_MAX {
            self.every_s = self.every_s.saturating_mul(2);
            self.points = merged(std::mem::take(&mut self.points), self.every_s);
        }
    }

    fn is_sound(&self) -> bool {
        let cause = self.cause.as_deref().map(str::parse::<Cause>);
        let ages = self.points.iter().map(|point| point.age_s);
        self.points.len() <= POINTS_MAX
            && (1..=EVERY_MAX_S).contains(&self.every_s)
            && cause.is_none_or(|cause| cause.is_ok())
            && ages.is_sorted()
    }

    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    pub(super) const fn every_s(&self) -> u64 {
        self.every_s
    }

    pub(super) const fn counts_tasks(&self) -> bool {
        self.tasks.is_some()
    }

    pub(super) const fn is_cut(&self) -> bool {
        self.cut
    }

    pub(super) const fn boot_peak(&self) -> Bytes {
        self.boot_peak
    }

    pub(super) const fn peak(&self) -> Bytes {
        self.peak
    }

    pub(super) const fn warm(&self) -> Option<Point> {
        self.warm
    }
}

/// The kernel ended it at a limit on memory.
const fn is_cut(cause: Cause) -> bool {
    matches!(cause.class(), Class::Kernel)
}

/// Of points in the same interval, only the highest one is kept.
fn merged(points: Vec<Point>, every_s: u64) -> Vec<Point> {
    let mut kept: Vec<Point> = Vec::with_capacity(points.len());
    for point in points {
        match kept.last_mut() {
            Some(last) if last.age_s / every_s == point.age_s / every_s => {
                if point.memory > last.memory {
                    *last = point;
                }
            }
            Some(_) | None => kept.push(point),
        }
    }
    kept
}

/// An id as it is shown.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::units::WorkerId;

    pub(super) fn serialize<S: Serializer>(
        id: &WorkerId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<WorkerId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
