//! The command's lifecycle: started, ready, ended, its processes cleared away, started again or
//! over.

mod arrivals;
mod departures;
mod endings;
mod notified;
mod sampling;
mod stopping;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use stopping::Stopping;

use crate::supervisor::{
    Supervisor,
    action::{Action, Notice},
    event::Event,
    input::{CapMechanism, Machine},
    policy::{end_loop::LoopCause, restart::Restarts},
    spec::{ReadyWhen, RestartSpec},
};
use crate::units::{Bytes, RunId, Timestamp, WorkerId};

/// The grace period of workers whose server has died. They hold the listening socket until they
/// exit, so the service cannot be restarted before.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// A program of unknown kind counts as ready when it has run for this long.
const UP_AFTER: Duration = Duration::from_secs(1);

/// The state of the command, and whether it is being stopped.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Service {
    phase: Phase,
    stop: Option<Stopping>,
    restarts: Restarts,
    run: RunId,
    /// The current run has become ready.
    #[serde(rename = "answers")]
    ready: bool,
    /// It was warned that the current run is not ready in time.
    #[serde(rename = "told_unready")]
    warned_unready: bool,
    /// The worker that the command of a single program will be once it has started.
    awaited: Option<WorkerId>,
    /// The end of the current run is planned, so the next start is not a restart.
    planned: bool,
    /// The name of the server that the command was found to run.
    #[serde(default)]
    found: Option<String>,
    /// The supervisor ended the server because its workers ended in a loop.
    #[serde(default)]
    loops: Option<LoopCause>,
    /// What the command, which is not a worker, says about itself (`STATUS=` of sd_notify(3)).
    #[serde(default)]
    status_text: Option<String>,
    /// The command is a tree of processes that was over its ceiling from its start.
    #[serde(default)]
    ceiling_lifted: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Phase {
    Idle,
    Starting,
    Running {
        pid: i32,
        since: Timestamp,
    },
    /// The command has ended, and its remaining processes are being ended.
    Clearing {
        kill_at: Option<Timestamp>,
        next: Next,
    },
    Waiting {
        until: Timestamp,
    },
    Over,
}

/// What follows when all processes of a run have ended.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Next {
    Start(Timestamp),
    Exit(i32),
}

impl Service {
    pub(crate) const fn new(policy: RestartSpec) -> Self {
        Self {
            phase: Phase::Idle,
            stop: None,
            restarts: Restarts::new(policy),
            run: RunId(0),
            ready: false,
            warned_unready: false,
            awaited: None,
            found: None,
            planned: false,
            loops: None,
            status_text: None,
            ceiling_lifted: false,
        }
    }

    /// Another binary took over, with these settings.
    pub(crate) const fn on_taken_over(&mut self, policy: RestartSpec) {
        self.restarts.set_policy(policy);
    }

    /// The supervisor ends the server because its workers end in a loop. Returns false if that was
    /// decided before.
    pub(crate) fn end_for(&mut self, why: LoopCause) -> bool {
        self.loops.replace(why).is_none()
    }

    /// The supervisor ends the server, or has ended it, because its workers ended in a loop.
    pub(crate) const fn ends_in_loop(&self) -> bool {
        self.loops.is_some()
    }

    /// The command has not been started yet.
    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    pub(crate) const fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Running { pid, .. } => Some(pid),
            Phase::Idle
            | Phase::Starting
            | Phase::Clearing { .. }
            | Phase::Waiting { .. }
            | Phase::Over => None,
        }
    }

    pub(crate) const fn run(&self) -> RunId {
        self.run
    }

    pub(crate) const fn is_ready(&self) -> bool {
        self.ready
    }

    pub(crate) const fn is_stopping(&self) -> bool {
        self.stop.is_some() || matches!(self.phase, Phase::Over)
    }

    pub(crate) const fn restarts(&self) -> u64 {
        self.run.0.saturating_sub(1)
    }

    /// The command was asked to exit, so its end is planned.
    pub(crate) const fn expect_end(&mut self) {
        self.planned = true;
    }

    pub(crate) fn is_current(&self, run: RunId) -> bool {
        self.run == run && !matches!(self.phase, Phase::Over)
    }
}

impl Supervisor {
    pub(crate) fn on_machine(&mut self, now: Timestamp, machine: Machine) {
        if machine.caps == CapMechanism::Rlimit
            && let Some(why_not) = &machine.why_not
        {
            let message = format!(
                "caps are enforced by RLIMIT_DATA for each process, not for a worker as a whole: \
                 {why_not}"
            );
            self.warn_once("mechanism", || message);
        }
        self.here.machine = Some(machine);
        self.begin(now);
    }

    pub(crate) fn on_available(&mut self, now: Timestamp, available: Bytes) {
        self.here.available = Some(available);
        self.derive_limits();
        self.begin(now);
    }

    /// Starts the command for the first time, once the machine and its memory are known.
    fn begin(&mut self, now: Timestamp) {
        let known = self.here.machine.is_some() && self.here.available.is_some();
        let service = &self.state.service;
        if known && matches!(service.phase, Phase::Idle) && service.stop.is_none() {
            self.act(Action::Budget {
                budget: self.state.limits.budget.bytes,
            });
            self.act(Action::Notify(Notice::Extend(self.spec.ready.timeout)));
            self.start(now);
        }
    }

    fn start(&mut self, now: Timestamp) {
        self.state.service.run = RunId(self.state.service.run.0.saturating_add(1));
        self.state.service.phase = Phase::Starting;
        self.state.service.ready = false;
        self.state.service.warned_unready = false;
        self.state.starts.on_start(self.state.service.planned);
        self.state.service.planned = false;
        self.state.service.loops = None;
        self.state.service.status_text = None;
        self.state.loops.on_start();
        self.state.surge.forget(now);
        self.forget_server();
        let worker = self.worker_of_start();
        self.state.service.awaited = worker.map(|(worker, _)| worker);
        let run = self.state.service.run;
        self.act(Action::Start { run, worker });
    }

    pub(crate) fn on_started(&mut self, now: Timestamp, run: RunId, pid: i32) {
        if !self.state.service.is_current(run) {
            return;
        }
        self.state.service.phase = Phase::Running { pid, since: now };
        self.emit(Event::Started { run, pid });
        if let Some(id) = self.state.service.awaited.take() {
            self.add_worker(now, id, pid);
        }
        if self.state.service.stop.is_some() {
            self.act(Action::SignalCommand {
                run,
                signal: self.stop_signal(),
            });
        }
    }

    pub(crate) fn on_service_ready(&mut self, now: Timestamp, run: RunId) {
        let Phase::Running { since, .. } = self.state.service.phase else {
            return;
        };
        if !self.state.service.is_current(run) || self.state.service.ready {
            return;
        }
        self.state.service.ready = true;
        self.emit(Event::Ready {
            run,
            after: now.since(since),
        });
        self.act(Action::Notify(Notice::Ready));
        if self.is_whole_program() {
            let ids: Vec<_> = self.state.workers.keys().copied().collect();
            for id in ids {
                self.on_worker_ready(now, id);
            }
        }
    }

    /// Does what is due by the time: the next start, a kill of remaining processes, or a check of
    /// readiness.
    pub(crate) fn advance_service(&mut self, now: Timestamp) {
        let run = self.state.service.run;
        match &mut self.state.service.phase {
            Phase::Waiting { .. } => self.start(now),
            Phase::Clearing { kill_at, .. } => {
                *kill_at = None;
                self.act(Action::KillRun { run });
            }
            Phase::Running { since, .. } => {
                let since = *since;
                self.check_readiness(now, since);
            }
            Phase::Idle | Phase::Starting | Phase::Over => {}
        }
    }

    pub(crate) fn advance_service_at(&self) -> Option<Timestamp> {
        let service = &self.state.service;
        match service.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Clearing { kill_at, .. } => kill_at,
            Phase::Running { since, .. } if !service.ready => {
                let timeout = (!service.warned_unready).then_some(self.spec.ready.timeout);
                let wait = self.ready_after().into_iter().chain(timeout).min();
                wait.map(|wait| since.later(wait))
            }
            Phase::Idle | Phase::Starting | Phase::Running { .. } | Phase::Over => None,
        }
    }

    fn check_readiness(&mut self, now: Timestamp, since: Timestamp) {
        if self.state.service.ready {
            return;
        }
        if self
            .ready_after()
            .is_some_and(|delay| now.since(since) >= delay)
        {
            self.on_service_ready(now, self.state.service.run);
        } else if !self.state.service.warned_unready && now.since(since) >= self.spec.ready.timeout
        {
            self.state.service.warned_unready = true;
            let seconds = self.spec.ready.timeout.as_secs();
            let text = format!("the service is not ready after {seconds}s");
            self.emit(Event::Warning(text));
        }
    }

    /// The time after which the command counts as ready. `None`: readiness is detected otherwise.
    const fn ready_after(&self) -> Option<Duration> {
        match &self.spec.ready.when {
            _ if self.is_fleet() => None,
            ReadyWhen::Delay(delay) => Some(*delay),
            ReadyWhen::Auto if self.is_whole_program() => Some(UP_AFTER),
            ReadyWhen::Auto | ReadyWhen::Notify | ReadyWhen::Tcp(_) | ReadyWhen::Http(_) => None,
        }
    }
}
