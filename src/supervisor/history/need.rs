//! What a worker needs, as opposed to what it leaks.
//!
//! The need is the worker's memory after its warm-up, without the growth that goes on with each
//! task. That growth is a leak: a worker that has just been replaced works as well without it.
//!
//! Growth that stops is not a leak: a cache fills up once, and is needed from then on. So growth
//! counts as a leak only as far as it is the same in both halves of a life: the lower of the two
//! slopes is taken. A slope is the median of the slopes between each two points (Theil and Sen),
//! which a few large requests do not change.

use super::lives::{Life, Point};
use crate::units::{Bytes, scaled};

/// A life with fewer points shows no growth.
const POINTS_MIN: usize = 4;
/// Less growth than this in a whole life is noise.
const GROWTH_MIN: Bytes = Bytes::mib(1);
/// So is growth below this part of the memory after warm-up.
const GROWTH_PART: f64 = 0.02;

/// What one life has needed.
#[derive(Debug)]
pub(super) struct Need {
    /// The need at each point, in ascending order.
    pub(super) memory: Vec<Bytes>,
    /// The time that each of them stands for.
    pub(super) every_s: u64,
    /// The memory after warm-up.
    pub(super) warm: Bytes,
    /// The leak, in bytes per task if tasks are counted, else per second.
    pub(super) growth: f64,
    pub(super) counts_tasks: bool,
}

impl Need {
    /// `None`: the life was too short.
    pub(super) fn of(life: &Life) -> Option<Self> {
        let points = life.points();
        let (warm, last) = (life.warm()?, points.last()?);
        if points.len() < POINTS_MIN {
            return None;
        }
        let progress = |point: &Point| {
            if life.counts_tasks() {
                float(point.tasks) - float(warm.tasks)
            } else {
                float(point.age_s) - float(warm.age_s)
            }
        };
        let all: Vec<_> = points
            .iter()
            .map(|point| (progress(point), point.memory))
            .collect();
        let mut growth = leak(&all);
        let grown = growth * progress(last);
        if grown < GROWTH_MIN.max(warm.memory.scaled(GROWTH_PART)).as_f64() {
            growth = 0.0;
        }
        let without = |(done, memory): &(f64, Bytes)| memory.minus(Bytes(scaled(1, growth * done)));
        let mut memory: Vec<_> = all.iter().map(without).collect();
        memory.sort_unstable();
        Some(Self {
            memory,
            every_s: life.every_s(),
            warm: warm.memory,
            growth,
            counts_tasks: life.counts_tasks(),
        })
    }

    /// The time after warm-up.
    pub(super) fn watched_s(&self) -> u64 {
        let count = u64::try_from(self.memory.len()).unwrap_or(u64::MAX);
        count.saturating_mul(self.every_s)
    }

    /// What it needs most of the time.
    pub(super) fn median(&self) -> Bytes {
        let middle = self.memory.get(self.memory.len() / 2);
        middle.copied().unwrap_or_default()
    }
}

/// Growth that is the same in both halves.
fn leak(points: &[(f64, Bytes)]) -> f64 {
    let (first, second) = points.split_at(points.len() / 2);
    match (slope(first), slope(second)) {
        (Some(one), Some(other)) => one.min(other).max(0.0),
        (None, _) | (_, None) => 0.0,
    }
}

/// The median of the slopes between each two points.
fn slope(points: &[(f64, Bytes)]) -> Option<f64> {
    let mut slopes = Vec::new();
    for (at, (from, low)) in points.iter().enumerate() {
        for (to, high) in points.iter().skip(at + 1) {
            if to > from {
                slopes.push((high.as_f64() - low.as_f64()) / (to - from));
            }
        }
    }
    median(&mut slopes)
}

/// The middle value.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Counts are far below 2^53, where a float is exact.
pub(super) fn float(count: u64) -> f64 {
    Bytes(count).as_f64()
}
