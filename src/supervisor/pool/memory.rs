//! What tasks need, what slots hold, and what fits together.

use std::time::Duration;

use super::{
    Phase, Pool,
    event::{Action, SlotId},
    worker::{Killed, Nest, Stage, Ticket},
};
use crate::units::{Bytes, Timestamp, WorkerId};

const LOOK: Duration = Duration::from_millis(200);
/// A long task is looked at for the first time when it is so old, and then whenever a quarter has
/// been added to its age, so that the most that it holds is seen, and which part of it was files;
const LOOK_FIRST: Duration = Duration::from_millis(10);
/// with many slots, first when it is so old for each of them.
const LOOK_FIRST_SLOT: Duration = Duration::from_millis(2);
const LOOKS_FOR_AGE: u32 = 4;
/// Tasks are long if they take so many microseconds on average.
const LONG_MICROS: f64 = 10_000.0;
/// So often where little is missing to a limit.
const LOOK_NEAR: Duration = Duration::from_millis(10);
/// Tasks are begun as long as what is expected of all stays below this part of the budget.
const FULL: f64 = 0.9;
/// Above it the youngest is suspended,
const TIGHT: f64 = 0.9;
/// above this it is killed, and its task is put back,
const OVER: f64 = 0.96;
/// and below this it goes on.
const EASED: f64 = 0.75;
/// The needs of so many keys are remembered.
const KEYS_MAX: usize = 4096;

impl Pool {
    pub(super) fn learn(&mut self, key: u32, need: Bytes) {
        if self.needs.len() < KEYS_MAX || self.needs.contains_key(&key) {
            let known = self.needs.entry(key).or_default();
            // A single fat task is forgotten after a while.
            *known = need.max(known.scaled(0.999));
        }
    }

    fn need(&self, key: u32) -> Bytes {
        self.needs.get(&key).copied().unwrap_or_default()
    }

    /// Whether this task may be begun in this slot. One may always run, and one that was put back
    /// for the budget again and again runs when no other does.
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

    pub(super) fn look_deadline(&self) -> Option<Timestamp> {
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
            .filter(|(id, slot)| slot.nest == Nest::Up && !slot.looking && busy(**id))
            .map(|(_, slot)| slot.look_at)
            .min()
    }

    pub(super) fn mind_memory(&mut self, now: Timestamp) {
        if self.look_deadline().is_none_or(|at| at > now) {
            return;
        }
        for (&id, slot) in &mut self.slots {
            if slot.nest == Nest::Up && !slot.looking && slot.look_at <= now {
                slot.looking = true;
                self.actions.push_back(Action::Look(id));
            }
        }
    }

    pub(super) fn on_sampled(&mut self, now: Timestamp, id: SlotId, memory: Bytes) {
        let near = self.is_near(memory);
        let step = self.step_of_looks(now, id);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.looking = false;
        slot.memory = memory;
        slot.look_at = now.later(if near { LOOK_NEAR } else { step });
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
        self.press();
    }

    /// A task has begun in this slot.
    pub(super) fn look_soon(&mut self, now: Timestamp, id: SlotId) {
        if self.has_short_tasks() {
            return;
        }
        let soon = now.later(self.first_look());
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.look_at = slot.look_at.min(soon);
        }
    }

    fn has_short_tasks(&self) -> bool {
        self.mean_micros.is_some_and(|mean| mean < LONG_MICROS)
    }

    /// The time from one look to the next.
    fn step_of_looks(&self, now: Timestamp, id: SlotId) -> Duration {
        let first = self.first_look().min(LOOK);
        match self.age_of_task(now, id) {
            Some(age) if age >= first || !self.has_short_tasks() => {
                (age / LOOKS_FOR_AGE).clamp(first, LOOK)
            }
            Some(_) | None => LOOK,
        }
    }

    fn first_look(&self) -> Duration {
        LOOK_FIRST.max(LOOK_FIRST_SLOT.saturating_mul(self.spec.workers))
    }

    /// How long the task runs that a slot is at.
    fn age_of_task(&self, now: Timestamp, id: SlotId) -> Option<Duration> {
        let its = self.workers.values().filter(|worker| worker.slot == id);
        let busy = its.filter(|worker| !worker.window.is_empty());
        busy.map(|worker| now.since(worker.front_begun)).min()
    }

    /// So little is missing to a limit that it must be looked at often.
    fn is_near(&self, memory: Bytes) -> bool {
        let ceiling = self.limits.ceiling.bytes;
        let budget = self.limits.budget.bytes;
        ceiling.is_some_and(|ceiling| memory > ceiling.scaled(0.7))
            || budget.is_some_and(|budget| self.memory() > budget.scaled(0.6))
    }

    /// What all in its slots hold, as far as it was looked at.
    pub fn memory(&self) -> Bytes {
        let held = self.slots.values().map(|slot| slot.memory);
        held.fold(Bytes::ZERO, Bytes::plus)
    }

    /// The ladder of the budget: suspend the youngest, kill it and put its task back, let it go
    /// on. The oldest is never touched, so that there is always progress.
    fn press(&mut self) {
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
    use crate::supervisor::{
        pool::{
            event::{Event, How},
            spec::PoolSpec,
        },
        spec::MemorySpec,
    };

    const SLOT: SlotId = SlotId(0);

    fn at(millis: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_millis(millis))
    }

    /// A pool of one worker, which is at its first task.
    fn at_work() -> Pool {
        let mut pool = Pool::new(PoolSpec {
            workers: 1,
            max_tasks: None,
            max_age: None,
            memory: MemorySpec::plain(),
            task_timeout: None,
            retries: 0,
            oom_retries: 1,
            batch: Some(1),
            stop_on_error: false,
        });
        let (worker, base) = (WorkerId::FIRST, Bytes::mib(10));
        for event in [
            Event::Available(Bytes::mib(4000)),
            Event::TemplateReady,
            Event::Came { seq: 1, key: 0 },
            Event::Came { seq: 2, key: 0 },
            Event::NestUp(SLOT),
            Event::Ready { worker, base },
        ] {
            pool.handle_event(at(0), event);
        }
        pool
    }

    /// When its slot is looked at, in milliseconds, up to `end`.
    fn looks(pool: &mut Pool, begin: u64, end: u64) -> Vec<u64> {
        let mut looks = Vec::new();
        for millis in begin..end {
            pool.handle_event(at(millis), Event::Deadline);
            while let Some(action) = pool.poll_action() {
                if action == Action::Look(SLOT) {
                    looks.push(millis);
                    let memory = Bytes::mib(20);
                    pool.handle_event(at(millis), Event::Sampled(SLOT, memory));
                }
            }
        }
        looks
    }

    #[test]
    fn a_long_task_is_looked_at_often_while_it_is_young() {
        let mut pool = at_work();
        let looks = looks(&mut pool, 0, 3000);
        assert_eq!(looks.get(..6), Some(&[0, 10, 20, 30, 40, 50][..]));
        // It is never older by more than about a quarter, nor by more than the usual time.
        for pair in looks.windows(2).skip(2) {
            let &[one, next] = pair else { continue };
            assert!(next - one <= (one / 4 + 1).clamp(10, 200), "{looks:?}");
        }
        assert_eq!(looks.len(), 29, "{looks:?}");
    }

    #[test]
    fn short_tasks_are_not_looked_at_more_often() {
        let mut pool = at_work();
        let ended = Event::Ended {
            worker: WorkerId::FIRST,
            seq: 1,
            how: How::Returned,
            micros: 100,
            peak: Bytes::mib(20),
        };
        pool.handle_event(at(0), ended);
        assert_eq!(looks(&mut pool, 0, 190).len(), 1);
    }
}
