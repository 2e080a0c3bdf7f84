//! Whoever looks on while a pool works.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::PoolDriver;
use crate::units::{Bytes, Signal, Timestamp};

/// Whoever looks on.
pub trait Onlooker {
    /// Hears what the pool has to say.
    fn say(&self, line: &str);

    /// Hears what tasks have printed: whole lines.
    fn print(&mut self, lines: &[u8]);

    /// Whether more may be printed. If not, [`Self::poll_room`] tells when it may.
    fn has_room(&self) -> bool;

    /// Ready when more may be printed.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Nothing more comes. Ready when all is written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// So many tasks are still finished, for the pool was told to stop.
    fn stopping(&self, by: Signal, tasks: usize) {
        let _ = by;
        if tasks > 0 {
            self.say(&finishing(tasks));
        }
    }

    /// So often it wants to be shown how far it is.
    fn interval(&self) -> Option<Duration> {
        None
    }

    /// Sees how far it is.
    fn show(&mut self, standing: &Standing) {
        let _ = standing;
    }

    /// Sees how it has ended.
    fn finish(&mut self, standing: &Standing) {
        let _ = standing;
    }
}

/// What a pool still waits for.
pub fn finishing(tasks: usize) -> String {
    format!("finishing the tasks under way: {tasks}; press Ctrl-C again to stop now")
}

/// How far a pool is.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that were stopped before their end and have no result.
    pub cut: u64,
    /// What all workers hold.
    pub memory: Bytes,
    /// Since it was begun.
    pub elapsed: Duration,
}

impl PoolDriver {
    pub(super) fn show_at(&self) -> Option<Timestamp> {
        let interval = self.parts.onlooker.interval()?;
        Some(self.shown.later(interval))
    }

    pub(super) fn show(&mut self, now: Timestamp) {
        self.shown = now;
        let standing = self.standing(now);
        self.parts.onlooker.show(&standing);
    }

    pub(super) fn standing(&self, now: Timestamp) -> Standing {
        Standing {
            done: self.tally.done,
            failed: self.tally.failed,
            cut: self.tally.cut,
            memory: self.pool.memory(),
            elapsed: now.since(self.begun),
        }
    }
}
