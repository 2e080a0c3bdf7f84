//! Recycles in vain: recycling that does not help is slowed down and then stopped.
//!
//! A recycle helps if the new worker stays below the limit for a while. It does not help if workers
//! pass the ceiling soon after their start: the application needs that much memory, or the worker
//! is a tree of many processes under one ceiling, or the worker is only warming up. After a few
//! such early recycles in a row, workers may stay over their ceiling until they are close to their
//! cap. A worker that has stopped growing by then is no longer compared with the ceiling.
//!
//! A worker that really leaks that fast is recycled when it is close to its cap.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor, cause::Cause, policy::candidates::Candidate, spec::Kind, worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// A program that is recycled as a whole passes its ceiling early if it does so at an age below
/// this many times `min_age`. For one of several workers the age is `min_age` itself, because
/// recycling one of them costs no requests.
const EARLY_WHOLE: f64 = 3.0;
/// At this many times `min_age`, the growth of a worker is more than its warm-up.
const SETTLED: f64 = 3.0;
/// The same limit of age for a worker that no longer grows, in times of `min_age`.
const EARLY_NOT_GROWING: f64 = 1.5;
/// A tree of processes passes its ceiling early below this age: its processes start one another,
/// which takes time on a busy machine.
pub(crate) const EARLY_TREE: Duration = Duration::from_secs(60);
/// Early recycles in a row that are allowed for each wanted worker.
const EARLY_MAX: u32 = 2;
/// After those, workers that have done no task may be recycled close to their cap this many times.
const NEAR_MAX: u32 = 3;
/// A worker is close to its cap at this part of the way from its ceiling to its cap.
const NEAR_CAP: f64 = 0.6;
/// Early recycles in a row that are allowed for workers that do not grow. After these, the ceiling
/// is too low for this program.
const NOT_GROWING_MAX: u32 = 3;
/// Recycles for the budget belong to one series if they are no further apart than this, not
/// counting the waits.
const SERIES: Duration = Duration::from_secs(60);
/// The wait after a series of recycles for the budget. Each wait is twice as long as the last one.
const BUDGET_WAIT_MIN: Duration = Duration::from_secs(60);
const BUDGET_WAIT_MAX: Duration = Duration::from_secs(600);
/// A worker of this many processes is a tree under one ceiling.
pub(crate) const TREE_PROCESSES: u32 = 3;

/// The recycles that did not help.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct InVain {
    /// Early recycles in a row.
    early: u32,
    /// Recycles in a row of workers that passed their ceiling early and came close to their cap.
    near: u32,
    /// One of several workers has done tasks and grown until it was close to its cap. That is a
    /// fast leak, and recycling helps.
    #[serde(default)]
    leaks: bool,
    /// Early recycles in a row of workers that did not grow.
    still: u32,
    /// Recycles for the budget in the current series.
    budget: u32,
    budget_last: Option<Timestamp>,
    /// When the next recycle for the budget is allowed.
    budget_after: Option<Timestamp>,
}

impl InVain {
    /// A worker has stayed below its ceiling for a while: recycling helps.
    const fn on_help(&mut self) {
        self.early = 0;
        self.near = 0;
        self.still = 0;
    }

    /// A worker is about to be recycled. `not_growing`: early, and it does not grow. Returns false
    /// if too many such workers were recycled in a row.
    const fn count_not_growing(&mut self, not_growing: bool) -> bool {
        self.still = if not_growing {
            self.still.saturating_add(1)
        } else {
            0
        };
        self.still <= NOT_GROWING_MAX
    }

    /// A worker that passed its ceiling early is recycled. `most`: the allowed number of early
    /// recycles.
    const fn on_early(&mut self, most: u32) {
        if self.early < most {
            self.early = self.early.saturating_add(1);
        } else {
            self.near = self.near.saturating_add(1);
        }
    }

    /// A worker is recycled for the budget. After `most` recycles in one series there is a wait.
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

/// A worker that passed its ceiling early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Early {
    memory: Bytes,
    ceiling: Bytes,
    /// Without a cap, twice the ceiling.
    cap: Bytes,
    /// It still grows.
    grows: bool,
    /// It has done requests or tasks, so its growth is not only that of its start.
    worked: bool,
    /// It is so old that its growth is more than its warm-up.
    settled: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// The worker is recycled.
    Recycle,
    /// The worker stays, and is judged again later.
    Wait,
    /// The worker stays, and its ceiling no longer applies.
    Stop,
}

impl InVain {
    fn judge(&self, early: Early, most: u32) -> Verdict {
        if self.leaks || self.early < most {
            return Verdict::Recycle;
        }
        let way = early.cap.minus(early.ceiling).scaled(NEAR_CAP);
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

/// Whether a recycle for memory is likely to help.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outlook {
    Helps,
    /// It comes too soon after the start to help. The worker stays, and is judged again later.
    TooSoon(Early),
    /// The worker needs this much memory. Its ceiling no longer applies.
    Never,
    /// The last recycles for the budget did not help. The next one waits until this time.
    BudgetWait(Timestamp),
}

impl Outlook {
    /// Why a worker is not replaced, for an event.
    pub(crate) const fn in_words(self) -> &'static str {
        match self {
            Self::Helps => "replacing it is likely to help",
            Self::TooSoon(_) => "kept, because replacing it so soon after its start does not help",
            Self::Never => "kept, because it needs this much; its ceiling no longer applies",
            Self::BudgetWait(_) => "kept, because the last recycles for the budget did not help",
        }
    }
}

impl Supervisor {
    /// Whether replacing this worker is likely to help.
    pub(crate) fn outlook(&self, now: Timestamp, candidate: &Candidate) -> Outlook {
        if candidate.cause == Cause::Budget {
            let after = self.state.in_vain.budget_after;
            let after = after.filter(|after| now < *after);
            return after.map_or(Outlook::Helps, Outlook::BudgetWait);
        }
        let worker = self.state.workers.get(&candidate.worker);
        let (Cause::Ceiling, Some(worker), Some(ceiling)) =
            (candidate.cause, worker, candidate.limit)
        else {
            return Outlook::Helps;
        };
        if !self.is_early(worker, now) {
            return Outlook::Helps;
        }
        let early = Early {
            memory: candidate.memory,
            ceiling,
            cap: self.cap_of_early(worker, ceiling),
            grows: worker.memory().still_grows(),
            worked: worker.counters().done().is_some_and(|done| done > 0),
            settled: worker.age(now) >= self.spec.recycle.min_age.mul_f64(SETTLED),
        };
        match self.state.in_vain.judge(early, self.early_max(worker)) {
            Verdict::Recycle => Outlook::Helps,
            Verdict::Wait => Outlook::TooSoon(early),
            Verdict::Stop => Outlook::Never,
        }
    }

    /// Does not replace a candidate, because that would not help: warns, and sets the time at which
    /// the candidate is judged again.
    pub(crate) fn hold_back(&mut self, now: Timestamp, candidate: &Candidate, outlook: Outlook) {
        let soon = now.later(Duration::from_secs(1));
        match outlook {
            Outlook::Helps => {}
            Outlook::TooSoon(early) => {
                if !self.is_ceiling_guessed(candidate.worker) {
                    self.warn_of_early_recycles(now, candidate, early);
                }
                self.wake_at(now, soon);
            }
            Outlook::Never => {
                if self.is_ceiling_guessed(candidate.worker) {
                    self.lift_guessed_ceiling(candidate.worker);
                } else {
                    self.stop_recycling(candidate, candidate.limit.unwrap_or(candidate.memory));
                }
                // Its limits on tasks and age still apply, but no deadline is set for them yet.
                self.wake_at(now, soon);
            }
            Outlook::BudgetWait(after) => {
                self.wake_at(now, after);
                self.warn_of_budget_wait();
            }
        }
    }

    fn warn_of_budget_wait(&mut self) {
        let (total, times) = (self.total(), self.state.in_vain.budget);
        let budget = self.state.limits.budget.bytes.unwrap_or(total);
        let contents = self.budget_contents();
        self.warn_once("budget recycles in vain", || {
            format!(
                "{times} recycles in a row for the budget did not help: the service still holds \
                 {total} of {budget}{contents}; each further recycle waits for 1 to 10 minutes. \
                 hint: run fewer workers, or give a larger --budget"
            )
        });
    }

    /// A worker begins to drain. Counts the recycle if it is for the worker's memory.
    pub(crate) fn on_replaced(&mut self, now: Timestamp, candidate: &Candidate) {
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return;
        };
        let most = self.early_max(worker);
        if candidate.cause == Cause::Budget {
            self.state.in_vain.on_budget(now, most);
        }
        if candidate.cause != Cause::Ceiling {
            return;
        }
        if self.is_early(worker, now) {
            let one_of_many = self.profile().is_some()
                && worker.memory().processes() < TREE_PROCESSES
                && worker.counters().done().is_some_and(|done| done > 0);
            self.state.in_vain.leaks |= one_of_many && self.state.in_vain.early >= most;
            self.state.in_vain.on_early(most);
        } else {
            self.state.in_vain.on_help();
        }
    }

    /// Whether a worker is over its ceiling soon after its start and does not grow. If all workers
    /// are like that, recycling does not help.
    pub(crate) fn is_early_without_growth(&self, now: Timestamp, candidate: &Candidate) -> bool {
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return false;
        };
        let soon = worker.age(now) < self.spec.recycle.min_age.mul_f64(EARLY_NOT_GROWING);
        soon && !worker.memory().still_grows() && !self.would_reach_cap(now, worker)
    }

    /// Counts a worker that is about to be replaced for its ceiling. Returns false if it should
    /// stay instead, because too many workers that do not grow were recycled early.
    pub(crate) fn may_recycle_without_growth(
        &mut self,
        now: Timestamp,
        candidate: &Candidate,
    ) -> bool {
        let not_growing = self.is_early_without_growth(now, candidate);
        let helps = self.state.in_vain.count_not_growing(not_growing);
        if !helps {
            self.stop_recycling(candidate, candidate.limit.unwrap_or(candidate.memory));
        }
        helps
    }

    /// After a sample: updates since when the worker has been over its ceiling, and whether it has
    /// stayed below for long enough to show that recycling helps.
    pub(crate) fn update_ceiling_state(&mut self, now: Timestamp, worker: WorkerId) {
        let Some(one) = self.state.workers.get(&worker) else {
            return;
        };
        let over = self
            .ceiling_of(one)
            .is_some_and(|ceiling| one.memory().value() >= ceiling);
        let proved = one.serves()
            && !over
            && !one.ceiling_state().has_proved()
            && now >= self.early_until(one);
        let Some(one) = self.state.workers.get_mut(&worker) else {
            return;
        };
        let (serves, sure) = (one.serves(), one.memory().is_sure());
        let standing = one.ceiling_state_mut();
        if !over {
            standing.on_below();
        } else if serves && sure {
            standing.on_over(now);
        }
        if proved {
            standing.on_proved();
            self.state.in_vain.on_help();
        }
        self.check_shared_ceiling(worker);
    }

    /// A worker that passes its ceiling before this time passes it early.
    fn early_until(&self, worker: &Worker) -> Timestamp {
        let least = if worker.memory().processes() >= TREE_PROCESSES {
            EARLY_TREE
        } else {
            Duration::ZERO
        };
        let whole = self.is_whole_program() || !least.is_zero();
        let times = if whole { EARLY_WHOLE } else { 1.0 };
        let early = self.spec.recycle.min_age.mul_f64(times);
        worker.seen().later(early.max(least))
    }

    pub(crate) fn is_early(&self, worker: &Worker, now: Timestamp) -> bool {
        worker.ceiling_state().over_since().unwrap_or(now) < self.early_until(worker)
    }

    /// The number of early recycles in a row that are allowed.
    fn early_max(&self, worker: &Worker) -> u32 {
        if self.has_guessed_ceiling(worker) {
            return 0;
        }
        let workers = match self.spec.kind {
            Kind::Server(_) => self.state.surge.wanted().unwrap_or(1).max(1),
            Kind::Single => 1,
        };
        EARLY_MAX.saturating_mul(workers)
    }

    fn stop_recycling(&mut self, candidate: &Candidate, ceiling: Bytes) {
        let Some(worker) = self.state.workers.get_mut(&candidate.worker) else {
            return;
        };
        worker.ceiling_state_mut().exempt();
        let processes = worker.memory().processes();
        let who = if processes >= TREE_PROCESSES {
            format!("the {processes} processes of {}", candidate.worker)
        } else {
            candidate.worker.to_string()
        };
        let memory = candidate.memory;
        self.warn_once("born over the ceiling", || {
            format!(
                "{who}: {memory} soon after the start, over the ceiling of {ceiling}, and no \
                 longer growing: recycling cannot help and is off for such workers, and only \
                 their cap limits them. hint: give a --ceiling above {}",
                memory.scaled(1.5)
            )
        });
    }

    fn warn_of_early_recycles(&mut self, now: Timestamp, candidate: &Candidate, early: Early) {
        let Some(worker) = self.state.workers.get(&candidate.worker) else {
            return;
        };
        let after = crate::supervisor::event_format::span(
            worker
                .ceiling_state()
                .over_since()
                .unwrap_or(now)
                .since(worker.seen()),
        );
        let processes = worker.memory().processes();
        let tree = if processes >= TREE_PROCESSES {
            format!(" ({processes} processes share it)")
        } else {
            String::new()
        };
        let times = self.state.in_vain.early;
        let Early {
            memory,
            ceiling,
            cap,
            ..
        } = early;
        self.warn_once("early recycles in vain", || {
            format!(
                "{}: {memory}, over its ceiling of {ceiling}{tree} {after} after its start, like \
                 the {times} workers before it: recycling does not help so soon; such workers are \
                 kept until they are close to their cap of {cap}. hint: give a larger --ceiling",
                candidate.worker
            )
        });
    }
}

#[cfg(test)]
impl Supervisor {
    /// Uses up the allowed early recycles.
    pub(crate) fn stop_early_recycles(&mut self) {
        self.state.in_vain.early = u32::MAX;
    }
}

#[cfg(test)]
#[path = "in_vain_tests.rs"]
mod tests;
