//! The tasks of a pool that have no worker yet, and statistics of all tasks.

use std::collections::{BTreeMap, VecDeque};

use super::ticket::Ticket;
use crate::units::Bytes;

/// The weight of the newest task in the mean time.
const NEWEST: f64 = 0.05;
/// The number of keys whose needs are remembered.
const KEYS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// Tasks that wait to be sent, the retried ones first.
    pub(super) queue: VecDeque<Ticket>,
    /// Tasks that wait to be retried in a worker of their own.
    pub(super) alone: VecDeque<Ticket>,
    source_ended: bool,
    /// Mean time of a task, in microseconds. `None`: no task has ended yet.
    mean_micros: Option<f64>,
    /// The most memory that tasks of a key have needed.
    needs: BTreeMap<u32, Bytes>,
    /// Tasks that returned.
    returned: u64,
    /// Tasks that failed.
    failed: u64,
    /// Tasks that had begun when the pool stopped, and have no result.
    abandoned: u64,
    /// Something has changed that may allow a task to be sent.
    dispatch: bool,
}

impl Tasks {
    /// Something has changed that may allow a task to be sent.
    pub(super) const fn plan_dispatch(&mut self) {
        self.dispatch = true;
    }

    /// Returns true if a dispatch was planned, and clears that.
    pub(super) const fn take_dispatch(&mut self) -> bool {
        std::mem::replace(&mut self.dispatch, false)
    }

    pub(super) fn on_arrived(&mut self, ticket: Ticket) {
        self.queue.push_back(ticket);
    }

    pub(super) const fn on_source_ended(&mut self) {
        self.source_ended = true;
    }

    pub(super) const fn has_source_ended(&self) -> bool {
        self.source_ended
    }

    /// No task waits for a worker.
    pub(super) fn are_idle(&self) -> bool {
        self.queue.is_empty() && self.alone.is_empty()
    }

    pub(super) const fn mean_micros(&self) -> Option<f64> {
        self.mean_micros
    }

    /// A task ran for this long.
    pub(super) fn on_ran(&mut self, micros: u32) {
        let time = f64::from(micros);
        let mean = self.mean_micros.unwrap_or(time);
        self.mean_micros = Some(mean + (time - mean) * NEWEST);
    }

    pub(super) const fn on_returned(&mut self) {
        self.returned = self.returned.saturating_add(1);
    }

    pub(super) const fn on_failed(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }

    pub(super) const fn on_abandoned(&mut self) {
        self.abandoned = self.abandoned.saturating_add(1);
    }

    pub(super) const fn returned(&self) -> u64 {
        self.returned
    }

    pub(super) const fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) const fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// The number of tasks that no worker has.
    pub(super) fn queued(&self) -> usize {
        self.queue.len().saturating_add(self.alone.len())
    }

    /// A task of this key has needed this much memory.
    pub(super) fn learn(&mut self, key: u32, need: Bytes) {
        if self.needs.len() < KEYS_MAX || self.needs.contains_key(&key) {
            let known = self.needs.entry(key).or_default();
            // The need of a single large task fades with each further task.
            *known = need.max(known.scaled(0.999));
        }
    }

    pub(super) fn need(&self, key: u32) -> Bytes {
        self.needs.get(&key).copied().unwrap_or_default()
    }
}
