//! What the command and its workers say about themselves (sd_notify(3)): what they are doing, and
//! that they need more time to stop.
//!
//! `EXTEND_TIMEOUT_USEC=` means the same as to systemd: the time counts from the message, and a
//! message never shortens the time that is left. `stop.extend_max` limits the sum.

use std::time::Duration;

use super::{ORPHAN_GRACE, Phase};
use crate::supervisor::{
    Supervisor,
    action::{Action, Notice},
    event::{Event, StopExtended},
    input::Notification,
    worker::lifecycle::{Extended, Step},
};
use crate::units::{Timestamp, WorkerId};

impl Supervisor {
    pub(crate) fn on_notified(&mut self, now: Timestamp, said: Notification) {
        let Notification {
            run,
            worker,
            status,
            extend,
        } = said;
        if !self.state.service.is_current(run) {
            return;
        }
        if let Some(text) = status {
            let text = Some(text).filter(|text| !text.is_empty());
            match worker.and_then(|id| self.state.workers.get_mut(&id)) {
                Some(worker) => worker.set_status_text(text),
                None => self.state.service.status_text = text,
            }
        }
        if let Some(by) = extend {
            self.extend(now, worker, by);
        }
    }

    fn extend(&mut self, now: Timestamp, worker: Option<WorkerId>, by: Duration) {
        let running = matches!(self.state.service.phase, Phase::Running { .. });
        if self.state.service.stop.is_some() && running {
            self.extend_stop(now, worker, by);
        } else if running {
            self.extend_drain(now, worker, by);
        }
        // Workers without a server only hold its sockets, so they get no more time.
    }

    /// The service stops. It waits for any of its workers.
    fn extend_stop(&mut self, now: Timestamp, worker: Option<WorkerId>, by: Duration) {
        let most = self.most_extended();
        let stop = self.state.service.stop.as_mut();
        let Some((until, told)) = stop.and_then(|stop| stop.extend(now.later(by), most)) else {
            return;
        };
        let longest = until.since(now).saturating_add(ORPHAN_GRACE);
        self.act(Action::Notify(Notice::Extend(longest)));
        self.extend_worker(now, worker, by);
        if let Some(extended) = told {
            self.tell_extension(worker, until.since(now), extended);
        }
    }

    /// One worker leaves, or the service starts or reloads.
    fn extend_drain(&mut self, now: Timestamp, worker: Option<WorkerId>, by: Duration) {
        if let Some((until, extended)) = self.extend_worker(now, worker, by) {
            self.tell_extension(worker, until.since(now), extended);
        }
        // The service manager waits for the end of a start and of a reload.
        if let Some(longest) = self.longest_reload() {
            self.act(Action::Notify(Notice::Extend(longest.saturating_add(by))));
        } else if !self.state.service.ready {
            self.act(Action::Notify(Notice::Extend(by)));
        }
    }

    /// Gives a draining worker more time. Returns until when, if an event should be written.
    fn extend_worker(
        &mut self,
        now: Timestamp,
        worker: Option<WorkerId>,
        by: Duration,
    ) -> Option<(Timestamp, Extended)> {
        let most = self.most_extended();
        let worker = self.state.workers.get_mut(&worker?)?;
        let (drain, killed_at) = (worker.drain()?, worker.killed_at()?);
        let latest = drain.since().later(most);
        let (until, extended) = put_off(now.later(by), killed_at, latest);
        let is_new = extended > drain.extended();
        let extended = extended.max(drain.extended());
        worker.step(now, Step::Extended { until, extended });
        is_new.then_some((until, extended))
    }

    /// The longest time between a stop signal and a kill.
    const fn most_extended(&self) -> Duration {
        let stop = self.spec.stop;
        stop.grace.saturating_add(stop.extend_max)
    }

    fn tell_extension(&mut self, worker: Option<WorkerId>, time: Duration, extended: Extended) {
        let text = match worker.and_then(|id| self.state.workers.get(&id)) {
            Some(worker) => worker.status_text(),
            None => self.state.service.status_text.as_deref(),
        };
        let status = text.map(ToOwned::to_owned);
        self.emit(Event::StopExtended(StopExtended {
            worker,
            time,
            status,
            cut: extended == Extended::Cut,
        }));
    }

    /// When the command will be killed, if the service stops and it has not ended by then.
    pub(crate) fn command_killed_at(&self) -> Option<Timestamp> {
        let service = &self.state.service;
        let running = matches!(service.phase, Phase::Running { .. });
        service.stop.as_ref().filter(|_| running)?.kill_at()
    }

    /// What the command, which is not a worker, says about itself.
    pub(crate) fn command_status(&self) -> Option<String> {
        self.state.service.status_text.clone()
    }
}

/// The end of a grace period that was over at `until`, after a message that asks for `wanted`.
pub(super) fn put_off(
    wanted: Timestamp,
    until: Timestamp,
    latest: Timestamp,
) -> (Timestamp, Extended) {
    let extended = if wanted > latest {
        Extended::Cut
    } else {
        Extended::Granted
    };
    (wanted.min(latest).max(until), extended)
}

#[cfg(test)]
#[path = "notified_tests.rs"]
mod tests;
