//! Recycles that do not help are slowed down and then stopped.
//!
//! A replacement helps when its worker lives below the limit for a while. It does not where workers
//! pass the ceiling soon after their start: they need that much, or they are a whole tree of
//! processes under one ceiling, or all they do is warm up. After a few of those in a row, workers
//! stay over their ceiling until they are close to their cap. A worker that has stopped growing by
//! then is no longer compared with the ceiling.
//!
//! A worker that really leaks that fast is recycled when it is close to its cap.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Supervisor, due::Due, report::Cause, spec::Kind, worker::Worker};
use crate::units::{Bytes, Timestamp, WorkerId};

/// A program that is recycled as a whole passes its ceiling early if it does so before this many
/// times `min_age`. For one of several workers it is `min_age` itself: its recycle loses nothing.
const EARLY_WHOLE: f64 = 3.0;
/// A worker has grown by more than its warm-up at this many times `min_age`.
const SETTLED: f64 = 3.0;
/// A worker that does not grow is over its ceiling soon before this many times `min_age`.
const STILL: f64 = 1.5;
/// A tree of processes passes it early if it does so before this: its processes start one another,
/// which takes time on a busy machine.
const EARLY_TREE: Duration = Duration::from_secs(60);
/// This many early recycles in a row for each wanted worker are allowed.
const EARLY_MAX: u32 = 2;
/// After those, workers that have done no task may be recycled close to their cap this many times.
const NEAR_MAX: u32 = 3;
/// A worker is close to its cap at this part of the way there from its ceiling.
const NEAR: f64 = 0.6;
/// This many early recycles in a row of workers that did not grow are allowed: the ceiling is too
/// low for this program.
const STILL_MAX: u32 = 3;
/// Recycles for the budget belong to one series if they are no further apart, waits left out.
const SERIES: Duration = Duration::from_secs(60);
/// The waits after a series of recycles for the budget; each doubles the one before.
const BUDGET_WAIT_MIN: Duration = Duration::from_secs(60);
const BUDGET_WAIT_MAX: Duration = Duration::from_secs(600);
/// A worker of this many processes is a tree under one ceiling.
const TREE: u32 = 3;
/// A warning about a tree comes at this part of its ceiling.
const TREE_TOLD: f64 = 0.75;

/// What is remembered of recycles that did not help.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Futile {
    /// Early recycles in a row.
    early: u32,
    /// Early recycles in a row close to the cap.
    near: u32,
    /// One of several workers did its work and grew until it was close to its cap. That is a leak,
    /// however fast, and recycles help.
    #[serde(default)]
    leaks: bool,
    /// Early recycles in a row of workers that did not grow.
    still: u32,
    /// Recycles for the budget in the present series.
    budget: u32,
    budget_last: Option<Timestamp>,
    /// When the next recycle for the budget is allowed.
    budget_after: Option<Timestamp>,
}

impl Futile {
    /// A worker has lived below its ceiling for a while: recycling helps.
    const fn on_help(&mut self) {
        self.early = 0;
        self.near = 0;
        self.still = 0;
    }

    /// A worker that passed its ceiling early is recycled.
    const fn on_early(&mut self, most: u32) {
        if self.early < most {
            self.early = self.early.saturating_add(1);
        } else {
            self.near = self.near.saturating_add(1);
        }
    }

    /// A worker is recycled for the budget. After `most` in one series there is a wait.
    fn on_budget(&mut self, now: Timestamp, most: u32) {
        let goes_on = self
            .budget_last
            .is_some_and(|last| now.since(last) <= SERIES.saturating_add(self.budget_wait(most)));
        self.budget = if goes_on {
            self.budget.saturating_add(1)
        } else {
            1
        };
        self.budget_last = Some(now);
        let wait = self.budget_wait(most);
        self.budget_after = (!wait.is_zero()).then(|| now.later(wait));
    }

    fn budget_wait(&self, most: u32) -> Duration {
        match self.budget.checked_sub(most) {
            None => Duration::ZERO,
            Some(over) => BUDGET_WAIT_MIN
                .saturating_mul(2_u32.saturating_pow(over))
                .min(BUDGET_WAIT_MAX),
        }
    }
}

/// What is judged about a worker that passed its ceiling early.
#[derive(Clone, Copy, Debug)]
struct Early {
    memory: Bytes,
    ceiling: Bytes,
    /// Without a cap, twice the ceiling.
    cap: Bytes,
    /// It still grows.
    grows: bool,
    /// It has done requests or tasks: its growth is not only that of its start.
    worked: bool,
    /// It is old enough for what it has grown by to be more than its warm-up.
    settled: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// The worker is recycled.
    Recycle,
    /// It stays, and is judged again.
    Wait,
    /// It stays for good: the ceiling does not hold for it.
    Stop,
}

impl Futile {
    fn judge(&self, early: Early, most: u32) -> Verdict {
        if self.leaks || self.early < most {
            return Verdict::Recycle;
        }
        let way = early.cap.minus(early.ceiling).scaled(NEAR);
        let near = early.memory >= early.ceiling.plus(way);
        if early.grows && near && (early.worked || self.near < NEAR_MAX) {
            Verdict::Recycle
        } else if early.settled && !early.grows {
            Verdict::Stop
        } else {
            Verdict::Wait
        }
    }
}

impl Supervisor {
    /// Whether a recycle for memory is likely to help. If not, a warning says so and the worker
    /// stays.
    pub(super) fn would_help(&mut self, now: Timestamp, due: &Due) -> bool {
        if due.cause == Cause::Ceiling {
            self.would_help_at_ceiling(now, due)
        } else if due.cause == Cause::Budget {
            self.would_help_budget(now)
        } else {
            true
        }
    }

    fn would_help_at_ceiling(&mut self, now: Timestamp, due: &Due) -> bool {
        let (Some(worker), Some(ceiling)) = (self.workers.get(&due.worker), due.limit) else {
            return true;
        };
        if !self.is_early(worker, now) {
            return true;
        }
        let early = Early {
            memory: due.memory,
            ceiling,
            cap: self.limits.cap.bytes.unwrap_or(ceiling.scaled(2.0)),
            grows: worker.memory.still_grows(),
            worked: worker.counted.done().is_some_and(|done| done > 0),
            settled: worker.age(now) >= self.spec.recycle.min_age.mul_f64(SETTLED),
        };
        match self.futile.judge(early, self.early_max()) {
            Verdict::Recycle => true,
            Verdict::Wait => {
                self.tell_wait(now, due, early);
                self.wake_at(now, now.later(Duration::from_secs(1)));
                false
            }
            Verdict::Stop => {
                self.stop_recycling(due, ceiling);
                // Its limits on tasks and age still hold, but no deadline is set for them yet.
                self.wake_at(now, now.later(Duration::from_secs(1)));
                false
            }
        }
    }

    fn would_help_budget(&mut self, now: Timestamp) -> bool {
        let Some(after) = self.futile.budget_after.filter(|after| now < *after) else {
            return true;
        };
        self.wake_at(now, after);
        let (total, times) = (self.total(), self.futile.budget);
        let budget = self.limits.budget.bytes.unwrap_or(total);
        let contents = self.budget_contents();
        self.warn_once("budget recycles in vain", || {
            format!(
                "{times} recycles in a row for the budget did not help: all together still hold \
                 {total} of {budget}{contents}; each further one waits for 1 to 10 minutes. hint: \
                 run fewer workers, or give a larger --budget"
            )
        });
        false
    }

    /// A worker begins to drain: remembers it if that is for its memory.
    pub(super) fn on_let_go(&mut self, now: Timestamp, due: Due) {
        let most = self.early_max();
        if due.cause == Cause::Budget {
            self.futile.on_budget(now, most);
        }
        let Some(worker) = self.workers.get(&due.worker) else {
            return;
        };
        if due.cause != Cause::Ceiling {
            return;
        }
        if self.is_early(worker, now) {
            let one_of_many = matches!(self.spec.kind, Kind::Server(_))
                && worker.memory.processes() < TREE
                && worker.counted.done().is_some_and(|done| done > 0);
            self.futile.leaks |= one_of_many && self.futile.early >= most;
            self.futile.on_early(most);
        } else {
            self.futile.on_help();
        }
    }

    /// A program whose workers are over the ceiling as soon as they have done a little, and do not
    /// grow from there, is not cured by recycling.
    pub(super) fn is_worth_it(&mut self, now: Timestamp, due: Due) -> bool {
        let Some(worker) = self.workers.get(&due.worker) else {
            return false;
        };
        let soon = worker.age(now) < self.spec.recycle.min_age.mul_f64(STILL);
        if !soon || worker.memory.still_grows() || self.would_die(now, worker) {
            self.futile.still = 0;
            return true;
        }
        self.futile.still = self.futile.still.saturating_add(1);
        if self.futile.still <= STILL_MAX {
            return true;
        }
        self.stop_recycling(&due, due.limit.unwrap_or(due.memory));
        false
    }

    /// Updates, after a sample, since when a worker is over its ceiling and whether it has lived
    /// below it for long enough.
    pub(super) fn update_futile(&mut self, now: Timestamp, worker: WorkerId) {
        let Some(one) = self.workers.get(&worker) else {
            return;
        };
        let over = self
            .ceiling_of(one)
            .is_some_and(|ceiling| one.memory.value() >= ceiling);
        let proved = one.serves() && !over && !one.proved && now >= self.early_until(one);
        let Some(one) = self.workers.get_mut(&worker) else {
            return;
        };
        if !over {
            one.over_since = None;
        } else if one.serves() && one.memory.is_sure() {
            one.over_since.get_or_insert(now);
        }
        if proved {
            one.proved = true;
            self.futile.on_help();
        }
        self.tell_tree(worker);
    }

    /// A worker that passes its ceiling before then passes it early.
    fn early_until(&self, worker: &Worker) -> Timestamp {
        let least = if worker.memory.processes() >= TREE {
            EARLY_TREE
        } else {
            Duration::ZERO
        };
        let whole = matches!(self.spec.kind, Kind::Single) || !least.is_zero();
        let times = if whole { EARLY_WHOLE } else { 1.0 };
        let early = self.spec.recycle.min_age.mul_f64(times);
        worker.seen.later(early.max(least))
    }

    fn is_early(&self, worker: &Worker, now: Timestamp) -> bool {
        worker.over_since.unwrap_or(now) < self.early_until(worker)
    }

    fn early_max(&self) -> u32 {
        let workers = match self.spec.kind {
            Kind::Server(_) => self.spare.wanted().unwrap_or(1).max(1),
            Kind::Single => 1,
        };
        EARLY_MAX.saturating_mul(workers)
    }

    fn stop_recycling(&mut self, due: &Due, ceiling: Bytes) {
        let Some(worker) = self.workers.get_mut(&due.worker) else {
            return;
        };
        worker.born_fat = true;
        let processes = worker.memory.processes();
        let whose = if processes >= TREE {
            format!("the {processes} processes of {}", due.worker)
        } else {
            due.worker.to_string()
        };
        let memory = due.memory;
        self.warn_once("born over the ceiling", || {
            format!(
                "{whose}: {memory} soon after the start, over the ceiling of {ceiling}, and no \
                 longer growing: recycling cannot help and is off for such workers, and only \
                 their cap limits them. hint: give a --ceiling above {}",
                memory.scaled(1.5)
            )
        });
    }

    fn tell_wait(&mut self, now: Timestamp, due: &Due, early: Early) {
        let Some(worker) = self.workers.get(&due.worker) else {
            return;
        };
        let after = super::tell::span(worker.over_since.unwrap_or(now).since(worker.seen));
        let processes = worker.memory.processes();
        let tree = if processes >= TREE {
            format!(" ({processes} processes share it)")
        } else {
            String::new()
        };
        let times = self.futile.early;
        let Early {
            memory,
            ceiling,
            cap,
            ..
        } = early;
        self.warn_once("early recycles in vain", || {
            format!(
                "{}: {memory}, over its ceiling of {ceiling}{tree} {after} after its start, like \
                 the {times} before it: recycling does not help so soon, and such workers stay \
                 until they are close to their cap of {cap}. hint: give a larger --ceiling",
                due.worker
            )
        });
    }

    /// Warns that the processes of a tree share one ceiling, in case it was meant for each of them.
    fn tell_tree(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let processes = worker.memory.processes();
        let (memory, sure) = (worker.memory.value(), worker.memory.is_sure());
        let Some(ceiling) = self.limits.ceiling.bytes else {
            return;
        };
        let is_tree = processes >= TREE && sure && !self.is_job();
        if !is_tree || memory < ceiling.scaled(TREE_TOLD) {
            return;
        }
        self.warn_once("tree", || {
            format!(
                "{id}: {processes} processes share one ceiling of {ceiling} and hold {memory}. \
                 hint: all processes that a program starts are one worker: give a --ceiling for \
                 all of them together"
            )
        });
    }
}

#[cfg(test)]
impl Supervisor {
    /// As many early recycles were in vain as are allowed.
    pub(super) fn stop_early_recycles(&mut self) {
        self.futile.early = u32::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY_ONE: Early = Early {
        memory: Bytes::mib(184),
        ceiling: Bytes::mib(150),
        cap: Bytes::mib(300),
        grows: true,
        worked: false,
        settled: false,
    };

    fn after(early: u32) -> Futile {
        let mut futile = Futile::default();
        (0..early).for_each(|_| futile.on_early(2));
        futile
    }

    #[test]
    fn two_early_recycles_are_allowed_and_then_workers_wait() {
        assert_eq!(after(0).judge(EARLY_ONE, 2), Verdict::Recycle);
        assert_eq!(after(1).judge(EARLY_ONE, 2), Verdict::Recycle);
        assert_eq!(after(2).judge(EARLY_ONE, 2), Verdict::Wait);
    }

    #[test]
    fn a_worker_that_only_warmed_up_is_not_recycled_any_more() {
        let settled = Early {
            grows: false,
            settled: true,
            ..EARLY_ONE
        };
        assert_eq!(after(2).judge(settled, 2), Verdict::Stop);
        let young = Early {
            settled: false,
            ..settled
        };
        assert_eq!(after(2).judge(young, 2), Verdict::Wait);
    }

    #[test]
    fn a_fast_leak_is_recycled_close_to_its_cap() {
        let near = Early {
            memory: Bytes::mib(245),
            ..EARLY_ONE
        };
        assert_eq!(after(2).judge(near, 2), Verdict::Recycle);
        assert_eq!(after(5).judge(near, 2), Verdict::Wait);
        let works = Early {
            worked: true,
            ..near
        };
        assert_eq!(after(50).judge(works, 2), Verdict::Recycle);
    }

    #[test]
    fn after_one_leak_was_proven_workers_are_recycled_at_their_ceiling() {
        let mut futile = after(2);
        assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Wait);
        futile.leaks = true;
        assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Recycle);
    }

    #[test]
    fn a_worker_that_lives_below_its_ceiling_for_a_while_starts_the_count_anew() {
        let mut futile = after(7);
        futile.on_help();
        assert_eq!(futile.judge(EARLY_ONE, 2), Verdict::Recycle);
    }

    #[test]
    fn recycles_for_the_budget_are_ever_further_apart() {
        let at = |s| Timestamp::default().later(Duration::from_secs(s));
        let mut futile = Futile::default();
        let waits: Vec<_> = [0, 10, 80, 210]
            .map(|s| {
                futile.on_budget(at(s), 2);
                futile
                    .budget_after
                    .map(|after| after.since(at(s)).as_secs())
            })
            .into();
        assert_eq!(waits, [None, Some(60), Some(120), Some(240)]);
        futile.on_budget(at(1000), 2);
        assert_eq!(futile.budget_after, None);
    }
}
