//! One worker of a pool, and the tasks at its hands.

use std::collections::VecDeque;

use super::event::{Seq, SlotId};
use crate::units::{Bytes, Timestamp};

/// A task that was put back this often runs by itself.
const SOLITARY: u32 = 2;

/// A task on its way: what is remembered of it until its result is delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    pub(super) seq: Seq,
    pub(super) key: u32,
    /// So often it failed, or its worker with it.
    pub(super) failed: u32,
    /// So often its worker met its cap.
    pub(super) ooms: u32,
    /// So often it was finished and its result lost with its worker, or its worker was killed for
    /// the budget.
    pub(super) lost: u32,
    /// So often its worker ended before it was begun or received.
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

    /// It was put back again and again, and runs when no other does.
    pub(super) const fn is_solitary(&self) -> bool {
        self.put_back() >= SOLITARY
    }

    /// So often it was put back without blame.
    pub(super) const fn put_back(&self) -> u32 {
        self.lost.saturating_add(self.unbegun)
    }

    /// So often it was begun or received, the attempt that is just over included.
    pub(super) const fn attempts(&self) -> u32 {
        self.failed
            .saturating_add(self.ooms)
            .saturating_add(self.lost)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Asked for, or starting.
    Boots,
    /// Takes tasks.
    Serves,
    /// Finishes what it has, and goes.
    Retires,
    /// Was told to go.
    Leaves,
}

/// What a worker wrote into its page before it ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    pub(super) begun: Seq,
    pub(super) finished: Seq,
    pub(super) receiving: Seq,
}

/// The part that a task had in the end of its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// The worker had begun it, and not finished it.
    Begun,
    /// The worker had read a part of it, and had begun nothing.
    Received,
    /// It was the next to be read or begun.
    Next,
}

/// Why we have killed it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Killed {
    Timeout,
    Budget,
    /// It did not go when it was told to.
    Late,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) slot: SlotId,
    pub(super) stage: Stage,
    pub(super) asked: Timestamp,
    /// In the order in which they are begun.
    pub(super) window: VecDeque<Ticket>,
    /// The first of the window was begun then, at the latest.
    pub(super) front_since: Timestamp,
    /// The same, however often it was suspended since.
    pub(super) front_begun: Timestamp,
    pub(super) sent: u64,
    pub(super) killed: Option<Killed>,
    pub(super) could_not_start: bool,
    pub(super) base: Bytes,
    /// What came before it in the window had its own memory.
    pub(super) alone: bool,
    /// Since it retires or leaves.
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

    pub(super) fn place_of(&self, seq: Seq) -> Option<usize> {
        self.window.iter().position(|ticket| ticket.seq == seq)
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.sent == 0 && self.window.is_empty()
    }

    /// It is no more expected to answer.
    pub(super) const fn is_doomed(&self) -> bool {
        self.killed.is_some()
    }
}

/// A slot, and who is in it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) nest: Nest,
    pub(super) memory: Bytes,
    pub(super) look_at: Timestamp,
    pub(super) looking: bool,
    pub(super) suspended: bool,
    /// Nothing is forked there before.
    pub(super) rests_until: Option<Timestamp>,
    /// So often in a row it could not be forked.
    pub(super) refused: u32,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Nest {
    #[default]
    None,
    Asked,
    Up,
    /// Was killed, its end is awaited.
    Doomed,
}
