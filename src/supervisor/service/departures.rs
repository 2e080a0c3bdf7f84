//! Workers that leave: they are asked to exit, and killed if they do not. Each end gets one cause.

use crate::supervisor::{
    Supervisor,
    action::Action,
    cause::{Cause, Class},
    event::{End, Event, Who},
    input::{Ended, Oom},
    worker::{
        Worker,
        lifecycle::{By, Leave, Step},
    },
};
use crate::units::{Bytes, Signal, Timestamp, WorkerId};

impl Supervisor {
    /// Asks a worker to finish its requests and exit, by a signal from the supervisor.
    pub(crate) fn drain_by_signal(
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
            let signal = self.retire_signal();
            self.act(Action::SignalWorker { worker: id, signal });
        }
    }

    /// Marks a worker as draining. The caller asks it to exit. Returns false if it drains already
    /// or has ended.
    pub(crate) fn note_drain(&mut self, now: Timestamp, id: WorkerId, leave: Leave) -> bool {
        let Some(worker) = self.state.workers.get_mut(&id) else {
            return false;
        };
        let memory = worker.memory().value();
        if !worker.step(now, Step::Drain { leave, memory }) {
            return false;
        }
        self.state.surge.on_change(now);
        self.emit(Event::Draining {
            worker: id,
            cause: leave.cause,
        });
        true
    }

    /// Kills workers that did not exit within their grace period, child processes included.
    pub(crate) fn end_drains(&mut self, now: Timestamp) {
        let mut late = Vec::new();
        for (&id, worker) in self.state.workers.iter_mut() {
            let drain = worker.drain();
            if drain.is_some_and(|drain| drain.leave().until <= now)
                && worker.step(now, Step::Overdue)
            {
                late.push(id);
            }
        }
        for worker in late {
            self.act(Action::KillWorker { worker });
            self.emit(Event::Killed { worker });
        }
    }

    pub(crate) fn end_drains_at(&self) -> Option<Timestamp> {
        let workers = self.state.workers.values();
        let drains = workers.filter_map(Worker::drain);
        let alive = drains.filter(|drain| !drain.is_killed());
        alive.map(|drain| drain.leave().until).min()
    }

    pub(crate) fn on_worker_ended(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) {
        let Some(worker) = self.state.workers.remove(&id) else {
            return;
        };
        let cause = self.cause_of(now, &worker, (ended, oom));
        let drain = worker.drain();
        let peak = match oom {
            // The kernel's figure, plus the pages charged elsewhere. The worker's limit was lowered
            // by these pages.
            Oom::Cap => {
                let cap = self.state.limits.cap.bytes.unwrap_or_default();
                let lowered = worker
                    .kernel()
                    .cap()
                    .map_or(Bytes::ZERO, |told| cap.minus(told));
                peak.map_or(worker.memory().peak(), |peak| peak.plus(lowered))
            }
            Oom::No | Oom::Budget | Oom::Elsewhere => {
                worker.memory().peak_of(peak.unwrap_or_default())
            }
        };
        let limit = match cause.class() {
            Class::Kernel => cause.limit(&self.state.limits),
            // This limit includes the worker's jitter.
            Class::Planned | Class::Own | Class::Operator => {
                drain.and_then(|drain| drain.leave().limit)
            }
        };
        let memory = if cause == Cause::Cap {
            peak
        } else {
            drain.map_or(worker.memory().value(), |drain| drain.memory())
        };
        // The last reading still includes the charge of this worker.
        self.state.usage.forget_held();
        self.note_missing_last_report(&worker);
        let report = self.report_of_ended_worker(&worker, cause);
        self.keep_counts(&worker);
        self.record_end(End {
            who: Who::Worker(id),
            pid: worker.pid(),
            cause,
            memory,
            peak: peak.max(memory),
            limit,
            age: worker.age(now),
            tasks: worker.counters().done(),
            drain: drain.map(|drain| now.since(drain.since())),
            killed: drain.is_some_and(|drain| drain.is_killed()),
            at: now,
            report,
            ran: None,
            running: None,
        });
        self.state.surge.on_change(now);
        if drain.is_some() {
            self.state.surge.on_recycled(now);
            if self.is_whole_program() {
                self.state.service.expect_end();
            }
        }
        self.warn_of_unhandled_signal(&worker, ended);
        self.check_failed_start(now, &worker, (ended, oom));
        if worker.is_starting() && oom == Oom::Cap && !self.is_job() {
            self.on_capped_at_boot(id, memory);
        }
        if drain.is_none() {
            self.check_end_loop(now, &worker, (cause, oom));
        }
        self.operator.on_gone(id);
        self.plan.forget(id);
        self.plan.touch();
    }

    /// The signal that should make a worker finish its work has ended it at once. A server that
    /// handles the signal and then ends by it (uvicorn) is not meant.
    fn warn_of_unhandled_signal(&mut self, worker: &Worker, ended: Ended) {
        let signal = self.retire_signal();
        let asked = worker.drain().is_some() || self.state.service.stop.is_some();
        let ours = self.is_whole_program() || self.is_fleet();
        let unhandled = worker.kernel().leaves_badly();
        if !(ours && asked && unhandled && ended == Ended::Signal(signal)) {
            return;
        }
        let id = worker.id();
        self.warn_once("stop signal unhandled", || {
            format!(
                "{id} does not handle {signal}: it ended at once, in the middle of what it was \
                 doing. hint: if another signal makes it finish its work, give that by \
                 `--stop-signal`; otherwise it has to handle {signal}"
            )
        });
    }

    /// A worker reached its cap while it booted. If the application does not fit under the cap, the
    /// server would try to start it for ever.
    pub(crate) fn on_capped_at_boot(&mut self, id: WorkerId, memory: Bytes) {
        let cap = self.state.limits.cap.bytes.unwrap_or(memory);
        self.warn_once("capped at boot", || {
            format!("{id} reached its cap of {cap} while it booted. hint: give a larger --cap")
        });
        let in_a_row = self.state.loops.on_capped_at_boot();
        let server = self.profile().is_some();
        // While another worker serves, the service goes on.
        let none_serves = !self.state.workers.values().any(Worker::serves);
        if server && none_serves && in_a_row > self.spec.restart.limit {
            self.give_up_on_boots();
        }
    }

    pub(crate) fn cause_of(
        &mut self,
        now: Timestamp,
        worker: &Worker,
        (ended, oom): (Ended, Oom),
    ) -> Cause {
        let by_kernel = Cause::of(ended, oom);
        if oom == Oom::Cap && self.reached_cap_by_exiting(now, worker) {
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
            let killed = drain.is_killed() && ended == Ended::Signal(Signal::KILL);
            return match ended {
                Ended::Exit(_) | Ended::Unseen | Ended::Signal(Signal::TERM) => drain.leave().cause,
                Ended::Signal(signal) if signal == self.retire_signal() || killed => {
                    drain.leave().cause
                }
                Ended::Signal(_) if self.state.service.is_stopping() => Cause::Stop,
                Ended::Signal(_) => by_kernel,
            };
        }
        if self.state.service.is_stopping() || self.state.service.ends_in_loop() {
            return Cause::Stop;
        }
        // RACE: the supervisor asks the server to retire one worker, and at the same time a worker
        // that still boots exits by itself. The server has chosen another worker. That one will
        // exit, and must not become a candidate again. A worker that never served was chosen by the
        // server only if a SIGTERM ended it.
        let was_chosen =
            asked_for && (!worker.is_starting() || ended == Ended::Signal(Signal::TERM));
        match worker.life().expected() {
            Some(cause) if asked_for => cause,
            _ if was_chosen && self.server_chose_another() => Cause::Scale,
            _ if self.was_unready(now, worker, ended) => Cause::Unready,
            _ => by_kernel,
        }
    }

    /// Whether the server killed a worker that booted for too long. gunicorn sends SIGABRT, and
    /// then SIGKILL.
    fn was_unready(&self, now: Timestamp, worker: &Worker, ended: Ended) -> bool {
        let killed = matches!(ended, Ended::Signal(Signal::ABRT | Signal::KILL));
        killed && worker.is_starting() && worker.age(now) >= self.spec.ready.timeout
    }

    /// The cause of the end of a worker that reached its cap only because its interpreter was
    /// exiting.
    fn cause_of_leaving(&mut self, worker: &Worker) -> Cause {
        let (id, cap) = (worker.id(), self.state.limits.cap.bytes.unwrap_or_default());
        let shared = worker.memory().shared();
        self.warn_once("reached its cap as it ended", || {
            format!(
                "{id} reached its cap of {cap} after its last request: while its interpreter \
                 exited, it copied the {shared} that it shared with its parent process. No request \
                 was lost, but its server may log a SIGKILL. hint: call `gc.freeze()` before \
                 workers are forked, or give a larger --cap"
            )
        });
        match (worker.drain(), worker.life().expected()) {
            (Some(drain), _) => drain.leave().cause,
            (None, _) if self.state.service.is_stopping() => Cause::Stop,
            (None, expected) => expected.unwrap_or(Cause::Scale),
        }
    }

    /// RACE: the supervisor asks the server to retire one worker and expects it to choose its
    /// oldest, W1. The server may choose another worker as its oldest. Then W1 was never asked to
    /// exit: it serves as before and may be replaced again.
    pub(crate) fn server_chose_another(&mut self) -> bool {
        let by_server = |worker: &&mut Worker| {
            let drain = worker.drain();
            drain.is_some_and(|drain| drain.leave().by == By::Server)
        };
        let Some(spared) = self.state.workers.values_mut().find(by_server) else {
            return false;
        };
        // This step does not use the time: the worker serves since when it did before.
        spared.step(Timestamp::ZERO, Step::Spared);
        spared.forget_announced();
        let worker = spared.id();
        self.emit(Event::Reason {
            worker: Some(worker),
            text: format!("{worker} serves on: its server has retired another worker"),
        });
        true
    }

    pub(crate) fn on_helper_killed(&mut self, worker: WorkerId, oom: Oom, whole: bool) {
        if !self.state.workers.contains_key(&worker) {
            return;
        }
        let at = |name: &str, limit: Option<Bytes>| match limit {
            Some(limit) => format!("at {name} of {limit}"),
            None => format!("at {name}"),
        };
        let limit = match oom {
            Oom::Cap => at("its cap", self.state.limits.cap.bytes),
            Oom::Budget => at("the budget", self.state.limits.budget.bytes),
            Oom::No | Oom::Elsewhere => "at a limit above the service".to_owned(),
        };
        let then = if whole {
            format!("; {worker} is killed with all its processes")
        } else {
            String::new()
        };
        self.emit(Event::Warning(format!(
            "{worker}: the kernel killed one of its child processes {limit}{then}"
        )));
    }
}

#[cfg(test)]
#[path = "unhandled_tests.rs"]
mod tests;
