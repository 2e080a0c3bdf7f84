//! Which workers should be replaced, and why. Nothing here changes any state.

use std::time::Duration;

use crate::supervisor::{Supervisor, cause::Cause, worker::Worker};
use crate::units::{Bytes, Timestamp, WorkerId};

/// Workers are recycled for the budget when this part of it is used, a little before the kernel
/// kills a process.
pub(crate) const BUDGET_SHARE: f64 = 0.95;
/// A worker is recycled for the budget only if it has grown by this part since it became ready.
const GROWTH_WORTH_RECYCLING: f64 = 0.1;
/// A worker is in danger if it would reach its cap within this time: about as long as another one
/// takes to drain and its replacement to boot.
const DANGER: Duration = Duration::from_secs(2);
/// When a command that may be a server is judged again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A worker that should be replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) worker: WorkerId,
    pub(crate) cause: Cause,
    pub(crate) memory: Bytes,
    pub(crate) limit: Option<Bytes>,
}

/// All candidates, and the times at which other workers become candidates.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) now: Vec<Candidate>,
    pub(crate) later: Vec<Timestamp>,
}

impl Candidate {
    /// The kernel would kill the worker sooner or later.
    pub(crate) const fn is_urgent(&self) -> bool {
        matches!(self.cause, Cause::Budget | Cause::Ceiling)
    }
}

impl Supervisor {
    pub(crate) fn candidates(&self, now: Timestamp) -> Candidates {
        let mut found = Candidates::default();
        if self.is_job() {
            return found;
        }
        let ready = self.state.workers.values().filter(|one| one.is_ready());
        for worker in ready {
            match self.candidate(now, worker) {
                Ok(candidate) => found.now.push(candidate),
                Err(later) => found.later.extend(later),
            }
        }
        let known = |one: &Candidate| found.now.iter().any(|other| other.worker == one.worker);
        let for_budget = self.over_budget(now).filter(|one| !known(one));
        found.now.extend(for_budget);
        found
    }

    /// Why this worker should be replaced now, or when to check it again.
    pub(super) fn candidate(
        &self,
        now: Timestamp,
        worker: &Worker,
    ) -> Result<Candidate, Option<Timestamp>> {
        let memory = worker.memory().value();
        let candidate = |cause, limit| Candidate {
            worker: worker.id(),
            cause,
            memory,
            limit,
        };
        if let Some(cause) = worker.requested_replacement() {
            return Ok(candidate(cause, None));
        }
        let ceiling = self.ceiling_of(worker);
        let over = worker.ceiling_state().memory_when_ready().is_some()
            && ceiling.is_some_and(|ceiling| memory >= ceiling)
            && worker.memory().samples_over() >= self.spec.memory.consecutive_samples;
        if over && self.may_be_server(now, worker) {
            return Err(Some(now.later(LOOK_AGAIN)));
        }
        let young = worker.age(now) < self.spec.recycle.min_age;
        if over && (!young || self.would_reach_cap(now, worker)) {
            return Ok(candidate(Cause::Ceiling, ceiling));
        }
        if let Some(by_use) = self.candidate_by_use(now, worker) {
            return Ok(by_use);
        }
        let max_age_at = self.max_age_at(worker);
        let done = self.has_reached_max_tasks(worker);
        let min_age_at = (over || done).then(|| worker.seen().later(self.spec.recycle.min_age));
        Err(max_age_at.into_iter().chain(min_age_at).min())
    }

    /// A worker that has done its maximum number of tasks, or has reached its maximum age.
    pub(super) fn candidate_by_use(&self, now: Timestamp, worker: &Worker) -> Option<Candidate> {
        let young = worker.age(now) < self.spec.recycle.min_age;
        let cause = if !young && self.has_reached_max_tasks(worker) {
            Cause::Tasks
        } else if self.max_age_at(worker).is_some_and(|at| at <= now) {
            Cause::Age
        } else {
            return None;
        };
        Some(Candidate {
            worker: worker.id(),
            cause,
            memory: worker.memory().value(),
            limit: None,
        })
    }

    /// Whether the kernel will probably kill the worker if another one is replaced first.
    pub(crate) fn is_in_danger(&self, candidate: &Candidate) -> bool {
        let worker = self.state.workers.get(&candidate.worker);
        let cap = self.state.limits.cap.bytes;
        let left = worker
            .zip(cap)
            .and_then(|(worker, cap)| worker.memory().time_to(cap));
        left.is_some_and(|left| left <= DANGER)
    }

    fn has_reached_max_tasks(&self, worker: &Worker) -> bool {
        let recycle = self.spec.recycle;
        let limit = worker.max_tasks(recycle.max_tasks, recycle.jitter);
        let done = worker.counters().done();
        limit.is_some_and(|limit| done.is_some_and(|done| done >= limit))
    }

    fn max_age_at(&self, worker: &Worker) -> Option<Timestamp> {
        let recycle = self.spec.recycle;
        let max_age = worker.max_age(recycle.max_age, recycle.jitter)?;
        Some(worker.seen().later(max_age.max(recycle.min_age)))
    }

    /// Whether a worker would reach its cap while it waits for `min_age` and then drains. Such a
    /// fast leak is recycled before `min_age`, so that the kernel does not kill it.
    pub(crate) fn would_reach_cap(&self, now: Timestamp, worker: &Worker) -> bool {
        let Some(cap) = self.state.limits.cap.bytes else {
            return false;
        };
        let wait = self.spec.recycle.min_age.saturating_sub(worker.age(now));
        let done = wait.saturating_add(self.spec.stop.grace);
        worker
            .memory()
            .time_to(cap)
            .is_some_and(|left| left <= done)
    }

    /// The largest worker, if the whole service is close to its budget.
    fn over_budget(&self, now: Timestamp) -> Option<Candidate> {
        let budget = self.state.limits.budget.bytes?;
        if self.total() < budget.scaled(BUDGET_SHARE) || self.count().draining > 0 {
            return None;
        }
        if self.ends_leftovers_first() {
            return None;
        }
        // The total may be an upper bound only. An exact sample will follow.
        let unsure = |worker: &Worker| worker.is_ready() && !worker.memory().is_sure();
        if self.state.workers.values().any(unsure) {
            return None;
        }
        let old_enough =
            |worker: &&Worker| worker.is_ready() && worker.age(now) >= self.spec.recycle.min_age;
        // If a worker has not grown, its replacement would hold as much.
        let has_grown = |worker: &&Worker| {
            let when_ready = worker.ceiling_state().memory_when_ready();
            let least = when_ready.map(|memory| memory.scaled(1.0 + GROWTH_WORTH_RECYCLING));
            least.is_some_and(|least| worker.memory().value() > least)
        };
        let largest = self
            .state
            .workers
            .values()
            .filter(old_enough)
            .filter(has_grown)
            .max_by_key(|worker| worker.memory().value())?;
        Some(Candidate {
            worker: largest.id(),
            cause: Cause::Budget,
            memory: largest.memory().value(),
            limit: Some(budget),
        })
    }

    /// The memory of the service: all workers, the server itself, and processes that workers have
    /// left behind. If the kernel enforces the budget, it also counts memory that no process has
    /// mapped, such as files in `/dev/shm`. Page cache is not counted, because the kernel can
    /// reclaim it.
    pub(crate) fn total(&self) -> Bytes {
        let others = self.state.usage.server();
        let others = others.plus(self.state.leftovers.memory());
        let processes = others.plus(self.memory_of_workers());
        processes.max(self.state.usage.held())
    }

    pub(crate) fn memory_of_workers(&self) -> Bytes {
        let workers = self.state.workers.values();
        workers.fold(Bytes::ZERO, |sum, one| sum.plus(one.memory().value()))
    }

    /// Whether the budget has room for one more worker.
    pub(crate) fn has_room(&self) -> bool {
        let budget = self.state.limits.budget.bytes;
        let budget = budget.unwrap_or(self.state.limits.available);
        self.total().plus(self.state.workers.expected_memory()) <= budget
    }
}
