//! The end of each worker with its cause, recorded as for the workers of any service.

use super::{
    Phase, Pool,
    input::SlotId,
    slot::{ForkServer, Slot},
    stage::Killed,
    worker::Worker,
};
use crate::{
    supervisor::{
        cause::Cause,
        event::{End, Event, Who},
        input::{Ended, Oom},
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

impl Pool {
    /// Records the end of a worker. A worker that was not forked has no end.
    pub(super) fn record_end(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        worker: &Worker,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) {
        let is_own = self.attribute_oom(id, worker, oom);
        let Some(pid) = worker.pid() else { return };
        let cause = self.cause_of(worker, ended, oom, is_own);
        let memory = self.memory_of(id, worker);
        let peak = peak.unwrap_or_default().max(worker.peak()).max(memory);
        let limit = cause.limit(&self.limits);
        let end = End {
            who: Who::Worker(id),
            pid,
            cause,
            memory: if cause == Cause::Cap { peak } else { memory },
            peak,
            limit,
            age: worker.age(now),
            tasks: Some(worker.ended()),
            drain: worker.stage().retirement().map(|it| now.since(it.since)),
            killed: worker.is_doomed(),
            at: now,
            report: worker.report(),
            ran: None,
            running: None,
        };
        self.record.keep_end(end.clone(), self.spec.history);
        self.emit(Event::Ended(end));
    }

    /// Attributes a kill by the kernel, which kills all processes of a slot for the memory of one
    /// worker: of the worker that has tasks, or else of the oldest. Returns whether this worker is
    /// that one, and was not only killed together with it.
    fn attribute_oom(&mut self, id: WorkerId, worker: &Worker, oom: Oom) -> bool {
        if oom == Oom::No {
            return false;
        }
        let beside = |it: &&Worker| it.slot() == worker.slot() && !it.is_idle();
        let others = self.workers.iter().filter(|(_, it)| beside(it));
        let busy = others
            .map(|(id, _)| *id)
            .next()
            .filter(|_| worker.is_idle());
        let slot = self.slots.get_mut(&worker.slot());
        let victim = slot.map(|slot| slot.on_oom(busy.unwrap_or(id)));
        victim == Some(id)
    }

    fn cause_of(&self, worker: &Worker, ended: Ended, oom: Oom, is_own_oom: bool) -> Cause {
        if is_own_oom {
            return Cause::of(ended, oom);
        }
        match worker.stage().killed() {
            // The pool cannot distinguish a slow task from one that hangs.
            Some(Killed::Timeout) => return Cause::Hung,
            Some(Killed::Budget) => return Cause::Budget,
            Some(Killed::Late) | None => {}
        }
        if worker.stage().has_failed_to_start() {
            return Cause::StartFailed;
        }
        let killed = matches!(ended, Ended::Signal(Signal::KILL) | Ended::Unseen);
        let with_others = oom != Oom::No || self.is_cleared(worker.slot());
        let by_us = killed && (worker.is_doomed() || with_others);
        let signalled = matches!(
            ended,
            Ended::Signal(Signal::TERM | Signal::INT | Signal::HUP)
        );
        let left = by_us || matches!(ended, Ended::Exit(0) | Ended::Unseen);
        match worker.stage().retirement() {
            Some(retirement) if left => retirement.cause,
            _ if by_us => Cause::Stop,
            _ if self.stop.is_some() && (left || signalled) => Cause::Stop,
            _ => Cause::of(ended, oom),
        }
    }

    /// All processes in this slot are being killed, because of one worker or with the template.
    fn is_cleared(&self, slot: SlotId) -> bool {
        let with_slot = |it: &Slot| it.fork_server() == ForkServer::Doomed;
        let with_template = matches!(
            self.phase,
            Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over
        );
        with_template || self.slots.get(&slot).is_some_and(with_slot)
    }

    /// Private memory of a worker: the last sample of its slot. If that sample was taken while an
    /// older worker was in the slot: what the worker reported after its last task.
    pub(super) fn memory_of(&self, id: WorkerId, worker: &Worker) -> Bytes {
        let slot = self.slots.get(&worker.slot());
        let sampled = slot.and_then(|slot| slot.memory_of(id));
        sampled.unwrap_or_else(|| worker.peak().minus(worker.base()))
    }
}
