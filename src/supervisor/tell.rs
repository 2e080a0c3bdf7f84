//! Reports in words: for each one its kind, its level, a sentence for people and its figures for
//! programs. Log, events and metrics take their words from here, so that all of them agree.

use std::time::Duration;

use crate::units::Bytes;

use super::report::{Cause, Effective, End, Limits, Report, Who};

/// A report as it is kept and handed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Counts up from 1 within one life of the supervisor.
    pub id: u64,
    /// When, in Unix seconds.
    pub at: f64,
    /// The same on the machine's monotonic clock, for comparing with what other processes note.
    pub mono_ns: u64,
    /// What.
    pub report: Report,
}

/// How much a report matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// As it is meant to be.
    Info,
    /// Somebody should know.
    Warn,
    /// Somebody must do something.
    Error,
}

/// One figure of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A word.
    Text(String),
    /// A size.
    Bytes(Bytes),
    /// A span of time.
    Seconds(Duration),
    /// A count or an identity.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

/// Figures by their names, in the order in which they are best read.
pub type Facts = Vec<(&'static str, Fact)>;

impl Report {
    /// Its name. `docs/events.md` lists them all.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Limits(_) => "limits",
            Self::Started { .. } => "started",
            Self::Ready { .. } => "ready",
            Self::WorkerSeen { .. } => "worker-seen",
            Self::WorkerReady { .. } => "worker-ready",
            Self::Due { .. } => "due",
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::Draining { .. } => "draining",
            Self::Killed { .. } => "killed",
            Self::Ended(end) => match end.who {
                Who::Worker(_) => "worker-ended",
                Who::Server => "server-ended",
            },
            Self::Restarting { .. } => "restarting",
            Self::GaveUp { .. } => "gave-up",
            Self::Stopping => "stopping",
            Self::Stopped { .. } => "stopped",
            Self::Warning(_) => "warning",
        }
    }

    /// How much it matters.
    pub const fn level(&self) -> Level {
        match self {
            Self::Limits(_)
            | Self::Started { .. }
            | Self::Ready { .. }
            | Self::WorkerSeen { .. }
            | Self::WorkerReady { .. }
            | Self::Due { .. }
            | Self::Raised
            | Self::Lowered
            | Self::Draining { .. }
            | Self::Stopping
            | Self::Stopped { .. } => Level::Info,
            Self::Killed { .. } | Self::Restarting { .. } | Self::Warning(_) => Level::Warn,
            Self::Ended(end) if end.killed || !end.cause.is_expected() => Level::Warn,
            Self::Ended(_) => Level::Info,
            Self::GaveUp { .. } => Level::Error,
        }
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Limits(limits) => limits_message(limits),
            Self::Started { run, pid } => format!("{run} started as pid {pid}"),
            Self::Ready { run, after } => format!("{run} is ready after {}", span(*after)),
            Self::WorkerSeen { worker, pid } => format!("{worker} seen as pid {pid}"),
            Self::WorkerReady { worker, after } => {
                format!("{worker} is ready after {}", span(*after))
            }
            Self::Due {
                worker,
                cause,
                memory,
                limit,
                dry_run,
            } => {
                let figures = memory_of(*memory, *limit);
                if *dry_run {
                    format!("{worker} would be recycled: {cause} ({figures}); a dry run leaves it")
                } else {
                    format!("{worker} is to be recycled: {cause} ({figures})")
                }
            }
            Self::Raised => "one more worker is raised before one goes".to_owned(),
            Self::Lowered => "the spare worker is given back".to_owned(),
            Self::Draining { worker, cause } => format!("{worker} drains: {cause}"),
            Self::Killed { worker } => {
                format!("{worker} did not go in its time and was killed with its helpers")
            }
            Self::Ended(end) => end_message(end),
            Self::Restarting { run, after } => format!("{run} starts in {}", span(*after)),
            Self::GaveUp { ends, window } => {
                format!("given up: {ends} ends within {}", span(*window))
            }
            Self::Stopping => "stopping".to_owned(),
            Self::Stopped { status } => format!("stopped with exit status {status}"),
            Self::Warning(text) => text.clone(),
        }
    }

    /// Its figures. What is not known is left out.
    pub fn facts(&self) -> Facts {
        match self {
            Self::Limits(limits) => limits_facts(limits),
            Self::Started { run, pid } => vec![("run", Fact::Number(run.0)), ("pid", number(*pid))],
            Self::Ready { run, after } | Self::Restarting { run, after } => {
                vec![
                    ("run", Fact::Number(run.0)),
                    ("after_s", Fact::Seconds(*after)),
                ]
            }
            Self::WorkerSeen { worker, pid } => {
                vec![("worker", word(worker)), ("pid", number(*pid))]
            }
            Self::WorkerReady { worker, after } => {
                vec![("worker", word(worker)), ("after_s", Fact::Seconds(*after))]
            }
            Self::Due {
                worker,
                cause,
                memory,
                limit,
                dry_run,
            } => {
                let mut facts = vec![
                    ("worker", word(worker)),
                    ("cause", word(cause)),
                    ("memory", Fact::Bytes(*memory)),
                ];
                facts.extend(limit.map(|limit| ("limit", Fact::Bytes(limit))));
                facts.push(("dry_run", Fact::Flag(*dry_run)));
                facts
            }
            Self::Draining { worker, cause } => {
                vec![("worker", word(worker)), ("cause", word(cause))]
            }
            Self::Killed { worker } => vec![("worker", word(worker))],
            Self::Ended(end) => end_facts(end),
            Self::GaveUp { ends, window } => vec![
                ("ends", Fact::Number(u64::from(*ends))),
                ("window_s", Fact::Seconds(*window)),
            ],
            Self::Stopped { status } => vec![("status", number(*status))],
            Self::Raised | Self::Lowered | Self::Stopping | Self::Warning(_) => Vec::new(),
        }
    }
}

/// A span of time in at most two units: `80ms`, `0.3s`, `42s`, `3m 20s`, `2h 3m`, `4d 1h`.
pub fn span(time: Duration) -> String {
    const TWO: [(&str, &str, u64, u64); 3] = [
        ("d", "h", 86_400, 3_600),
        ("h", "m", 3_600, 60),
        ("m", "s", 60, 1),
    ];
    let seconds = time.as_secs();
    for (great, small, great_s, small_s) in TWO {
        if seconds >= great_s {
            let (many, rest) = (seconds / great_s, (seconds % great_s) / small_s);
            return format!("{many}{great} {rest}{small}");
        }
    }
    match time.as_millis() {
        0 => "0s".to_owned(),
        millis @ 1..100 => format!("{millis}ms"),
        100..10_000 => format!("{:.1}s", time.as_secs_f64()),
        _ => format!("{seconds}s"),
    }
}

fn limits_message(limits: &Limits) -> String {
    let one = |name: &str, limit: &Effective| match limit.bytes {
        Some(bytes) => format!("{name} {bytes} ({})", limit.from),
        None => format!("no {name}"),
    };
    format!(
        "limits: {}, {}, {}; {} available",
        one("ceiling", &limits.ceiling),
        one("cap", &limits.cap),
        one("budget", &limits.budget),
        limits.available,
    )
}

fn limits_facts(limits: &Limits) -> Facts {
    let mut facts = vec![("available", Fact::Bytes(limits.available))];
    for (name, from, limit) in [
        ("ceiling", "ceiling_from", &limits.ceiling),
        ("cap", "cap_from", &limits.cap),
        ("budget", "budget_from", &limits.budget),
    ] {
        facts.extend(limit.bytes.map(|bytes| (name, Fact::Bytes(bytes))));
        facts.push((from, Fact::Text(limit.from.clone())));
    }
    facts
}

/// `w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)`.
fn end_message(end: &End) -> String {
    let by = if end.cause == Cause::Cap {
        ", ended by the kernel at its cap"
    } else if end.cause == Cause::Oom {
        ", ended by the kernel for memory missing elsewhere"
    } else if end.cause == Cause::Budget {
        ", ended for the budget of all"
    } else {
        ""
    };
    let mut figures = format!(
        "{}, peak {}, age {}",
        memory_of(end.memory, end.limit),
        end.peak,
        span(end.age)
    );
    if let Some(tasks) = end.tasks {
        figures.push_str(&format!(", {tasks} tasks"));
    }
    match (end.drain, end.killed) {
        (Some(drain), true) => figures.push_str(&format!(", killed after {}", span(drain))),
        (Some(drain), false) => figures.push_str(&format!(", drained in {}", span(drain))),
        (None, true) => figures.push_str(", killed"),
        (None, false) => {}
    }
    format!("{} ended: {}{by} ({figures})", end.who, end.cause)
}

fn end_facts(end: &End) -> Facts {
    let mut facts = Facts::new();
    if let Who::Worker(worker) = &end.who {
        facts.push(("worker", word(worker)));
    }
    facts.extend([
        ("pid", number(end.pid)),
        ("cause", word(&end.cause)),
        ("memory", Fact::Bytes(end.memory)),
        ("peak", Fact::Bytes(end.peak)),
    ]);
    facts.extend(end.limit.map(|limit| ("limit", Fact::Bytes(limit))));
    facts.push(("age_s", Fact::Seconds(end.age)));
    facts.extend(end.tasks.map(|tasks| ("tasks", Fact::Number(tasks))));
    facts.extend(end.drain.map(|drain| ("drain_s", Fact::Seconds(drain))));
    facts.push(("killed", Fact::Flag(end.killed)));
    facts
}

fn memory_of(memory: Bytes, limit: Option<Bytes>) -> String {
    match limit {
        Some(limit) => format!("memory {memory} of {limit}"),
        None => format!("memory {memory}"),
    }
}

fn word(shown: &impl ToString) -> Fact {
    Fact::Text(shown.to_string())
}

/// Pids and exit statuses are never negative.
fn number(of: i32) -> Fact {
    Fact::Number(u64::try_from(of).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::units::{RunId, Timestamp, WorkerId};

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/events.md");

    fn end(who: Who, cause: Cause) -> End {
        End {
            who,
            pid: 4242,
            cause,
            memory: Bytes::mib(301),
            peak: Bytes::mib(302),
            limit: Some(Bytes::mib(300)),
            age: Duration::from_secs(42),
            tasks: Some(7),
            drain: Some(Duration::from_millis(300)),
            killed: false,
            at: Timestamp::default(),
        }
    }

    /// One report of each kind, every optional figure present.
    fn every() -> Vec<Report> {
        let (worker, run) = (WorkerId::FIRST, RunId(1));
        let (pid, after, cause) = (4242, Duration::from_millis(1200), Cause::Ceiling);
        let limit = |from: &str| Effective {
            bytes: Some(Bytes::mib(300)),
            from: from.to_owned(),
        };
        vec![
            Report::Limits(Limits {
                available: Bytes::mib(2048),
                ceiling: limit("given"),
                cap: limit("twice the ceiling"),
                budget: limit("90% of 2G"),
            }),
            Report::Started { run, pid },
            Report::Ready { run, after },
            Report::WorkerSeen { worker, pid },
            Report::WorkerReady { worker, after },
            Report::Due {
                worker,
                cause,
                memory: Bytes::mib(301),
                limit: Some(Bytes::mib(300)),
                dry_run: false,
            },
            Report::Raised,
            Report::Lowered,
            Report::Draining { worker, cause },
            Report::Killed { worker },
            Report::Ended(end(Who::Worker(worker), cause)),
            Report::Ended(end(Who::Server, Cause::Exit(3))),
            Report::Restarting { run, after },
            Report::GaveUp {
                ends: 6,
                window: Duration::from_secs(60),
            },
            Report::Stopping,
            Report::Stopped { status: 0 },
            Report::Warning("the cap is not held".to_owned()),
        ]
    }

    fn said(report: &Report, message: &str) {
        assert_eq!(report.message(), message);
    }

    #[test]
    fn an_end_names_its_cause_its_figure_and_its_limit() {
        let mut end = end(Who::Worker(WorkerId::FIRST.next().next()), Cause::Ceiling);
        end.tasks = None;
        said(
            &Report::Ended(end.clone()),
            "w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)",
        );
        end.killed = true;
        assert_eq!(Report::Ended(end).level(), Level::Warn);
    }

    #[test]
    fn a_job_that_met_its_cap_reads_so() {
        let mut end = end(Who::Worker(WorkerId::FIRST), Cause::Cap);
        (end.tasks, end.drain) = (None, None);
        said(
            &Report::Ended(end),
            "w1 ended: cap, ended by the kernel at its cap (memory 301M of 300M, peak 302M, \
             age 42s)",
        );
    }

    #[test]
    fn a_limit_that_is_off_is_said() {
        let limits = Limits {
            available: Bytes::mib(2048),
            ceiling: Effective {
                bytes: Some(Bytes::mib(300)),
                from: "given".to_owned(),
            },
            ..Limits::default()
        };
        said(
            &Report::Limits(limits),
            "limits: ceiling 300M (given), no cap, no budget; 2G available",
        );
    }

    #[test]
    fn spans_have_at_most_two_units() {
        for (millis, text) in [
            (0, "0s"),
            (80, "80ms"),
            (300, "0.3s"),
            (42_000, "42s"),
            (200_000, "3m 20s"),
            (7_380_000, "2h 3m"),
            (349_200_000, "4d 1h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn the_document_lists_every_kind_with_its_facts_and_no_other() {
        let told: BTreeSet<String> = every()
            .iter()
            .map(|report| {
                let facts: Vec<_> = report.facts().iter().map(|(name, _)| *name).collect();
                format!("{}: {}", report.kind(), facts.join(" "))
            })
            .collect();
        let documented: BTreeSet<String> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| {
                let cells: Vec<_> = row.split(" | ").collect();
                let (kind, facts) = (cells[0].trim_end_matches('`'), cells[2]);
                format!("{kind}: {}", facts.replace([',', '`'], ""))
            })
            .collect();
        assert_eq!(told, documented);
    }
}
