//! Who is to be replaced, and why: ceiling, age, budget, an operator's wish.

use super::{
    Supervisor,
    report::{Cause, Report},
    worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// All together are recycled from here on, a little before the kernel would act.
pub(super) const BUDGET_SHARE: f64 = 0.95;
/// For the budget's sake only workers go that have grown by this part since their birth.
const WORTH_IT: f64 = 0.1;

/// A worker that is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due {
    pub(super) worker: WorkerId,
    pub(super) cause: Cause,
    pub(super) memory: Bytes,
    pub(super) limit: Option<Bytes>,
}

impl Due {
    /// The kernel would end it sooner or later.
    pub(super) const fn is_urgent(&self) -> bool {
        matches!(self.cause, Cause::Budget | Cause::Ceiling)
    }
}

impl Supervisor {
    /// The workers that are to be replaced, the most urgent first.
    pub(super) fn all_due(&mut self, now: Timestamp) -> Vec<Due> {
        if self.is_job() {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut wakes = Vec::new();
        for worker in self.workers.values().filter(|worker| worker.is_ready()) {
            match self.due(now, worker) {
                Ok(one) => due.push(one),
                Err(wake) => wakes.extend(wake),
            }
        }
        for wake in wakes {
            self.wake_at(now, wake);
        }
        if let Some(one) = self.over_budget(now)
            && !due.iter().any(|other| other.worker == one.worker)
        {
            due.push(one);
        }
        let due_all = std::mem::take(&mut due);
        for one in due_all {
            if !self.has_climbed(now, &one) {
                continue;
            }
            if self.would_help(now, &one) {
                due.push(one);
            } else if let Some(worker) = self.workers.get(&one.worker) {
                // It may stay over its ceiling; its limits on tasks and age still hold.
                due.extend(self.due_by_use(now, worker));
            }
        }
        // What the kernel would end first goes first; then as they came.
        due.sort_by_key(|one| (!one.is_urgent(), one.worker));
        due
    }

    /// Why this worker is to be replaced now, or when to ask again.
    pub(super) fn due(&self, now: Timestamp, worker: &Worker) -> Result<Due, Option<Timestamp>> {
        let memory = worker.memory.value();
        let due = |cause, limit| Due {
            worker: worker.id,
            cause,
            memory,
            limit,
        };
        if let Some(cause) = worker.wanted_gone {
            return Ok(due(cause, None));
        }
        let recycle = self.spec.recycle;
        let ceiling = self.ceiling_of(worker);
        let over = worker.birth.is_some()
            && ceiling.is_some_and(|ceiling| memory >= ceiling)
            && worker.memory.strikes() >= self.spec.memory.strikes;
        let young = worker.age(now) < recycle.min_age;
        if over && (!young || self.would_die(now, worker)) {
            return Ok(due(Cause::Ceiling, ceiling));
        }
        if let Some(due) = self.due_by_use(now, worker) {
            return Ok(due);
        }
        let old_at = self.old_at(worker);
        let done = worker.has_done_enough(&self.spec);
        let grown_up = (over || done).then(|| worker.seen.later(recycle.min_age));
        Err(old_at.into_iter().chain(grown_up).min())
    }

    /// Whether it has done its maximum number of tasks, or has reached its maximum age.
    fn due_by_use(&self, now: Timestamp, worker: &Worker) -> Option<Due> {
        let young = worker.age(now) < self.spec.recycle.min_age;
        let cause = if !young && worker.has_done_enough(&self.spec) {
            Cause::Tasks
        } else if self.old_at(worker).is_some_and(|at| at <= now) {
            Cause::Age
        } else {
            return None;
        };
        Some(Due {
            worker: worker.id,
            cause,
            memory: worker.memory.value(),
            limit: None,
        })
    }

    fn old_at(&self, worker: &Worker) -> Option<Timestamp> {
        let recycle = self.spec.recycle;
        let max_age = worker.max_age(recycle.max_age, recycle.jitter)?;
        Some(worker.seen.later(max_age.max(recycle.min_age)))
    }

    /// A fast leak is recycled, not left to die: waiting for `min_age` and then for the drain could
    /// carry this worker to its cap.
    pub(super) fn would_die(&self, now: Timestamp, worker: &Worker) -> bool {
        let Some(cap) = self.limits.cap.bytes else {
            return false;
        };
        let wait = self.spec.recycle.min_age.saturating_sub(worker.age(now));
        let done = wait.saturating_add(self.spec.stop.grace);
        worker.memory.time_to(cap).is_some_and(|left| left <= done)
    }

    /// The fattest, when all together are close to the budget.
    pub(super) fn over_budget(&self, now: Timestamp) -> Option<Due> {
        let budget = self.limits.budget.bytes?;
        if self.total() < budget.scaled(BUDGET_SHARE) || self.count().draining > 0 {
            return None;
        }
        if self.ends_leftovers_first() {
            return None;
        }
        // An upper bound is no reason to let anybody go: the exact look is on its way.
        let unsure = |worker: &Worker| worker.is_ready() && !worker.memory.is_sure();
        if self.workers.values().any(unsure) {
            return None;
        }
        let old_enough =
            |worker: &&Worker| worker.is_ready() && worker.age(now) >= self.spec.recycle.min_age;
        // The successor of one that has not grown would hold no less.
        let gives_back = |worker: &&Worker| {
            let birth = worker.birth.map(|birth| birth.scaled(1.0 + WORTH_IT));
            birth.is_some_and(|least| worker.memory.value() > least)
        };
        let fattest = self
            .workers
            .values()
            .filter(old_enough)
            .filter(gives_back)
            .max_by_key(|worker| worker.memory.value())?;
        Some(Due {
            worker: fattest.id,
            cause: Cause::Budget,
            memory: fattest.memory.value(),
            limit: Some(budget),
        })
    }

    /// All workers, the server itself, and what workers have left behind. Where the kernel holds
    /// the budget it also counts what no process has mapped, such as files in `/dev/shm`; page
    /// cache can be given back and is not looked at.
    pub(super) fn total(&self) -> Bytes {
        let others = self.server_memory.plus(self.leftovers.memory());
        others.plus(self.memory_of_workers()).max(self.held)
    }

    pub(super) fn memory_of_workers(&self) -> Bytes {
        let workers = self.workers.values();
        workers.fold(Bytes::ZERO, |sum, one| sum.plus(one.memory.value()))
    }

    /// A newborn beside all that live now fits into the budget.
    pub(super) fn has_room(&self) -> bool {
        let budget = self.limits.budget.bytes.unwrap_or(self.limits.available);
        self.total().plus(self.newborn) <= budget
    }

    pub(super) fn tell_due(&mut self, due: Due) {
        let dry_run = self.spec.dry_run && !matches!(due.cause, Cause::Request | Cause::Reload);
        let Some(worker) = self.workers.get_mut(&due.worker) else {
            return;
        };
        if worker.told_due.replace(due.cause) == Some(due.cause) {
            return;
        }
        let Due {
            worker,
            cause,
            memory,
            limit,
        } = due;
        let configured = if cause == Cause::Ceiling {
            self.limits.ceiling.bytes
        } else {
            limit
        };
        self.tell(Report::Due {
            worker,
            cause,
            memory,
            limit,
            configured,
            dry_run,
        });
    }
}
