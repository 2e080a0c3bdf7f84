//! The command's life: started, up, ended, cleared away, started again or over.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    action::{Action, Notice},
    end_loop::LoopCause,
    event::{CapMechanism, Machine, Stop},
    report::{Cause, End, Report, Who},
    restart::Restarts,
    spec::{Kind, ReadyWhen, RestartSpec},
};
use crate::units::{Bytes, RunId, Timestamp, WorkerId};

/// What a server that died left behind gets to finish what is in flight. It holds the listening
/// socket as long, so that the service cannot come back before.
pub(super) const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// A program of unknown kind that has lived so long counts as up.
const UP_AFTER: Duration = Duration::from_secs(1);

const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;

/// Where the command is in its life. What is wished for it is beside it, in `stop`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Service {
    pub(super) phase: Phase,
    pub(super) stop: Option<Stopping>,
    pub(super) restarts: Restarts,
    pub(super) run: RunId,
    pub(super) answers: bool,
    pub(super) told_unready: bool,
    /// The worker that the command of a single program will be.
    pub(super) awaited: Option<WorkerId>,
    /// The command's end was planned: what follows is no restart.
    pub(super) planned: bool,
    /// We ended the server because its workers ended in a loop.
    #[serde(default)]
    pub(super) loops: Option<LoopCause>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Phase {
    Idle,
    Starting,
    Running {
        pid: i32,
        since: Timestamp,
    },
    /// The command is gone, and what it left is being cleared away.
    Clearing {
        kill_at: Option<Timestamp>,
        next: Next,
    },
    Waiting {
        until: Timestamp,
    },
    Over,
}

/// What follows when all is cleared away.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) enum Next {
    Start(Timestamp),
    Exit(i32),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Stopping {
    /// `None`: the kill has been sent.
    pub(super) kill_at: Option<Timestamp>,
    /// The command is told at the latest then. `None`: it has been, or knows by itself.
    pub(super) tell_at: Option<Timestamp>,
}

impl Stopping {
    /// All is killed already.
    pub(super) const KILLED: Self = Self {
        kill_at: None,
        tell_at: None,
    };
}

impl Service {
    pub(super) const fn new(policy: RestartSpec, _now: Timestamp) -> Self {
        Self {
            phase: Phase::Idle,
            stop: None,
            restarts: Restarts::new(policy),
            run: RunId(0),
            answers: false,
            told_unready: false,
            awaited: None,
            planned: false,
            loops: None,
        }
    }

    pub(super) const fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Running { pid, .. } => Some(pid),
            Phase::Idle
            | Phase::Starting
            | Phase::Clearing { .. }
            | Phase::Waiting { .. }
            | Phase::Over => None,
        }
    }

    pub(super) const fn run(&self) -> RunId {
        self.run
    }

    pub(super) const fn answers(&self) -> bool {
        self.answers
    }

    pub(super) const fn is_stopping(&self) -> bool {
        self.stop.is_some() || matches!(self.phase, Phase::Over)
    }

    pub(super) const fn restarts(&self) -> u64 {
        self.run.0.saturating_sub(1)
    }

    /// The command's end that is about to come was asked for.
    pub(super) const fn expect_end(&mut self) {
        self.planned = true;
    }

    pub(super) fn is_current(&self, run: RunId) -> bool {
        self.run == run && !matches!(self.phase, Phase::Over)
    }
}

impl Supervisor {
    pub(super) fn on_machine(&mut self, now: Timestamp, machine: Machine) {
        if machine.caps == CapMechanism::Rlimit
            && let Some(why_not) = &machine.why_not
        {
            let message = format!(
                "caps are held by RLIMIT_DATA for each process by itself, not for a worker as a \
                 whole: {why_not}"
            );
            self.warn_once("mechanism", || message);
        }
        self.machine = Some(machine);
        self.begin(now);
    }

    pub(super) fn on_available(&mut self, now: Timestamp, available: Bytes) {
        self.available = Some(available);
        self.derive_limits();
        self.begin(now);
    }

    /// The first start, once it is known where we are.
    fn begin(&mut self, now: Timestamp) {
        let known = self.machine.is_some() && self.available.is_some();
        if known && matches!(self.service.phase, Phase::Idle) && self.service.stop.is_none() {
            self.act(Action::Budget {
                budget: self.limits.budget.bytes,
            });
            self.act(Action::Notify(Notice::Extend(self.spec.ready.timeout)));
            self.start(now);
        }
    }

    fn start(&mut self, now: Timestamp) {
        self.service.run = RunId(self.service.run.0.saturating_add(1));
        self.service.phase = Phase::Starting;
        self.service.answers = false;
        self.service.told_unready = false;
        self.starts.after_recycle = self.service.planned;
        self.service.planned = false;
        self.service.loops = None;
        self.ends_loop.on_start();
        self.spare.forget(now);
        let worker = match self.spec.kind {
            Kind::Server(_) => None,
            Kind::Single => Some((self.name_worker(), self.limits.cap.bytes)),
        };
        self.service.awaited = worker.map(|(worker, _)| worker);
        self.act(Action::Start {
            run: self.service.run,
            worker,
        });
    }

    pub(super) fn name_worker(&mut self) -> WorkerId {
        let id = self.next_worker;
        self.next_worker = id.next();
        id
    }

    pub(super) fn on_started(&mut self, now: Timestamp, run: RunId, pid: i32) {
        if !self.service.is_current(run) {
            return;
        }
        self.service.phase = Phase::Running { pid, since: now };
        self.tell(Report::Started { run, pid });
        if let Some(id) = self.service.awaited.take() {
            self.add_worker(now, id, pid);
        }
        if self.service.stop.is_some() {
            self.act(Action::SignalCommand {
                run,
                signal: self.spec.stop.signal,
            });
        }
    }

    pub(super) fn on_start_failed(&mut self, now: Timestamp, run: RunId, errno: i32, error: &str) {
        if !self.service.is_current(run) {
            return;
        }
        self.tell(Report::Warning(format!(
            "the command could not be started: {error}"
        )));
        let who = self.service.awaited.take().map_or(Who::Server, Who::Worker);
        self.record_end(End {
            who,
            pid: 0,
            cause: Cause::StartFailed,
            memory: Bytes::ZERO,
            peak: Bytes::ZERO,
            limit: None,
            age: Duration::ZERO,
            tasks: None,
            drain: None,
            killed: false,
            at: now,
            report: None,
        });
        let next = match errno {
            ENOENT => Next::Exit(127),
            EACCES | ENOEXEC => Next::Exit(126),
            // Want of memory or processes passes; the next attempt comes after the usual wait.
            _ if self.is_job() => Next::Exit(125),
            _ => self.after_unplanned_end(now),
        };
        self.service.phase = Phase::Clearing {
            kill_at: None,
            next,
        };
    }

    pub(super) fn on_answers(&mut self, now: Timestamp, run: RunId) {
        let Phase::Running { since, .. } = self.service.phase else {
            return;
        };
        if !self.service.is_current(run) || self.service.answers {
            return;
        }
        self.service.answers = true;
        self.tell(Report::Ready {
            run,
            after: now.since(since),
        });
        self.act(Action::Notify(Notice::Ready));
        if matches!(self.spec.kind, Kind::Single) {
            let ids: Vec<_> = self.workers.keys().copied().collect();
            for id in ids {
                self.on_worker_ready(now, id);
            }
        }
    }

    /// A graceful stop, or one at once; the second wish is always at once.
    pub(super) fn stop(&mut self, now: Timestamp, how: Stop) {
        let first = self.service.stop.is_none();
        let run = self.service.run;
        if first {
            self.tell(Report::Stopping);
            self.end_low_priority();
            self.act(Action::Notify(Notice::Stopping));
            let longest = self.spec.stop.grace.saturating_add(ORPHAN_GRACE);
            self.act(Action::Notify(Notice::Extend(longest)));
            self.service.stop = Some(Stopping {
                kill_at: Some(now.later(self.spec.stop.grace)),
                tell_at: None,
            });
        }
        match self.service.phase {
            Phase::Idle | Phase::Waiting { .. } => self.finish(0),
            Phase::Running { .. } if first && how == Stop::Graceful => self.begin_stop(now),
            Phase::Starting | Phase::Running { .. } | Phase::Clearing { .. }
                if how == Stop::Now =>
            {
                self.act(Action::KillRun { run });
                self.service.stop = Some(Stopping::KILLED);
            }
            Phase::Starting | Phase::Running { .. } | Phase::Clearing { .. } | Phase::Over => {}
        }
    }

    /// What has connected is accepted before the command closes its listening sockets, for that
    /// resets those that wait. Half of the grace is for that, the other for what is in hand then.
    fn begin_stop(&mut self, now: Timestamp) {
        if self.is_job() {
            self.tell_to_stop();
        } else if let Some(stop) = &mut self.service.stop {
            stop.tell_at = Some(now.later(self.spec.stop.grace.div_f64(2.0)));
            self.act(Action::DrainBacklog {
                run: self.service.run,
            });
        }
    }

    fn tell_to_stop(&mut self) {
        if let Some(stop) = &mut self.service.stop {
            stop.tell_at = None;
        }
        self.act(Action::SignalCommand {
            run: self.service.run,
            signal: self.spec.stop.signal,
        });
    }

    pub(super) fn on_backlog_empty(&mut self, run: RunId) {
        let stop = self.service.stop.as_ref();
        let waits = stop.is_some_and(|stop| stop.tell_at.is_some());
        if waits && self.service.is_current(run) && self.service.pid().is_some() {
            self.tell_to_stop();
        }
    }

    /// The server was told to end by its own signal: it ends as it will, and is not started again.
    pub(super) fn let_end(&mut self, now: Timestamp) {
        if self.service.stop.is_none() {
            self.tell(Report::Stopping);
            self.act(Action::Notify(Notice::Stopping));
            self.service.stop = Some(Stopping {
                kill_at: Some(now.later(self.spec.stop.grace)),
                tell_at: None,
            });
        }
    }

    /// What of the command's life follows from the time.
    pub(super) fn mind_service(&mut self, now: Timestamp) {
        let run = self.service.run;
        match &mut self.service.phase {
            Phase::Waiting { until } if *until <= now => self.start(now),
            Phase::Clearing { kill_at, .. } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                self.act(Action::KillRun { run });
            }
            Phase::Running { since, .. } => {
                let since = *since;
                self.mind_readiness(now, since);
            }
            Phase::Idle
            | Phase::Starting
            | Phase::Waiting { .. }
            | Phase::Clearing { .. }
            | Phase::Over => {}
        }
        let alive = matches!(self.service.phase, Phase::Running { .. } | Phase::Starting);
        if let Some(stop) = &mut self.service.stop
            && alive
            && stop.kill_at.is_some_and(|at| at <= now)
        {
            *stop = Stopping::KILLED;
            self.act(Action::KillRun { run });
        } else if alive
            && let Some(stop) = &self.service.stop
            && stop.tell_at.is_some_and(|at| at <= now)
        {
            self.tell(Report::Warning(
                "connections still wait to be accepted after half of stop.grace: the command is \
                 told to stop, and they are reset"
                    .to_owned(),
            ));
            self.tell_to_stop();
        }
    }

    fn mind_readiness(&mut self, now: Timestamp, since: Timestamp) {
        if self.service.answers {
            return;
        }
        if self
            .answers_after()
            .is_some_and(|delay| now.since(since) >= delay)
        {
            self.on_answers(now, self.service.run);
        } else if !self.service.told_unready && now.since(since) >= self.spec.ready.timeout {
            self.service.told_unready = true;
            self.tell(Report::Warning(format!(
                "the service does not answer after {}s",
                self.spec.ready.timeout.as_secs()
            )));
        }
    }

    /// The sign of life is no more than to have lived for so long.
    const fn answers_after(&self) -> Option<Duration> {
        match (&self.spec.ready.when, self.spec.kind) {
            (ReadyWhen::Delay(delay), _) => Some(*delay),
            (ReadyWhen::Auto, Kind::Single) => Some(UP_AFTER),
            (ReadyWhen::Auto, Kind::Server(_))
            | (ReadyWhen::Notify | ReadyWhen::Tcp(_) | ReadyWhen::Http(_), _) => None,
        }
    }

    pub(super) fn service_deadline(&self) -> Option<Timestamp> {
        let phase = match self.service.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Clearing { kill_at, .. } => kill_at,
            Phase::Running { since, .. } if !self.service.answers => {
                let timeout = (!self.service.told_unready).then_some(self.spec.ready.timeout);
                let wait = self.answers_after().into_iter().chain(timeout).min();
                wait.map(|wait| since.later(wait))
            }
            Phase::Idle | Phase::Starting | Phase::Running { .. } | Phase::Over => None,
        };
        let alive = matches!(self.service.phase, Phase::Running { .. } | Phase::Starting);
        let stop = self
            .service
            .stop
            .as_ref()
            .filter(|_| alive)
            .into_iter()
            .flat_map(|stop| [stop.tell_at, stop.kill_at])
            .flatten();
        phase.into_iter().chain(stop).min()
    }
}
