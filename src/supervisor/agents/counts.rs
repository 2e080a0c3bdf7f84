//! The workers' counters of tasks, read from a shared page without calling into the workers.

use std::time::Duration;

use crate::supervisor::{Supervisor, action::Action, input::Counts, worker::Worker};
use crate::units::{Timestamp, WorkerId};

/// The time between two readings while no worker is near its maximum number of tasks.
const EVERY: Duration = Duration::from_secs(1);
/// The least time between two readings.
const EVERY_MIN: Duration = Duration::from_millis(20);

impl Supervisor {
    pub(crate) fn read_counts(&mut self, now: Timestamp) {
        self.state.agents.next_count = Some(now.next_multiple(EVERY));
        self.out.act(Action::ReadCounts);
    }

    /// When to read the page next: at once if it has not been read yet.
    pub(crate) fn read_counts_at(&self) -> Option<Timestamp> {
        let mut workers = self.state.workers.values();
        let any = workers.any(|worker| worker.requests().is_loaded());
        any.then(|| self.state.agents.next_count.unwrap_or_default())
    }

    pub(crate) fn on_counted(&mut self, now: Timestamp, id: WorkerId, counts: Counts) {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return;
        };
        worker.counters_mut().on_counts(now, counts);
        let recycle = self.spec.recycle;
        let limit = worker.max_tasks(recycle.max_tasks, recycle.jitter);
        let rate = worker.counters().rate();
        if counts.errors > 0 {
            self.warn_once(format!("errors of the agent in {id}"), || {
                format!("internal error in the agent in {id}; the application is not affected")
            });
        }
        let Some(limit) = limit else {
            return;
        };
        let left = limit.saturating_sub(counts.done);
        if left == 0 {
            self.plan.touch();
        } else if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
            // Half of the expected time, so that a worker does only a few tasks more than its
            // maximum.
            let left = f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            let half = Duration::try_from_secs_f64(left / rate / 2.0).unwrap_or(EVERY);
            let at = now.later(half.max(EVERY_MIN));
            self.state.agents.next_count =
                Some(self.state.agents.next_count.map_or(at, |next| next.min(at)));
        }
    }

    /// The tasks done by all workers, including those that have ended. `None`: tasks are not
    /// counted.
    pub(crate) fn all_done(&self) -> Option<u64> {
        let living = self
            .state
            .workers
            .values()
            .filter_map(|worker| worker.counters().done());
        living
            .chain(self.state.agents.dead_done)
            .reduce(u64::saturating_add)
    }

    pub(crate) fn keep_counts(&mut self, worker: &Worker) {
        if let Some(done) = worker.counters().done() {
            self.state.agents.dead_done = Some(
                self.state
                    .agents
                    .dead_done
                    .unwrap_or(0)
                    .saturating_add(done),
            );
        }
    }
}
