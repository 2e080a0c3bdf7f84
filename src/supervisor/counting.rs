//! What workers have done: requests and tasks, read from their shared page without a call into
//! them, and who has done enough.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Supervisor, action::Action, event::Counts, spec::Spec, worker::Worker};
use crate::units::{Bytes, Timestamp, WorkerId, scaled};

/// How often the page is read while nobody nears its number.
const EVERY: Duration = Duration::from_secs(1);
/// And how often at most.
const EVERY_MIN: Duration = Duration::from_millis(20);
/// A rate is an average over about as long.
const RATE_OVER: f64 = 5.0;
/// Memory for each request is not said before that many.
const DONE_MIN: u64 = 20;

/// What one worker has done.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Counted {
    counts: Option<Counts>,
    at: Timestamp,
    /// Done a second.
    rate: Option<f64>,
    /// Done when the baseline was taken.
    at_baseline: u64,
}

impl Counted {
    /// `None`: nobody counts.
    pub(super) fn done(&self) -> Option<u64> {
        self.counts.map(|counts| counts.done)
    }

    pub(super) fn rate(&self) -> Option<f64> {
        self.counts.and(self.rate)
    }

    /// From now on memory for each request counts from here.
    pub(super) fn set_baseline(&mut self) {
        self.at_baseline = self.done().unwrap_or(0);
    }

    pub(super) fn bytes_per_task(&self, growth: Bytes) -> Option<f64> {
        let done = self.done()?.saturating_sub(self.at_baseline);
        let tasks = f64::from(u32::try_from(done).unwrap_or(u32::MAX));
        (done >= DONE_MIN).then(|| growth.as_f64() / tasks)
    }

    /// A page is read a little before it is written: what has been seen is never taken back.
    fn on_counts(&mut self, now: Timestamp, counts: Counts) {
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

impl Supervisor {
    /// Reads the page when it is time.
    pub(super) fn mind_counts(&mut self, now: Timestamp) {
        let any = self.workers.values().any(|worker| worker.asked.is_loaded());
        if any && self.next_count.is_none_or(|at| at <= now) {
            self.next_count = Some(now.next_multiple(EVERY));
            self.act(Action::ReadCounts);
        }
    }

    pub(super) fn count_deadline(&self) -> Option<Timestamp> {
        let any = self.workers.values().any(|worker| worker.asked.is_loaded());
        self.next_count.filter(|_| any)
    }

    pub(super) fn on_counted(&mut self, now: Timestamp, id: WorkerId, counts: Counts) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.counted.on_counts(now, counts);
        let limit = worker.max_tasks(&self.spec);
        let rate = worker.counted.rate();
        if counts.errors > 0 {
            self.warn_once(format!("errors of the agent in {id}"), || {
                format!("the agent in {id} met an error of its own; the application saw none of it")
            });
        }
        let Some(limit) = limit else {
            return;
        };
        let left = limit.saturating_sub(counts.done);
        if left == 0 {
            self.replan = true;
        } else if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
            // Half of the way there, so that a worker does few more than its number.
            let left = f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            let half = Duration::try_from_secs_f64(left / rate / 2.0).unwrap_or(EVERY);
            let at = now.later(half.max(EVERY_MIN));
            self.next_count = Some(self.next_count.map_or(at, |next| next.min(at)));
        }
    }

    /// Done by all workers, the dead too; `None` where nobody counts.
    pub(super) fn all_done(&self) -> Option<u64> {
        let living = self
            .workers
            .values()
            .filter_map(|worker| worker.counted.done());
        living.chain(self.dead_done).reduce(u64::saturating_add)
    }

    pub(super) fn bury_counts(&mut self, worker: &Worker) {
        if let Some(done) = worker.counted.done() {
            self.dead_done = Some(self.dead_done.unwrap_or(0).saturating_add(done));
        }
    }
}

impl Worker {
    /// The number at which this worker has done enough, lowered by its own jitter.
    pub(super) fn max_tasks(&self, spec: &Spec) -> Option<u64> {
        let part = 1.0 - spec.recycle.jitter * self.jitter;
        Some(scaled(spec.recycle.max_tasks?, part).max(1))
    }

    /// It has done its number of tasks.
    pub(super) fn has_done_enough(&self, spec: &Spec) -> bool {
        let limit = self.max_tasks(spec);
        let done = self.counted.done();
        limit.is_some_and(|limit| done.is_some_and(|done| done >= limit))
    }
}
