//! Reports in words: for each one its kind, its level, a sentence for people and its figures for
//! programs. Log, events and metrics take their words from here, so that all of them agree.

mod words;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

use super::report::{Report, Who};

use words::{number, word};

pub(super) use words::end_message;
pub use words::span;

/// A report as it is kept and handed on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
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
            Self::ServerHelper { .. } => "server-helper",
            Self::WorkerReady { .. } => "worker-ready",
            Self::Due { .. } => "due",
            Self::Rescued { .. } => "rescued",
            Self::LeftBehind(_) => "left-behind",
            Self::LeftoverEnded(..) => "leftover-ended",
            Self::Armed { .. } => "armed",
            Self::Reported { .. } => "reported",
            Self::Pressed { .. } => "pressed",
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::Suspended { .. } => "recycling-suspended",
            Self::Resumed { .. } => "recycling-resumed",
            Self::Draining { .. } => "draining",
            Self::Killed { .. } => "killed",
            Self::Ended(end) => match end.who {
                Who::Worker(_) => "worker-ended",
                Who::Server => "server-ended",
            },
            Self::Restarting { .. } => "restarting",
            Self::GaveUp { .. } => "gave-up",
            Self::Upgraded { .. } => "upgraded",
            Self::Stopping => "stopping",
            Self::Stopped { .. } => "stopped",
            Self::Unwatched { workers: 0, .. } => "watched",
            Self::Unwatched { .. } => "unwatched",
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
            | Self::ServerHelper { .. }
            | Self::WorkerReady { .. }
            | Self::Due { .. }
            | Self::Rescued { .. }
            | Self::LeftBehind(_)
            | Self::LeftoverEnded(..)
            | Self::Armed { .. }
            | Self::Reported { .. }
            | Self::Raised
            | Self::Lowered
            | Self::Resumed { .. }
            | Self::Draining { .. }
            | Self::Upgraded { .. }
            | Self::Stopping
            | Self::Stopped { .. }
            | Self::Unwatched { workers: 0, .. } => Level::Info,
            Self::Pressed { .. }
            | Self::Killed { .. }
            | Self::Restarting { .. }
            | Self::Suspended { .. }
            | Self::Unwatched { .. }
            | Self::Warning(_) => Level::Warn,
            Self::Ended(end) if end.killed || !end.cause.is_expected() => Level::Warn,
            Self::Ended(_) => Level::Info,
            Self::GaveUp { .. } => Level::Error,
        }
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Limits(limits) => words::limits_message(limits),
            Self::Started { run, pid } => format!("{run} started as pid {pid}"),
            Self::Ready { run, after } => format!("{run} is ready after {}", span(*after)),
            Self::WorkerSeen { worker, pid } => format!("{worker} seen as pid {pid}"),
            Self::ServerHelper { pid, command } => words::helper_message(*pid, command),
            Self::WorkerReady { worker, after } => {
                format!("{worker} is ready after {}", span(*after))
            }
            Self::Due {
                worker,
                cause,
                memory,
                limit,
                configured,
                dry_run,
            } => {
                let why = words::due_message(*cause, *memory, *limit, *configured);
                format!("{worker}: {why}; {}", words::then(*dry_run))
            }
            Self::Rescued {
                worker,
                freed,
                memory,
                times,
            } => words::rescue_message(*worker, *freed, *memory, *times),
            Self::LeftBehind(left) => words::left_message(left),
            Self::LeftoverEnded(left, idle) => words::leftover_message(left, *idle),
            Self::Armed {
                worker,
                memory,
                baseline,
            } => format!(
                "{worker} has grown to {memory} from {baseline}; its growth is traced for a while"
            ),
            Self::Reported {
                report,
                worker,
                cause,
                summary,
            } => format!("{report} says of {worker} ({cause}): {summary}"),
            Self::Pressed { memory, budget } => format!(
                "processes wait for memory: {}",
                words::memory_of(*memory, *budget)
            ),
            Self::Raised => "one more worker is raised before one goes".to_owned(),
            Self::Lowered => "the spare worker is given back".to_owned(),
            Self::Suspended { why, down } => words::suspended_message(why, *down),
            Self::Resumed { why } => format!("{why}; recycling resumes"),
            Self::Draining { worker, cause } => format!("{worker} drains: {cause}"),
            Self::Killed { worker } => {
                format!("{worker} did not go in its time and was killed with its helpers")
            }
            Self::Ended(end) => words::end_message(end),
            Self::Restarting { run, after } => format!("{run} starts in {}", span(*after)),
            Self::GaveUp { ends, window, last } => words::gave_up_message(*ends, *window, last),
            Self::Upgraded { version, from } => {
                format!("supervise {version} goes on where {from} stopped")
            }
            Self::Stopping => "stopping".to_owned(),
            Self::Stopped { status } => format!("stopped with exit status {status}"),
            Self::Unwatched { workers, limit } => words::unwatched(*workers, *limit),
            Self::Warning(text) => text.clone(),
        }
    }

    /// Its figures. What is not known is left out.
    pub fn facts(&self) -> Facts {
        match self {
            Self::Limits(limits) => words::limits_facts(limits),
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
            Self::ServerHelper { pid, command } => {
                vec![("pid", number(*pid)), ("command", word(command))]
            }
            Self::WorkerReady { worker, after } => {
                vec![("worker", word(worker)), ("after_s", Fact::Seconds(*after))]
            }
            Self::Due {
                worker,
                cause,
                memory,
                limit,
                configured,
                dry_run,
            } => {
                let mut facts = vec![
                    ("worker", word(worker)),
                    ("cause", word(cause)),
                    ("memory", Fact::Bytes(*memory)),
                ];
                facts.extend(limit.map(|limit| ("limit", Fact::Bytes(limit))));
                facts.extend(configured.map(|limit| ("configured", Fact::Bytes(limit))));
                facts.push(("dry_run", Fact::Flag(*dry_run)));
                facts
            }
            Self::Rescued {
                worker,
                freed,
                memory,
                times,
            } => words::rescue_facts(*worker, *freed, *memory, *times),
            Self::LeftBehind(left) => words::left_facts(left, None),
            Self::LeftoverEnded(left, idle) => words::left_facts(left, *idle),
            Self::Armed {
                worker,
                memory,
                baseline,
            } => words::armed_facts(*worker, *memory, *baseline),
            Self::Reported {
                report,
                worker,
                cause,
                summary,
            } => words::reported_facts(*report, *worker, *cause, summary),
            Self::Draining { worker, cause } => {
                vec![("worker", word(worker)), ("cause", word(cause))]
            }
            Self::Suspended { why, .. } | Self::Resumed { why } => vec![("why", word(why))],
            Self::Pressed { memory, budget } => words::pressed_facts(*memory, *budget),
            Self::Killed { worker } => vec![("worker", word(worker))],
            Self::Ended(end) => words::end_facts(end),
            Self::GaveUp { ends, window, last } => words::gave_up_facts(*ends, *window, last),
            Self::Upgraded { version, from } => {
                vec![("version", word(version)), ("from", word(from))]
            }
            Self::Stopped { status } => vec![("status", number(*status))],
            Self::Unwatched { workers, limit } => words::unwatched_facts(*workers, *limit),
            Self::Raised | Self::Lowered | Self::Stopping | Self::Warning(_) => Vec::new(),
        }
    }
}
