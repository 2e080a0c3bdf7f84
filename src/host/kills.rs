//! Which process the kernel killed in a worker's group: the worker itself, or a child of it.
//!
//! With version 2 the kernel kills all of a group that has a cap (`memory.oom.group`). Version 1
//! kills one process, and a worker that waits for it waits for ever: the pool of a job whose child
//! is gone. So where the worker itself lives on, the rest of the group is killed from here.

use std::time::Duration;

use super::Host;
use crate::{
    supervisor::event::{CapMechanism, Ended, Event, Oom},
    units::{Signal, Timestamp, WorkerId},
};

/// The kernel notifies us before it kills, and counts when it kills. If it counts no kill within
/// this time, the kill was in another group.
const COUNTED_WITHIN: Duration = Duration::from_millis(500);
/// The first look comes this long after the call; each further one waits longer.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A call of the OOM killer whose victim is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    called: Timestamp,
    look_at: Timestamp,
}

impl Host {
    /// The kernel has called the OOM killer for a worker's group or one above it.
    pub(super) fn on_oom(&mut self, now: Timestamp, worker: WorkerId) {
        if let Some(tracked) = self.workers.get_mut(&worker) {
            let (called, look_at) = (now, now);
            tracked.kill.get_or_insert(Kill { called, look_at });
        }
    }

    /// When to look for the victim again.
    pub(super) fn kills_deadline(&self) -> Option<Timestamp> {
        let kills = self.workers.values().filter_map(|tracked| tracked.kill);
        kills.map(|kill| kill.look_at).min()
    }

    /// Finds the victim of the OOM killer, as soon as the kill is counted.
    pub(super) fn check_kills(&mut self, now: Timestamp) {
        let due = |kill: &Kill| kill.look_at <= now;
        let due: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, tracked)| tracked.kill.as_ref().is_some_and(due))
            .map(|(worker, _)| *worker)
            .collect();
        for worker in due {
            self.check_kill(now, worker);
        }
    }

    fn check_kill(&mut self, now: Timestamp, worker: WorkerId) {
        let is_ending = self.is_ending(worker);
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return;
        };
        let Some(kill) = &mut tracked.kill else {
            return;
        };
        let waited = now.since(kill.called);
        let oom = self.groups.oom_so_far(&tracked.group);
        if oom == Oom::No && waited < COUNTED_WITHIN {
            kill.look_at = now.later(LOOK_AGAIN.max(waited.div_f64(2.0)));
            return;
        }
        tracked.kill = None;
        // A worker that is ending gets its cause when its end is reported. RACE: that can take
        // seconds, while the kernel frees gigabytes.
        if oom == Oom::No || is_ending {
            return;
        }
        let whole = tracked.group.loses_single_processes();
        if !whole {
            self.groups.oom(&mut tracked.group);
        }
        // RACE: a worker that sees the end of its child before this kill goes on for a moment; a
        // task of a pool may have begun in it that did not allocate anything. Version 2 kills in
        // one step, version 1 has no such way.
        if self.pool.is_none() || !whole {
            self.events
                .push_back(Event::HelperKilled { worker, oom, whole });
        }
        if whole {
            self.kill_worker(now, worker);
        }
    }

    /// The worker itself is ending, or one of the pool's processes in its group.
    fn is_ending(&self, worker: WorkerId) -> bool {
        let Some(tracked) = self.workers.get(&worker) else {
            return true;
        };
        let forked = self
            .pool
            .as_ref()
            .map(|pool| pool.children_of(worker))
            .unwrap_or_default();
        let mut all = forked.into_iter().chain([tracked.process.pid()]);
        all.any(|pid| self.proc.is_exiting(pid))
    }

    /// Whether the OOM killer ended the server's main process.
    pub(super) fn oom_of_server(&mut self, ended: Ended) -> Oom {
        match (ended, &mut self.server_group) {
            (Ended::Signal(Signal::KILL), Some(group)) => self.groups.oom(group),
            _ => Oom::No,
        }
    }

    /// Whether the OOM killer ended this worker. Reports a kill of one of its child
    /// processes, unless that was done already.
    pub(super) fn oom_of(&mut self, worker: WorkerId, ended: Ended) -> Oom {
        let killed = matches!(ended, Ended::Signal(Signal::KILL) | Ended::Unseen);
        let oom = match self.workers.get_mut(&worker) {
            Some(tracked) => self.groups.oom(&mut tracked.group),
            None => Oom::No,
        };
        if !killed {
            let whole = false;
            if oom != Oom::No {
                self.events
                    .push_back(Event::HelperKilled { worker, oom, whole });
            }
            return Oom::No;
        }
        // Without groups of our own, the container's tells of kills at its limit.
        let has_none = self.groups.caps() == CapMechanism::Rlimit;
        if has_none && ended == Ended::Signal(Signal::KILL) && self.kills.take_one(&self.found) {
            return Oom::Elsewhere;
        }
        oom
    }
}
