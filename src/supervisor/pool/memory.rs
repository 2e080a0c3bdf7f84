//! The memory of tasks and slots, and which tasks fit into the budget together.

use std::time::Duration;

use super::{
    Phase, Pool,
    event::{Action, SlotId},
    worker::{Killed, Nest, Stage, Ticket},
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// The longest time between two samples of a busy slot.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
/// The age of a long task at its first sample. Young tasks are sampled often, to see their peak and
/// how much of it was mapped files.
const SAMPLE_FIRST: Duration = Duration::from_millis(10);
/// With many slots, the age at the first sample is this for each of them.
const SAMPLE_FIRST_SLOT: Duration = Duration::from_millis(2);
/// A long task is sampled again when its age has grown by one part in this many.
const SAMPLES_PER_AGE: u32 = 4;
/// The mean time of a task, in microseconds, from which tasks are long.
const LONG_MICROS: f64 = 10_000.0;
/// The time between two samples near a limit.
const SAMPLE_NEAR: Duration = Duration::from_millis(10);
/// The part of the budget up to which the expected memory of all tasks may grow by a new one.
const FULL: f64 = 0.9;
/// The part of the budget above which the youngest task is suspended.
const TIGHT: f64 = 0.9;
/// The part of the budget above which the youngest task is killed and put back.
const OVER: f64 = 0.96;
/// The part of the budget below which suspended tasks are resumed.
const EASED: f64 = 0.75;
/// The number of keys whose needs are remembered.
const KEYS_MAX: usize = 4096;

impl Pool {
    pub(super) fn learn(&mut self, key: u32, need: Bytes) {
        if self.needs.len() < KEYS_MAX || self.needs.contains_key(&key) {
            let known = self.needs.entry(key).or_default();
            // The need of a single large task fades with each further task.
            *known = need.max(known.scaled(0.999));
        }
    }

    fn need(&self, key: u32) -> Bytes {
        self.needs.get(&key).copied().unwrap_or_default()
    }

    /// Whether this task may begin in this slot. If no other task runs, it may. One that was put
    /// back repeatedly may only then.
    pub(super) fn fits(&self, slot: SlotId, ticket: &Ticket) -> bool {
        let Some(budget) = self.limits.budget.bytes else {
            return true;
        };
        let mut expected = Bytes::ZERO;
        let mut others = false;
        let mut solitary = ticket.is_solitary();
        for worker in self.workers.values() {
            if worker.slot == slot {
                continue;
            }
            let held = self
                .slots
                .get(&worker.slot)
                .map_or(Bytes::ZERO, |it| it.memory);
            let need = worker.window.front().map(|ticket| self.need(ticket.key));
            others |= need.is_some();
            solitary |= worker.window.iter().any(Ticket::is_solitary);
            expected = expected.plus(held.max(need.unwrap_or_default()));
        }
        let own = self.slots.get(&slot).map_or(Bytes::ZERO, |it| it.memory);
        let fits = expected.plus(own.max(self.need(ticket.key))) <= budget.scaled(FULL);
        !others || (fits && !solitary)
    }

    pub(super) fn sample_deadline(&self) -> Option<Timestamp> {
        if self.phase != Phase::Running {
            return None;
        }
        let busy = |id: SlotId| {
            self.workers
                .values()
                .any(|worker| worker.slot == id && !worker.window.is_empty())
        };
        self.slots
            .iter()
            .filter(|(id, slot)| slot.nest == Nest::Up && !slot.sampling && busy(**id))
            .map(|(_, slot)| slot.sample_at)
            .min()
    }

    pub(super) fn request_samples(&mut self, now: Timestamp) {
        if self.sample_deadline().is_none_or(|at| at > now) {
            return;
        }
        for (&id, slot) in &mut self.slots {
            if slot.nest == Nest::Up && !slot.sampling && slot.sample_at <= now {
                slot.sampling = true;
                self.actions.push_back(Action::Look(id));
            }
        }
    }

    pub(super) fn on_sampled(&mut self, now: Timestamp, id: SlotId, memory: Bytes) {
        let near = self.is_near(memory);
        let step = self.sample_interval(now, id);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.sampling = false;
        slot.memory = memory;
        slot.sample_at = now.later(if near { SAMPLE_NEAR } else { step });
        if self
            .limits
            .ceiling
            .bytes
            .is_some_and(|ceiling| memory > ceiling)
        {
            let fat = self
                .workers
                .iter()
                .find(|(_, worker)| worker.slot == id && worker.stage == Stage::Serves)
                .filter(|(_, worker)| worker.sent > 0)
                .map(|(id, _)| *id);
            if let Some(fat) = fat {
                self.retire(now, fat);
            }
        }
        self.enforce_budget();
    }

    /// Samples the slot soon, because a task has begun in it.
    pub(super) fn sample_soon(&mut self, now: Timestamp, id: SlotId) {
        if self.has_short_tasks() {
            return;
        }
        let soon = now.later(self.first_sample());
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.sample_at = slot.sample_at.min(soon);
        }
    }

    fn has_short_tasks(&self) -> bool {
        self.mean_micros.is_some_and(|mean| mean < LONG_MICROS)
    }

    /// The time until the next sample.
    fn sample_interval(&self, now: Timestamp, id: SlotId) -> Duration {
        let first = self.first_sample().min(SAMPLE_INTERVAL);
        match self.task_age(now, id) {
            Some(age) if age >= first || !self.has_short_tasks() => {
                (age / SAMPLES_PER_AGE).clamp(first, SAMPLE_INTERVAL)
            }
            Some(_) | None => SAMPLE_INTERVAL,
        }
    }

    fn first_sample(&self) -> Duration {
        SAMPLE_FIRST.max(SAMPLE_FIRST_SLOT.saturating_mul(self.spec.workers))
    }

    /// How long the current task of a slot has been running.
    fn task_age(&self, now: Timestamp, id: SlotId) -> Option<Duration> {
        let its = self.workers.values().filter(|worker| worker.slot == id);
        let busy = its.filter(|worker| !worker.window.is_empty());
        busy.map(|worker| now.since(worker.front_begun)).min()
    }

    /// Whether a limit is so near that the slot must be sampled often.
    fn is_near(&self, memory: Bytes) -> bool {
        let ceiling = self.limits.ceiling.bytes;
        let budget = self.limits.budget.bytes;
        ceiling.is_some_and(|ceiling| memory > ceiling.scaled(0.7))
            || budget.is_some_and(|budget| self.memory() > budget.scaled(0.6))
    }

    /// The memory of all slots, as last sampled.
    pub fn memory(&self) -> Bytes {
        let held = self.slots.values().map(|slot| slot.memory);
        held.fold(Bytes::ZERO, Bytes::plus)
    }

    /// Keeps the memory of all slots below the budget: suspends the youngest task, kills it and
    /// puts it back, or resumes it. The oldest task always runs, so that there is progress.
    fn enforce_budget(&mut self) {
        let Some(budget) = self.limits.budget.bytes else {
            return;
        };
        let total = self.memory();
        let mut running: Vec<(Timestamp, WorkerId, SlotId)> = self
            .workers
            .iter()
            .filter(|(_, worker)| !worker.window.is_empty() && !worker.is_doomed())
            .map(|(id, worker)| (worker.front_since, *id, worker.slot))
            .collect();
        running.sort_unstable();
        let suspended =
            |pool: &Self, slot: SlotId| pool.slots.get(&slot).is_some_and(|slot| slot.suspended);
        let sleeping: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.suspended)
            .map(|(id, _)| *id)
            .collect();
        let awake = running
            .iter()
            .filter(|(_, _, slot)| !suspended(self, *slot))
            .count();
        if total < budget.scaled(EASED) || awake == 0 {
            for slot in sleeping {
                if let Some(it) = self.slots.get_mut(&slot) {
                    it.suspended = false;
                }
                self.actions.push_back(Action::Resume(slot));
                self.dispatch = true;
            }
            return;
        }
        let youngest = running.iter().skip(1).next_back().copied();
        let Some((_, id, slot)) = youngest else {
            return;
        };
        if total > budget.scaled(OVER) {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.killed = Some(Killed::Budget);
            }
            self.kill_slot(slot);
        } else if total > budget.scaled(TIGHT)
            && let Some(&(_, _, slot)) = running
                .iter()
                .skip(1)
                .rev()
                .find(|(_, _, slot)| !suspended(self, *slot))
            && let Some(it) = self.slots.get_mut(&slot)
        {
            it.suspended = true;
            self.actions.push_back(Action::Suspend(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::pool::{
        event::Event,
        fixture::{at, handle_at, returned, running, running_with},
    };

    const SLOT: SlotId = SlotId(0);

    /// The times in milliseconds, from `begin` up to `end`, at which the slot is sampled.
    fn samples(pool: &mut Pool, begin: u64, end: u64) -> Vec<u64> {
        let mut samples = Vec::new();
        for millis in begin..end {
            if handle_at(pool, at(millis), Event::Deadline).contains(&Action::Look(SLOT)) {
                samples.push(millis);
                handle_at(pool, at(millis), Event::Sampled(SLOT, Bytes::mib(20)));
            }
        }
        samples
    }

    #[test]
    fn a_long_task_is_sampled_often_while_it_is_young() {
        let (mut pool, _) = running(1);
        let samples = samples(&mut pool, 0, 3000);
        assert_eq!(samples.get(..6), Some(&[0, 10, 20, 30, 40, 50][..]));
        // The next sample comes after a quarter of the task's age, and within 200 ms.
        for pair in samples.windows(2).skip(2) {
            let &[one, next] = pair else { continue };
            assert!(next - one <= (one / 4 + 1).clamp(10, 200), "{samples:?}");
        }
        assert_eq!(samples.len(), 29, "{samples:?}");
    }

    #[test]
    fn the_next_long_task_is_sampled_as_soon() {
        // It is sent when the first one ends, or waits at the worker before.
        for batch in [1, 2] {
            let (mut pool, worker) = running_with(2, batch);
            let last = *samples(&mut pool, 0, 3000).last().unwrap();
            handle_at(&mut pool, at(last + 1), returned(worker, 3_000_000));
            let samples = samples(&mut pool, last + 1, last + 30);
            assert_eq!(samples.first(), Some(&(last + 11)), "batch {batch}");
        }
    }

    #[test]
    fn short_tasks_are_not_sampled_more_often() {
        let (mut pool, worker) = running(2);
        pool.handle_event(at(0), returned(worker, 100));
        assert_eq!(samples(&mut pool, 0, 190).len(), 1);
    }
}
