//! The picture as one page of text for people: what holds, who lives, what went. Needs no colour.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    supervisor::{
        event::CapMechanism,
        report::{Effective, End, MemoryView, Snapshot, WorkerView},
        tell::span,
    },
    units::{Bytes, Timestamp},
};

/// So many of the last ends are shown.
const ENDS_SHOWN: usize = 10;
/// Between two columns.
const GAP: &str = "  ";
/// Where the text of a titled line starts.
const INDENT: usize = 11;

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
    let mut page = Page {
        width,
        text: String::new(),
    };
    page.head(snapshot, about);
    page.line("");
    page.limits(snapshot);
    page.line("");
    page.workers(snapshot);
    page.line("");
    page.totals(snapshot);
    if !snapshot.ends.is_empty() {
        page.line("");
        page.ends(&snapshot.ends, about.now);
    }
    page.text
}

#[derive(Debug)]
struct Page {
    width: usize,
    text: String,
}

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
        self.titled(
            name,
            &format!("{state}, {mode}, up {up}, {command}; supervise {version} pid {pid}"),
        );
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
            self.titled(
                "ceiling",
                &format!("{ceiling}, against {} memory", measure(snapshot)),
            );
        } else {
            self.titled("ceiling", &ceiling);
        }
        self.titled("cap", &limit(&limits.cap));
        self.titled(
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
        self.titled("held by", &format!("{holder}; {wire}"));
        if limits.cap.bytes.is_some() && !snapshot.enforced {
            let why = snapshot
                .why_not
                .as_deref()
                .unwrap_or("the kernel refused it");
            self.titled(
                "WARNING",
                &format!("the cap does not hold for whole workers: {why}"),
            );
        }
    }

    fn workers(&mut self, snapshot: &Snapshot) {
        if snapshot.workers.is_empty() {
            return self.line("no workers");
        }
        let heads = [
            "ID",
            "PID",
            "STATE",
            "AGE",
            "MEMORY",
            "PEAK",
            "OF CEILING",
            "SLOPE",
            "TO CEILING",
            "PROCS",
        ];
        let rows = snapshot
            .workers
            .iter()
            .map(|worker| worker_row(snapshot, worker));
        self.grid(heads, &[0, 2], rows.collect());
    }

    fn totals(&mut self, snapshot: &Snapshot) {
        self.titled("recycled", &counts(&snapshot.recycles));
        self.titled("unplanned", &counts(&snapshot.unplanned));
        self.titled("restarts", &snapshot.restarts.to_string());
    }

    fn ends(&mut self, ends: &[End], now: Timestamp) {
        let heads = [
            "ENDED", "WORKER", "PID", "CAUSE", "MEMORY", "PEAK", "LIMIT", "AGE", "DRAIN",
        ];
        let first = ends.len().saturating_sub(ENDS_SHOWN);
        let rows = ends.iter().skip(first).map(|end| end_row(end, now));
        self.grid(heads, &[1, 3], rows.collect());
    }

    /// A title and its text, broken between words.
    fn titled(&mut self, title: &str, text: &str) {
        let mut line = format!("{title:<INDENT$}");
        let mut fresh = true;
        for word in text.split(' ') {
            let full = line.chars().count() + 1 + word.chars().count() > self.width;
            if full && !fresh {
                self.line(&line);
                line = " ".repeat(INDENT);
                fresh = true;
            }
            if !fresh || !line.ends_with(' ') {
                line.push(' ');
            }
            line.push_str(word);
            fresh = false;
        }
        self.line(&line);
    }

    /// Columns as wide as they need to be: words to the left, figures to the right. What does not
    /// fit is cut off.
    fn grid<const N: usize>(&mut self, heads: [&str; N], words: &[usize], rows: Vec<[String; N]>) {
        let rows: Vec<_> = std::iter::once(heads.map(str::to_owned))
            .chain(rows)
            .collect();
        let mut widths = [0; N];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &rows {
            let cells = row
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(column, (cell, width))| {
                    if words.contains(&column) {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                });
            let line = cells.collect::<Vec<_>>().join(GAP);
            self.line(&cut(line.trim_end(), self.width));
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

fn worker_row(snapshot: &Snapshot, worker: &WorkerView) -> [String; 10] {
    let memory = &worker.memory;
    let now = measured(snapshot, memory);
    let part = snapshot
        .limits
        .ceiling
        .bytes
        .filter(|ceiling| *ceiling > Bytes::ZERO);
    [
        worker.id.to_string(),
        worker.pid.to_string(),
        worker.state.clone(),
        span(worker.age),
        now.to_string(),
        memory.peak.to_string(),
        known(part, |ceiling| {
            format!("{:.0}%", now.as_f64() / ceiling.as_f64() * 100.0)
        }),
        known(memory.slope_bps, slope),
        known(memory.to_ceiling, span),
        worker.processes.to_string(),
    ]
}

fn end_row(end: &End, now: Timestamp) -> [String; 9] {
    let drain = match (end.drain, end.killed) {
        (Some(drain), true) => format!("{}, killed", span(drain)),
        (Some(drain), false) => span(drain),
        (None, true) => "killed".to_owned(),
        (None, false) => "-".to_owned(),
    };
    [
        format!("{} ago", span(now.since(end.at))),
        end.who.to_string(),
        end.pid.to_string(),
        end.cause.to_string(),
        end.memory.to_string(),
        end.peak.to_string(),
        known(end.limit, |limit| limit.to_string()),
        span(end.age),
        drain,
    ]
}

fn known<T>(value: Option<T>, shown: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shown)
}

/// `+1.20M/s`.
fn slope(bps: f64) -> String {
    let sign = if bps < 0.0 { '-' } else { '+' };
    match Bytes(1).scaled(bps.abs()) {
        Bytes::ZERO => "0/s".to_owned(),
        bytes => format!("{sign}{bytes}/s"),
    }
}

/// `3 (ceiling 2, age 1)`.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let sum: u64 = counts.values().sum();
    if sum == 0 {
        return "0".to_owned();
    }
    let each: Vec<_> = counts
        .iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    format!("{sum} ({})", each.join(", "))
}

/// The name of what is held against the ceiling.
fn measure(snapshot: &Snapshot) -> &str {
    match snapshot.measure.as_str() {
        "" => "private",
        measure => measure,
    }
}

/// The figure that is held against the ceiling; private where it has not been looked at.
fn measured(snapshot: &Snapshot, memory: &MemoryView) -> Bytes {
    let figure = match measure(snapshot) {
        "rss" => Some(memory.rss),
        "pss" => memory.pss,
        "cgroup" => memory.cgroup,
        _ => None,
    };
    figure.unwrap_or(memory.private)
}

fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept = line.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use crate::{
        supervisor::report::{Cause, Limits, Who},
        units::WorkerId,
    };

    use super::*;

    fn snapshot() -> Snapshot {
        let effective = |mib, from: &str| Effective {
            bytes: Some(Bytes::mib(mib)),
            from: from.to_owned(),
        };
        let worker = |id, pid, state: &str, private, slope_bps| WorkerView {
            id,
            pid,
            slot: 0,
            state: state.to_owned(),
            age: Duration::from_secs(200),
            tasks: None,
            processes: 1,
            memory: MemoryView {
                private: Bytes::mib(private),
                rss: Bytes::mib(290),
                peak: Bytes::mib(private),
                slope_bps,
                to_ceiling: slope_bps.map(|_| Duration::from_secs(75)),
                ..MemoryView::default()
            },
        };
        let w1 = WorkerId::FIRST;
        Snapshot {
            name: "shop".to_owned(),
            mode: "server".to_owned(),
            command_pid: Some(40),
            ready: true,
            caps: CapMechanism::CgroupV1,
            enforced: true,
            wire: true,
            limits: Limits {
                available: Bytes::mib(2048),
                ceiling: effective(300, "given"),
                cap: effective(600, "twice the ceiling"),
                budget: effective(1843, "90% of 2G"),
            },
            workers: vec![
                worker(w1.next(), 42, "ready", 210, Some(1_258_291.0)),
                worker(w1.next().next(), 4343, "starting", 12, None),
            ],
            recycles: BTreeMap::from([("age".to_owned(), 1), ("ceiling".to_owned(), 2)]),
            ends: vec![End {
                who: Who::Worker(w1),
                pid: 41,
                cause: Cause::Ceiling,
                memory: Bytes::mib(301),
                peak: Bytes::mib(302),
                limit: Some(Bytes::mib(300)),
                age: Duration::from_secs(42),
                tasks: None,
                drain: Some(Duration::from_millis(300)),
                killed: false,
                at: Timestamp::from_nanos(10_000_000_000),
            }],
            ..Snapshot::default()
        }
    }

    fn page(snapshot: &Snapshot, width: usize) -> String {
        let about = About {
            pid: 38,
            version: "0.1.0".to_owned(),
            up: Duration::from_secs(7380),
            now: Timestamp::from_nanos(40_000_000_000),
        };
        table(snapshot, &about, width)
    }

    #[test]
    fn a_healthy_service_reads_at_a_glance() {
        let expected = "\
shop       ready, server, up 2h 3m, command pid 40; supervise 0.1.0 pid 38

ceiling    300M (given), against private memory
cap        600M (twice the ceiling)
budget     1.80G (90% of 2G); 2G available
held by    cgroup v1; a trip wire says when the ceiling is near

ID   PID  STATE        AGE  MEMORY  PEAK  OF CEILING     SLOPE  TO CEILING  PROCS
w2    42  ready     3m 20s    210M  210M         70%  +1.20M/s      1m 15s      1
w3  4343  starting  3m 20s     12M   12M          4%         -           -      1

recycled   3 (age 1, ceiling 2)
unplanned  0
restarts   0

  ENDED  WORKER  PID  CAUSE    MEMORY  PEAK  LIMIT  AGE  DRAIN
30s ago  w1       41  ceiling    301M  302M   300M  42s   0.3s
";
        assert_eq!(page(&snapshot(), 100), expected);
    }

    #[test]
    fn a_cap_that_does_not_hold_is_said_with_its_reason_on_a_narrow_screen_too() {
        let snapshot = Snapshot {
            ready: false,
            command_pid: None,
            caps: CapMechanism::Rlimit,
            enforced: false,
            wire: false,
            why_not: Some("no memory controller is delegated; set Delegate=yes".to_owned()),
            measure: "rss".to_owned(),
            limits: Limits {
                budget: Effective::default(),
                ..snapshot().limits
            },
            workers: snapshot().workers.split_off(1),
            ends: Vec::new(),
            ..snapshot()
        };
        let expected = "\
shop       not ready, server, up 2h 3m, no command;
           supervise 0.1.0 pid 38

ceiling    300M (given), against rss memory
cap        600M (twice the ceiling)
budget     none; 2G available
held by    RLIMIT_DATA, each process by itself; no trip
           wire, samples find the ceiling
WARNING    the cap does not hold for whole workers: no
           memory controller is delegated; set
           Delegate=yes

ID   PID  STATE        AGE  MEMORY  PEAK  OF CEILING  S…
w3  4343  starting  3m 20s    290M   12M         97%   …

recycled   3 (age 1, ceiling 2)
unplanned  0
restarts   0
";
        assert_eq!(page(&snapshot, 56), expected);
    }
}
