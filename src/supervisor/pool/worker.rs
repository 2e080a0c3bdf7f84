//! One worker of a pool, and its tasks.

use std::{collections::VecDeque, time::Duration};

use super::{
    input::{Seq, SlotId},
    stage::{Killed, Stage},
    ticket::Ticket,
};
use crate::{
    supervisor::{cause::Cause, input::Counts, worker::counters::Counters},
    units::{Bytes, ReportId, Timestamp},
};

/// The least time between two updates of the rate of tasks.
const RATE_EVERY: Duration = Duration::from_millis(200);

/// What a worker wrote into its page before it ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    pub(super) begun: Seq,
    pub(super) finished: Seq,
    pub(super) receiving: Seq,
}

#[derive(Debug)]
pub(super) struct Worker {
    slot: SlotId,
    asked: Timestamp,
    stage: Stage,
    /// Its process. `None`: it is being forked.
    pid: Option<i32>,
    /// Its tasks, in the order in which it runs them.
    window: VecDeque<Ticket>,
    front: Front,
    tasks: TaskCounts,
    memory: Memory,
    /// It runs only one task, which is retried alone in a new worker.
    alone: bool,
    report: Report,
}

/// The first task in the window of a worker.
#[derive(Debug)]
struct Front {
    /// The start of its time limit. The time limit starts again after a suspension.
    since: Timestamp,
    /// When it began.
    begun: Timestamp,
}

impl Front {
    const fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            begun: now,
        }
    }
}

#[derive(Debug, Default)]
struct Report {
    /// Its last memory report.
    last: Option<ReportId>,
    /// When the report was requested that it has not sent yet. It gets no tasks meanwhile.
    requested: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct TaskCounts {
    sent: u64,
    ended: u64,
    /// Its counters at the last update of the rate.
    counters: Counters,
}

#[derive(Debug, Default)]
struct Memory {
    /// Its memory when it was ready, including what it shares with the template.
    base: Bytes,
    /// The highest memory that it has reported.
    peak: Bytes,
}

impl Worker {
    pub(super) fn new(slot: SlotId, now: Timestamp) -> Self {
        Self {
            slot,
            asked: now,
            stage: Stage::Boots,
            pid: None,
            window: VecDeque::new(),
            front: Front::new(now),
            tasks: TaskCounts::default(),
            memory: Memory::default(),
            alone: false,
            report: Report::default(),
        }
    }

    pub(super) const fn slot(&self) -> SlotId {
        self.slot
    }

    /// When its fork was requested.
    pub(super) const fn asked(&self) -> Timestamp {
        self.asked
    }

    /// The time since its fork was requested.
    pub(super) const fn age(&self, now: Timestamp) -> Duration {
        now.since(self.asked)
    }

    pub(super) const fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) const fn pid(&self) -> Option<i32> {
        self.pid
    }

    pub(super) const fn base(&self) -> Bytes {
        self.memory.base
    }

    pub(super) const fn peak(&self) -> Bytes {
        self.memory.peak
    }

    /// Tasks that it was sent.
    pub(super) const fn sent(&self) -> u64 {
        self.tasks.sent
    }

    /// Tasks that it has ended.
    pub(super) const fn ended(&self) -> u64 {
        self.tasks.ended
    }

    /// Its counters with all tasks that it has ended by now.
    pub(super) fn counted(&self, now: Timestamp) -> Counters {
        let mut counters = self.tasks.counters;
        let (done, errors) = (self.tasks.ended, 0);
        counters.on_counts(now, Counts { done, errors });
        counters
    }

    /// Its tasks, in the order in which it runs them.
    pub(super) const fn window(&self) -> &VecDeque<Ticket> {
        &self.window
    }

    /// It has no task.
    pub(super) fn is_idle(&self) -> bool {
        self.window.is_empty()
    }

    /// It has never had a task.
    pub(super) fn is_fresh(&self) -> bool {
        self.tasks.sent == 0 && self.window.is_empty()
    }

    /// The place of a task in the window, from 0.
    pub(super) fn position_of(&self, seq: Seq) -> Option<usize> {
        self.window.iter().position(|ticket| ticket.seq() == seq)
    }

    /// One of its tasks must not run while other tasks run.
    pub(super) fn has_solitary_task(&self) -> bool {
        self.window.iter().any(Ticket::is_solitary)
    }

    /// The start of the time limit of its first task.
    pub(super) const fn limited_since(&self) -> Timestamp {
        self.front.since
    }

    /// The time since its first task began.
    pub(super) const fn ran(&self, now: Timestamp) -> Duration {
        now.since(self.front.begun)
    }

    /// It was killed, and no result is expected from it.
    pub(super) const fn is_doomed(&self) -> bool {
        self.stage.killed().is_some()
    }

    pub(super) const fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) const fn report(&self) -> Option<ReportId> {
        self.report.last
    }

    pub(super) const fn keep_report(&mut self, report: ReportId) {
        self.report.last = Some(report);
    }

    /// A report is requested.
    pub(super) const fn request_report(&mut self, now: Timestamp) {
        self.report.requested = Some(now);
    }

    pub(super) const fn is_report_awaited(&self) -> bool {
        self.report.requested.is_some()
    }

    /// It has answered, or the pool waits no longer.
    pub(super) const fn end_report(&mut self) {
        self.report.requested = None;
    }

    /// Since when it makes a report: it has no tasks left.
    pub(super) fn reports_since(&self) -> Option<Timestamp> {
        let requested = self.report.requested.filter(|_| self.window.is_empty())?;
        Some(requested.max(self.front.since))
    }

    /// It was forked, and starts.
    pub(super) const fn on_forked(&mut self, pid: i32) {
        self.pid = Some(pid);
    }

    /// It is ready for tasks. Returns true if it was not ready before.
    pub(super) fn on_ready(&mut self, now: Timestamp, base: Bytes) -> bool {
        let changes = self.set_stage(self.stage.on_ready());
        if changes {
            self.memory.base = base;
            self.tasks.counters = self.counted(now);
        }
        changes
    }

    pub(super) const fn on_initializer_failed(&mut self) {
        self.stage = self.stage.on_initializer_failed();
    }

    /// Its next task is one that is retried alone in a new worker.
    pub(super) const fn run_alone(&mut self) {
        self.alone = true;
    }

    /// Adds a task to its window. Returns true if the task is the first there, and so begins.
    pub(super) fn on_sent(&mut self, now: Timestamp, ticket: Ticket) -> bool {
        let begins = self.window.is_empty();
        if begins {
            self.front = Front::new(now);
        }
        self.window.push_back(ticket);
        self.tasks.sent = self.tasks.sent.saturating_add(1);
        begins
    }

    /// It has ended a task. Returns the task. `None`: the task is not the first in the window.
    pub(super) fn on_task_ended(
        &mut self,
        now: Timestamp,
        seq: Seq,
        peak: Bytes,
    ) -> Option<Ticket> {
        let ticket = self.take_first(now, seq)?;
        self.front = Front::new(now);
        self.alone = false;
        self.tasks.ended = self.tasks.ended.saturating_add(1);
        if self.tasks.counters.age(now) >= RATE_EVERY {
            self.tasks.counters = self.counted(now);
        }
        self.memory.peak = self.memory.peak.max(peak);
        Some(ticket)
    }

    /// It has not begun its first task, and will not. Returns the task. `None`: the task is not the
    /// first in the window.
    pub(super) fn on_not_begun(&mut self, now: Timestamp, seq: Seq) -> Option<Ticket> {
        self.take_first(now, seq)
    }

    fn take_first(&mut self, now: Timestamp, seq: Seq) -> Option<Ticket> {
        self.window.front().filter(|front| front.seq() == seq)?;
        let ticket = self.window.pop_front();
        if self.window.is_empty() {
            self.stage = self.stage.on_idle(now);
        }
        ticket
    }

    /// Lets it finish its tasks and exit. Returns true if it was serving.
    pub(super) fn retire(&mut self, now: Timestamp, cause: Cause) -> bool {
        let retires = self.set_stage(self.stage.retire(now, cause));
        if retires && self.window.is_empty() {
            self.stage = self.stage.on_idle(now);
        }
        retires
    }

    /// The time limit of its first task starts again, because the task is suspended.
    pub(super) const fn restart_time_limit(&mut self, now: Timestamp) {
        self.front.since = now;
    }

    pub(super) const fn kill(&mut self, why: Killed) {
        self.stage = self.stage.kill(why);
    }

    /// Returns true if the stage has changed.
    fn set_stage(&mut self, next: Stage) -> bool {
        let changes = next != self.stage;
        self.stage = next;
        changes
    }
}
