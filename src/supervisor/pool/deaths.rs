//! Workers that end, and what becomes of their tasks.

use super::{
    DEATHS_MAX, LEAVE, LOST_MAX, Next, Phase, Pool, STARTS_MAX,
    event::{Action, Fate, Over, Seq, SlotId},
    worker::{Killed, Nest, Stage, Ticket, Worker},
};
use crate::{
    supervisor::event::{Ended, Oom},
    units::{Bytes, Timestamp, WorkerId},
};

impl Pool {
    pub(super) fn on_nest_gone(&mut self, now: Timestamp, slot: SlotId, oom: Oom) {
        // Its workers have ended with it; who told nothing of it is gone nevertheless.
        let its: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.slot == slot)
            .map(|(id, _)| *id)
            .collect();
        for id in its {
            let begun = self
                .workers
                .get(&id)
                .and_then(|worker| worker.window.front())
                .map_or(0, |ticket| ticket.seq);
            self.on_worker_ended(now, id, (Ended::Unseen, oom, None), (begun, 0));
        }
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.nest = Nest::None;
            slot.suspended = false;
            slot.looking = false;
            slot.memory = Bytes::ZERO;
        }
        self.dispatch = true;
    }

    pub(super) fn on_worker_ended(
        &mut self,
        _now: Timestamp,
        id: WorkerId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
        (begun, finished): (Seq, Seq),
    ) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        self.dispatch = true;
        if worker.stage == Stage::Boots {
            self.on_stillborn(&worker);
        }
        let suspect = (begun != finished && begun != 0).then_some(begun);
        let position =
            suspect.and_then(|seq| worker.window.iter().position(|ticket| ticket.seq == seq));
        let done = worker
            .window
            .iter()
            .position(|ticket| ticket.seq == finished)
            .map_or(0, |last| last + 1);
        let before = position.unwrap_or(done);
        let mut again = Vec::with_capacity(worker.window.len());
        for (index, mut ticket) in worker.window.iter().copied().enumerate() {
            if Some(index) == position {
                if let Some(ticket) = self.judge(&worker, id, ticket, (ended, oom, peak)) {
                    again.push(ticket);
                }
            } else if index < before {
                // Finished, and the result went down with the worker: it is wanted still.
                ticket.lost = ticket.lost.saturating_add(1);
                if ticket.lost > LOST_MAX {
                    self.give_up(ticket, id, Fate::Died(ended), peak);
                } else {
                    again.push(ticket);
                }
            } else {
                again.push(ticket);
            }
        }
        if self.stop.is_none() {
            for ticket in again.into_iter().rev() {
                self.queue.push_front(ticket);
            }
        }
    }

    /// What becomes of the task that its worker died at; it is given back if it is to be tried
    /// again.
    fn judge(
        &mut self,
        worker: &Worker,
        id: WorkerId,
        mut ticket: Ticket,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) -> Option<Ticket> {
        let retry = self.stop.is_none();
        if let Phase::Clearing(next) = self.phase {
            // All are ended because of the template: no task has done anything.
            ticket.lost = ticket.lost.saturating_add(1);
            let fate = match next {
                Next::Restart if retry && ticket.lost <= LOST_MAX => return Some(ticket),
                Next::End(Over::GaveUp) => Fate::StartFailed,
                Next::Restart | Next::End(_) => Fate::Died(ended),
            };
            self.give_up(ticket, id, fate, peak);
            return None;
        }
        if let Some(peak) = peak.filter(|_| oom != Oom::No || worker.killed == Some(Killed::Budget))
        {
            self.learn(ticket.key, peak.minus(worker.base));
        }
        // Where others ran beside it, the budget was met by all of them: it is nobody's fault.
        let crowded = oom == Oom::Budget && self.under_way() > 0;
        if worker.killed == Some(Killed::Budget) || (worker.killed.is_none() && crowded) {
            ticket.lost = ticket.lost.saturating_add(1);
            if ticket.lost <= LOST_MAX && retry {
                return Some(ticket);
            }
            self.give_up(ticket, id, Fate::Cap, peak);
            return None;
        }
        if worker.killed.is_none() && oom != Oom::No {
            ticket.ooms = ticket.ooms.saturating_add(1);
            if ticket.ooms <= self.spec.oom_retries && retry {
                // In a worker of its own, before anything else.
                self.alone.push_back(ticket);
            } else {
                let fate = match oom {
                    // Not our limit, and not this task's doing as far as we know.
                    Oom::Elsewhere => Fate::Died(ended),
                    Oom::No | Oom::Cap | Oom::Budget => Fate::Cap,
                };
                self.give_up(ticket, id, fate, peak);
            }
            return None;
        }
        ticket.failed = ticket.failed.saturating_add(1);
        if ticket.failed <= self.spec.retries && retry {
            return Some(ticket);
        }
        let fate = match worker.killed {
            Some(Killed::Timeout) => Fate::Timeout,
            Some(Killed::Budget | Killed::Late) | None => Fate::Died(ended),
        };
        self.give_up(ticket, id, fate, peak);
        None
    }

    fn give_up(&mut self, ticket: Ticket, worker: WorkerId, cause: Fate, peak: Option<Bytes>) {
        self.actions.push_back(Action::Fail {
            seq: ticket.seq,
            worker: Some(worker),
            cause,
            attempts: ticket.attempts(),
            peak,
        });
        if self.spec.stop_on_error {
            self.stop(Over::Failed);
        }
    }

    /// It ended before it could take a task.
    fn on_stillborn(&mut self, worker: &Worker) {
        if worker.is_doomed() || matches!(self.phase, Phase::Clearing(_) | Phase::Over) {
            return;
        }
        let give_up = if worker.could_not_start {
            self.starts_failed = self.starts_failed.saturating_add(1);
            self.starts_failed >= STARTS_MAX
        } else {
            self.deaths = self.deaths.saturating_add(1);
            self.deaths >= DEATHS_MAX
        };
        if give_up {
            self.phase = Phase::Clearing(Next::End(Over::GaveUp));
            self.actions.push_back(Action::EndTemplate);
        }
    }

    /// Tasks that run for too long, workers that do not go or are old.
    pub(super) fn mind_times(&mut self, now: Timestamp) {
        let (limit, max_age) = (self.spec.task_timeout, self.spec.max_age);
        let mut kills = Vec::new();
        let mut old = Vec::new();
        for (id, worker) in &mut self.workers {
            if worker.is_doomed() {
                continue;
            }
            let suspended = self.slots.get(&worker.slot).is_some_and(|it| it.suspended);
            let late = limit.is_some_and(|limit| {
                !worker.window.is_empty() && now.since(worker.front_since) >= limit
            });
            if late && suspended {
                // It was not let run: its time begins anew.
                worker.front_since = now;
            } else if late {
                worker.killed = Some(Killed::Timeout);
                kills.push(worker.slot);
            } else if worker.stage == Stage::Leaves && now.since(worker.since) >= LEAVE {
                worker.killed = Some(Killed::Late);
                self.actions.push_back(Action::KillWorker(*id));
            } else if worker.stage == Stage::Serves
                && max_age.is_some_and(|age| now.since(worker.asked) >= age)
            {
                old.push(*id);
            }
        }
        for slot in kills {
            self.kill_slot(slot);
        }
        for id in old {
            self.retire(now, id);
        }
    }

    /// SIGKILL for a slot, with all that its tasks have started.
    pub(super) fn kill_slot(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && slot.nest == Nest::Up
        {
            slot.nest = Nest::Doomed;
            self.actions.push_back(Action::KillSlot(id));
        }
    }
}
