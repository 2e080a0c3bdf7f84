//! The stop of the service: waiting connections are accepted, then the command is stopped.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ORPHAN_GRACE, Phase, notified::put_off};
use crate::supervisor::{
    Supervisor,
    action::{Action, Notice},
    event::Event,
    input::Stop,
    worker::lifecycle::Extended,
};
use crate::units::{RunId, Timestamp};

/// The stop of the service.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Stopping {
    since: Timestamp,
    /// When the command is killed. `None`: it has been killed.
    kill_at: Option<Timestamp>,
    /// When the command is sent its stop signal at the latest. `None`: it has been sent, or is not
    /// needed.
    tell_at: Option<Timestamp>,
    /// Whether the command or a worker has asked for more time.
    extended: Extended,
}

impl Stopping {
    /// All processes have been killed.
    pub(super) const KILLED: Self = Self {
        since: Timestamp::ZERO,
        kill_at: None,
        tell_at: None,
        extended: Extended::No,
    };

    /// The command gets this much time.
    fn new(now: Timestamp, grace: Duration) -> Self {
        Self {
            since: now,
            kill_at: Some(now.later(grace)),
            tell_at: None,
            extended: Extended::No,
        }
    }

    /// When the command is killed. `None`: it has been killed.
    pub(super) const fn kill_at(&self) -> Option<Timestamp> {
        self.kill_at
    }

    /// The command has been sent its stop signal.
    pub(super) const fn is_told(&self) -> bool {
        self.kill_at.is_some() && self.tell_at.is_none()
    }

    /// The command or a worker asks for time until `wanted`, and gets at most `most` in total.
    /// Returns when the command is killed now, and how the message is to be told if that is new.
    pub(super) fn extend(
        &mut self,
        wanted: Timestamp,
        most: Duration,
    ) -> Option<(Timestamp, Option<Extended>)> {
        let (until, extended) = put_off(wanted, self.kill_at?, self.since.later(most));
        self.kill_at = Some(until);
        let is_new = extended > self.extended;
        self.extended = self.extended.max(extended);
        Some((until, is_new.then_some(extended)))
    }
}

impl Supervisor {
    /// Stops the service gracefully or at once. A second request by signal always stops at once.
    pub(crate) fn stop(&mut self, now: Timestamp, how: Stop) {
        let first = self.state.service.stop.is_none();
        let run = self.state.service.run;
        if first {
            self.emit(Event::Stopping);
            self.end_low_priority();
            self.act(Action::Notify(Notice::Stopping));
            let longest = self.spec.stop.grace.saturating_add(ORPHAN_GRACE);
            self.act(Action::Notify(Notice::Extend(longest)));
            self.state.service.stop = Some(Stopping::new(now, self.spec.stop.grace));
        }
        match self.state.service.phase {
            Phase::Idle | Phase::Waiting { .. } => self.finish(0),
            Phase::Running { .. } if first && how == Stop::Graceful => self.begin_stop(now),
            Phase::Starting | Phase::Running { .. } | Phase::Clearing { .. }
                if how == Stop::Now =>
            {
                self.withdraw_last_reports();
                self.act(Action::KillRun { run });
                self.state.service.stop = Some(Stopping::KILLED);
            }
            Phase::Starting | Phase::Running { .. } | Phase::Clearing { .. } | Phase::Over => {}
        }
    }

    /// Waiting connections are accepted before the command closes its listening sockets, because
    /// closing them resets the waiting connections. Half of the grace period is for that, and the
    /// other half for the requests that are being served.
    fn begin_stop(&mut self, now: Timestamp) {
        self.withdraw_last_reports();
        if self.is_job() {
            self.send_stop_signal();
        } else if let Some(stop) = &mut self.state.service.stop {
            stop.tell_at = Some(now.later(self.spec.stop.grace.div_f64(2.0)));
            self.act(Action::DrainBacklog {
                run: self.state.service.run,
            });
        }
    }

    fn send_stop_signal(&mut self) {
        if let Some(stop) = &mut self.state.service.stop {
            stop.tell_at = None;
        }
        self.act(Action::SignalCommand {
            run: self.state.service.run,
            signal: self.stop_signal(),
        });
    }

    pub(crate) fn on_backlog_empty(&mut self, run: RunId) {
        let stop = self.state.service.stop.as_ref();
        let waits = stop.is_some_and(|stop| stop.tell_at.is_some());
        if waits && self.state.service.is_current(run) && self.state.service.pid().is_some() {
            self.send_stop_signal();
        }
    }

    /// An operator has sent the server its own quit signal. The server ends by itself and is not
    /// started again.
    pub(crate) fn on_quit_signal(&mut self, now: Timestamp) {
        self.withdraw_last_reports();
        if self.state.service.stop.is_none() {
            self.emit(Event::Stopping);
            self.act(Action::Notify(Notice::Stopping));
            self.state.service.stop = Some(Stopping::new(now, self.spec.stop.grace));
        }
    }

    /// Kills the command when the grace period of a stop is over. When half of it is over and
    /// connections still wait, sends the stop signal.
    pub(crate) fn enforce_stop(&mut self, now: Timestamp) {
        let run = self.state.service.run;
        let Some(stop) = &mut self.state.service.stop else {
            return;
        };
        if stop.kill_at.is_some_and(|at| at <= now) {
            *stop = Stopping::KILLED;
            self.act(Action::KillRun { run });
        } else {
            self.emit(Event::Warning(
                "connections still wait to be accepted after half of stop.grace; sending the stop \
                 signal, which resets them"
                    .to_owned(),
            ));
            self.send_stop_signal();
        }
    }

    pub(crate) fn enforce_stop_at(&self) -> Option<Timestamp> {
        let service = &self.state.service;
        let alive = matches!(service.phase, Phase::Running { .. } | Phase::Starting);
        let stop = service.stop.as_ref().filter(|_| alive)?;
        stop.tell_at.into_iter().chain(stop.kill_at).min()
    }
}
