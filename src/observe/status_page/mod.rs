//! The snapshot as one page of text: limits, running workers, totals and the most recent ends.

mod rows;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::{
    supervisor::{
        event::{Effective, End},
        event_format::span,
        input::CapMechanism,
        snapshot::Snapshot,
    },
    units::Timestamp,
};

use super::text_layout::{Column, TextLayout};

use rows::{
    ENDED, ROUTE, TASKS, WORKER, counts, end_row, growing, helpers, known, leftovers, measure,
    missing_agents, progress, route_row, status_texts, tasks, waiting, worker_row,
};

/// Maximum ends shown, the newest.
const ENDS_SHOWN: usize = 10;

/// Information about the supervisor that a snapshot does not have.
#[derive(Clone, Debug)]
pub struct About {
    /// Its pid.
    pub pid: u32,
    /// The supervisor's version.
    pub version: String,
    /// Time since its start.
    pub up: Duration,
    /// Now, on the clock of the snapshot.
    pub now: Timestamp,
}

/// The page. No line is longer than `width` characters.
pub fn table(snapshot: &Snapshot, about: &About, width: usize) -> String {
    let mut page = Page(TextLayout::new(width));
    page.head(snapshot, about);
    page.0.line("");
    page.limits(snapshot);
    page.0.line("");
    page.workers(snapshot);
    page.0.line("");
    page.totals(snapshot);
    page.routes(snapshot);
    if !snapshot.ends.is_empty() {
        page.0.line("");
        page.ends(&snapshot.ends, about.now);
    }
    page.0.into_text()
}

#[derive(Debug)]
struct Page(TextLayout);

impl Page {
    fn head(&mut self, snapshot: &Snapshot, about: &About) {
        let state = match (snapshot.stopping, snapshot.ready) {
            (true, _) => "stopping",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        let command = match (&snapshot.pool, snapshot.command_pid) {
            (Some(pool), _) => match &pool.function {
                Some(function) => format!("calls {function}"),
                None => "calls functions from its executor".to_owned(),
            },
            (None, Some(pid)) => format!("command pid {pid}"),
            (None, None) => "no command".to_owned(),
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
                &format!("{ceiling}, of {} memory", measure(snapshot)),
            );
        } else {
            self.0.titled("ceiling", &ceiling);
        }
        self.0.titled("cap", &limit(&limits.cap));
        self.0.titled(
            "budget",
            &format!("{}; {} available", limit(&limits.budget), limits.available),
        );
        let threshold = if snapshot.threshold {
            "the kernel reports memory near the ceiling"
        } else {
            "only samples show memory near the ceiling"
        };
        let mechanism = match snapshot.caps {
            CapMechanism::CgroupV2 => "cgroup v2",
            CapMechanism::CgroupV1 => "cgroup v1",
            CapMechanism::Rlimit => "RLIMIT_DATA, for each process",
        };
        let text = format!("{mechanism}; {threshold}");
        self.0.titled("mechanism", &text);
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
                &format!("the cap is not enforced for whole workers: {why}"),
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
        self.titled_unless_empty("helpers", &helpers(snapshot));
        self.titled_unless_empty("waits for", &waiting(snapshot));
        self.titled_unless_empty("status", &status_texts(snapshot));
        // No worker of a pool has an agent.
        if snapshot.pool.is_none() {
            for (why, workers) in missing_agents(&snapshot.workers) {
                self.0.titled("no agent", &format!("{workers}: {why}"));
            }
        }
    }

    fn titled_unless_empty(&mut self, title: &str, text: &str) {
        if !text.is_empty() {
            self.0.titled(title, text);
        }
    }

    fn totals(&mut self, snapshot: &Snapshot) {
        let mut recycled = counts(&snapshot.recycles);
        if snapshot.rescues > 0 {
            recycled.push_str(&format!("; rescued {}", snapshot.rescues));
        }
        self.0.titled("recycled", &recycled);
        self.0.titled("unplanned", &counts(&snapshot.unplanned));
        if let Some(pool) = &snapshot.pool {
            return self.0.titled("tasks", &progress(pool));
        }
        self.0.titled("restarts", &snapshot.restarts.to_string());
        if !snapshot.leftovers.is_empty() {
            self.0.titled("left over", &leftovers(&snapshot.leftovers));
        }
        if let Some(requests) = snapshot.requests {
            self.0.titled("requests", &requests.to_string());
        }
    }

    fn routes(&mut self, snapshot: &Snapshot) {
        let rows: Vec<_> = growing(&snapshot.routes).map(route_row).collect();
        if !rows.is_empty() {
            self.0.line("");
            self.0.grid(&ROUTE, rows);
        }
    }

    fn ends(&mut self, ends: &[End], now: Timestamp) {
        let shown = &ends[ends.len().saturating_sub(ENDS_SHOWN)..];
        let reported = shown.iter().any(|end| end.report.is_some());
        let mut columns = ENDED.to_vec();
        if reported {
            columns.push(Column::Text("REPORT"));
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
