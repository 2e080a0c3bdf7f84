//! The interface for messages, task output and progress of a pool.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::PoolDriver;
use crate::units::{Bytes, Signal, Timestamp};

/// Shows messages, task output and progress to the user.
pub trait Observer {
    /// Shows a message of the pool.
    fn say(&self, line: &str);

    /// Shows output of tasks, in whole lines.
    fn print(&mut self, lines: &[u8]);

    /// Whether more output may be printed. If not, [`Self::poll_room`] becomes ready when it may.
    fn has_room(&self) -> bool;

    /// Ready when more output may be printed.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Accepts nothing more. Ready when all is written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Shows that the signal `by` has stopped the pool, and that `tasks` running tasks still
    /// finish.
    fn stopping(&self, by: Signal, tasks: usize);

    /// The time between two calls of [`Self::show`]. `None`: it is not called.
    fn interval(&self) -> Option<Duration>;

    /// Shows the progress.
    fn show(&mut self, progress: &Progress);

    /// Shows the final figures.
    fn finish(&mut self, progress: &Progress);
}

/// The progress of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that had begun when the pool stopped, and have no result.
    pub abandoned: u64,
    /// Memory of all workers.
    pub memory: Bytes,
    /// Time since the start.
    pub elapsed: Duration,
}

impl PoolDriver {
    pub(super) fn show_at(&self) -> Option<Timestamp> {
        let interval = self.parts.observer.interval()?;
        Some(self.shown.later(interval))
    }

    pub(super) fn show(&mut self, now: Timestamp) {
        self.shown = now;
        let progress = self.progress(now);
        self.parts.observer.show(&progress);
    }

    pub(super) fn progress(&self, now: Timestamp) -> Progress {
        Progress {
            done: self.tally.done,
            failed: self.tally.failed,
            abandoned: self.tally.abandoned,
            memory: self.pool.memory(),
            elapsed: now.since(self.begun),
        }
    }
}
