//! What recycled workers leave behind: browsers, daemons, children that nobody waits for.
//!
//! A process that outlives its worker keeps its memory, and with each recycle there is one more,
//! until the budget is full and the kernel kills healthy workers. Such processes are handled as
//! trees, a process with all its descendants: a browser is several processes, of which only one
//! works at a time. A tree that has used no CPU for a while is ended; where memory is short, trees
//! are ended at once, the largest first.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Supervisor,
    action::Action,
    event::Leftover,
    report::{Left, LeftoverView, Report},
    spec::Leftovers as Mode,
};
use crate::units::{Bytes, Signal, Timestamp, WorkerId};

/// A tree is ended when it has used no CPU for this long, before or after its worker's end.
const IDLE: Duration = Duration::from_secs(5);
/// A tree that ends by itself this soon after its worker is not reported.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// Between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// All processes that are left over now.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// By the pid and the start time of the topmost process, which together identify it.
    trees: BTreeMap<(i32, u64), Tree>,
    ended: u64,
}

/// A process that outlived its worker, and its descendants.
#[derive(Debug)]
struct Tree {
    worker: WorkerId,
    command: String,
    processes: Vec<(i32, u64)>,
    memory: Bytes,
    seen: Timestamp,
    /// How long the process that was active last has used no CPU.
    idle: Duration,
    told: bool,
    /// SIGTERM was sent.
    asked: Option<Timestamp>,
}

impl Tree {
    fn report(&self, pid: i32) -> Left {
        Left {
            worker: self.worker,
            pid,
            command: self.command.clone(),
            memory: self.memory,
        }
    }
}

impl Leftovers {
    pub(super) fn memory(&self) -> Bytes {
        let trees = self.trees.values();
        trees.fold(Bytes::ZERO, |sum, tree| sum.plus(tree.memory))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    pub(super) const fn ended(&self) -> u64 {
        self.ended
    }

    pub(super) const fn set_ended(&mut self, ended: u64) {
        self.ended = ended;
    }

    pub(super) fn view(&self) -> Vec<LeftoverView> {
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
                told: false,
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
                tree.told = before.told;
                tree.asked = before.asked;
            }
        }
        self.trees = trees;
    }
}

impl Supervisor {
    pub(super) fn on_left_behind(&mut self, now: Timestamp, found: Vec<Leftover>) {
        self.leftovers.take(now, found);
        self.tell_leftovers(now);
        if self.spec.recycle.leftovers == Mode::End && !self.service.is_stopping() {
            self.end_leftovers(now);
        }
        self.replan = true;
    }

    fn tell_leftovers(&mut self, now: Timestamp) {
        let mut new = Vec::new();
        for (&(pid, _), tree) in &mut self.leftovers.trees {
            if !tree.told && now.since(tree.seen) >= TELL_AFTER {
                tree.told = true;
                new.push(Report::LeftBehind(tree.report(pid)));
            }
        }
        if !new.is_empty() && self.spec.recycle.leftovers == Mode::Tell {
            self.warn_once("leftovers", || {
                "recycled workers leave processes behind, and `recycle.leftovers = \"tell\"` keeps \
                 them: their memory counts towards the budget until they end"
                    .to_owned()
            });
        }
        new.into_iter().for_each(|report| self.tell(report));
    }

    fn end_leftovers(&mut self, now: Timestamp) {
        let mut short = self.budget_is_short_after(Bytes::ZERO);
        let trees = self.leftovers.trees.iter();
        let mut largest_first: Vec<_> = trees.map(|(id, tree)| (tree.memory, *id)).collect();
        largest_first.sort_unstable_by_key(|(memory, id)| (std::cmp::Reverse(*memory), *id));
        let mut freed = Bytes::ZERO;
        for (memory, id) in largest_first {
            let Some(tree) = self.leftovers.trees.get_mut(&id) else {
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
            tree.told = true;
            let processes = tree.processes.clone();
            let report = Report::LeftoverEnded(tree.report(id.0), (idle >= IDLE).then_some(idle));
            // The topmost first: it may be the one that starts the others.
            let processes = processes.into_iter();
            self.actions
                .extend(processes.map(|process| Action::EndLeftover { process, signal }));
            if first {
                self.leftovers.ended = self.leftovers.ended.saturating_add(1);
                self.tell(report);
            }
            freed = freed.plus(memory);
            short = short && self.budget_is_short_after(freed);
        }
    }

    /// Whether, once `freed` is given back, the budget has no room for another worker or is nearly
    /// reached.
    fn budget_is_short_after(&self, freed: Bytes) -> bool {
        let Some(budget) = self.limits.budget.bytes else {
            return false;
        };
        let total = self.total().minus(freed);
        total.plus(self.newborn) > budget || total >= budget.scaled(super::due::BUDGET_SHARE)
    }

    /// Healthy workers are not replaced for the budget while leftovers can still be ended.
    pub(super) fn ends_leftovers_first(&self) -> bool {
        self.spec.recycle.leftovers == Mode::End && !self.leftovers.is_empty()
    }
}

#[cfg(test)]
#[path = "leftovers_tests.rs"]
mod tests;
