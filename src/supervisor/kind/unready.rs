//! Workers that do not become ready.

use std::time::Duration;

use crate::{supervisor::Supervisor, units::Timestamp};

/// A copy that does not serve after this time causes a warning: perhaps it ignores its socket.
const COPY_BOOTS_WITHIN: Duration = Duration::from_secs(20);

impl Supervisor {
    /// Warns about workers that do not become ready, because candidates wait for them.
    pub(super) fn warn_of_unready(&mut self, now: Timestamp) {
        let timeout = if self.is_fleet() {
            self.spec.ready.timeout.min(COPY_BOOTS_WITHIN)
        } else {
            self.spec.ready.timeout
        };
        let workers = self.state.workers.values();
        let starting = workers.filter(|worker| worker.is_starting());
        let starting: Vec<_> = starting
            .map(|worker| (worker.id(), worker.seen()))
            .collect();
        for (id, seen) in starting {
            if now < seen.later(timeout) {
                self.wake_at(now, seen.later(timeout));
            } else {
                let hint = if self.is_fleet() && !self.spec.command.listen.is_empty() {
                    ". hint: it does not accept connections at a socket of `listen`; COMMAND has \
                     to use LISTEN_FDS, or `{fd}` in its arguments"
                } else {
                    ""
                };
                let seconds = timeout.as_secs();
                self.warn_once(format!("{id} is not ready"), || {
                    format!(
                        "{id} is not ready after {seconds}s; no worker is replaced until it is \
                         ready{hint}"
                    )
                });
            }
        }
    }
}
