//! Which process the kernel killed in a worker's group: the worker itself, or a child of it.
//!
//! With version 2 the kernel kills all of a group that has a cap (`memory.oom.group`). Version 1
//! kills one process. A worker that waits for a result of that process, such as a job with a
//! process pool, would wait for ever. So if the worker itself survives, we kill the whole group.

use std::time::Duration;

use super::{ForkServerNews, Workers, tracked::Tracked};
use crate::{
    host::{cgroup::ServiceGroups, context::Context, held::HeldId, pool::PoolHost},
    supervisor::input::{Ended, Input, Oom},
    units::{Signal, Timestamp},
};

/// The kernel notifies us before it kills. If it counts no kill within this time, the kill was in
/// another group.
const COUNTED_WITHIN: Duration = Duration::from_millis(500);
/// The kernel counts a kill before it sends the signal (`__oom_kill_process`). A worker that lives
/// for this time after the count is not the victim.
const SIGNALLED_WITHIN: Duration = Duration::from_millis(500);
/// The first pause between two checks for the victim. Each further pause is longer.
const CHECK_PAUSE: Duration = Duration::from_millis(2);

/// A call of the OOM killer whose victim is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    /// When the kernel notified us of the call.
    called: Timestamp,
    /// When we first saw that the group had counted it.
    counted: Option<Timestamp>,
    /// When to check for the victim again.
    check_at: Timestamp,
}

/// The victim of a kill, as far as it is known.
#[derive(Debug, Eq, PartialEq)]
enum Victim {
    /// Not known yet: check again after this time.
    Unknown(Duration),
    /// The worker itself. RACE: its end is reported up to seconds later, when the kernel has freed
    /// its memory.
    Worker,
    /// A child process of the worker.
    ChildProcess,
    /// A process in another group.
    Elsewhere,
}

impl Kill {
    /// `oom` is the kill that the group has counted so far; `whole`: a kill of one process must
    /// become a kill of the whole group.
    fn victim(&mut self, now: Timestamp, oom: Oom, is_ending: bool, whole: bool) -> Victim {
        let (since, within) = if oom == Oom::No {
            (self.called, COUNTED_WITHIN)
        } else {
            (*self.counted.get_or_insert(now), SIGNALLED_WITHIN)
        };
        let waited = now.since(since);
        match oom {
            Oom::No if waited >= within => Victim::Elsewhere,
            Oom::No => Victim::Unknown(CHECK_PAUSE.max(waited.div_f64(2.0))),
            _ if is_ending => Victim::Worker,
            // We kill the whole group now, so the end of the worker has the same cause in any case.
            _ if whole || waited >= within => Victim::ChildProcess,
            _ => Victim::Unknown(CHECK_PAUSE.max(waited.div_f64(2.0))),
        }
    }
}

impl Workers {
    /// The kernel has called the OOM killer for a worker's group or one above it.
    pub(in crate::host) fn on_oom(&mut self, now: Timestamp, id: HeldId) {
        if let Some(tracked) = self.held.get_mut(&id) {
            tracked.note_oom(Kill {
                called: now,
                counted: None,
                check_at: now,
            });
        }
    }

    /// When to check for a victim again.
    pub(super) fn kills_deadline(&self) -> Option<Timestamp> {
        let kills = self.held.values().filter_map(Tracked::oom_kill);
        kills.map(|kill| kill.check_at).min()
    }

    /// Finds the victim of the OOM killer, as soon as the kill is counted.
    pub(in crate::host) fn check_kills(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        pool: Option<&PoolHost>,
        now: Timestamp,
    ) {
        let due = |kill: &Kill| kill.check_at <= now;
        let due: Vec<_> = self
            .held
            .iter()
            .filter(|(_, tracked)| tracked.oom_kill().as_ref().is_some_and(due))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.check_kill(context, groups, pool, (now, id));
        }
    }

    fn check_kill(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        pool: Option<&PoolHost>,
        (now, id): (Timestamp, HeldId),
    ) {
        let is_ending = self.is_ending(context, pool, id);
        let Some(tracked) = self.held.get_mut(&id) else {
            return;
        };
        let Some(mut kill) = tracked.oom_kill() else {
            return;
        };
        tracked.set_oom_kill(None);
        let oom = groups.groups().oom_so_far(&tracked.group);
        let whole = tracked.group.loses_single_processes();
        match kill.victim(now, oom, is_ending, whole) {
            Victim::Unknown(again) => {
                kill.check_at = now.later(again);
                tracked.set_oom_kill(Some(kill));
                return;
            }
            Victim::Worker | Victim::Elsewhere => return,
            Victim::ChildProcess => {}
        }
        if !whole {
            groups.groups().oom(&mut tracked.group);
        }
        // RACE: a worker of a pool may see the end of its child process and begin its next task
        // before this kill, which then ends a task that has not allocated anything. Version 2 kills
        // in one step; version 1 cannot.
        if pool.is_none() || !whole {
            self.tell_helper_killed(context, id, (oom, whole));
        }
        if whole {
            self.kill(context, groups, now, id);
        }
    }

    fn tell_helper_killed(&mut self, context: &mut Context, id: HeldId, (oom, whole): (Oom, bool)) {
        match id {
            HeldId::Worker(worker) => context.tell(Input::HelperKilled { worker, oom, whole }),
            HeldId::ForkServer(_) => self.fork_server_news.push(ForkServerNews::ChildKilled),
        }
    }

    /// Whether the worker is ending or gone. A fork server counts as ending if one of
    /// its workers is.
    fn is_ending(&self, context: &Context, pool: Option<&PoolHost>, id: HeldId) -> bool {
        let Some(tracked) = self.held.get(&id) else {
            return true;
        };
        let forked = match id {
            HeldId::ForkServer(id) => pool.map(|pool| pool.children_of(id)),
            HeldId::Worker(_) => None,
        };
        let forked = forked.unwrap_or_default();
        let mut all = forked.into_iter().chain([tracked.process.pid()]);
        all.any(|pid| context.proc().is_ending(pid))
    }

    /// Whether the OOM killer ended this worker. Reports a kill of one of its child
    /// processes, unless that was done already.
    pub(in crate::host) fn oom_of(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        id: HeldId,
        ended: Ended,
    ) -> Oom {
        let killed = matches!(ended, Ended::Signal(Signal::KILL) | Ended::Unseen);
        let oom = match self.held.get_mut(&id) {
            Some(tracked) => groups.groups().oom(&mut tracked.group),
            None => Oom::No,
        };
        if !killed {
            let whole = false;
            if oom != Oom::No {
                self.tell_helper_killed(context, id, (oom, whole));
            }
            return Oom::No;
        }
        if groups.take_kill_above(ended) {
            return Oom::Elsewhere;
        }
        oom
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: Timestamp = Timestamp::from_nanos(9_000_000_000);

    /// Runs checks, each with its time after the call in milliseconds, the kill that the group has
    /// counted, and whether the worker is ending. The last one must find `expected`.
    fn check(checks: &[(u64, Oom, bool)], whole: bool, expected: &Victim) {
        let mut kill = Kill {
            called: CALLED,
            counted: None,
            check_at: CALLED,
        };
        let mut victim = None;
        for &(after, oom, is_ending) in checks {
            let now = CALLED.later(Duration::from_millis(after));
            victim = Some(kill.victim(now, oom, is_ending, whole));
        }
        assert_eq!(victim.as_ref(), Some(expected), "{checks:?}");
    }

    #[test]
    fn a_kill_that_its_group_does_not_count_in_time_was_elsewhere() {
        let soon = Victim::Unknown(CHECK_PAUSE);
        for whole in [false, true] {
            check(&[(0, Oom::No, false)], whole, &soon);
            check(
                &[(499, Oom::No, true)],
                whole,
                &Victim::Unknown(Duration::from_micros(249_500)),
            );
            check(&[(500, Oom::No, false)], whole, &Victim::Elsewhere);
        }
    }

    #[test]
    fn a_worker_that_is_still_running_when_a_kill_is_counted_may_be_its_victim() {
        let soon = Victim::Unknown(CHECK_PAUSE);
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
            &Victim::ChildProcess,
        );
    }

    #[test]
    fn the_rest_of_a_group_that_loses_one_process_is_killed_at_once() {
        check(&[(0, Oom::Cap, false)], true, &Victim::ChildProcess);
        check(&[(0, Oom::Cap, true)], true, &Victim::Worker);
    }
}
