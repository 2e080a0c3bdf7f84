//! Processes that outlived the worker which started them.
//!
//! They are still in the group of the worker that has ended, and have become children of the
//! keeper, the nearest subreaper. What a server starts outside of its workers is in the server's
//! own group and is never left over; neither is a master, a worker, or a process that one of these
//! started.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Host, cgroup::Group, pidfd::PidFd, procfs::Stat, tracked::gone_is_fine};
use crate::{
    supervisor::{
        event::{Effect, Event, Leftover},
        spec::Kind,
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// How long each process that may become a leftover has used no CPU. The kernel counts in ticks of
/// 10 ms.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// By pid and start time: the ticks used so far, and when that number was first seen.
    since: BTreeMap<(i32, u64), (u64, Timestamp)>,
    told: bool,
}

impl Idle {
    /// Returns how long this process has used no CPU.
    fn note(&mut self, now: Timestamp, pid: i32, stat: &Stat) -> Duration {
        let entry = self.since.entry((pid, stat.starttime));
        let (ticks, since) = entry.or_insert((stat.cpu_ticks, now));
        if *ticks != stat.cpu_ticks {
            (*ticks, *since) = (stat.cpu_ticks, now);
        }
        now.since(*since)
    }
}

impl Host {
    /// Reports the processes that are left over now.
    pub(super) fn tell_leftovers(&mut self, now: Timestamp) {
        let is_server = matches!(self.spec.kind, Kind::Server(_)) && self.pool.is_none();
        if !is_server || self.run.is_none() {
            return;
        }
        let mut idle = std::mem::take(&mut self.idle);
        let mut noted = self.note_children(now, &mut idle);
        let mut found = Vec::new();
        for group in &self.gone {
            if let Some(worker) = group.name().and_then(|name| name.parse().ok()) {
                found.extend(self.left_in(now, (group, worker), &mut idle));
            }
        }
        noted.extend(found.iter().map(|one| (one.pid, one.started)));
        idle.since.retain(|process, _| noted.contains(process));
        let had_some = std::mem::replace(&mut idle.told, !found.is_empty());
        if had_some || idle.told {
            self.events.push_back(Event::LeftBehind(found));
        }
        self.idle = idle;
    }

    /// Notes the children of running workers: one that outlives its worker may be idle already.
    fn note_children(&self, now: Timestamp, idle: &mut Idle) -> BTreeSet<(i32, u64)> {
        let mut noted = BTreeSet::new();
        for tracked in self.workers.values() {
            for &pid in tracked.children() {
                if let Ok(stat) = self.proc.stat(pid) {
                    idle.note(now, pid, &stat);
                    noted.insert((pid, stat.starttime));
                }
            }
        }
        noted
    }

    fn left_in(
        &self,
        now: Timestamp,
        (group, worker): (&Group, WorkerId),
        idle: &mut Idle,
    ) -> Vec<Leftover> {
        let mut pids = Vec::new();
        // A group that is gone has no processes.
        let _ = group.pids(&mut pids);
        let seen = pids.iter().filter_map(|pid| {
            let stat = self.proc.stat(*pid).ok()?;
            (!self.proc.is_ending(*pid)).then_some((*pid, stat))
        });
        let seen: BTreeMap<i32, Stat> = seen.collect();
        let parents: BTreeMap<i32, i32> = seen.iter().map(|(pid, it)| (*pid, it.ppid)).collect();
        let mut found = Vec::new();
        for (&pid, stat) in &seen {
            let tree = topmost(&parents, pid);
            let above = parents.get(&tree).copied().unwrap_or_default();
            if self.is_owned(tree) || self.is_owned(above) {
                continue;
            }
            let memory = self.proc.statm(pid).and_then(|statm| statm.read());
            found.push(Leftover {
                worker,
                pid,
                started: stat.starttime,
                tree,
                command: self.proc.command(pid),
                memory: memory.map_or(Bytes::ZERO, |seen| seen.resident.minus(seen.shared)),
                idle: idle.note(now, pid, stat),
            });
        }
        found
    }

    /// The command, a master, a child of one, or a worker: its children are not left over.
    fn is_owned(&self, pid: i32) -> bool {
        let run = self.run.as_ref();
        let is_root = run.is_some_and(|run| run.root == Some(pid));
        let discovery = run.and_then(|run| run.discovery.as_ref());
        let is_kin = discovery.is_some_and(|discovery| discovery.knows(pid));
        let mut workers = self.workers.values();
        is_root || is_kin || workers.any(|tracked| tracked.process.pid() == pid)
    }

    /// Signals a leftover, unless its number was reused.
    pub(super) fn end_leftover(&mut self, (pid, started): (i32, u64), signal: Signal) {
        // RACE: its number may have been reused. The process is held by a descriptor before the
        // check, so the one that was checked gets the signal.
        let Ok(process) = PidFd::open(pid) else {
            return;
        };
        let is_same = self
            .proc
            .stat(pid)
            .is_ok_and(|stat| stat.starttime == started);
        let stands = |group: &Group| {
            let mut pids = Vec::new();
            group.pids(&mut pids).is_ok() && pids.contains(&pid)
        };
        if !is_same || !self.gone.iter().any(stands) {
            return;
        }
        if let Err(error) = process.signal(signal).or_else(gone_is_fine) {
            let what = format!("send {signal} to pid {pid}, left over from a worker: {error}");
            self.fail(what, None, Effect::Signal);
        }
        self.upkeep.soon();
    }
}

/// The topmost of its ancestors among these processes.
fn topmost(parents: &BTreeMap<i32, i32>, pid: i32) -> i32 {
    let mut top = pid;
    // Reused numbers could form a circle.
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
        let mut idle = Idle::default();
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
        // Another process with the same number.
        assert_eq!(note(13, 8, 31), 0);
    }

    #[test]
    fn a_process_belongs_to_the_highest_above_it_that_is_left_over_too() {
        let parents = BTreeMap::from([(5, 1), (6, 5), (7, 6), (9, 3)]);
        let tops = [5, 6, 7, 9].map(|pid| topmost(&parents, pid));
        assert_eq!(tops, [5, 5, 5, 9]);
        // A number that was used again.
        let circle = BTreeMap::from([(5, 6), (6, 5)]);
        assert!([5, 6].contains(&topmost(&circle, 5)));
    }
}
