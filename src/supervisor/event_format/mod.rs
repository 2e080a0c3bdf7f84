//! The format of events: each event has a kind, a level, a sentence for people and typed fields for
//! programs. The log, `supervise events` and the control API all take them from here.

mod processes;
mod sentences;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

use super::event::{Event, Who};

use sentences::{number, seconds, text};

pub(super) use sentences::end_message;
pub use sentences::span;

/// An event with its number and its time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EventRecord {
    /// The number of the event, from 1 at the start of the supervisor.
    pub id: u64,
    /// The time, in Unix seconds.
    pub at: f64,
    /// The time on the machine's monotonic clock, for comparing with records of other processes.
    pub mono_ns: u64,
    /// The event.
    pub event: Event,
}

/// The importance of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// The reason of a decision. Neither logged nor kept without `--verbose`.
    Debug,
    /// Normal operation.
    Info,
    /// An operator should know about it.
    Warn,
    /// An operator must act.
    Error,
}

/// One typed field of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// A text.
    Text(String),
    /// A size.
    Bytes(Bytes),
    /// A duration.
    Seconds(Duration),
    /// A count or an identity.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

/// Fields and their names, the most important first.
pub type Fields = Vec<(&'static str, Field)>;

impl Event {
    /// The name of its kind. `docs/events.md` lists them all.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Limits(_) => "limits",
            Self::Started { .. } => "started",
            Self::Ready { .. } => "ready",
            Self::WorkerSeen { .. } => "worker-seen",
            Self::ServerFound { .. } => "server-found",
            Self::ServerHelper { .. } => "server-helper",
            Self::WorkerReady { .. } => "worker-ready",
            Self::Due { .. } => "due",
            Self::Rescued { .. } => "rescued",
            Self::LeftBehind(_) => "left-behind",
            Self::LeftoverEnded(..) => "leftover-ended",
            Self::CeilingShared(_) => "ceiling-shared",
            Self::Armed { .. } => "armed",
            Self::Reported { .. } => "reported",
            Self::Pressed { .. } => "pressed",
            Self::Chosen { .. } => "copies-chosen",
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::Suspended { .. } => "recycling-suspended",
            Self::Resumed { .. } => "recycling-resumed",
            Self::Draining { .. } => "draining",
            Self::StopExtended(_) => "stop-extended",
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
            Self::Suggested(_) => "suggested",
            Self::Warning(_) => "warning",
            Self::Reason { .. } => "reason",
        }
    }

    /// Its importance.
    pub const fn level(&self) -> Level {
        match self {
            Self::Limits(_)
            | Self::Started { .. }
            | Self::Ready { .. }
            | Self::WorkerSeen { .. }
            | Self::ServerFound { .. }
            | Self::ServerHelper { .. }
            | Self::WorkerReady { .. }
            | Self::Due { .. }
            | Self::Rescued { .. }
            | Self::LeftBehind(_)
            | Self::LeftoverEnded(..)
            | Self::Armed { .. }
            | Self::Reported { .. }
            | Self::Chosen { .. }
            | Self::Raised
            | Self::Lowered
            | Self::Resumed { .. }
            | Self::Draining { .. }
            | Self::Upgraded { .. }
            | Self::Stopping
            | Self::Stopped { .. }
            | Self::Suggested(_)
            | Self::Unwatched { workers: 0, .. } => Level::Info,
            Self::Pressed { .. }
            | Self::CeilingShared(_)
            | Self::Killed { .. }
            | Self::Restarting { .. }
            | Self::Suspended { .. }
            | Self::Unwatched { .. }
            | Self::Warning(_) => Level::Warn,
            Self::StopExtended(extended) if extended.cut => Level::Warn,
            Self::StopExtended(_) => Level::Info,
            Self::Ended(end) if end.killed || !end.cause.is_expected() => Level::Warn,
            Self::Ended(_) => Level::Info,
            Self::GaveUp { .. } => Level::Error,
            Self::Reason { .. } => Level::Debug,
        }
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Limits(limits) => sentences::limits_message(limits),
            Self::Started { run, pid } => format!("command started (pid {pid}, start {})", run.0),
            Self::Ready { run, after } => {
                format!("service is ready after {} (start {})", span(*after), run.0)
            }
            Self::WorkerSeen { worker, pid } => format!("{worker} started (pid {pid})"),
            Self::ServerFound { pid, server } => sentences::server_message(*pid, server),
            Self::ServerHelper { pid, command } => sentences::helper_message(*pid, command),
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
                let why = sentences::due_message(*cause, *memory, *limit, *configured);
                format!("{worker}: {why}; {}", sentences::due_action(*dry_run))
            }
            Self::Rescued {
                worker,
                freed,
                memory,
                times,
            } => sentences::rescue_message(*worker, *freed, *memory, *times),
            Self::LeftBehind(left) => sentences::left_message(left),
            Self::LeftoverEnded(left, idle) => sentences::leftover_message(left, *idle),
            Self::CeilingShared(shared) => processes::shared_message(shared),
            Self::Armed {
                worker,
                memory,
                baseline,
            } => format!("{worker}: {memory}, {baseline} after warm-up; tracing its allocations"),
            Self::Reported {
                report,
                worker,
                cause,
                summary,
            } => format!("memory report {report} of {worker} ({cause}): {summary}"),
            Self::Pressed { memory, budget } => sentences::pressed_message(*memory, *budget),
            Self::Chosen { workers, why } => format!("copies: {workers} ({why})"),
            Self::Raised => "starting the replacement first".to_owned(),
            Self::Lowered => "retiring the surge worker".to_owned(),
            Self::Suspended { why, down } => sentences::suspended_message(why, *down),
            Self::Resumed { why } => format!("{why}; recycling resumes"),
            Self::Draining { worker, cause } => sentences::draining_message(*worker, *cause),
            Self::StopExtended(extended) => sentences::extended_message(extended),
            Self::Killed { worker } => sentences::killed_message(*worker),
            Self::Ended(end) => sentences::end_message(end),
            Self::Restarting { run, after } => sentences::restarting_message(*run, *after),
            Self::GaveUp { ends, window, last } => sentences::gave_up_message(*ends, *window, last),
            Self::Upgraded { version, from } => {
                format!(
                    "upgraded from supervise {from} to {version}; workers and sockets were kept"
                )
            }
            Self::Stopping => "stopping".to_owned(),
            Self::Stopped { status } => format!("stopped with exit status {status}"),
            Self::Unwatched { workers, limit } => sentences::unwatched_message(*workers, *limit),
            Self::Suggested(suggested) => suggested.text.clone(),
            Self::Warning(text) => text.clone(),
            Self::Reason { worker, text } => sentences::reason_message(*worker, text),
        }
    }

    /// Its fields. A field without a value is left out.
    pub fn fields(&self) -> Fields {
        match self {
            Self::Limits(limits) => sentences::limits_fields(limits),
            Self::Started { run, pid } => sentences::started_fields(*run, *pid),
            Self::Ready { run, after } | Self::Restarting { run, after } => {
                vec![("run", Field::Number(run.0)), seconds("after_s", *after)]
            }
            Self::WorkerSeen { worker, pid } => {
                vec![("worker", text(worker)), ("pid", number(*pid))]
            }
            Self::ServerFound { pid, server } => sentences::process_fields(*pid, "server", server),
            Self::ServerHelper { pid, command } => {
                sentences::process_fields(*pid, "command", command)
            }
            Self::WorkerReady { worker, after } => {
                vec![("worker", text(worker)), seconds("after_s", *after)]
            }
            Self::Due {
                worker,
                cause,
                memory,
                limit,
                configured,
                dry_run,
            } => {
                let about = [("worker", text(worker)), ("cause", text(cause))].into();
                sentences::due_fields(about, *memory, (*limit, *configured), *dry_run)
            }
            Self::Rescued {
                worker,
                freed,
                memory,
                times,
            } => sentences::rescue_fields(*worker, *freed, *memory, *times),
            Self::LeftBehind(left) => sentences::left_fields(left, None),
            Self::LeftoverEnded(left, idle) => sentences::left_fields(left, *idle),
            Self::CeilingShared(shared) => processes::shared_fields(shared),
            Self::Armed {
                worker,
                memory,
                baseline,
            } => sentences::armed_fields(*worker, *memory, *baseline),
            Self::Reported {
                report,
                worker,
                cause,
                summary,
            } => sentences::reported_fields(*report, *worker, *cause, summary),
            Self::Draining { worker, cause } => {
                vec![("worker", text(worker)), ("cause", text(cause))]
            }
            Self::Suspended { why, .. } | Self::Resumed { why } => vec![("why", text(why))],
            Self::Pressed { memory, budget } => sentences::pressed_fields(*memory, *budget),
            Self::StopExtended(extended) => sentences::extended_fields(extended),
            Self::Killed { worker } => vec![("worker", text(worker))],
            Self::Chosen { workers, why } => sentences::chosen_fields(*workers, why),
            Self::Ended(end) => sentences::end_fields(end),
            Self::GaveUp { ends, window, last } => sentences::gave_up_fields(*ends, *window, last),
            Self::Upgraded { version, from } => sentences::upgraded_fields(version, from),
            Self::Stopped { status } => vec![("status", number(*status))],
            Self::Unwatched { workers, limit } => sentences::unwatched_fields(*workers, *limit),
            Self::Suggested(suggested) => sentences::suggested_fields(suggested),
            Self::Reason { worker, text } => sentences::reason_fields(*worker, text),
            Self::Raised | Self::Lowered | Self::Stopping | Self::Warning(_) => Vec::new(),
        }
    }
}
