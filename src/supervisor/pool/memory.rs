//! The memory of tasks and slots, and which tasks fit into the budget together.

use std::time::Duration;

use super::{
    Phase, Pool,
    input::{Action, SlotId},
    slot::Slot,
    stage::Killed,
    ticket::Ticket,
};
use crate::{
    supervisor::cause::Cause,
    units::{Bytes, Timestamp, WorkerId},
};

/// The longest time between two samples of a busy slot.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
/// The age of a long task at its first sample. Young tasks are sampled often, to see their peak and
/// how much of it was mapped files.
const SAMPLE_FIRST: Duration = Duration::from_millis(10);
/// The least age at the first sample for each slot of the pool, so that many slots cost no more.
const SAMPLE_FIRST_SLOT: Duration = Duration::from_millis(2);
/// A long task is sampled again when its age has grown by one part in this many.
const SAMPLES_PER_AGE: u32 = 4;
/// Tasks are long if their mean time is at least this, in microseconds.
const LONG_MICROS: f64 = 10_000.0;
/// The time between two samples near a limit.
const SAMPLE_NEAR: Duration = Duration::from_millis(10);
/// A task may begin if the expected memory of all tasks stays within this part of the budget.
const FULL: f64 = 0.9;
/// The part of the budget above which the youngest task is suspended.
const TIGHT: f64 = 0.9;
/// The part of the budget above which the youngest task is killed, to be run again later.
const OVER: f64 = 0.96;
/// The part of the budget below which suspended tasks are resumed.
const EASED: f64 = 0.75;

impl Pool {
    /// Whether this task may begin in this slot. A task may always begin if no other task runs. A
    /// task that was put back repeatedly may begin only then.
    pub(super) fn fits(&self, slot: SlotId, ticket: &Ticket) -> bool {
        let Some(budget) = self.limits.budget.bytes else {
            return true;
        };
        let mut expected = Bytes::ZERO;
        let mut others = false;
        let mut solitary = ticket.is_solitary();
        for worker in self.workers.values() {
            if worker.slot() == slot {
                continue;
            }
            let held = self
                .slots
                .get(&worker.slot())
                .map_or(Bytes::ZERO, Slot::memory);
            let need = worker
                .window()
                .front()
                .map(|ticket| self.tasks.need(ticket.key()));
            others |= need.is_some();
            solitary |= worker.has_solitary_task();
            expected = expected.plus(held.max(need.unwrap_or_default()));
        }
        let own = self.slots.get(&slot).map_or(Bytes::ZERO, Slot::memory);
        let fits = expected.plus(own.max(self.tasks.need(ticket.key()))) <= budget.scaled(FULL);
        !others || (fits && !solitary)
    }

    pub(super) fn sample_deadline(&self) -> Option<Timestamp> {
        if self.phase != Phase::Running {
            return None;
        }
        let busy = |id: SlotId| {
            self.workers
                .values()
                .any(|worker| worker.slot() == id && !worker.is_idle())
        };
        self.slots
            .iter()
            .filter(|(id, _)| busy(**id))
            .filter_map(|(_, slot)| slot.next_sample())
            .min()
    }

    pub(super) fn request_samples(&mut self, now: Timestamp) {
        if self.sample_deadline().is_none_or(|at| at > now) {
            return;
        }
        for (&id, slot) in &mut self.slots {
            if slot.request_sample(now) {
                self.out.act(Action::SampleSlot(id));
            }
        }
    }

    pub(super) fn on_sampled(&mut self, now: Timestamp, id: SlotId, memory: Bytes) {
        let near = self.is_near(memory);
        let step = self.sample_interval(now, id);
        let mut in_slot = self.workers.iter().filter(|(_, it)| it.slot() == id);
        let oldest = in_slot.next().map(|(worker, _)| *worker);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let next = now.later(if near { SAMPLE_NEAR } else { step });
        slot.on_sampled(memory, oldest, next);
        if self
            .limits
            .ceiling
            .bytes
            .is_some_and(|ceiling| memory > ceiling)
        {
            // While the worker before it is still there, the memory is that one's.
            let over = oldest.filter(|oldest| {
                let worker = self.workers.get(oldest);
                worker.is_some_and(|worker| worker.stage().is_serving() && worker.sent() > 0)
            });
            if let Some(over) = over {
                self.retire(now, over, Cause::Ceiling);
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
            slot.sample_soon(soon);
        }
    }

    fn has_short_tasks(&self) -> bool {
        self.tasks
            .mean_micros()
            .is_some_and(|mean| mean < LONG_MICROS)
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
        let in_slot = self.workers.values().filter(|worker| worker.slot() == id);
        let busy = in_slot.filter(|worker| !worker.is_idle());
        busy.map(|worker| worker.ran(now)).min()
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
        let held = self.slots.values().map(Slot::memory);
        held.fold(Bytes::ZERO, Bytes::plus)
    }

    /// Keeps the memory of all slots below the budget: suspends the youngest task, kills it to run
    /// it again later, or resumes suspended tasks. The oldest task always runs, so that there is
    /// progress.
    fn enforce_budget(&mut self) {
        let Some(budget) = self.limits.budget.bytes else {
            return;
        };
        if self.phase != Phase::Running {
            // All workers are being killed.
            return;
        }
        let total = self.memory();
        let mut running: Vec<(Timestamp, WorkerId, SlotId)> = self
            .workers
            .iter()
            .filter(|(_, worker)| !worker.is_idle() && !worker.is_doomed())
            .map(|(id, worker)| (worker.limited_since(), *id, worker.slot()))
            .collect();
        running.sort_unstable();
        let suspended =
            |pool: &Self, slot: SlotId| pool.slots.get(&slot).is_some_and(Slot::is_suspended);
        let sleeping: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.is_suspended())
            .map(|(id, _)| *id)
            .collect();
        let awake = running
            .iter()
            .filter(|(_, _, slot)| !suspended(self, *slot))
            .count();
        if total < budget.scaled(EASED) || awake == 0 {
            for slot in sleeping {
                if let Some(it) = self.slots.get_mut(&slot) {
                    it.resume();
                }
                self.act(Action::Resume(slot));
                self.plan_dispatch();
            }
            return;
        }
        let youngest = running.iter().skip(1).next_back().copied();
        let Some((_, id, slot)) = youngest else {
            return;
        };
        if total > budget.scaled(OVER) {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.kill(Killed::Budget);
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
            it.suspend();
            self.act(Action::Suspend(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::input::AgentAnswer;
    use crate::supervisor::pool::{
        fixture::{at, handle, handle_at, returned, running, running_below, running_with},
        input::Input,
    };

    const SLOT: SlotId = SlotId(0);

    /// The times in milliseconds, from `begin` up to `end`, at which the slot is sampled.
    fn samples(pool: &mut Pool, begin: u64, end: u64) -> Vec<u64> {
        let mut samples = Vec::new();
        for millis in begin..end {
            if handle_at(pool, at(millis), Input::Deadline).contains(&Action::SampleSlot(SLOT)) {
                samples.push(millis);
                handle_at(pool, at(millis), Input::Sampled(SLOT, Bytes::mib(20)));
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
    fn the_first_sample_of_the_next_long_task_comes_as_early() {
        // The next task is sent when the first one ends, or it has been waiting at the worker.
        for batch in [1, 2] {
            let (mut pool, worker) = running_with(2, batch);
            let last = *samples(&mut pool, 0, 3000).last().unwrap();
            handle_at(&mut pool, at(last + 1), returned(worker, 3_000_000));
            let samples = samples(&mut pool, last + 1, last + 30);
            assert_eq!(samples.first(), Some(&(last + 11)), "batch {batch}");
        }
    }

    #[test]
    fn the_memory_of_a_worker_that_leaves_is_not_that_of_its_successor() {
        let (mut pool, worker) = running_below(3, 400);
        let over = || Input::Sampled(SLOT, Bytes::mib(150));
        let actions = handle(&mut pool, over());
        let successor = actions.iter().find_map(|action| {
            let &Action::Fork(_, worker) = action else {
                return None;
            };
            Some(worker)
        });
        let successor = successor.unwrap();
        let base = Bytes::mib(10);
        handle(
            &mut pool,
            Input::Forked {
                worker: successor,
                pid: 8,
            },
        );
        handle(&mut pool, returned(worker, 10));
        let ready = Input::Ready {
            worker: successor,
            base,
        };
        let actions = handle(&mut pool, ready);
        let waits = !actions.contains(&Action::Send(successor, 2));
        assert!(waits, "it waits for the report: {actions:?}");
        let answer = AgentAnswer::Failed(String::new());
        let actions = handle(&mut pool, Input::Reported { worker, answer });
        assert!(actions.contains(&Action::Send(successor, 2)), "{actions:?}");
        let actions = handle(&mut pool, over());
        assert!(!actions.contains(&Action::Quit(successor)), "{actions:?}");
    }

    #[test]
    fn short_tasks_are_not_sampled_often() {
        let (mut pool, worker) = running(2);
        pool.handle_input(at(0), returned(worker, 100));
        assert_eq!(samples(&mut pool, 0, 190).len(), 1);
    }
}
