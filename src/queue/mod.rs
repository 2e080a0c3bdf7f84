//! WHERE TASKS COME FROM, and where results go.
//!
//! A [`Source`] gives tasks, a [`Sink`] takes what came of them. Lines of JSON (`lines`, `results`)
//! with a `journal` are the embedded default; the socket of a `supervise.Executor` (`frames`) is
//! another one. The dispatcher knows only the two traits.

pub mod executor;
mod input_hashes;
mod journal;
mod lines;
mod parse;
mod record;
mod replay;
mod results;
mod skip;
mod wording;

use std::{
    io,
    task::{Context, Poll},
};

pub use self::{
    journal::Journal,
    lines::{Format, Input, Lines},
    results::{Order, ReaderGone, Results},
    skip::Skip,
};
use crate::units::{Bytes, WorkerId};

/// The cause of the failures of all tasks if no worker could be started.
pub const START_FAILED: &str = "start-failed";

/// One thing to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Task {
    /// Its place in its source, from 1. Each comes once.
    pub seq: u64,
    /// Its name, as JSON text, where it has one of its own; else its place is its name.
    pub id: Option<Box<str>>,
    /// Tasks of one key need about the same memory; `None`: all that have none.
    pub key: Option<Box<str>>,
    /// What the worker gets.
    pub body: Box<[u8]>,
}

/// What a source gives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Given {
    /// Something to do.
    Task(Task),
    /// Something that cannot be read as a task. It has a result like any other, with the cause
    /// `unreadable`.
    Bad {
        /// Its place in its source.
        seq: u64,
        /// Its name, as JSON text, where that could be read.
        id: Option<Box<str>>,
        /// What is wrong with it.
        message: String,
        /// It looks like plain text rather than malformed JSON.
        is_text: bool,
    },
}

impl Given {
    /// Its place in its source.
    pub const fn seq(&self) -> u64 {
        match self {
            Self::Task(task) => task.seq,
            Self::Bad { seq, .. } => *seq,
        }
    }
}

/// What came of a task. There is exactly one for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The task's place in its source.
    pub seq: u64,
    /// The task's own name, as JSON text.
    pub id: Option<Box<str>>,
    /// The worker that had it last.
    pub worker: Option<WorkerId>,
    /// How long it ran, in its last attempt.
    pub micros: u64,
    /// The most memory that its worker held up to its end.
    pub peak: Option<Bytes>,
    /// How it went.
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

/// How a task went.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// What it returned, in the words of the worker (for lines: JSON).
    Done(Box<[u8]>),
    /// It failed.
    Failed(Failure),
}

/// Why a task failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// `exception`, `cap`, `timeout`, `exit:N`, `signal:NAME`, `unserializable`, `start-failed`,
    /// `unreadable`.
    pub cause: String,
    /// How often it was begun.
    pub attempts: u32,
    /// What is known of it.
    pub detail: Detail,
}

/// What is known of a failure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Detail {
    /// The worker's own words: a JSON object with `type`, `message` and `traceback`; for an
    /// executor whatever its worker wrote.
    Raised(Box<[u8]>),
    /// Ours, for a worker that could say nothing.
    Told(String),
}

/// Gives tasks, in order.
pub trait Source {
    /// Adds up to `at_most` tasks to `into`. `Ready(true)`: there may be more. `Ready(false)`: this
    /// was all.
    ///
    /// # Errors
    /// What makes it impossible to go on; tasks given before are still finished.
    fn poll_tasks(
        &mut self,
        cx: &mut Context<'_>,
        at_most: usize,
        into: &mut Vec<Given>,
    ) -> Poll<io::Result<bool>>;

    /// Ready when the giver of the tasks is gone and their outcomes are not needed. It is polled
    /// even while no tasks are wanted, and after the last task.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }
}

/// Takes outcomes.
pub trait Sink {
    /// A worker is ready, or the pool has finished without needing one. Before this call, a sink
    /// leaves its output unchanged. It may be called several times.
    fn begin(&mut self) {}

    /// The task at `seq` was given, and its outcome will come. Called for each, in the order in
    /// which they were given; only a sink that puts outcomes in order needs it.
    fn expect(&mut self, seq: u64) {
        let _ = seq;
    }

    /// Takes one, in the order in which tasks end. It never refuses: what is under way must end
    /// somewhere. No new tasks are given while [`Self::poll_room`] is pending.
    fn put(&mut self, outcome: Outcome);

    /// The number of tasks that may be under way; the giver of the tasks may keep back the rest.
    fn credit(&mut self, tasks: usize) {
        let _ = tasks;
    }

    /// All tasks have their outcomes, and no more tasks come.
    fn complete(&mut self) {}

    /// No worker could be started. `error` is JSON with `type`, `message` and `traceback`.
    fn give_up(&mut self, error: &[u8]) {
        let _ = error;
    }

    /// All outcomes of this turn were put. A sink that collects them may send them now.
    fn flush(&mut self) {}

    /// Ready when it is not too far behind to take more.
    ///
    /// # Errors
    /// Results cannot be written any more. `ConnectionAborted` and `BrokenPipe`: their reader is
    /// gone, so the tasks under way need not be finished.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when all that it took is where it belongs.
    ///
    /// # Errors
    /// Some of it is not.
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

    /// An output whose text the test can read.
    #[derive(Clone, Default)]
    pub(super) struct Paper(pub(super) Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
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

    /// Waits as the loop does.
    pub(super) fn wait<T>(poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(future::poll_fn(poll))
    }
}
