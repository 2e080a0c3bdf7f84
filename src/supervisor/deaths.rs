//! Workers leaving the books: asked to go, killed when they do not, each end with its one cause.

use super::{
    Supervisor,
    action::Action,
    event::{Ended, Oom},
    report::{Cause, End, Report, Who},
    spec::Kind,
    worker::{By, Drain, Leave, Life, Worker},
};
use crate::units::{Bytes, Signal, Timestamp, WorkerId};

impl Supervisor {
    /// A worker that its server does not end any more is asked to finish and go.
    pub(super) fn send_away(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        cause: Cause,
        until: Timestamp,
    ) {
        let leave = Leave {
            cause,
            limit: None,
            until,
            by: By::Signal,
        };
        if self.note_drain(now, id, leave) {
            let signal = self
                .habits()
                .map_or(self.spec.stop.signal, |habits| habits.retire);
            self.act(Action::SignalWorker { worker: id, signal });
        }
    }

    /// Notes that a worker drains from now on; asking it is the caller's. False if it does so
    /// already, or is gone.
    pub(super) fn note_drain(&mut self, now: Timestamp, id: WorkerId, leave: Leave) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        let ready_since = match worker.life {
            Life::Ready { since } => since,
            Life::Starting => now,
            Life::Draining(_) => return false,
        };
        let memory = worker.memory.value();
        worker.life = Life::Draining(Drain {
            leave,
            since: now,
            memory,
            killed: false,
            ready_since,
        });
        self.spare.on_change(now);
        self.tell(Report::Draining {
            worker: id,
            cause: leave.cause,
        });
        true
    }

    /// Kills what has not gone in its time, helpers included.
    pub(super) fn end_drains(&mut self, now: Timestamp) {
        let mut late = Vec::new();
        for (&id, worker) in &mut self.workers {
            if let Life::Draining(drain) = &mut worker.life
                && !drain.killed
                && drain.leave.until <= now
            {
                drain.killed = true;
                late.push(id);
            }
        }
        for worker in late {
            self.act(Action::KillWorker { worker });
            self.tell(Report::Killed { worker });
        }
    }

    pub(super) fn on_worker_ended(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let cause = self.cause_of(&worker, ended, oom);
        let drain = worker.drain().copied();
        let peak = match oom {
            // The kernel's figure, and the pages charged elsewhere by which its limit was lowered.
            Oom::Cap => {
                let cap = self.limits.cap.bytes.unwrap_or_default();
                let lowered = worker.cap.map_or(Bytes::ZERO, |told| cap.minus(told));
                peak.map_or(worker.memory.peak(), |peak| peak.plus(lowered))
            }
            Oom::No | Oom::Budget | Oom::Elsewhere => {
                worker.memory.peak_of(peak.unwrap_or_default())
            }
        };
        let limit = if cause == Cause::Cap {
            self.limits.cap.bytes
        } else if cause == Cause::BudgetKill {
            self.limits.budget.bytes
        } else {
            drain.and_then(|drain| drain.leave.limit)
        };
        let memory = if cause == Cause::Cap {
            peak
        } else {
            drain.map_or(worker.memory.value(), |drain| drain.memory)
        };
        // What it was charged with is part of the last reading.
        self.held = Bytes::ZERO;
        let report = self.report_of_dead(&worker, cause);
        self.bury_counts(&worker);
        self.record_end(End {
            who: Who::Worker(id),
            pid: worker.pid,
            cause,
            memory,
            peak: peak.max(memory),
            limit,
            age: worker.age(now),
            tasks: worker.counted.done(),
            drain: drain.map(|drain| now.since(drain.since)),
            killed: drain.is_some_and(|drain| drain.killed),
            at: now,
            report,
        });
        self.spare.on_change(now);
        if drain.is_some() {
            self.spare.on_recycled(now);
            if matches!(self.spec.kind, Kind::Single) {
                self.service.expect_end();
            }
        }
        self.note_end_of_start(now, &worker, (ended, oom));
        if worker.is_starting() && oom == Oom::Cap && !self.is_job() {
            self.on_capped_at_boot(id, memory);
        }
        if drain.is_none() {
            self.check_end_loop(now, &worker, (cause, oom));
        }
        self.operator.on_gone(id);
        self.replan = true;
    }

    /// An import that does not fit under the cap: a server would try it for ever.
    pub(super) fn on_capped_at_boot(&mut self, id: WorkerId, memory: Bytes) {
        let cap = self.limits.cap.bytes.unwrap_or(memory);
        self.warn_once("capped at boot", || {
            format!("{id} reached its cap of {cap} while it booted: give a larger --cap")
        });
        self.capped_at_boot = self.capped_at_boot.saturating_add(1);
        let server = matches!(self.spec.kind, Kind::Server(_));
        // While another worker serves, the service goes on.
        let nobody_serves = !self.workers.values().any(Worker::serves);
        if server && nobody_serves && self.capped_at_boot > self.spec.restart.limit {
            self.give_up_on_boots();
        }
    }

    pub(super) fn cause_of(&mut self, worker: &Worker, ended: Ended, oom: Oom) -> Cause {
        let by_kernel = Cause::of(ended, oom);
        if oom == Oom::Cap && self.reached_cap_by_exiting(worker) {
            return self.cause_of_leaving(worker);
        }
        if oom != Oom::No {
            return by_kernel;
        }
        let asked_for = matches!(
            ended,
            Ended::Exit(0) | Ended::Unseen | Ended::Signal(Signal::TERM)
        );
        if let Some(drain) = worker.drain() {
            let killed = drain.killed && ended == Ended::Signal(Signal::KILL);
            return match ended {
                Ended::Exit(_) | Ended::Unseen | Ended::Signal(Signal::TERM) => drain.leave.cause,
                Ended::Signal(signal) if signal == self.spec.stop.signal || killed => {
                    drain.leave.cause
                }
                Ended::Signal(_) if self.service.is_stopping() => Cause::Stop,
                Ended::Signal(_) => by_kernel,
            };
        }
        if self.service.is_stopping() || self.service.loops.is_some() {
            return Cause::Stop;
        }
        // RACE: we have asked the server for one worker fewer, and in the same moment a worker that
        // still boots exits by itself. The server has chosen another worker, which still goes and
        // must not become due again. A worker that never served was asked to go only if a SIGTERM
        // ended it.
        let was_chosen =
            asked_for && (!worker.is_starting() || ended == Ended::Signal(Signal::TERM));
        match worker.expected {
            Some(cause) if asked_for => cause,
            _ if was_chosen && self.server_chose_another() => Cause::Scale,
            _ => by_kernel,
        }
    }

    /// Why a worker was leaving that reached its cap while its interpreter exited.
    fn cause_of_leaving(&mut self, worker: &Worker) -> Cause {
        let (id, cap) = (worker.id, self.limits.cap.bytes.unwrap_or_default());
        let shared = worker.memory.shared();
        self.warn_once("reached its cap as it ended", || {
            format!(
                "{id} reached its cap of {cap} after its last request: its interpreter copied the \
                 {shared} that it shared with its parent process while it exited. No request was \
                 lost, though its server may log a SIGKILL. hint: call `gc.freeze()` before \
                 workers are forked, or give a larger --cap"
            )
        });
        match (worker.drain(), worker.expected) {
            (Some(drain), _) => drain.leave.cause,
            (None, _) if self.service.is_stopping() => Cause::Stop,
            (None, expected) => expected.unwrap_or(Cause::Scale),
        }
    }

    /// RACE: we ask the server for one worker fewer and mean its oldest, W1. In the same moment the
    /// oldest is another one in the server's books, and that one goes. W1 was never asked: it
    /// serves on and is due again.
    pub(super) fn server_chose_another(&mut self) -> bool {
        for worker in self.workers.values_mut() {
            if let Life::Draining(drain) = worker.life
                && drain.leave.by == By::Server
            {
                worker.life = Life::Ready {
                    since: drain.ready_since,
                };
                worker.told_due = None;
                return true;
            }
        }
        false
    }

    pub(super) fn on_helper_killed(&mut self, worker: WorkerId, oom: Oom, whole: bool) {
        if !self.workers.contains_key(&worker) {
            return;
        }
        let at = |name: &str, limit: Option<Bytes>| match limit {
            Some(limit) => format!("at {name} of {limit}"),
            None => format!("at {name}"),
        };
        let limit = match oom {
            Oom::Cap => at("its cap", self.limits.cap.bytes),
            Oom::Budget => at("the budget", self.limits.budget.bytes),
            Oom::No | Oom::Elsewhere => "at a limit above the service".to_owned(),
        };
        let then = if whole {
            format!("; {worker} is killed with all its processes")
        } else {
            String::new()
        };
        self.tell(Report::Warning(format!(
            "{worker}: the kernel killed one of its child processes {limit}{then}"
        )));
    }
}
