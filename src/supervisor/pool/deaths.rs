//! Workers that end, and whether their tasks run again or fail.

use std::time::Duration;

use super::{
    DEATHS_MAX, LEAVE, LOST_MAX, Next, Phase, Pool, STARTS_MAX,
    event::{Action, Fate, Over, SlotId},
    worker::{Killed, Nest, Progress, Stage, TaskProgress, Ticket, Worker},
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
    /// The time since it began the first task of its window.
    ran: Duration,
}

impl Pool {
    pub(super) fn on_nest_gone(&mut self, now: Timestamp, slot: SlotId, oom: Oom) {
        // Its workers have ended with it. Some of their ends were not reported.
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
            slot.sampling = false;
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
            self.on_start_death(&worker, ended, oom);
        }
        let done = worker.position_of(at.finished).map_or(0, |last| last + 1);
        let blamed = self.blamed(&worker, oom, at, done);
        let before = blamed.map_or(done, |(position, _)| position);
        let death = Death {
            id,
            ended,
            oom,
            peak,
            ran: now.since(worker.front_begun),
        };
        let mut retried = Vec::with_capacity(worker.window.len());
        for (index, mut ticket) in worker.window.iter().copied().enumerate() {
            let progress = blamed.filter(|(position, _)| *position == index);
            if let Some((_, progress)) = progress {
                retried.extend(self.retry_or_fail(&worker, ticket, progress, &death));
            } else if index < before {
                // It has finished, and its result was lost with the worker.
                ticket.lost = ticket.lost.saturating_add(1);
                if ticket.unblamed() > LOST_MAX {
                    self.fail_task(ticket, Fate::Died(ended), &death);
                } else {
                    retried.extend(self.unless_stopped(ticket));
                }
            } else if self.stop.is_none() {
                retried.push(ticket);
            } else {
                self.drop_waiting(ticket);
            }
        }
        if self.stop.is_none() {
            for ticket in retried.into_iter().rev() {
                self.queue.push_front(ticket);
            }
        }
    }

    /// The task at which a worker ended: its position in the window, and how far it had come.
    fn blamed(
        &self,
        worker: &Worker,
        oom: Oom,
        at: Progress,
        done: usize,
    ) -> Option<(usize, TaskProgress)> {
        let begun = worker
            .position_of(at.begun)
            .filter(|_| at.begun != at.finished);
        if let Some(position) = begun {
            return Some((position, TaskProgress::Begun));
        }
        // The page names the task that was received last. If it has finished since, it is not the
        // first unfinished one.
        let received = worker.position_of(at.receiving).filter(|it| *it == done);
        if let Some(position) = received {
            return Some((position, TaskProgress::Received));
        }
        // The first bytes of the next task may have exceeded the cap, and would in each worker.
        let next = oom != Oom::No && done < worker.window.len() && self.phase == Phase::Running;
        next.then_some((done, TaskProgress::Next))
    }

    /// Decides about the task at which its worker ended. Returns it if it goes back to the queue.
    fn retry_or_fail(
        &mut self,
        worker: &Worker,
        mut ticket: Ticket,
        progress: TaskProgress,
        death: &Death,
    ) -> Option<Ticket> {
        let Death {
            ended, oom, peak, ..
        } = *death;
        if let Phase::Clearing(next) = self.phase {
            // All workers are killed because the template has ended or the pool stops at once. No
            // task is to blame.
            return match next {
                Next::Restart(_) => {
                    self.retry_without_blame(ticket, progress, Fate::Died(ended), death)
                }
                Next::End(Over::GaveUp) => {
                    ticket.lost = ticket.lost.saturating_add(1);
                    self.fail_task(ticket, Fate::StartFailed, death);
                    None
                }
                Next::End(_) => self.unless_stopped(ticket),
            };
        }
        if let Some(peak) = peak.filter(|_| oom != Oom::No || worker.killed == Some(Killed::Budget))
        {
            self.learn(ticket.key, peak.minus(worker.base));
        }
        let by_cap = match (oom, progress) {
            // The kill was at a limit outside the pool: as far as we know, not for this task.
            (Oom::Elsewhere, _) => Fate::Died(ended),
            (_, TaskProgress::Received) => Fate::CapReceiving,
            (_, TaskProgress::Begun | TaskProgress::Next) => Fate::Cap,
        };
        // All running tasks together exceeded the budget, so that no single one is to blame.
        let crowded = oom == Oom::Budget && self.under_way() > 0;
        if worker.killed == Some(Killed::Budget) || (worker.killed.is_none() && crowded) {
            return self.retry_without_blame(ticket, progress, Fate::Cap, death);
        }
        if worker.killed.is_none() && oom != Oom::No {
            if progress == TaskProgress::Next {
                return self.retry_without_blame(ticket, progress, by_cap, death);
            }
            ticket.ooms = ticket.ooms.saturating_add(1);
            if ticket.ooms <= self.spec.oom_retries {
                // It runs next, in a new worker of its own.
                let alone = self.unless_stopped(ticket);
                self.alone.extend(alone);
            } else {
                self.fail_task(ticket, by_cap, death);
            }
            return None;
        }
        if worker.killed.is_none() && progress != TaskProgress::Begun {
            // The task had not begun, so it is not why its worker ended.
            return self.retry_without_blame(ticket, progress, Fate::Died(ended), death);
        }
        ticket.failed = ticket.failed.saturating_add(1);
        // A service manager may signal the workers together with us, as systemd does. The tasks
        // that this ends have not failed.
        let signalled = matches!(
            ended,
            Ended::Signal(Signal::TERM | Signal::INT | Signal::HUP)
        );
        let is_stopped = self.stop == Some(Over::Stopped) && signalled && worker.killed.is_none();
        if ticket.failed <= self.spec.retries || is_stopped {
            return self.unless_stopped(ticket);
        }
        let fate = match worker.killed {
            Some(Killed::Timeout) => Fate::Timeout,
            Some(Killed::Budget | Killed::Late) | None => Fate::Died(ended),
        };
        self.fail_task(ticket, fate, death);
        None
    }

    /// Puts the task back to be run again, although its attempt failed, up to `LOST_MAX` times.
    fn retry_without_blame(
        &mut self,
        mut ticket: Ticket,
        progress: TaskProgress,
        fate: Fate,
        death: &Death,
    ) -> Option<Ticket> {
        let count = match progress {
            TaskProgress::Begun | TaskProgress::Received => &mut ticket.lost,
            // A new worker can meet the cap while the memory of the one before it is being freed.
            TaskProgress::Next => &mut ticket.unbegun,
        };
        *count = count.saturating_add(1);
        if ticket.unblamed() <= LOST_MAX {
            return self.unless_stopped(ticket);
        }
        self.fail_task(ticket, fate, death);
        None
    }

    /// Returns a task that should run again. A pool that stops abandons it instead: it begins no
    /// task, and how this one would have ended is unknown.
    pub(super) fn unless_stopped(&mut self, ticket: Ticket) -> Option<Ticket> {
        if self.stop.is_none() {
            return Some(ticket);
        }
        self.actions.push_back(Action::Abandon(ticket.seq));
        None
    }

    /// A task that waits when the pool stops: it has no result. It counts as abandoned if it has
    /// begun in an earlier attempt.
    pub(super) fn drop_waiting(&mut self, ticket: Ticket) {
        if ticket.attempts() > 0 {
            self.actions.push_back(Action::Abandon(ticket.seq));
        }
    }

    fn fail_task(&mut self, ticket: Ticket, cause: Fate, death: &Death) {
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

    /// A worker ended before it was ready for tasks.
    fn on_start_death(&mut self, worker: &Worker, ended: Ended, oom: Oom) {
        if worker.is_doomed()
            || matches!(
                self.phase,
                Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over
            )
        {
            return;
        }
        let gives_up = if worker.could_not_start {
            self.starts_failed = self.starts_failed.saturating_add(1);
            self.starts_failed >= STARTS_MAX
        } else {
            self.actions.push_back(Action::StartDied(ended, oom));
            self.deaths = self.deaths.saturating_add(1);
            self.deaths >= DEATHS_MAX
        };
        if gives_up {
            self.clear(Next::End(Over::GaveUp));
        }
    }

    /// Kills tasks over their time limit and workers that do not exit; retires old workers.
    pub(super) fn check_times(&mut self, now: Timestamp) {
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
                // A suspended task does not run, so its time limit starts again.
                worker.front_since = now;
            } else if late {
                worker.killed = Some(Killed::Timeout);
                kills.push(worker.slot);
            } else if worker.stage == Stage::Leaves && now.since(worker.since) >= LEAVE {
                worker.killed = Some(Killed::Late);
                // A pool that is done waits for this worker only.
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

    /// Kills everything in a slot, with all processes that its tasks have started.
    pub(super) fn kill_slot(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && slot.nest == Nest::Up
        {
            slot.nest = Nest::Doomed;
            self.actions.push_back(Action::KillSlot(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::pool::{
        event::{Event, WorkerEnd},
        fixture::{handle, ready, running},
    };

    /// A worker ends at its cap, or, without `oom`, with a signal from elsewhere.
    const fn killed(worker: WorkerId, oom: Oom, begun: u64) -> Event {
        Event::WorkerEnded(WorkerEnd {
            worker,
            ended: Ended::Signal(Signal::KILL),
            oom,
            peak: None,
            begun,
            finished: 0,
            receiving: 0,
        })
    }

    #[test]
    fn a_task_that_waits_for_its_retry_when_the_pool_stops_is_abandoned() {
        // It waits at its second worker, which has not begun it or ends before it does.
        for ends in [false, true] {
            let (mut pool, worker) = running(1);
            let actions = handle(&mut pool, killed(worker, Oom::Cap, 1));
            let worker = ready(&mut pool, &actions);
            let actions = handle(&mut pool, Event::Stop);
            assert!(actions.starts_with(&[Action::Halt(worker)]), "{actions:?}");
            let last = if ends {
                killed(worker, Oom::No, 0)
            } else {
                Event::NotBegun { worker, seq: 1 }
            };
            let actions = handle(&mut pool, last);
            assert!(
                actions.starts_with(&[Action::Abandon(1)]),
                "{ends} {actions:?}"
            );
        }
    }

    #[test]
    fn only_workers_that_met_their_cap_after_they_began_a_task_count_as_its_attempts() {
        let (mut pool, mut worker) = running(1);
        for begun in [0, 1] {
            let actions = handle(&mut pool, killed(worker, Oom::Cap, begun));
            worker = ready(&mut pool, &actions);
        }
        let actions = handle(&mut pool, killed(worker, Oom::Cap, 1));
        let attempts = actions.iter().find_map(|it| {
            if let Action::Fail { attempts, .. } = it {
                Some(*attempts)
            } else {
                None
            }
        });
        assert_eq!(attempts, Some(2), "{actions:?}");
    }
}
