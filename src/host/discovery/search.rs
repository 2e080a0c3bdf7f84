//! The search itself: masters first, then their children.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::kin::{HEARTBEAT_WITHIN, Kin, Role, claim, has_workers, own_files};
use crate::{host::procfs::Proc, servers::is_gunicorn, units::Timestamp};

/// Without news of forks: a worker is seen within this.
const SCAN: Duration = Duration::from_millis(80);
/// With news of forks: in case one was lost.
const SCAN_SLOW: Duration = Duration::from_secs(1);
/// While a worker boots, its heartbeat file is looked at (about 1 us).
const BOOT_POLL: Duration = Duration::from_millis(20);

/// What a scan found out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::host) enum Finding {
    /// A worker, or what looks like one so far.
    Seen { pid: i32 },
    /// It is not a worker.
    NoWorker { pid: i32 },
    /// It serves.
    Ready { pid: i32 },
    /// A child of a master that is no worker, and stays.
    Helper { pid: i32 },
    /// The number of masters that serve now.
    Masters { count: u32 },
}

/// The search through one run of the command.
#[derive(Debug)]
pub(in crate::host) struct Discovery {
    root: i32,
    masters: Vec<Master>,
    kin: BTreeMap<i32, Kin>,
    next_scan: Timestamp,
    hears_forks: bool,
    /// A fork of another program that looks like a master by its files, and since when.
    likely: Option<(i32, Timestamp)>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Master {
    pid: i32,
    starttime: u64,
    start_stack: u64,
}

/// What a search hands to its successor.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::host) struct Handed {
    root: i32,
    masters: Vec<Master>,
    kin: Vec<HandedKin>,
}

#[derive(Debug, Deserialize, Serialize)]
struct HandedKin {
    pid: i32,
    parent: i32,
    starttime: u64,
    start_stack: u64,
    forked: bool,
    known: Known,
}

#[derive(Debug, Deserialize, Serialize)]
enum Known {
    Fork,
    Serving { inode: u64 },
    Helper { told: bool },
}

impl Discovery {
    pub(in crate::host) fn hand_over(&self) -> Handed {
        let known = |kin: &Kin| match kin.role {
            // Its heartbeat file is found again.
            Role::Fork | Role::Booting { .. } => Known::Fork,
            Role::Serving { inode } => Known::Serving { inode },
            Role::Helper { told } => Known::Helper { told },
        };
        let kin = self.kin.iter().map(|(pid, kin)| HandedKin {
            pid: *pid,
            parent: kin.parent,
            starttime: kin.starttime,
            start_stack: kin.start_stack,
            forked: kin.forked,
            known: known(kin),
        });
        Handed {
            root: self.root,
            masters: self.masters.clone(),
            kin: kin.collect(),
        }
    }

    pub(in crate::host) fn take_over(handed: Handed, hears_forks: bool, now: Timestamp) -> Self {
        let role = |known| match known {
            Known::Fork => Role::Fork,
            Known::Serving { inode } => Role::Serving { inode },
            Known::Helper { told } => Role::Helper { told },
        };
        let kin = handed.kin.into_iter().map(|kin| {
            let known = Kin {
                parent: kin.parent,
                starttime: kin.starttime,
                seen: now,
                start_stack: kin.start_stack,
                forked: kin.forked,
                role: role(kin.known),
            };
            (kin.pid, known)
        });
        Self {
            masters: handed.masters,
            kin: kin.collect(),
            ..Self::new(handed.root, hears_forks, now)
        }
    }

    pub(in crate::host) const fn new(root: i32, hears_forks: bool, now: Timestamp) -> Self {
        Self {
            root,
            masters: Vec::new(),
            kin: BTreeMap::new(),
            next_scan: now,
            hears_forks,
            likely: None,
        }
    }

    /// When the next scan is due.
    pub(in crate::host) const fn deadline(&self) -> Timestamp {
        self.next_scan
    }

    /// Something forked: scan at once.
    pub(in crate::host) const fn hurry(&mut self, now: Timestamp) {
        self.next_scan = now;
    }

    /// The masters, the first one first.
    pub(in crate::host) fn masters(&self) -> Vec<i32> {
        self.masters.iter().map(|master| master.pid).collect()
    }

    /// The master that signals are for.
    pub(in crate::host) fn main(&self) -> Option<i32> {
        self.masters.first().map(|master| master.pid)
    }

    /// A master, or a child of one.
    pub(in crate::host) fn knows(&self, pid: i32) -> bool {
        self.kin.contains_key(&pid) || self.masters.iter().any(|master| master.pid == pid)
    }

    /// A worker's process is gone.
    pub(in crate::host) fn forget(&mut self, pid: i32) {
        self.kin.remove(&pid);
    }

    /// Looks for masters that are still there, when the command itself is gone.
    pub(in crate::host) fn successor(&mut self, proc: &Proc) -> Option<i32> {
        self.masters.retain(|master| is_alive(proc, *master));
        if self.masters.is_empty() {
            // RACE: USR2, and the first master is killed before we have seen the second.
            let kin: Vec<_> = self.kin.keys().copied().collect();
            let found = self.named_master(proc, &kin);
            self.masters.extend(found);
        }
        let successor = self.main()?;
        self.root = successor;
        Some(successor)
    }

    /// Looks around; what is new comes oldest first.
    pub(in crate::host) fn scan(&mut self, proc: &Proc, now: Timestamp) -> Vec<Finding> {
        let mut findings = Vec::new();
        let before = self.masters.clone();
        self.masters.retain(|master| is_alive(proc, *master));
        if self.masters.is_empty() {
            let mut all = vec![self.root];
            all.extend(proc.descendants(self.root));
            let found = self
                .named_master(proc, &all)
                .or_else(|| self.embedding_master(proc, now, &all));
            self.masters.extend(found);
        }
        let mut index = 0;
        while let Some(master) = self.masters.get(index).copied() {
            self.scan_children(proc, now, master, &mut findings);
            index += 1;
        }
        self.check_kin(proc, now, &mut findings);
        if before != self.masters && !self.masters.is_empty() {
            let count = u32::try_from(self.masters.len()).unwrap_or(u32::MAX);
            findings.push(Finding::Masters { count });
        }
        let boots = self.kin.values().any(Kin::is_booting);
        self.next_scan = match (boots || self.masters.is_empty(), self.hears_forks) {
            (true, _) => now.later(BOOT_POLL),
            (false, true) => now.next_multiple(SCAN_SLOW),
            (false, false) => now.later(SCAN),
        };
        findings
    }

    fn scan_children(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        master: Master,
        findings: &mut Vec<Finding>,
    ) {
        let mut children = Vec::new();
        // An error means that the master has just gone: the next scan drops it.
        let _ = proc.children(master.pid, &mut children);
        children.retain(|pid| !self.kin.contains_key(pid));
        children.retain(|pid| self.masters.iter().all(|other| other.pid != *pid));
        let mut new: Vec<_> = children
            .into_iter()
            .filter_map(|pid| Some((proc.stat(pid).ok().filter(|stat| stat.state != 'Z')?, pid)))
            .collect();
        new.sort_by_key(|(stat, pid)| (stat.starttime, *pid));
        for (stat, pid) in new {
            let forked = stat.start_stack == master.start_stack;
            if !forked && let Some(second) = as_master(proc, pid) {
                self.masters.push(second);
                continue;
            }
            let role = if forked {
                self.role_of_fork(proc, master.pid, pid)
            } else {
                Role::Helper { told: false }
            };
            if !matches!(role, Role::Helper { .. }) {
                findings.push(Finding::Seen { pid });
            }
            let kin = Kin {
                parent: master.pid,
                starttime: stat.starttime,
                seen: now,
                start_stack: stat.start_stack,
                forked,
                role,
            };
            self.kin.insert(pid, kin);
        }
    }

    /// What a fork of a master is by the files that it was born with.
    fn role_of_fork(&self, proc: &Proc, master: i32, pid: i32) -> Role {
        match own_files(proc, master, pid, &self.claimed()) {
            Some(own) if own.is_empty() => Role::Helper { told: false },
            Some(own) => claim(proc, pid, &own),
            // We may not look: its name and its stack are all that speaks for it.
            None => Role::Fork,
        }
    }

    fn claimed(&self) -> Vec<u64> {
        self.kin.values().filter_map(Kin::inode).collect()
    }

    /// The first that is one by its command line. A worker is none, though its command line is its
    /// master's.
    ///
    /// RACE: a master with several threads is killed. Its first thread is a zombie, and for a
    /// moment its workers are still the children of another: only what we know tells them from a
    /// master.
    fn named_master(&self, proc: &Proc, pids: &[i32]) -> Option<Master> {
        let mut all = pids.iter().filter_map(|pid| as_master(proc, *pid));
        all.find(|found| self.may_be_master(found))
    }

    fn may_be_master(&self, found: &Master) -> bool {
        let kin = self.kin.get(&found.pid);
        kin.is_none_or(|kin| kin.has_executed(found.start_stack))
    }

    /// The topmost program that has gunicorn's workers, whatever it is called.
    ///
    /// RACE: gunicorn's dirty arbiter starts before the first worker of its master does, and looks
    /// like a master until then. It is a fork of its parent, so such a one is taken only when
    /// nothing above it has become a master for a while.
    fn embedding_master(&mut self, proc: &Proc, now: Timestamp, pids: &[i32]) -> Option<Master> {
        let mut all = pids.iter().filter_map(|pid| embedding(proc, *pid));
        let Some(found) = all.find(|found| self.may_be_master(found)) else {
            self.likely = None;
            return None;
        };
        let parent = proc
            .stat(found.pid)
            .and_then(|stat| proc.stat(stat.ppid))
            .ok();
        if parent.is_none_or(|parent| parent.start_stack != found.start_stack) {
            return Some(found);
        }
        let before = self.likely.filter(|(pid, _)| *pid == found.pid);
        let (_, since) = *self.likely.insert(before.unwrap_or((found.pid, now)));
        (now.since(since) >= HEARTBEAT_WITHIN).then_some(found)
    }

    /// Moves the master's children on: to their heartbeat file, to their first beat, or out.
    fn check_kin(&mut self, proc: &Proc, now: Timestamp, findings: &mut Vec<Finding>) {
        let serves = |kin: &Kin| matches!(kin.role, Role::Serving { .. });
        let mut pids: Vec<_> = self
            .kin
            .iter()
            .filter(|(_, kin)| !serves(kin) && kin.seen != now)
            .map(|(pid, kin)| (kin.starttime, *pid))
            .collect();
        // Oldest first: a younger fork holds the files of its elder brothers for a moment, until it
        // has closed them, and by then they are claimed.
        pids.sort_unstable();
        for (_, pid) in pids {
            let claimed = self.claimed();
            let Some(kin) = self.kin.get_mut(&pid) else {
                continue;
            };
            let stat = proc.stat(pid).ok().filter(|stat| stat.state != 'Z');
            let stat = stat.filter(|stat| stat.starttime == kin.starttime);
            let is_helper = matches!(kin.role, Role::Helper { .. });
            let Some(stat) = stat else {
                // The end of a worker is told by its descriptor.
                if is_helper {
                    self.kin.remove(&pid);
                }
                continue;
            };
            let found = if is_helper {
                kin.tell_helper(now, pid)
            } else {
                kin.step(proc, now, (pid, stat.start_stack), &claimed)
            };
            let is_helper = matches!(kin.role, Role::Helper { .. });
            let second = if is_helper && kin.has_executed(stat.start_stack) {
                as_master(proc, pid).or_else(|| embedding(proc, pid))
            } else {
                None
            };
            if let Some(second) = second {
                self.kin.remove(&pid);
                self.masters.push(second);
            }
            findings.extend(found.filter(|found| {
                let is_told = matches!(found, Finding::Helper { .. });
                second.is_none() || !is_told
            }));
        }
    }
}

/// The main process of a server below this one, if there is any.
pub(in crate::host) fn server_below(proc: &Proc, root: i32) -> Option<i32> {
    let mut all = vec![root];
    all.extend(proc.descendants(root));
    let is_named = |pid: &&i32| as_master(proc, **pid).is_some();
    let named = all.iter().find(is_named);
    named
        .or_else(|| all.iter().find(|pid| embedding(proc, **pid).is_some()))
        .copied()
}

/// This process, if it executes gunicorn.
fn as_master(proc: &Proc, pid: i32) -> Option<Master> {
    let words: Vec<_> = proc
        .cmdline(pid)
        .ok()?
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    is_gunicorn(&words).then(|| master_at(proc, pid)).flatten()
}

/// This process, if it has gunicorn's workers, whatever its name is.
fn embedding(proc: &Proc, pid: i32) -> Option<Master> {
    has_workers(proc, pid)
        .then(|| master_at(proc, pid))
        .flatten()
}

fn master_at(proc: &Proc, pid: i32) -> Option<Master> {
    let stat = proc.stat(pid).ok().filter(|stat| stat.state != 'Z')?;
    Some(Master {
        pid,
        starttime: stat.starttime,
        start_stack: stat.start_stack,
    })
}

/// The same process, not another one with its number, and no zombie.
fn is_alive(proc: &Proc, master: Master) -> bool {
    proc.stat(master.pid)
        .is_ok_and(|stat| stat.starttime == master.starttime && stat.state != 'Z')
}
