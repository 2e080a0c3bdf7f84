//! What `systemctl status` shows in one line.

use std::time::Duration;

use crate::{
    supervisor::{action::Notice, report::Snapshot},
    units::{Bytes, Timestamp},
};

/// Figures move all the time; the service manager is told of them no more often.
const EVERY: Duration = Duration::from_secs(5);

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Status {
    said: String,
    next: Timestamp,
}

impl Status {
    /// It is time to see whether the figures have moved. Nobody is woken for it: memory is looked
    /// at often enough.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.next <= now
    }

    /// What is to be said, if it is something new.
    pub(super) fn of(&mut self, now: Timestamp, snapshot: &Snapshot) -> Option<Notice> {
        self.next = now.later(EVERY);
        let line = line(snapshot);
        if line == self.said {
            return None;
        }
        self.said.clone_from(&line);
        Some(Notice::Status(line))
    }
}

fn line(snapshot: &Snapshot) -> String {
    let total = snapshot.workers.iter().fold(Bytes::ZERO, |total, worker| {
        total.plus(worker.memory.private)
    });
    let recycles: u64 = snapshot.recycles.values().sum();
    let budget = match snapshot.limits.budget.bytes {
        Some(budget) => format!(" of {budget}"),
        None => String::new(),
    };
    let count = snapshot.workers.len();
    let workers = if count == 1 { "worker" } else { "workers" };
    format!("{count} {workers}, {total}{budget}, {recycles} recycled")
}
