//! Workers that have ended, and whether their tasks run again or fail.

use std::time::Duration;

use super::{
    DEATHS_MAX, LEAVE, LOST_MAX, Next, Phase, Pool, STARTS_MAX,
    input::{Action, Fate, Over, SlotId},
    slot::Slot,
    stage::Killed,
    ticket::{TaskProgress, Ticket},
    worker::{Progress, Worker},
};
use crate::{
    supervisor::{
        cause::Cause,
        input::{Ended, Oom},
    },
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
    pub(super) fn on_fork_server_gone(&mut self, now: Timestamp, slot: SlotId, oom: Oom) {
        // Its workers have ended with it. Some of their ends were not reported.
        let in_slot: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.slot() == slot)
            .map(|(id, _)| *id)
            .collect();
        for id in in_slot {
            let begun = self
                .workers
                .get(&id)
                .and_then(|worker| worker.window().front())
                .map_or(0, Ticket::seq);
            let at = Progress {
                begun,
                ..Progress::default()
            };
            self.on_worker_ended(now, id, (Ended::Unseen, oom, None), at);
        }
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.on_gone();
        }
        self.plan_dispatch();
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
        self.plan_dispatch();
        self.record_end(now, id, &worker, (ended, oom, peak));
        if worker.stage().is_starting() {
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
            ran: worker.ran(now),
        };
        let mut retried = Vec::with_capacity(worker.window().len());
        for (index, mut ticket) in worker.window().iter().copied().enumerate() {
            let progress = blamed.filter(|(position, _)| *position == index);
            if let Some((_, progress)) = progress {
                retried.extend(self.retry_or_fail(&worker, ticket, progress, &death));
            } else if index < before {
                // The task has finished, but its result was lost with the worker.
                if ticket.put_back(TaskProgress::Begun) > LOST_MAX {
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
                self.tasks.queue.push_front(ticket);
            }
        }
    }

    /// The task that a worker had when it ended: its position in the window, and how far it had
    /// come. `None`: no task is to blame.
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
        // The page names the task that was received last. If that task has finished since, it is
        // not the first unfinished one.
        let received = worker.position_of(at.receiving).filter(|it| *it == done);
        if let Some(position) = received {
            return Some((position, TaskProgress::Received));
        }
        // The first bytes of the next task may have carried the worker over its cap, and would do
        // so in every worker.
        let next = oom != Oom::No && done < worker.window().len() && self.phase == Phase::Running;
        next.then_some((done, TaskProgress::Next))
    }

    /// Decides about the task that its worker had when it ended. Returns the task if it goes back
    /// to the queue.
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
                    ticket.put_back(TaskProgress::Begun);
                    self.fail_task(ticket, Fate::StartFailed, death);
                    None
                }
                Next::End(_) => self.unless_stopped(ticket),
            };
        }
        let killed = worker.stage().killed();
        if let Some(peak) = peak.filter(|_| oom != Oom::No || killed == Some(Killed::Budget)) {
            self.tasks.learn(ticket.key(), peak.minus(worker.base()));
        }
        let by_cap = match (oom, progress) {
            // The kill was at a limit outside the pool, probably not because of this task.
            (Oom::Elsewhere, _) => Fate::Died(ended),
            (_, TaskProgress::Received) => Fate::CapReceiving,
            (_, TaskProgress::Begun | TaskProgress::Next) => Fate::Cap,
        };
        // All running tasks together exceeded the budget, so no single task is to blame.
        let crowded = oom == Oom::Budget && self.under_way() > 0;
        if killed == Some(Killed::Budget) || (killed.is_none() && crowded) {
            return self.retry_without_blame(ticket, progress, Fate::Cap, death);
        }
        if killed.is_none() && oom != Oom::No {
            if progress == TaskProgress::Next {
                return self.retry_without_blame(ticket, progress, by_cap, death);
            }
            if ticket.on_oom() <= self.spec.oom_retries {
                // It runs next, in a new worker of its own.
                let alone = self.unless_stopped(ticket);
                self.tasks.alone.extend(alone);
            } else {
                self.fail_task(ticket, by_cap, death);
            }
            return None;
        }
        if killed.is_none() && progress != TaskProgress::Begun {
            // The task had not begun, so it is not the reason why its worker ended.
            return self.retry_without_blame(ticket, progress, Fate::Died(ended), death);
        }
        let failures = ticket.on_failed();
        // A service manager may signal the workers together with the supervisor, as systemd does.
        // Tasks that end because of this have not failed.
        let signalled = matches!(
            ended,
            Ended::Signal(Signal::TERM | Signal::INT | Signal::HUP)
        );
        let is_stopped = self.stop == Some(Over::Stopped) && signalled && killed.is_none();
        if failures <= self.spec.retries || is_stopped {
            return self.unless_stopped(ticket);
        }
        let fate = match killed {
            Some(Killed::Timeout) => Fate::Timeout,
            Some(Killed::Budget | Killed::Late) | None => Fate::Died(ended),
        };
        self.fail_task(ticket, fate, death);
        None
    }

    /// Puts the task back to run again, because the failed attempt was not its fault. After
    /// `LOST_MAX` such attempts it fails.
    fn retry_without_blame(
        &mut self,
        mut ticket: Ticket,
        progress: TaskProgress,
        fate: Fate,
        death: &Death,
    ) -> Option<Ticket> {
        if ticket.put_back(progress) <= LOST_MAX {
            return self.unless_stopped(ticket);
        }
        self.fail_task(ticket, fate, death);
        None
    }

    /// Returns a task that should run again. A pool that stops abandons it instead, because it
    /// begins no more tasks.
    pub(super) fn unless_stopped(&mut self, ticket: Ticket) -> Option<Ticket> {
        if self.stop.is_none() {
            return Some(ticket);
        }
        self.abandon(ticket);
        None
    }

    /// Drops a task that waits when the pool stops. It gets no result. It counts as abandoned if it
    /// has begun in an earlier attempt.
    pub(super) fn drop_waiting(&mut self, ticket: Ticket) {
        if ticket.attempts() > 0 {
            self.abandon(ticket);
        }
    }

    fn abandon(&mut self, ticket: Ticket) {
        self.tasks.on_abandoned();
        self.act(Action::Abandon(ticket.seq()));
    }

    fn fail_task(&mut self, ticket: Ticket, cause: Fate, death: &Death) {
        self.tasks.on_failed();
        self.act(Action::Fail {
            seq: ticket.seq(),
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
        if matches!(
            self.phase,
            Phase::Leaving(..) | Phase::Clearing(_) | Phase::Over
        ) {
            return;
        }
        let gives_up = if worker.stage().has_failed_to_start() {
            self.starts.on_worker_failed() >= STARTS_MAX
        } else {
            self.act(Action::WorkerDiedAtStart(ended, oom));
            self.starts.on_worker_died() >= DEATHS_MAX
        };
        if gives_up {
            self.clear(Next::End(Over::GaveUp));
        }
    }

    /// Kills tasks over their time limit and workers that do not exit, and retires old workers.
    pub(super) fn check_times(&mut self, now: Timestamp) {
        if self.phase != Phase::Running {
            // There are no workers, or all of them are being killed.
            return;
        }
        let (limit, max_age) = (self.spec.task_timeout, self.spec.max_age);
        let mut kills = Vec::new();
        let mut old = Vec::new();
        for (id, worker) in &mut self.workers {
            if worker.is_doomed() {
                continue;
            }
            let suspended = self
                .slots
                .get(&worker.slot())
                .is_some_and(Slot::is_suspended);
            let late = limit.is_some_and(|limit| {
                !worker.is_idle() && now.since(worker.limited_since()) >= limit
            });
            let stage = worker.stage();
            let leaves_for = stage.leaves_since().map(|since| now.since(since));
            if late && suspended {
                // A suspended task does not run, so its time limit starts again.
                worker.restart_time_limit(now);
            } else if late {
                worker.kill(Killed::Timeout);
                kills.push(worker.slot());
            } else if leaves_for.is_some_and(|time| time >= LEAVE) {
                worker.kill(Killed::Late);
                // A pool that is done waits for this worker only.
                self.tasks.plan_dispatch();
                self.out.act(Action::KillWorker(*id));
            } else if stage.is_serving() && max_age.is_some_and(|age| worker.age(now) >= age) {
                old.push(*id);
            }
        }
        for slot in kills {
            self.kill_slot(slot);
        }
        for id in old {
            self.retire(now, id, Cause::Age);
        }
    }

    /// Kills all processes in a slot, including those that its tasks have started.
    pub(super) fn kill_slot(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && slot.kill()
        {
            self.act(Action::KillSlot(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::pool::{
        fixture::{exited, handle, ready, running},
        input::{Input, WorkerEnd},
    };

    /// A worker ends at its cap, or, without `oom`, with a signal from elsewhere.
    const fn killed(worker: WorkerId, oom: Oom, begun: u64) -> Input {
        Input::WorkerEnded(WorkerEnd {
            ended: Ended::Signal(Signal::KILL),
            oom,
            begun,
            ..exited(worker)
        })
    }

    #[test]
    fn a_task_that_waits_for_its_retry_when_the_pool_stops_is_abandoned() {
        // The task waits at its second worker, which has not begun it, or ends before it begins it.
        for ends in [false, true] {
            let (mut pool, worker) = running(1);
            let actions = handle(&mut pool, killed(worker, Oom::Cap, 1));
            let worker = ready(&mut pool, &actions);
            let actions = handle(&mut pool, Input::Stop);
            assert!(actions.starts_with(&[Action::Halt(worker)]), "{actions:?}");
            let last = if ends {
                killed(worker, Oom::No, 0)
            } else {
                Input::NotBegun { worker, seq: 1 }
            };
            let actions = handle(&mut pool, last);
            assert!(
                actions.starts_with(&[Action::Abandon(1)]),
                "{ends} {actions:?}"
            );
        }
    }

    #[test]
    fn an_end_at_the_cap_counts_as_an_attempt_only_if_the_task_had_begun() {
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
