//! TALKS TO OPERATORS. HTTP/1.1 and JSON: on a Unix socket that only its owner may use, and
//! read-only on a TCP port if one is configured.
//!
//! This module parses requests and sends responses. The driver answers: it receives each request as
//! a [`PendingRequest`].

use tokio::sync::{broadcast, oneshot};

use crate::{
    supervisor::{action::Answer, event_format::EventRecord, input::Ask},
    units::ReportId,
};

mod access;
pub mod client;
pub mod documents;
mod growth;
mod listener;
pub mod listeners;
mod routes;
pub mod server;
mod translate;
mod translate_processes;

pub use listener::ControlError;
pub use translate::{Context, InvalidStatus};

/// One request that waits for its answer. The client may have disconnected by then.
#[derive(Debug)]
pub struct PendingRequest {
    /// The question.
    pub question: Question,
    /// Takes the answer. If it is dropped, the client gets the answer that the service is ending.
    pub reply: oneshot::Sender<Reply>,
}

/// Everything a client can ask.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// The state of the service.
    Status,
    /// The events.
    Events {
        /// Only events with a greater id.
        after: Option<u64>,
        /// New events as well, as they happen.
        follow: bool,
    },
    /// All kept reports. Answered by a `Document`.
    Reports,
    /// One report. Answered by a `Document`, or by `Answer::Unknown`.
    Report(ReportId),
    /// The curves and the lives of workers. Answered by a `Document`.
    History,
    /// Prometheus text.
    Metrics,
    /// Whether the supervisor works.
    Health,
    /// Whether the service is ready.
    Readiness,
    /// A change. It is answered when it is done or refused. A request for a report is answered by
    /// its `Document`.
    Do(Ask),
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Reply {
    /// To `Status`.
    Status(Box<documents::Status>),
    /// To `Events`.
    Events {
        /// Oldest first.
        past: Vec<EventRecord>,
        /// The events after `past` without a gap, for a client that follows.
        live: Option<broadcast::Receiver<EventRecord>>,
    },
    /// To `Reports`, `Report` and `History`: a JSON text.
    Document(String),
    /// To `Metrics`.
    Text(String),
    /// To `Health` and `Readiness`.
    Is {
        /// The answer.
        ok: bool,
        /// The reason, if the answer is no.
        why: String,
    },
    /// To `Do`.
    Answer(Answer),
}
