//! A tree of processes under one ceiling.
//!
//! A command that is not recognised as a server is one worker with all processes that it starts.
//! The ceiling was perhaps meant for each of these processes, and then the tree is over it as soon
//! as it has started. To recycle it for that would be an outage in a loop, and so would be a cap
//! that is derived from that ceiling. So such a tree is not recycled for its ceiling while it
//! starts. If it is still over its ceiling then, and has stopped growing, neither the ceiling nor
//! a derived cap applies to it. What actually runs below the command decides, not its command
//! line.
//!
//! `--server none` says that the ceiling is meant for the whole tree.

use super::in_vain::{EARLY_TREE, TREE_PROCESSES};
use crate::supervisor::{
    Supervisor,
    action::Action,
    event::{Event, ProcessSize, SharedCeiling},
    spec::Limit,
    worker::Worker,
};
use crate::units::{Bytes, Timestamp, WorkerId};

/// An event tells of a tree that holds this part of its ceiling.
const TOLD_AT: f64 = 0.75;

impl Supervisor {
    /// The worker is a tree of processes, and nothing says that its ceiling is meant for all of
    /// them together.
    pub(crate) fn has_guessed_ceiling(&self, worker: &Worker) -> bool {
        self.spec.kind_is_guessed
            && self.is_whole_program()
            && !self.is_job()
            && worker.memory().processes() >= TREE_PROCESSES
    }

    pub(super) fn is_ceiling_guessed(&self, id: WorkerId) -> bool {
        let worker = self.state.workers.get(&id);
        worker.is_some_and(|worker| self.has_guessed_ceiling(worker))
    }

    /// The command has only started a tree of processes, and may turn out to be a server.
    pub(crate) fn may_be_server(&self, now: Timestamp, worker: &Worker) -> bool {
        self.has_guessed_ceiling(worker) && worker.age(now) < EARLY_TREE
    }

    /// A cap that is derived from the ceiling does not apply to the worker: it starts, or it has
    /// been over its ceiling since its start.
    pub(crate) fn is_without_derived_cap(&self, worker: &Worker) -> bool {
        let last = worker.memory().last();
        let now = last.map_or(worker.seen(), |sample| sample.at);
        let ceiling = self.ceiling_of(worker);
        let over = ceiling.is_some_and(|ceiling| worker.memory().value() >= ceiling);
        self.spec.memory.cap == Limit::Auto
            && self.has_guessed_ceiling(worker)
            && (worker.age(now) < EARLY_TREE || (over && self.is_early(worker, now)))
    }

    /// The cap of a worker that was over its ceiling soon after its start.
    pub(super) fn cap_of_early(&self, worker: &Worker, ceiling: Bytes) -> Bytes {
        let limits = &self.state.limits;
        let cap = if self.has_guessed_ceiling(worker) && self.spec.memory.cap == Limit::Auto {
            Some(limits.budget.bytes.unwrap_or(limits.available))
        } else {
            limits.cap.bytes
        };
        cap.unwrap_or(ceiling.scaled(2.0))
    }

    /// The tree has started, and it needs more than the ceiling. From now on, only the budget
    /// limits it, also after the next start.
    pub(super) fn lift_guessed_ceiling(&mut self, id: WorkerId) {
        if let Some(worker) = self.state.workers.get_mut(&id) {
            worker.ceiling_state_mut().exempt();
        }
        self.state.service.on_ceiling_lifted();
        self.derive_limits();
    }

    /// Asks for the processes of a tree that is close to its ceiling, for the event about it.
    pub(crate) fn check_shared_ceiling(&mut self, id: WorkerId) {
        let (Some(worker), Some(ceiling)) =
            (self.state.workers.get(&id), self.state.limits.ceiling.bytes)
        else {
            return;
        };
        let is_tree = worker.memory().processes() >= TREE_PROCESSES && !self.is_job();
        let near = worker.memory().is_sure() && worker.memory().value() >= ceiling.scaled(TOLD_AT);
        if is_tree && near && self.state.record.warn_first("tree".to_owned()) {
            self.act(Action::ListProcesses { worker: id });
        }
    }

    /// The largest processes of a worker are known.
    pub(crate) fn on_processes_listed(&mut self, id: WorkerId, largest: Vec<ProcessSize>) {
        let (Some(worker), Some(ceiling)) =
            (self.state.workers.get(&id), self.state.limits.ceiling.bytes)
        else {
            return;
        };
        self.emit(Event::CeilingShared(SharedCeiling {
            worker: id,
            processes: worker.memory().processes(),
            memory: worker.memory().value(),
            ceiling,
            guessed: self.has_guessed_ceiling(worker),
            largest,
        }));
    }
}
