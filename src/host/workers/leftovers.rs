//! Processes that outlived the worker which started them.
//!
//! They are still in the group of the worker that has ended, and are now children of the keeper,
//! the nearest subreaper. What a server starts outside of its workers is in the server's own group
//! and is never a leftover. Neither is a master, a worker, or a process that a master or a worker
//! has started.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Workers, tracked::gone_is_fine};
use crate::{
    host::{
        cgroup::{Group, ServiceGroups},
        context::Context,
        memory::procfs::{Proc, Stat},
        process::pidfd::PidFd,
    },
    supervisor::input::{Effect, Input, Leftover},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// How long each possible leftover has used no CPU. The kernel counts in ticks of 10 ms.
#[derive(Debug, Default)]
pub(super) struct IdleTimes {
    /// By pid and start time: the ticks used so far, and when that number was first seen.
    since: BTreeMap<(i32, u64), (u64, Timestamp)>,
    /// Whether the last search has found and reported leftovers.
    found_some: bool,
}

impl IdleTimes {
    /// Notes the CPU time of this process. Returns how long it has used no CPU.
    fn note(&mut self, now: Timestamp, pid: i32, stat: &Stat) -> Duration {
        let entry = self.since.entry((pid, stat.starttime));
        let (ticks, since) = entry.or_insert((stat.cpu_ticks, now));
        if *ticks != stat.cpu_ticks {
            (*ticks, *since) = (stat.cpu_ticks, now);
        }
        now.since(*since)
    }
}

impl Workers {
    /// Reports the leftovers of a server. `is_of_server`: the process is the command, a master, or
    /// a child of a master.
    pub(in crate::host) fn tell_leftovers(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        now: Timestamp,
        is_of_server: &dyn Fn(i32) -> bool,
    ) {
        let mut idle = std::mem::take(&mut self.idle);
        let mut noted = self.note_children(context.proc(), now, &mut idle);
        let mut found = Vec::new();
        for group in groups.ended() {
            if let Some(worker) = group.name().and_then(|name| name.parse().ok()) {
                found.extend({
                    let is_owned = |pid| is_of_server(pid) || self.is_main(pid);
                    leftovers_in(context.proc(), now, (group, worker), (&mut idle, &is_owned))
                });
            }
        }
        noted.extend(found.iter().map(|one| (one.pid, one.started)));
        idle.since.retain(|process, _| noted.contains(process));
        let had_some = std::mem::replace(&mut idle.found_some, !found.is_empty());
        if had_some || idle.found_some {
            context.tell(Input::LeftBehind(found));
        }
        self.idle = idle;
    }

    /// Notes the children of running workers, since a child may be idle already when its worker
    /// ends.
    fn note_children(
        &self,
        proc: &Proc,
        now: Timestamp,
        idle: &mut IdleTimes,
    ) -> BTreeSet<(i32, u64)> {
        let mut noted = BTreeSet::new();
        for tracked in self.held.values() {
            for &pid in tracked.children() {
                if let Ok(stat) = proc.stat(pid) {
                    idle.note(now, pid, &stat);
                    noted.insert((pid, stat.starttime));
                }
            }
        }
        noted
    }

    /// Whether this is the main process of a worker. Its children are not leftovers.
    fn is_main(&self, pid: i32) -> bool {
        let mut held = self.held.values();
        held.any(|tracked| tracked.process.pid() == pid)
    }

    /// Signals a leftover, unless its pid was reused.
    pub(in crate::host) fn end_leftover(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        (pid, started): (i32, u64),
        signal: Signal,
    ) {
        // RACE: the pid may have been reused. The process is held by a descriptor before the check,
        // so the signal goes to the process that was checked.
        let Ok(process) = PidFd::open(pid) else {
            return;
        };
        let is_same = context
            .proc()
            .stat(pid)
            .is_ok_and(|stat| stat.starttime == started);
        let contains = |group: &Group| {
            let mut pids = Vec::new();
            group.pids(&mut pids).is_ok() && pids.contains(&pid)
        };
        if !is_same || !groups.ended().iter().any(contains) {
            return;
        }
        if let Err(error) = process.signal(signal).or_else(gone_is_fine) {
            let what = format!("send {signal} to pid {pid}, left over from a worker: {error}");
            context.fail(what, None, Effect::Signal);
        }
        self.is_urgent = true;
    }
}

/// The leftovers in the group of a worker that has ended.
fn leftovers_in(
    proc: &Proc,
    now: Timestamp,
    (group, worker): (&Group, WorkerId),
    (idle, is_owned): (&mut IdleTimes, &dyn Fn(i32) -> bool),
) -> Vec<Leftover> {
    let mut pids = Vec::new();
    // A removed group has no processes.
    let _ = group.pids(&mut pids);
    let seen = pids.iter().filter_map(|pid| {
        let stat = proc.stat(*pid).ok()?;
        (!proc.is_ending(*pid)).then_some((*pid, stat))
    });
    let seen: BTreeMap<i32, Stat> = seen.collect();
    let parents: BTreeMap<i32, i32> = seen.iter().map(|(pid, it)| (*pid, it.ppid)).collect();
    let mut found = Vec::new();
    for (&pid, stat) in &seen {
        let tree = topmost(&parents, pid);
        let above = parents.get(&tree).copied().unwrap_or_default();
        if is_owned(tree) || is_owned(above) {
            continue;
        }
        let memory = proc.statm(pid).and_then(|statm| statm.read());
        found.push(Leftover {
            worker,
            pid,
            started: stat.starttime,
            tree,
            command: proc.command(pid),
            memory: memory.map_or(Bytes::ZERO, |seen| seen.resident.minus(seen.shared)),
            idle: idle.note(now, pid, stat),
        });
    }
    found
}

/// The topmost ancestor of this process among these processes.
fn topmost(parents: &BTreeMap<i32, i32>, pid: i32) -> i32 {
    let mut top = pid;
    // Reused pids could form a cycle.
    for _ in 0..parents.len() {
        match parents.get(&top) {
            Some(parent) if parents.contains_key(parent) => top = *parent,
            Some(_) | None => break,
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_idle_since_it_last_used_the_cpu() {
        let mut idle = IdleTimes::default();
        let mut note = |second, starttime, cpu_ticks| {
            let stat = Stat {
                comm: "chrome".to_owned(),
                state: 'S',
                ppid: 1,
                session: 1,
                cpu_ticks,
                threads: 1,
                starttime,
                start_stack: 0,
            };
            let now = Timestamp::default().later(Duration::from_secs(second));
            idle.note(now, 5, &stat).as_secs()
        };
        assert_eq!((note(1, 7, 30), note(9, 7, 30)), (0, 8));
        assert_eq!((note(10, 7, 31), note(12, 7, 31)), (0, 2));
        // Another process with the same pid.
        assert_eq!(note(13, 8, 31), 0);
    }

    #[test]
    fn a_leftover_belongs_to_the_tree_of_its_topmost_leftover_ancestor() {
        let parents = BTreeMap::from([(5, 1), (6, 5), (7, 6), (9, 3)]);
        let tops = [5, 6, 7, 9].map(|pid| topmost(&parents, pid));
        assert_eq!(tops, [5, 5, 5, 9]);
        // A pid was reused.
        let circle = BTreeMap::from([(5, 6), (6, 5)]);
        assert!([5, 6].contains(&topmost(&circle, 5)));
    }
}
