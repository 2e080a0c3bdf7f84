//! The status line for `systemctl status`.

use std::time::Duration;

use crate::{
    supervisor::{action::Notice, snapshot::Snapshot},
    units::{Bytes, Timestamp},
};

/// Minimum interval of the messages, because the figures change all the time.
const EVERY: Duration = Duration::from_secs(5);

/// The last status line.
#[derive(Debug, Default)]
pub(super) struct Status {
    last: String,
    /// When to check for changed figures next.
    next: Timestamp,
}

impl Status {
    /// Whether to check for changed figures. This needs no wake-up of its own, because memory is
    /// sampled often enough.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.next <= now
    }

    /// The status line, if it has changed.
    pub(super) fn of(&mut self, now: Timestamp, snapshot: &Snapshot) -> Option<Notice> {
        self.next = now.later(EVERY);
        let line = status_line(snapshot);
        if line == self.last {
            return None;
        }
        self.last.clone_from(&line);
        Some(Notice::Status(line))
    }
}

fn status_line(snapshot: &Snapshot) -> String {
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
    let mut line = format!("{count} {workers}, {total}{budget}, {recycles} recycled");
    // While the service stops, what it waits for is of more interest.
    let workers = snapshot.workers.iter();
    let mut texts = workers.filter_map(|worker| worker.status_text.as_deref());
    let text = texts.next().or(snapshot.status_text.as_deref());
    if let Some(text) = text.filter(|_| snapshot.stopping) {
        line.push_str(&format!("; stopping: {text}"));
    }
    line
}
