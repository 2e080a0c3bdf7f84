//! The picture as one page of text for people: what holds, who lives, what went. Needs no colour.

mod rows;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::{
    supervisor::{
        event::CapMechanism,
        report::{Effective, End, Snapshot},
        tell::span,
    },
    units::Timestamp,
};

use super::paper::{Column, Paper};

use rows::{
    ENDED, TASKS, WORKER, counts, end_row, known, leftovers, measure, silent, tasks, worker_row,
};

/// So many of the last ends are shown.
const ENDS_SHOWN: usize = 10;

/// What a snapshot does not know about the supervisor it comes from.
#[derive(Clone, Debug)]
pub struct About {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Since its start.
    pub up: Duration,
    /// Now, on the clock of the snapshot.
    pub now: Timestamp,
}

/// The page. No line is longer than `width` letters, unless a single word is.
pub fn table(snapshot: &Snapshot, about: &About, width: usize) -> String {
    let mut page = Page(Paper::new(width));
    page.head(snapshot, about);
    page.0.line("");
    page.limits(snapshot);
    page.0.line("");
    page.workers(snapshot);
    page.0.line("");
    page.totals(snapshot);
    if !snapshot.ends.is_empty() {
        page.0.line("");
        page.ends(&snapshot.ends, about.now);
    }
    page.0.into_text()
}

#[derive(Debug)]
struct Page(Paper);

impl Page {
    fn head(&mut self, snapshot: &Snapshot, about: &About) {
        let state = match (snapshot.stopping, snapshot.ready) {
            (true, _) => "stopping",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        let command = match snapshot.command_pid {
            Some(pid) => format!("command pid {pid}"),
            None => "no command".to_owned(),
        };
        let About {
            pid, version, up, ..
        } = about;
        let (name, mode, up) = (&snapshot.name, &snapshot.mode, span(*up));
        self.0.titled(
            name,
            &format!("{state}, {mode}, up {up}, {command}; supervise {version} pid {pid}"),
        );
        if let Some(problem) = &snapshot.problem {
            self.0.titled("PROBLEM", problem);
        }
    }

    fn limits(&mut self, snapshot: &Snapshot) {
        let limits = &snapshot.limits;
        let limit = |limit: &Effective| match limit.bytes {
            Some(bytes) => format!("{bytes} ({})", limit.from),
            None if limit.from.is_empty() => "none".to_owned(),
            None => format!("none ({})", limit.from),
        };
        let ceiling = limit(&limits.ceiling);
        if limits.ceiling.bytes.is_some() {
            self.0.titled(
                "ceiling",
                &format!("{ceiling}, against {} memory", measure(snapshot)),
            );
        } else {
            self.0.titled("ceiling", &ceiling);
        }
        self.0.titled("cap", &limit(&limits.cap));
        self.0.titled(
            "budget",
            &format!("{}; {} available", limit(&limits.budget), limits.available),
        );
        let wire = if snapshot.wire {
            "a trip wire says when the ceiling is near"
        } else {
            "no trip wire, samples find the ceiling"
        };
        let holder = match snapshot.caps {
            CapMechanism::CgroupV2 => "cgroup v2",
            CapMechanism::CgroupV1 => "cgroup v1",
            CapMechanism::Rlimit => "RLIMIT_DATA, each process by itself",
        };
        self.0.titled("held by", &format!("{holder}; {wire}"));
        if let Some(suspended) = &snapshot.suspended {
            let (lasts, why) = (span(suspended.lasts), &suspended.why);
            self.0.titled(
                "WARNING",
                &format!("recycling is suspended for {lasts}: {why}"),
            );
        }
        if limits.cap.bytes.is_some() && !snapshot.enforced {
            let why = snapshot
                .why_not
                .as_deref()
                .unwrap_or("the kernel refused it");
            self.0.titled(
                "WARNING",
                &format!("the cap does not hold for whole workers: {why}"),
            );
        }
    }

    fn workers(&mut self, snapshot: &Snapshot) {
        if snapshot.workers.is_empty() {
            return self.0.line("no workers");
        }
        let counted = snapshot.workers.iter().any(|worker| worker.tasks.is_some());
        let mut columns = WORKER.to_vec();
        if counted {
            columns.extend(TASKS);
        }
        let rows = snapshot.workers.iter().map(|worker| {
            let mut row = worker_row(snapshot, worker);
            if counted {
                row.extend(tasks(worker));
            }
            row
        });
        self.0.grid(&columns, rows.collect());
        for (why, workers) in silent(&snapshot.workers) {
            self.0.titled("no agent", &format!("{workers}: {why}"));
        }
    }

    fn totals(&mut self, snapshot: &Snapshot) {
        let mut recycled = counts(&snapshot.recycles);
        if snapshot.rescues > 0 {
            recycled.push_str(&format!("; rescued {}", snapshot.rescues));
        }
        self.0.titled("recycled", &recycled);
        self.0.titled("unplanned", &counts(&snapshot.unplanned));
        self.0.titled("restarts", &snapshot.restarts.to_string());
        if !snapshot.leftovers.is_empty() {
            self.0.titled("left over", &leftovers(&snapshot.leftovers));
        }
        if let Some(requests) = snapshot.requests {
            self.0.titled("requests", &requests.to_string());
        }
    }

    fn ends(&mut self, ends: &[End], now: Timestamp) {
        let shown = &ends[ends.len().saturating_sub(ENDS_SHOWN)..];
        let reported = shown.iter().any(|end| end.report.is_some());
        let mut columns = ENDED.to_vec();
        if reported {
            columns.push(Column::Words("REPORT"));
        }
        let rows = shown.iter().map(|end| {
            let mut row = end_row(end, now);
            if reported {
                row.push(known(end.report, |report| report.to_string()));
            }
            row
        });
        self.0.grid(&columns, rows.collect());
    }
}
