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

/// The kernel notifies us before it kills. If it counts no kill within this time, the kill was in
/// another group.
const COUNTED_WITHIN: Duration = Duration::from_millis(500);
/// The kernel counts a kill before it sends the signal (`__oom_kill_process`). A worker that lives
/// for this time after the count is not the victim.
const SIGNALLED_WITHIN: Duration = Duration::from_millis(500);
/// The first look comes this long after the call; each further one waits longer.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A call of the OOM killer whose victim is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    called: Timestamp,
    counted: Option<Timestamp>,
    look_at: Timestamp,
}

/// What is known of a kill's victim.
#[derive(Debug, Eq, PartialEq)]
enum Victim {
    /// Not yet: look again after this time.
    Unknown(Duration),
    /// The worker itself. It gets its cause when its end is reported. RACE: that can take seconds,
    /// while the kernel frees gigabytes.
    Worker,
    /// A child process of the worker.
    Helper,
    /// A process of another group.
    Stranger,
}

impl Kill {
    /// `oom` and `is_ending` are what the group has counted and whether the worker is ending now.
    fn victim(&mut self, now: Timestamp, oom: Oom, is_ending: bool, whole: bool) -> Victim {
        let (since, within) = if oom == Oom::No {
            (self.called, COUNTED_WITHIN)
        } else {
            (*self.counted.get_or_insert(now), SIGNALLED_WITHIN)
        };
        let waited = now.since(since);
        match oom {
            Oom::No if waited >= within => Victim::Stranger,
            Oom::No => Victim::Unknown(LOOK_AGAIN.max(waited.div_f64(2.0))),
            _ if is_ending => Victim::Worker,
            // All of the group is killed now: nothing gets a wrong cause, whoever the victim was.
            _ if whole || waited >= within => Victim::Helper,
            _ => Victim::Unknown(LOOK_AGAIN.max(waited.div_f64(2.0))),
        }
    }
}

impl Host {
    /// The kernel has called the OOM killer for a worker's group or one above it.
    pub(super) fn on_oom(&mut self, now: Timestamp, worker: WorkerId) {
        if let Some(tracked) = self.workers.get_mut(&worker) {
            tracked.kill.get_or_insert(Kill {
                called: now,
                counted: None,
                look_at: now,
            });
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
        let Some(mut kill) = tracked.kill.take() else {
            return;
        };
        let oom = self.groups.oom_so_far(&tracked.group);
        let whole = tracked.group.loses_single_processes();
        match kill.victim(now, oom, is_ending, whole) {
            Victim::Unknown(again) => {
                kill.look_at = now.later(again);
                tracked.kill = Some(kill);
                return;
            }
            Victim::Worker | Victim::Stranger => return,
            Victim::Helper => {}
        }
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

    /// The worker itself is ending or gone, or one of the pool's processes in its group is.
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
        all.any(|pid| self.proc.is_ending(pid))
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

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: Timestamp = Timestamp::from_nanos(9_000_000_000);

    /// What is known this long after the call, by what was seen before and is seen now.
    fn check(looks: &[(u64, Oom, bool)], whole: bool, expected: &Victim) {
        let mut kill = Kill {
            called: CALLED,
            counted: None,
            look_at: CALLED,
        };
        let mut victim = None;
        for &(after, oom, is_ending) in looks {
            let now = CALLED.later(Duration::from_millis(after));
            victim = Some(kill.victim(now, oom, is_ending, whole));
        }
        assert_eq!(victim.as_ref(), Some(expected), "{looks:?}");
    }

    #[test]
    fn a_kill_without_a_count_was_elsewhere() {
        let soon = Victim::Unknown(LOOK_AGAIN);
        for whole in [false, true] {
            check(&[(0, Oom::No, false)], whole, &soon);
            check(
                &[(499, Oom::No, true)],
                whole,
                &Victim::Unknown(Duration::from_micros(249_500)),
            );
            check(&[(500, Oom::No, false)], whole, &Victim::Stranger);
        }
    }

    /// The kernel kills all of a version 2 group with a cap, and counts before it kills.
    #[test]
    fn a_worker_that_lives_when_its_kill_is_counted_may_be_the_victim() {
        let soon = Victim::Unknown(LOOK_AGAIN);
        check(&[(0, Oom::Cap, false)], false, &soon);
        check(
            &[(0, Oom::Cap, false), (2, Oom::Cap, true)],
            false,
            &Victim::Worker,
        );
        check(
            &[(499, Oom::No, false), (503, Oom::Cap, false)],
            false,
            &soon,
        );
        check(
            &[(0, Oom::Budget, false), (500, Oom::Budget, false)],
            false,
            &Victim::Helper,
        );
    }

    #[test]
    fn the_rest_of_a_group_that_loses_one_process_is_killed_at_once() {
        check(&[(0, Oom::Cap, false)], true, &Victim::Helper);
        check(&[(0, Oom::Cap, true)], true, &Victim::Worker);
    }
}
