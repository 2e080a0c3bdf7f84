//! Workers that end, and what becomes of their tasks.

use std::time::Duration;

use super::{
    DEATHS_MAX, LEAVE, LOST_MAX, Next, Phase, Pool, STARTS_MAX,
    event::{Action, Fate, Over, SlotId},
    worker::{Killed, Nest, Part, Progress, Stage, Ticket, Worker},
};

use crate::{
    supervisor::event::{Ended, Oom},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// How a worker ended.
#[derive(Clone, Copy, Debug)]
struct Death {
    id: WorkerId,
    ended: Ended,
    oom: Oom,
    peak: Option<Bytes>,
    /// Since it began the first task of its window.
    ran: Duration,
}

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
            let at = Progress {
                begun,
                ..Progress::default()
            };
            self.on_worker_ended(now, id, (Ended::Unseen, oom, None), at);
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
        now: Timestamp,
        id: WorkerId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
        at: Progress,
    ) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        self.dispatch = true;
        if worker.stage == Stage::Boots {
            self.on_stillborn(&worker, ended, oom);
        }
        let done = worker.place_of(at.finished).map_or(0, |last| last + 1);
        let suspect = self.suspect(&worker, oom, at, done);
        let before = suspect.map_or(done, |(position, _)| position);
        let death = Death {
            id,
            ended,
            oom,
            peak,
            ran: now.since(worker.front_begun),
        };
        let mut again = Vec::with_capacity(worker.window.len());
        for (index, mut ticket) in worker.window.iter().copied().enumerate() {
            let part = suspect.filter(|(position, _)| *position == index);
            if let Some((_, part)) = part {
                again.extend(self.judge(&worker, ticket, part, &death));
            } else if index < before {
                // Finished, and the result went down with the worker: it is wanted still.
                ticket.lost = ticket.lost.saturating_add(1);
                if ticket.put_back() > LOST_MAX {
                    self.give_up(ticket, Fate::Died(ended), &death);
                } else {
                    again.extend(self.again(ticket));
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

    /// The task that a worker ended at, by its place in the window, and its part in that.
    fn suspect(
        &self,
        worker: &Worker,
        oom: Oom,
        at: Progress,
        done: usize,
    ) -> Option<(usize, Part)> {
        let begun = worker
            .place_of(at.begun)
            .filter(|_| at.begun != at.finished);
        if let Some(place) = begun {
            return Some((place, Part::Begun));
        }
        // What was received before it was begun is behind `done`: the page keeps the last word.
        let received = worker.place_of(at.receiving).filter(|it| *it == done);
        if let Some(place) = received {
            return Some((place, Part::Received));
        }
        // It may have met its cap at the first bytes of a task, again and again.
        let next = oom != Oom::No && done < worker.window.len() && self.phase == Phase::Running;
        next.then_some((done, Part::Next))
    }

    /// What becomes of the task that its worker died at; it is given back if it is to be tried
    /// again.
    fn judge(
        &mut self,
        worker: &Worker,
        mut ticket: Ticket,
        part: Part,
        death: &Death,
    ) -> Option<Ticket> {
        let Death {
            ended, oom, peak, ..
        } = *death;
        if let Phase::Clearing(next) = self.phase {
            // All are ended because of the template, or because the pool was told to stop at once:
            // no task has done anything.
            return match next {
                Next::Restart | Next::RestartAfter(_) => {
                    self.put_back(ticket, part, Fate::Died(ended), death)
                }
                Next::End(Over::GaveUp) => {
                    ticket.lost = ticket.lost.saturating_add(1);
                    self.give_up(ticket, Fate::StartFailed, death);
                    None
                }
                Next::End(_) => self.again(ticket),
            };
        }
        if let Some(peak) = peak.filter(|_| oom != Oom::No || worker.killed == Some(Killed::Budget))
        {
            self.learn(ticket.key, peak.minus(worker.base));
        }
        let by_cap = match (oom, part) {
            // Not our limit, and not this task's doing as far as we know.
            (Oom::Elsewhere, _) => Fate::Died(ended),
            (_, Part::Received) => Fate::CapReceiving,
            (_, Part::Begun | Part::Next) => Fate::Cap,
        };
        // Where others ran beside it, the budget was met by all of them: it is nobody's fault.
        let crowded = oom == Oom::Budget && self.under_way() > 0;
        if worker.killed == Some(Killed::Budget) || (worker.killed.is_none() && crowded) {
            return self.put_back(ticket, part, Fate::Cap, death);
        }
        if worker.killed.is_none() && oom != Oom::No {
            if part == Part::Next {
                return self.put_back(ticket, part, by_cap, death);
            }
            ticket.ooms = ticket.ooms.saturating_add(1);
            if ticket.ooms <= self.spec.oom_retries {
                // In a worker of its own, before anything else.
                let alone = self.again(ticket);
                self.alone.extend(alone);
            } else {
                self.give_up(ticket, by_cap, death);
            }
            return None;
        }
        if worker.killed.is_none() && part != Part::Begun {
            // It had no effects yet, and its worker was ended by somebody else.
            return self.put_back(ticket, part, Fate::Died(ended), death);
        }
        ticket.failed = ticket.failed.saturating_add(1);
        // Who stops us may tell our workers as well, as systemd does: what they were at has not
        // failed by itself.
        let told = matches!(
            ended,
            Ended::Signal(Signal::TERM | Signal::INT | Signal::HUP)
        );
        let is_stopped = self.stop == Some(Over::Stopped) && told && worker.killed.is_none();
        if ticket.failed <= self.spec.retries || is_stopped {
            return self.again(ticket);
        }
        let fate = match worker.killed {
            Some(Killed::Timeout) => Fate::Timeout,
            Some(Killed::Budget | Killed::Late) | None => Fate::Died(ended),
        };
        self.give_up(ticket, fate, death);
        None
    }

    /// The task is run again without blame, but not for ever.
    fn put_back(
        &mut self,
        mut ticket: Ticket,
        part: Part,
        fate: Fate,
        death: &Death,
    ) -> Option<Ticket> {
        let count = match part {
            Part::Begun | Part::Received => &mut ticket.lost,
            // A fresh worker can meet the cap because what the one before it held is not yet given
            // back.
            Part::Next => &mut ticket.unbegun,
        };
        *count = count.saturating_add(1);
        if ticket.put_back() <= LOST_MAX {
            return self.again(ticket);
        }
        self.give_up(ticket, fate, death);
        None
    }

    /// The task is to be tried again: it is given back. If the pool was told to stop, it is not
    /// begun again, and as it is not known how it would have ended, it has no result.
    pub(super) fn again(&mut self, ticket: Ticket) -> Option<Ticket> {
        if self.stop.is_none() {
            return Some(ticket);
        }
        self.actions.push_back(Action::Abandon(ticket.seq));
        None
    }

    fn give_up(&mut self, ticket: Ticket, cause: Fate, death: &Death) {
        self.actions.push_back(Action::Fail {
            seq: ticket.seq,
            worker: Some(death.id),
            cause,
            attempts: ticket.attempts().max(1),
            peak: death.peak,
            ran: death.ran,
        });
        if self.spec.stop_on_error {
            self.stop(Over::Failed);
        }
    }

    /// It ended before it could take a task.
    fn on_stillborn(&mut self, worker: &Worker, ended: Ended, oom: Oom) {
        if worker.is_doomed()
            || matches!(
                self.phase,
                Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over
            )
        {
            return;
        }
        let give_up = if worker.could_not_start {
            self.starts_failed = self.starts_failed.saturating_add(1);
            self.starts_failed >= STARTS_MAX
        } else {
            self.actions.push_back(Action::StartDied(ended, oom));
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
                // A pool that is done has waited for it.
                self.dispatch = true;
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
