//! Which worker gets which task, and when workers are forked and retired.

use crate::supervisor::{cause::Cause, event::Event};

use super::{
    LEAVE, Phase, Pool,
    input::{Action, How, Over, Seq, SlotId},
    slot::{ForkServer, Slot},
    ticket::Ticket,
    worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// A worker gets about as many tasks at a time as it runs in this time. More would delay results.
const WINDOW_MICROS: f64 = 1000.0;
const WINDOW_MAX: f64 = 64.0;

impl Pool {
    /// Sends tasks, forks missing workers, and ends a pool that is done.
    pub(super) fn dispatch(&mut self, now: Timestamp) {
        if self.phase != Phase::Running {
            return;
        }
        let slots: Vec<SlotId> = self.slots.keys().copied().collect();
        for &slot in &slots {
            self.fill_window(now, slot);
        }
        for &slot in &slots {
            self.ensure_worker(now, slot);
        }
        self.retire_for_alone(now);
        self.end_if_done(now);
    }

    /// The maximum number of tasks that a worker has at a time.
    pub(super) fn window(&self) -> usize {
        if let Some(batch) = self.spec.batch {
            return usize::try_from(batch.max(1)).unwrap_or(usize::MAX);
        }
        let Some(mean) = self.tasks.mean_micros() else {
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

    /// Sends tasks to the worker of this slot until its window is full.
    fn fill_window(&mut self, now: Timestamp, slot: SlotId) {
        // A slot that is being killed takes no tasks, because they would be killed with it.
        let takes = |slot: &Slot| slot.fork_server() == ForkServer::Up && !slot.is_suspended();
        if !self.slots.get(&slot).is_some_and(takes) {
            return;
        }
        let Some(id) = self.serving_worker(slot) else {
            return;
        };
        let under_way = self.under_way();
        let slots = self.slots.len().max(1);
        let share = self
            .tasks
            .queue
            .len()
            .saturating_add(under_way)
            .div_ceil(slots);
        let window = self.window().min(share.max(1));
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        // The window is refilled when half of it is free, so that several frames are sent together.
        if worker.is_alone() || (window > 1 && worker.window().len() > window / 2) {
            return;
        }
        while let Some(ticket) = self.next_for(id, window) {
            self.send(now, id, ticket);
        }
    }

    /// The worker of this slot that takes tasks.
    fn serving_worker(&self, slot: SlotId) -> Option<WorkerId> {
        let mut its = self.workers.iter().filter(|(_, it)| it.slot() == slot);
        let (&id, _) = its.clone().find(|(_, it)| it.stage().is_serving())?;
        // The worker before it in this slot has finished its tasks, and its report.
        let is_busy = |worker: &Worker| {
            let has_tasks = worker.stage().is_retiring() && !worker.is_idle();
            has_tasks || worker.is_report_awaited()
        };
        let waits = its.any(|(other, worker)| *other < id && is_busy(worker));
        (!waits).then_some(id)
    }

    /// The next task for this worker.
    fn next_for(&mut self, id: WorkerId, window: usize) -> Option<Ticket> {
        let worker = self.workers.get(&id)?;
        let left = self
            .spec
            .max_tasks
            .map_or(u64::MAX, |max| max.saturating_sub(worker.sent()));
        let is_held = worker.is_alone() || worker.is_report_awaited();
        if is_held || left == 0 || worker.window().len() >= window {
            return None;
        }
        if worker.is_fresh()
            && let Some(ticket) = self.tasks.alone.pop_front()
        {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.run_alone();
            }
            return Some(ticket);
        }
        let slot = worker.slot();
        let starts = worker.is_idle();
        let ticket = self.tasks.queue.front()?;
        let solitary = ticket.is_solitary() || worker.has_solitary_task();
        if (starts && !self.fits(slot, ticket)) || (!starts && solitary) {
            return None;
        }
        self.tasks.queue.pop_front()
    }

    fn send(&mut self, now: Timestamp, id: WorkerId, ticket: Ticket) {
        let max = self.spec.max_tasks;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let begins = worker.on_sent(now, ticket);
        let (slot, sent) = (worker.slot(), worker.sent());
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.forget_oom();
        }
        self.act(Action::Send(id, ticket.seq()));
        if begins {
            self.sample_soon(now, slot);
        }
        if max.is_some_and(|max| sent >= max) {
            self.retire(now, id, Cause::Tasks);
        }
    }

    /// An operator wants this worker replaced.
    pub(super) fn recycle(&mut self, now: Timestamp, id: WorkerId) {
        self.retire(now, id, Cause::Request);
    }

    /// Lets a worker finish its tasks and exit. Its replacement is forked meanwhile.
    pub(super) fn retire(&mut self, now: Timestamp, id: WorkerId, cause: Cause) {
        let worker = self.workers.get_mut(&id);
        if !worker.is_some_and(|worker| worker.retire(now, cause)) {
            return;
        }
        self.plan_dispatch();
        self.emit(Event::Draining { worker: id, cause });
        if cause == Cause::Ceiling {
            self.report_before_exit(now, id);
        }
        // The worker reads this message after its tasks, so it exits when these are done.
        self.act(Action::Quit(id));
    }

    /// Starts the slot's fork server if it has none, or else forks a worker if none is starting or
    /// serving.
    fn ensure_worker(&mut self, now: Timestamp, slot: SlotId) {
        if self.stop.is_some() || (self.tasks.has_source_ended() && self.tasks.are_idle()) {
            return;
        }
        let Some(state) = self.slots.get_mut(&slot) else {
            return;
        };
        if state.backoff_until().is_some() {
            return;
        }
        match state.fork_server() {
            ForkServer::None => {
                state.start_fork_server();
                let cap = self.limits.cap.bytes;
                self.act(Action::StartForkServer(slot, cap));
            }
            ForkServer::Up => {
                let in_slot = self.workers.values().filter(|worker| worker.slot() == slot);
                let stays = |it: &Worker| it.stage().is_starting() || it.stage().is_serving();
                let (staying, exiting) = in_slot.fold((0_u32, 0_u32), |(stay, exit), worker| {
                    if stays(worker) {
                        (stay + 1, exit)
                    } else {
                        (stay, exit + 1)
                    }
                });
                // While two workers are exiting, a third one would have no task.
                if staying == 0 && exiting < 2 {
                    let worker = self.starts.begin_worker();
                    self.workers.insert(worker, Worker::new(slot, now));
                    self.act(Action::Fork(slot, worker));
                }
            }
            ForkServer::Asked | ForkServer::Doomed => {}
        }
    }

    /// Retires the least busy worker, to make room for a new one that retries a task alone.
    fn retire_for_alone(&mut self, now: Timestamp) {
        if self.tasks.alone.is_empty() {
            return;
        }
        let coming = self
            .workers
            .values()
            .any(|worker| worker.stage().is_starting() || worker.is_fresh());
        if coming {
            return;
        }
        let serving = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.stage().is_serving())
            .min_by_key(|(_, worker)| worker.window().len())
            .map(|(id, _)| *id);
        if let Some(id) = serving {
            self.retire(now, id, Cause::Scale);
            let slot = self.workers.get(&id).map(Worker::slot);
            if let Some(slot) = slot {
                self.ensure_worker(now, slot);
            }
        }
    }

    fn end_if_done(&mut self, now: Timestamp) {
        let idle = self.tasks.are_idle() && self.under_way() == 0;
        let over = match self.stop {
            Some(over) => Some(over),
            None if self.tasks.has_source_ended() => Some(Over::Done),
            None => None,
        };
        if let Some(over) = over
            && idle
            && self.phase == Phase::Running
        {
            // The workers have `LEAVE` for their exit handlers.
            let left: Vec<_> = self.workers.keys().copied().collect();
            for id in left {
                self.retire(now, id, Cause::Stop);
            }
            let leaves = |worker: &Worker| worker.stage().leaves_since().is_some();
            if self.workers.values().any(leaves) {
                return;
            }
            // The template has the same time. Only its exit handlers remove what its imports have
            // made, such as temporary files.
            self.set_phase(Phase::Leaving(over, now.later(LEAVE)));
            self.act(Action::QuitTemplate);
        }
    }

    /// A worker has not begun this task, because the pool stops.
    pub(super) fn on_not_begun(&mut self, now: Timestamp, id: WorkerId, seq: Seq) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        // RACE: see `on_ended`. A worker does not send this before the pool stops.
        if self.stop.is_some()
            && let Some(ticket) = worker.on_not_begun(now, seq)
        {
            self.drop_waiting(ticket);
            self.plan_dispatch();
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
        let ran = worker.ran(now);
        // RACE: a worker reports only its first task. Any other report was written into the socket
        // by the code of a task, and is not a result.
        let Some(mut ticket) = worker.on_task_ended(now, seq, peak) else {
            return;
        };
        let grown = peak.minus(worker.base());
        let next = (!worker.is_idle()).then_some(worker.slot());
        self.tasks.learn(ticket.key(), grown);
        self.tasks.on_ran(micros);
        if let Some(slot) = next {
            self.sample_soon(now, slot);
        }
        self.plan_dispatch();
        let failures = ticket.on_failed();
        if how == How::Raised && failures <= self.spec.retries {
            if let Some(ticket) = self.unless_stopped(ticket) {
                self.tasks.queue.push_front(ticket);
            }
            return;
        }
        if how == How::Returned {
            self.tasks.on_returned();
        } else {
            self.tasks.on_failed();
        }
        self.act(Action::Deliver {
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
