//! TALKS TO OPERATORS. What can be asked, and by which door: HTTP/1.1 and JSON on a Unix socket
//! that only its owner may use, and the reading half over TCP where that is wished for.
//!
//! This room asks and somebody else answers: each request becomes one [`Asked`].

use tokio::sync::{broadcast, oneshot};

use crate::{
    supervisor::{action::Answer, event::Ask, tell::Told},
    units::ReportId,
};

mod access;
pub mod client;
mod door;
pub mod doors;
mod routes;
pub mod server;
mod translate;
pub mod wire;

pub use door::ControlError;
pub use translate::{Context, Misread};

/// One request that waits for its answer. Whoever asked may be gone when it comes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes. Dropped without one, it says that the service is ending.
    pub reply: oneshot::Sender<Reply>,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// The whole picture.
    Status,
    /// What happened.
    Events {
        /// Only what has a greater id.
        after: Option<u64>,
        /// And what happens from now on.
        follow: bool,
    },
    /// All reports that are kept. Answered by a `Document`.
    Reports,
    /// One of them. Answered by a `Document`, or by `Answer::Unknown`.
    Report(ReportId),
    /// Prometheus text.
    Metrics,
    /// Is the supervisor itself well?
    Health,
    /// Does the service answer?
    Readiness,
    /// A change. Answered when it has come true or was refused; a report that was asked for is
    /// answered by its `Document`.
    Do(Ask),
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Reply {
    /// To `Status`.
    Status(Box<wire::Status>),
    /// To `Events`.
    Events {
        /// Oldest first.
        past: Vec<Told>,
        /// What comes after `past` without a gap, for those who follow.
        live: Option<broadcast::Receiver<Told>>,
    },
    /// To `Reports` and `Report`: a JSON text as it is.
    Document(String),
    /// To `Metrics`.
    Text(String),
    /// To `Health` and `Readiness`.
    Is {
        /// Yes or no.
        ok: bool,
        /// Why not.
        why: String,
    },
    /// To `Do`.
    Answer(Answer),
}
