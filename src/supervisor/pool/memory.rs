//! What tasks need, what slots hold, and what fits together.

use std::time::Duration;

use super::{
    Phase, Pool,
    event::{Action, SlotId},
    worker::{Killed, Nest, Stage, Ticket},
};
use crate::units::{Bytes, Timestamp, WorkerId};

const LOOK: Duration = Duration::from_millis(200);
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
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.looking = false;
        slot.memory = memory;
        slot.look_at = now.later(if near { LOOK_NEAR } else { LOOK });
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
