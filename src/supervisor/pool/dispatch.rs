//! Which worker gets which task, and when workers are forked and retired.

use super::{
    LEAVE, Phase, Pool,
    event::{Action, How, Over, Seq, SlotId},
    worker::{Nest, Stage, Ticket, Worker},
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// A worker's window holds about as many tasks as it runs in this time. More would delay results.
const WINDOW_MICROS: f64 = 1000.0;
const WINDOW_MAX: f64 = 64.0;
/// The weight of the newest task in the mean time.
const FRESH: f64 = 0.05;

impl Pool {
    /// Sends tasks, forks missing workers, and ends a pool that is done.
    pub(super) fn dispatch(&mut self, now: Timestamp) {
        if self.phase != Phase::Running {
            return;
        }
        let slots: Vec<SlotId> = self.slots.keys().copied().collect();
        for &slot in &slots {
            self.fill(now, slot);
        }
        for &slot in &slots {
            self.staff(now, slot);
        }
        self.retire_for_alone(now);
        self.end_if_done(now);
    }

    /// How many tasks a worker has at a time.
    pub(super) fn window(&self) -> usize {
        if let Some(batch) = self.spec.batch {
            return usize::try_from(batch.max(1)).unwrap_or(usize::MAX);
        }
        let Some(mean) = self.mean_micros else {
            return 1;
        };
        let fit = (WINDOW_MICROS / mean.max(1.0)).clamp(1.0, WINDOW_MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 64"
        )]
        let fit = fit as usize;
        fit
    }

    fn fill(&mut self, now: Timestamp, slot: SlotId) {
        if self.slots.get(&slot).is_none_or(|slot| slot.suspended) {
            return;
        }
        let Some(id) = self.server_of(slot) else {
            return;
        };
        let under_way = self.under_way();
        let slots = self.slots.len().max(1);
        let share = self.queue.len().saturating_add(under_way).div_ceil(slots);
        let window = self.window().min(share.max(1));
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        // Refilled when half of it is free, so that frames travel together.
        if worker.alone || (window > 1 && worker.window.len() > window / 2) {
            return;
        }
        while let Some(ticket) = self.next_for(id, window) {
            self.send(now, id, ticket);
        }
    }

    /// The worker of this slot that takes tasks.
    fn server_of(&self, slot: SlotId) -> Option<WorkerId> {
        self.workers
            .iter()
            .find(|(_, worker)| worker.slot == slot && worker.stage == Stage::Serves)
            .filter(|(_, worker)| {
                // The worker before it in this slot has finished its tasks.
                !self.workers.values().any(|other| {
                    other.slot == slot
                        && other.asked < worker.asked
                        && other.stage == Stage::Retires
                        && !other.window.is_empty()
                })
            })
            .map(|(id, _)| *id)
    }

    fn next_for(&mut self, id: WorkerId, window: usize) -> Option<Ticket> {
        let worker = self.workers.get(&id)?;
        let left = self
            .spec
            .max_tasks
            .map_or(u64::MAX, |max| max.saturating_sub(worker.sent));
        if worker.alone || left == 0 || worker.window.len() >= window {
            return None;
        }
        if worker.is_fresh()
            && let Some(ticket) = self.alone.pop_front()
        {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.alone = true;
            }
            return Some(ticket);
        }
        let slot = worker.slot;
        let starts = worker.window.is_empty();
        let ticket = self.queue.front()?;
        let solitary = ticket.is_solitary() || worker.window.iter().any(Ticket::is_solitary);
        if (starts && !self.fits(slot, ticket)) || (!starts && solitary) {
            return None;
        }
        self.queue.pop_front()
    }

    fn send(&mut self, now: Timestamp, id: WorkerId, ticket: Ticket) {
        let max = self.spec.max_tasks;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let begins = worker.window.is_empty();
        if begins {
            worker.front_since = now;
            worker.front_begun = now;
        }
        worker.window.push_back(ticket);
        worker.sent = worker.sent.saturating_add(1);
        let (slot, sent) = (worker.slot, worker.sent);
        self.actions.push_back(Action::Send(id, ticket.seq));
        if begins {
            self.sample_soon(now, slot);
        }
        if max.is_some_and(|max| sent >= max) {
            self.retire(now, id);
        }
    }

    /// Lets a worker finish its tasks and exit. The next one is forked meanwhile.
    pub(super) fn retire(&mut self, now: Timestamp, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.stage != Stage::Serves {
            return;
        }
        worker.stage = Stage::Retires;
        worker.since = now;
        self.dispatch = true;
        // It reads this after the tasks that it was sent, and so exits when these are done.
        self.actions.push_back(Action::Quit(id));
        if worker.window.is_empty() {
            worker.stage = Stage::Leaves;
        }
    }

    /// Forks the slot's nest if it has none, or else a worker if none is starting or serving.
    fn staff(&mut self, now: Timestamp, slot: SlotId) {
        let idle = self.queue.is_empty() && self.alone.is_empty();
        if self.stop.is_some() || (self.source_ended && idle) {
            return;
        }
        let Some(place) = self.slots.get_mut(&slot) else {
            return;
        };
        if place.backoff_until.is_some() {
            return;
        }
        match place.nest {
            Nest::None => {
                place.nest = Nest::Asked;
                let cap = self.limits.cap.bytes;
                self.actions.push_back(Action::RaiseNest(slot, cap));
            }
            Nest::Up => {
                let its = self.workers.values().filter(|worker| worker.slot == slot);
                let coming = |worker: &Worker| matches!(worker.stage, Stage::Boots | Stage::Serves);
                let (coming, going) = its.fold((0_u32, 0_u32), |(here, gone), worker| {
                    if coming(worker) {
                        (here + 1, gone)
                    } else {
                        (here, gone + 1)
                    }
                });
                // At most two are exiting: a third worker would have nothing to do.
                if coming == 0 && going < 2 {
                    let worker = self.next_worker;
                    self.next_worker = worker.next();
                    self.workers.insert(worker, Worker::new(slot, now));
                    self.actions.push_back(Action::Fork(slot, worker));
                }
            }
            Nest::Asked | Nest::Doomed => {}
        }
    }

    /// Retires the least busy worker, to make room for a new one that retries a task alone.
    fn retire_for_alone(&mut self, now: Timestamp) {
        if self.alone.is_empty() {
            return;
        }
        let coming = self
            .workers
            .values()
            .any(|worker| worker.stage == Stage::Boots || worker.is_fresh());
        if coming {
            return;
        }
        let serving = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.stage == Stage::Serves)
            .min_by_key(|(_, worker)| worker.window.len())
            .map(|(id, _)| *id);
        if let Some(id) = serving {
            self.retire(now, id);
            let slot = self.workers.get(&id).map(|worker| worker.slot);
            if let Some(slot) = slot {
                self.staff(now, slot);
            }
        }
    }

    fn end_if_done(&mut self, now: Timestamp) {
        let idle = self.queue.is_empty() && self.alone.is_empty() && self.under_way() == 0;
        let over = match self.stop {
            Some(over) => Some(over),
            None if self.source_ended => Some(Over::Done),
            None => None,
        };
        if let Some(over) = over
            && idle
            && self.phase == Phase::Running
        {
            // The workers have `LEAVE` for their exit handlers.
            let left: Vec<_> = self.workers.keys().copied().collect();
            for id in left {
                let was_serving = self.workers.get_mut(&id).is_some_and(|worker| {
                    let serves = worker.stage == Stage::Serves;
                    if serves {
                        worker.stage = Stage::Leaves;
                        worker.since = now;
                    }
                    serves
                });
                if was_serving {
                    self.actions.push_back(Action::Quit(id));
                }
            }
            let leaves = |worker: &Worker| worker.stage == Stage::Leaves && !worker.is_doomed();
            if self.workers.values().any(leaves) {
                return;
            }
            // So has the template: it alone removes what its imports have made, such as temporary
            // files.
            self.phase = Phase::Leaving(over, now.later(LEAVE));
            self.actions.push_back(Action::QuitTemplate);
        }
    }

    /// A worker has not begun this task, because the pool stops.
    pub(super) fn on_not_begun(&mut self, id: WorkerId, seq: Seq) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        // RACE: as in `on_ended`. No worker sends this before the pool stops.
        let is_next = worker.window.front().is_some_and(|it| it.seq == seq);
        if self.stop.is_some()
            && is_next
            && let Some(ticket) = worker.window.pop_front()
        {
            self.drop_waiting(ticket);
            self.dispatch = true;
        }
    }

    /// A worker has reported how a task ended.
    pub(super) fn on_ended(
        &mut self,
        now: Timestamp,
        (id, seq): (WorkerId, Seq),
        (how, micros, peak): (How, u32, Bytes),
    ) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        // RACE: a worker reports only its first task. Anything else was written into our socket by
        // the code of a task, and is no result.
        if worker.window.front().is_none_or(|front| front.seq != seq) {
            return;
        }
        let Some(mut ticket) = worker.window.pop_front() else {
            return;
        };
        let ran = now.since(worker.front_begun);
        worker.front_since = now;
        worker.front_begun = now;
        worker.alone = false;
        if worker.window.is_empty() && worker.stage == Stage::Retires {
            worker.stage = Stage::Leaves;
            worker.since = now;
        }
        let grown = peak.minus(worker.base);
        let next = (!worker.window.is_empty()).then_some(worker.slot);
        self.learn(ticket.key, grown);
        let time = f64::from(micros);
        let mean = self.mean_micros.unwrap_or(time);
        self.mean_micros = Some(mean + (time - mean) * FRESH);
        if let Some(slot) = next {
            self.sample_soon(now, slot);
        }
        self.dispatch = true;
        ticket.failed = ticket.failed.saturating_add(1);
        if how == How::Raised && ticket.failed <= self.spec.retries {
            if let Some(ticket) = self.unless_stopped(ticket) {
                self.queue.push_front(ticket);
            }
            return;
        }
        self.actions.push_back(Action::Deliver {
            seq,
            worker: id,
            attempts: ticket.attempts(),
            ran,
        });
        if how != How::Returned && self.spec.stop_on_error {
            self.stop(Over::Failed);
        }
    }
}
