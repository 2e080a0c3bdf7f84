//! A program that is itself the only worker. To replace it, the supervisor stops it and starts it
//! again, and no process serves in between.
//!
//! If it gets listening sockets and is seen to accept connections at them, it becomes a fleet of
//! one copy: its replacement serves before it is stopped. Before, two copies may not run at once,
//! because they might need the same port.

use std::time::Duration;

use crate::supervisor::{
    Supervisor, action::Action, policy::candidates::Candidate, worker::lifecycle::By,
};
use crate::units::Timestamp;

/// A program that has not become a fleet of one copy by then causes a warning.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(20);

impl Supervisor {
    /// Warns if listening sockets are passed to a program that seems not to use them.
    pub(super) fn warn_of_unused_sockets(&mut self, now: Timestamp) {
        let Some(started) = self.state.service.started().filter(|_| self.spec.overlap) else {
            return;
        };
        let until = started.later(ACCEPTS_WITHIN);
        if now < until {
            self.wake_at(now, until);
            return;
        }
        self.warn_once("unused sockets", || {
            format!(
                "COMMAND has run for {}s and was not seen to accept connections only at the \
                 sockets of `listen`; it is stopped before its replacement starts. hint: it has \
                 to use LISTEN_FDS, or `{{fd}}` in its arguments, and no address of its own; with \
                 `-n 1` its replacement starts first in any case",
                ACCEPTS_WITHIN.as_secs()
            )
        });
    }

    pub(super) fn replace_program(&mut self, now: Timestamp, candidates: &[Candidate]) {
        let Some(candidate) = candidates.first() else {
            return;
        };
        self.warn_once("single", || {
            "this program is one worker: it is recycled as a whole, and no process serves between \
             its stop and its next start"
                .to_owned()
        });
        self.begin_drain(now, candidate, By::Signal);
    }

    pub(super) fn ask_program_to_exit(&mut self) {
        self.out.act(Action::SignalCommand {
            run: self.state.service.run(),
            signal: self.spec.stop.signal,
        });
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
