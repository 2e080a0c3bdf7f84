//! One worker of a pool, and its tasks.

use std::collections::VecDeque;

use super::event::{Seq, SlotId};
use crate::units::{Bytes, Timestamp};

/// A task that was put back this often without blame runs only while no other task runs.
const SOLITARY: u32 = 2;

/// A task that has no result yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    pub(super) seq: Seq,
    pub(super) key: u32,
    /// How often it failed: it raised, or its worker ended.
    pub(super) failed: u32,
    /// How often its worker reached its cap.
    pub(super) ooms: u32,
    /// How often an attempt was lost without blame: its result was lost with its worker, or the
    /// worker was killed for the budget.
    pub(super) lost: u32,
    /// How often its worker ended before the task was received or begun.
    pub(super) unbegun: u32,
}

impl Ticket {
    pub(super) const fn new(seq: Seq, key: u32) -> Self {
        Self {
            seq,
            key,
            failed: 0,
            ooms: 0,
            lost: 0,
            unbegun: 0,
        }
    }

    /// Whether it runs only while no other task runs.
    pub(super) const fn is_solitary(&self) -> bool {
        self.unblamed() >= SOLITARY
    }

    /// How often it was put back without blame.
    pub(super) const fn unblamed(&self) -> u32 {
        self.lost.saturating_add(self.unbegun)
    }

    /// How often it was begun or received, including the attempt that has just ended.
    pub(super) const fn attempts(&self) -> u32 {
        self.failed
            .saturating_add(self.ooms)
            .saturating_add(self.lost)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// It is being forked, or starts.
    Boots,
    /// It takes tasks.
    Serves,
    /// It finishes its tasks, and then exits.
    Retires,
    /// It has no tasks, and runs its exit handlers.
    Leaves,
}

/// What a worker wrote into its page before it ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    pub(super) begun: Seq,
    pub(super) finished: Seq,
    pub(super) receiving: Seq,
}

/// How far a worker had come with the task at which it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TaskProgress {
    /// The task had begun.
    Begun,
    /// The task was received, wholly or in part.
    Received,
    /// The task was the next to be received.
    Next,
}

/// Why we have killed a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Killed {
    Timeout,
    Budget,
    /// Its exit handlers took too long.
    Late,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) slot: SlotId,
    pub(super) stage: Stage,
    pub(super) asked: Timestamp,
    /// Its tasks, in the order in which it runs them.
    pub(super) window: VecDeque<Ticket>,
    /// The start of the time limit of the first task in the window. A suspension moves it.
    pub(super) front_since: Timestamp,
    /// When the first task in the window began. A suspension does not move it.
    pub(super) front_begun: Timestamp,
    pub(super) sent: u64,
    pub(super) killed: Option<Killed>,
    pub(super) could_not_start: bool,
    pub(super) base: Bytes,
    /// It runs one task, which is retried in a worker of its own.
    pub(super) alone: bool,
    /// When it began to retire or leave.
    pub(super) since: Timestamp,
}

impl Worker {
    pub(super) const fn new(slot: SlotId, now: Timestamp) -> Self {
        Self {
            slot,
            stage: Stage::Boots,
            asked: now,
            window: VecDeque::new(),
            front_since: now,
            front_begun: now,
            sent: 0,
            killed: None,
            could_not_start: false,
            base: Bytes::ZERO,
            alone: false,
            since: now,
        }
    }

    pub(super) fn position_of(&self, seq: Seq) -> Option<usize> {
        self.window.iter().position(|ticket| ticket.seq == seq)
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.sent == 0 && self.window.is_empty()
    }

    /// It was killed, so that no result is expected of it.
    pub(super) const fn is_doomed(&self) -> bool {
        self.killed.is_some()
    }
}

/// A slot of the pool.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) nest: Nest,
    pub(super) memory: Bytes,
    pub(super) sample_at: Timestamp,
    pub(super) sampling: bool,
    pub(super) suspended: bool,
    /// The time before which nothing is forked in it.
    pub(super) backoff_until: Option<Timestamp>,
    /// The forks that were refused in a row.
    pub(super) refusals: u32,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Nest {
    #[default]
    None,
    Asked,
    Up,
    /// It was killed, and has not ended yet.
    Doomed,
}
