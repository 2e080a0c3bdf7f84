//! The requests and tasks that one worker has done, and their rate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::input::Counts;
use crate::units::{Bytes, Timestamp};

/// The rate is an average over about this many seconds.
const RATE_OVER: f64 = 5.0;
/// The memory per task is reported only after this many tasks.
const DONE_MIN: u64 = 20;

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counters {
    counts: Option<Counts>,
    at: Timestamp,
    /// Tasks per second.
    rate: Option<f64>,
    /// Tasks done when the baseline was set.
    at_baseline: u64,
}

impl Counters {
    /// The number of tasks done. `None`: tasks are not counted.
    pub(crate) fn done(&self) -> Option<u64> {
        self.counts.map(|counts| counts.done)
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        self.counts.and(self.rate)
    }

    /// How old the last counts are.
    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        now.since(self.at)
    }

    /// From now on the memory per task is measured from here.
    pub(crate) fn set_baseline(&mut self) {
        self.at_baseline = self.done().unwrap_or(0);
    }

    pub(crate) fn bytes_per_task(&self, growth: Bytes) -> Option<f64> {
        let done = self.done()?.saturating_sub(self.at_baseline);
        let tasks = f64::from(u32::try_from(done).unwrap_or(u32::MAX));
        (done >= DONE_MIN).then(|| growth.as_f64() / tasks)
    }

    /// Takes in new counts. A count never decreases, although the page may be read a little before
    /// it is written.
    pub(crate) fn on_counts(&mut self, now: Timestamp, counts: Counts) {
        let before = self.counts.unwrap_or_default();
        let counts = Counts {
            done: counts.done.max(before.done),
            errors: counts.errors.max(before.errors),
        };
        let elapsed = now.since(self.at).as_secs_f64();
        if self.counts.is_some() && elapsed > 0.0 {
            let more = u32::try_from(counts.done - before.done).unwrap_or(u32::MAX);
            let latest = f64::from(more) / elapsed;
            let weight = (elapsed / RATE_OVER).min(1.0);
            let rate = self.rate.unwrap_or(latest);
            self.rate = Some(rate + (latest - rate) * weight);
        }
        self.counts = Some(counts);
        self.at = now;
    }
}
