//! Observes the service each second, for its history.

use std::time::Duration;

use super::Driver;
use crate::{
    host::clock,
    supervisor::{
        cause::Class,
        event::{End, Event, Who},
    },
    units::Timestamp,
};

/// The resolution of the finest curve.
pub(super) const EVERY: Duration = Duration::from_secs(1);

impl Driver {
    /// Keeps an observation, if one is due. This needs no wake-up of its own, because memory is
    /// sampled often enough.
    pub(super) fn observe_if_due(&mut self, now: Timestamp) {
        if now < self.observe_at {
            return;
        }
        self.observe_at = now.next_multiple(EVERY);
        let observation = self.supervisor.observe(now);
        self.agent.kept_mut().observe(unix_second(), &observation);
    }

    /// Keeps the end of a worker, and adds what it ran if the kernel killed it.
    pub(super) fn note_end(&mut self, end: &mut End) {
        self.agent.kept_mut().note_end(unix_second(), end);
        if let (Who::Worker(worker), Class::Kernel) = (end.who, end.cause.class()) {
            end.ran = self.agent.ran(worker);
            end.running = self.agent.running(worker);
        }
    }

    /// After a dry run, which limits fit.
    pub(super) fn end_dry_run(&mut self) {
        if self.supervisor.spec().dry_run {
            let suggestion = self.agent.kept().history().suggest();
            self.publish(Event::Suggested(suggestion.summary()));
        }
    }
}

pub(super) fn unix_second() -> u64 {
    let since = Duration::try_from_secs_f64(clock::unix_seconds());
    since.unwrap_or_default().as_secs()
}
