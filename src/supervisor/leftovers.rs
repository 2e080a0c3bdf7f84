//! Leftovers: processes that recycled workers leave behind, such as browsers and daemons.
//!
//! A process that outlives its worker keeps its memory. Each recycle may add one more, until the
//! budget is full and the kernel kills healthy workers. Leftovers are handled as trees, a process
//! with all its descendants: a browser is several processes, of which only one is active at a time.
//! A tree that has used no CPU for a while is ended. If memory is short, trees are ended at once,
//! the largest first.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor,
    action::Action,
    event::{Event, Left},
    input::Leftover,
    snapshot::LeftoverView,
    spec::Leftovers as Mode,
};
use crate::units::{Bytes, Signal, Timestamp, WorkerId};

/// A tree is ended when it has used no CPU for this long, before or after its worker's end.
const IDLE: Duration = Duration::from_secs(5);
/// A tree is reported only if it is still there this long after it was first seen.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// The time between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// The current leftovers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Leftovers {
    /// By the pid and the start time of the topmost process, which together identify it.
    #[serde(skip)]
    trees: BTreeMap<(i32, u64), Tree>,
    ended: u64,
}

/// A process that outlived its worker, and its descendants.
#[derive(Clone, Debug)]
struct Tree {
    worker: WorkerId,
    command: String,
    processes: Vec<(i32, u64)>,
    memory: Bytes,
    seen: Timestamp,
    /// How long no process of the tree has used CPU.
    idle: Duration,
    /// An event was emitted about the tree.
    reported: bool,
    /// When SIGTERM was sent.
    asked: Option<Timestamp>,
}

impl Tree {
    fn view_for_event(&self, pid: i32) -> Left {
        Left {
            worker: self.worker,
            pid,
            command: self.command.clone(),
            memory: self.memory,
        }
    }
}

impl Leftovers {
    pub(crate) fn memory(&self) -> Bytes {
        let trees = self.trees.values();
        trees.fold(Bytes::ZERO, |sum, tree| sum.plus(tree.memory))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    pub(crate) const fn ended(&self) -> u64 {
        self.ended
    }

    pub(crate) fn view(&self) -> Vec<LeftoverView> {
        let view = |(&(pid, _), tree): (&(i32, u64), &Tree)| LeftoverView {
            worker: tree.worker,
            pid,
            command: tree.command.clone(),
            memory: tree.memory,
            processes: u32::try_from(tree.processes.len()).unwrap_or(u32::MAX),
            idle: tree.idle,
        };
        self.trees.iter().map(view).collect()
    }

    /// Replaces the trees by those found now. A tree that is no longer found has ended.
    fn take(&mut self, now: Timestamp, found: Vec<Leftover>) {
        let starts: BTreeMap<i32, u64> = found.iter().map(|one| (one.pid, one.started)).collect();
        let mut trees: BTreeMap<(i32, u64), Tree> = BTreeMap::new();
        for one in found {
            let Some(started) = starts.get(&one.tree) else {
                continue;
            };
            let is_top = one.pid == one.tree;
            let tree = trees.entry((one.tree, *started)).or_insert_with(|| Tree {
                worker: one.worker,
                command: String::new(),
                processes: Vec::new(),
                memory: Bytes::ZERO,
                seen: now,
                idle: one.idle,
                reported: false,
                asked: None,
            });
            if is_top {
                tree.command.clone_from(&one.command);
            }
            tree.processes.push((one.pid, one.started));
            tree.memory = tree.memory.plus(one.memory);
            // One active process keeps its whole tree.
            tree.idle = tree.idle.min(one.idle);
        }
        for (id, tree) in &mut trees {
            if let Some(before) = self.trees.get(id) {
                tree.seen = before.seen;
                tree.reported = before.reported;
                tree.asked = before.asked;
            }
        }
        self.trees = trees;
    }
}

impl Supervisor {
    pub(crate) fn on_left_behind(&mut self, now: Timestamp, found: Vec<Leftover>) {
        self.state.leftovers.take(now, found);
        self.report_leftovers(now);
        if self.spec.recycle.leftovers == Mode::End && !self.state.service.is_stopping() {
            self.end_leftovers(now);
        }
        self.plan.touch();
    }

    fn report_leftovers(&mut self, now: Timestamp) {
        let mut new = Vec::new();
        for (&(pid, _), tree) in &mut self.state.leftovers.trees {
            if !tree.reported && now.since(tree.seen) >= REPORT_AFTER {
                tree.reported = true;
                new.push(Event::LeftBehind(tree.view_for_event(pid)));
            }
        }
        if !new.is_empty() && self.spec.recycle.leftovers == Mode::Tell {
            self.warn_once("leftovers", || {
                "recycled workers leave processes behind, and `recycle.leftovers = \"tell\"` keeps \
                 them: their memory counts towards the budget until they end"
                    .to_owned()
            });
        }
        new.into_iter().for_each(|event| self.emit(event));
    }

    fn end_leftovers(&mut self, now: Timestamp) {
        let mut short = self.budget_is_short_after(Bytes::ZERO);
        let trees = self.state.leftovers.trees.iter();
        let mut largest_first: Vec<_> = trees.map(|(id, tree)| (tree.memory, *id)).collect();
        largest_first.sort_unstable_by_key(|(memory, id)| (std::cmp::Reverse(*memory), *id));
        let mut freed = Bytes::ZERO;
        for (memory, id) in largest_first {
            let Some(tree) = self.state.leftovers.trees.get_mut(&id) else {
                continue;
            };
            let idle = tree.idle;
            let late = tree
                .asked
                .is_some_and(|asked| now.since(asked) >= TERM_GRACE);
            let signal = if late || short {
                Signal::KILL
            } else if idle >= IDLE && tree.asked.is_none() {
                Signal::TERM
            } else {
                continue;
            };
            let first = tree.asked.is_none();
            tree.asked.get_or_insert(now);
            tree.reported = true;
            let processes = tree.processes.clone();
            let left = tree.view_for_event(id.0);
            let event = Event::LeftoverEnded(left, (idle >= IDLE).then_some(idle));
            // The topmost process comes first, because it may start the others again.
            for process in processes {
                self.out.act(Action::EndLeftover { process, signal });
            }
            if first {
                self.state.leftovers.ended = self.state.leftovers.ended.saturating_add(1);
                self.emit(event);
            }
            freed = freed.plus(memory);
            short = short && self.budget_is_short_after(freed);
        }
    }

    /// Whether, even without `freed`, the budget has no room for another worker or is nearly
    /// reached.
    fn budget_is_short_after(&self, freed: Bytes) -> bool {
        let Some(budget) = self.state.limits.budget.bytes else {
            return false;
        };
        let total = self.total().minus(freed);
        total.plus(self.state.workers.expected_memory()) > budget
            || total >= budget.scaled(crate::supervisor::policy::candidates::BUDGET_SHARE)
    }

    /// Healthy workers are not replaced for the budget while leftovers can still be ended.
    pub(crate) fn ends_leftovers_first(&self) -> bool {
        self.spec.recycle.leftovers == Mode::End && !self.state.leftovers.is_empty()
    }
}

#[cfg(test)]
#[path = "leftovers_tests.rs"]
mod tests;
