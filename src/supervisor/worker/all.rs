//! All live workers, and what the service has learned from earlier ones.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Worker;
use crate::supervisor::spec::Measure;
use crate::units::{Bytes, Timestamp, WorkerId};

/// The live workers, by identity.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Workers {
    all: BTreeMap<WorkerId, Worker>,
    next: WorkerId,
    /// For the jitter.
    seed: u64,
    /// The time from a worker's start to its readiness.
    boot_time: Option<Duration>,
    /// The memory that a new worker is expected to need: the most that any worker held when it
    /// became ready.
    #[serde(rename = "newborn")]
    expected_memory: Bytes,
}

impl Workers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            all: BTreeMap::new(),
            next: WorkerId::FIRST,
            seed,
            boot_time: None,
            expected_memory: Bytes::ZERO,
        }
    }

    /// A new identity, never used before.
    pub(crate) const fn new_id(&mut self) -> WorkerId {
        let id = self.next;
        self.next = id.next();
        id
    }

    /// The lowest slot that no live worker has.
    pub(crate) fn free_slot(&self) -> u32 {
        let taken: Vec<_> = self.all.values().map(Worker::slot).collect();
        (0..).find(|slot| !taken.contains(slot)).unwrap_or(0)
    }

    /// A number from 0 to 1 for each worker. It follows from the seed, so a run can be repeated.
    pub(crate) fn jitter_of(&self, worker: WorkerId) -> f64 {
        // splitmix64, by Sebastiano Vigna, public domain.
        let mut bits = worker.to_string().bytes().fold(self.seed, |bits, byte| {
            bits.rotate_left(8)
                .wrapping_add(u64::from(byte))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let upper = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or(0);
        f64::from(upper) / f64::from(u32::MAX)
    }

    pub(crate) const fn boot_time(&self) -> Option<Duration> {
        self.boot_time
    }

    /// A worker has booted in this time. The estimate is the longer of this time and 0.7 times the
    /// old estimate, so that one fast start does not make it too short.
    pub(crate) fn on_booted(&mut self, after: Duration) {
        let known = self.boot_time;
        let known = known.map_or(after, |known| known.mul_f64(0.7).max(after));
        self.boot_time = Some(known);
    }

    pub(crate) const fn expected_memory(&self) -> Bytes {
        self.expected_memory
    }

    /// A worker held this much when it became ready.
    pub(crate) fn on_memory_when_ready(&mut self, memory: Bytes) {
        self.expected_memory = self.expected_memory.max(memory);
    }

    /// A new supervisor took over. What the old one had asked the kernel for has ended with it: a
    /// pending sample is never answered, and no threshold is set.
    pub(crate) fn on_taken_over(&mut self, now: Timestamp, measure: Measure) {
        for worker in self.all.values_mut() {
            worker.memory.on_taken_over(now, measure);
            worker.kernel.on_taken_over();
        }
    }
}

impl Deref for Workers {
    type Target = BTreeMap<WorkerId, Worker>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl DerefMut for Workers {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.all
    }
}
