//! THE SOURCES OF TASKS and the sinks of their results.
//!
//! A [`Source`] gives tasks, and a [`Sink`] takes their outcomes. `supervise map` uses lines of
//! JSON (`lines`, `results`) with a `journal`; a `supervise.Executor` uses its socket (`executor`).
//! The event loop uses only the two traits.

pub mod executor;
mod input_hashes;
mod journal;
mod lines;
mod parse;
mod record;
mod replay;
mod result_json;
mod results;
mod seq_set;

use std::{
    io,
    task::{Context, Poll},
};

pub use self::{
    journal::Journal,
    lines::{Format, Input, Lines},
    results::{Order, ReaderGone, Results},
    seq_set::SeqSet,
};
use crate::units::{Bytes, WorkerId};

/// The cause of the failures of all tasks if no worker could be started.
pub const START_FAILED: &str = "start-failed";

/// A task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Task {
    /// The number of the task in its source, from 1. Numbers are unique.
    pub seq: u64,
    /// The id as JSON text. Without one, the number is the id.
    pub id: Option<Box<str>>,
    /// Tasks with the same key need about the same memory. All tasks without a key count as one.
    pub key: Option<Box<str>>,
    /// The body of the frame that sends the task to a worker.
    pub body: Box<[u8]>,
}

/// An item of a source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Given {
    /// A task.
    Task(Task),
    /// An item that cannot be read as a task. It has a result like any task, with the cause
    /// `unreadable`.
    Bad {
        /// The number of the item in its source.
        seq: u64,
        /// The id as JSON text, if it could be read.
        id: Option<Box<str>>,
        /// The error.
        message: String,
        /// The item looks like plain text rather than malformed JSON.
        is_text: bool,
    },
}

impl Given {
    /// The number of the item in its source.
    pub const fn seq(&self) -> u64 {
        match self {
            Self::Task(task) => task.seq,
            Self::Bad { seq, .. } => *seq,
        }
    }
}

/// The outcome of a task. Each task has exactly one.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The number of the task in its source.
    pub seq: u64,
    /// The id of the task as JSON text, if it has one.
    pub id: Option<Box<str>>,
    /// The worker of the last attempt.
    pub worker: Option<WorkerId>,
    /// The running time of the last attempt.
    pub micros: u64,
    /// The peak memory of that worker up to the end of the task.
    pub peak: Option<Bytes>,
    /// Whether it succeeded.
    pub verdict: Verdict,
}

impl Outcome {
    /// Whether the outcome belongs in a journal. If no worker could be started, the task was not
    /// tried: a resumed run runs it.
    fn is_final(&self) -> bool {
        match &self.verdict {
            Verdict::Done(_) => true,
            Verdict::Failed(failure) => failure.cause != START_FAILED,
        }
    }
}

/// Whether a task succeeded.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The task returned this value, as encoded by its worker.
    Done(Box<[u8]>),
    /// The task failed.
    Failed(Failure),
}

/// Why a task failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// `exception`, `cap`, `timeout`, `exit:N`, `signal:NAME`, `unserializable`, `start-failed`,
    /// `unreadable`.
    pub cause: String,
    /// The number of attempts.
    pub attempts: u32,
    /// The exception or message.
    pub detail: Detail,
}

/// Details of a failure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Detail {
    /// The exception as encoded by its worker: for lines a JSON object with `type`, `message` and
    /// `traceback`, for an executor the same with a pickle.
    Raised(Box<[u8]>),
    /// A message of the supervisor, if the worker could not send one.
    Message(String),
}

/// Gives tasks, in order.
pub trait Source {
    /// Adds up to `at_most` tasks to `into`. `Ready(true)`: there may be more. `Ready(false)`:
    /// these were the last ones.
    ///
    /// # Errors
    /// No more tasks can be read. Tasks that were given before are still finished.
    fn poll_tasks(
        &mut self,
        cx: &mut Context<'_>,
        at_most: usize,
        into: &mut Vec<Given>,
    ) -> Poll<io::Result<bool>>;

    /// Ready when the client that submits the tasks has gone, so that their outcomes are not
    /// needed. It is polled even while no tasks are taken, and after the last task.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }
}

/// Takes outcomes.
pub trait Sink {
    /// A worker is ready, or the pool has finished without one. Before this call, a sink does not
    /// change its output. It may be called several times.
    fn begin(&mut self) {}

    /// The task `seq` was given, and its outcome will follow. Called for each task, in the order in
    /// which tasks are given. Only a sink that writes outcomes in order needs it.
    fn expect(&mut self, seq: u64) {
        let _ = seq;
    }

    /// Takes an outcome. Outcomes come in the order in which tasks end. A sink never refuses one,
    /// because tasks that run will end. No new tasks are given while [`Self::poll_room`] is
    /// pending.
    fn put(&mut self, outcome: Outcome);

    /// Maximum number of unfinished tasks. The client may keep the other tasks.
    fn credit(&mut self, tasks: usize) {
        let _ = tasks;
    }

    /// All tasks have outcomes, and there are no more tasks.
    fn complete(&mut self) {}

    /// No worker could be started. `error` is JSON with `type`, `message` and `traceback`.
    fn give_up(&mut self, error: &[u8]) {
        let _ = error;
    }

    /// All outcomes of this turn of the loop were put. A sink that buffers outcomes may send them.
    fn flush(&mut self) {}

    /// Ready when the number and size of unwritten outcomes are below their limits.
    ///
    /// # Errors
    /// Results cannot be written. `ConnectionAborted` and `BrokenPipe`: their reader has gone, so
    /// the running tasks need not be finished.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when all outcomes are written.
    ///
    /// # Errors
    /// Some of them cannot be written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

#[cfg(test)]
mod tests {
    use std::{
        future,
        io::{self, Write},
        sync::{Arc, Mutex},
        task::{Context, Poll},
    };

    use super::{Journal, Order, Results, Sink as _};

    /// An output in memory that the test can read.
    #[derive(Clone, Default)]
    pub(super) struct MemoryOutput(pub(super) Arc<Mutex<Vec<u8>>>);

    impl Write for MemoryOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Starts `Results` and calls `begin`. `lines` are the input lines that count as read.
    pub(super) fn begun<W: Write + Send + 'static>(
        output: W,
        order: Order,
        journal: Option<Journal>,
        lines: std::ops::Range<u64>,
    ) -> Results {
        if let Some(journal) = &journal {
            let hashes = lines.map(|line| (line, line)).collect();
            journal.input_check().send(hashes);
        }
        let mut results = Results::start(output, order, journal).unwrap();
        results.begin();
        results
    }

    /// Waits like the event loop.
    pub(super) fn wait<T>(poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(future::poll_fn(poll))
    }
}
