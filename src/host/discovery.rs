//! Finding a server's master and its workers among all that the command started.
//!
//! The master is the topmost process whose command line is gunicorn's: the command itself, or what
//! a shell script or a launcher started. Its workers are forks of it that have not executed
//! anything (they share its stack's address, which execve(2) draws anew) and that hold a heartbeat
//! file which no other worker holds. A second master (USR2) is a child that did execute gunicorn.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    heartbeat::{Heartbeat, PREFIX},
    procfs::Proc,
};
use crate::{servers::is_gunicorn, units::Timestamp};

/// Without news of forks: a worker is seen within this.
const SCAN: Duration = Duration::from_millis(80);
/// With news of forks: in case one was lost.
const SCAN_SLOW: Duration = Duration::from_secs(1);
/// While a worker boots, its heartbeat file is looked at (about 1 us).
const BOOT_POLL: Duration = Duration::from_millis(20);
/// A fork without a heartbeat file of its own by then is no worker.
const HEARTBEAT_WITHIN: Duration = Duration::from_secs(2);

/// What a scan found out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Finding {
    /// A worker, or what looks like one so far.
    Seen { pid: i32 },
    /// It is none.
    NoWorker { pid: i32 },
    /// It serves.
    Ready { pid: i32 },
    /// So many masters serve now.
    Masters { count: u32 },
}

/// The search through one run of the command.
#[derive(Debug)]
pub(super) struct Discovery {
    root: i32,
    masters: Vec<Master>,
    kin: BTreeMap<i32, Kin>,
    next_scan: Timestamp,
    hears_forks: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Master {
    pid: i32,
    starttime: u64,
    start_stack: u64,
}

/// A child of a master.
#[derive(Debug)]
struct Kin {
    starttime: u64,
    role: Role,
}

#[derive(Debug)]
enum Role {
    /// Looks like a worker.
    Fork { seen: Timestamp, start_stack: u64 },
    /// Holds a heartbeat file of its own and has not beaten.
    Booting {
        start_stack: u64,
        inode: u64,
        heartbeat: Heartbeat,
    },
    /// Has beaten.
    Serving { inode: u64 },
    /// The server's helper.
    Helper,
}

/// What a search hands to its successor.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Handed {
    root: i32,
    masters: Vec<Master>,
    kin: Vec<(i32, u64, Known)>,
}

#[derive(Debug, Deserialize, Serialize)]
enum Known {
    Fork { start_stack: u64 },
    Serving { inode: u64 },
    Helper,
}

impl Discovery {
    pub(super) fn hand_over(&self) -> Handed {
        let known = |kin: &Kin| match kin.role {
            // Its heartbeat file is found again.
            Role::Fork { start_stack, .. } | Role::Booting { start_stack, .. } => {
                Known::Fork { start_stack }
            }
            Role::Serving { inode } => Known::Serving { inode },
            Role::Helper => Known::Helper,
        };
        let kin = self.kin.iter();
        Handed {
            root: self.root,
            masters: self.masters.clone(),
            kin: kin
                .map(|(pid, kin)| (*pid, kin.starttime, known(kin)))
                .collect(),
        }
    }

    pub(super) fn take_over(handed: Handed, hears_forks: bool, now: Timestamp) -> Self {
        let role = |known| match known {
            Known::Fork { start_stack } => Role::Fork {
                seen: now,
                start_stack,
            },
            Known::Serving { inode } => Role::Serving { inode },
            Known::Helper => Role::Helper,
        };
        let kin = handed.kin.into_iter();
        Self {
            masters: handed.masters,
            kin: kin
                .map(|(pid, starttime, known)| {
                    let role = role(known);
                    (pid, Kin { starttime, role })
                })
                .collect(),
            ..Self::new(handed.root, hears_forks, now)
        }
    }

    pub(super) const fn new(root: i32, hears_forks: bool, now: Timestamp) -> Self {
        Self {
            root,
            masters: Vec::new(),
            kin: BTreeMap::new(),
            next_scan: now,
            hears_forks,
        }
    }

    /// When to scan again at the latest.
    pub(super) const fn deadline(&self) -> Timestamp {
        self.next_scan
    }

    /// Something forked: scan at once.
    pub(super) const fn hurry(&mut self, now: Timestamp) {
        self.next_scan = now;
    }

    /// The masters, the first one first.
    pub(super) fn masters(&self) -> Vec<i32> {
        self.masters.iter().map(|master| master.pid).collect()
    }

    /// The master that signals are for.
    pub(super) fn main(&self) -> Option<i32> {
        self.masters.first().map(|master| master.pid)
    }

    /// A worker's process is gone.
    pub(super) fn forget(&mut self, pid: i32) {
        self.kin.remove(&pid);
    }

    /// Looks for masters that are still there, when the command itself is gone.
    pub(super) fn successor(&mut self, proc: &Proc) -> Option<i32> {
        self.masters.retain(|master| is_alive(proc, *master));
        if self.masters.is_empty() {
            // RACE: USR2, and the first master is killed before we have seen the second.
            let found = self.first_master(proc, self.kin.keys().copied());
            self.masters.extend(found);
        }
        let successor = self.main()?;
        self.root = successor;
        Some(successor)
    }

    /// Looks around; what is new comes oldest first.
    pub(super) fn scan(&mut self, proc: &Proc, now: Timestamp) -> Vec<Finding> {
        let mut findings = Vec::new();
        let before = self.masters.clone();
        self.masters.retain(|master| is_alive(proc, *master));
        if self.masters.is_empty() {
            let all = std::iter::once(self.root).chain(proc.descendants(self.root));
            let found = self.first_master(proc, all);
            self.masters.extend(found);
        }
        let mut index = 0;
        while let Some(master) = self.masters.get(index).copied() {
            self.scan_children(proc, now, master, &mut findings);
            index += 1;
        }
        self.check_boots(proc, now, &mut findings);
        if before != self.masters && !self.masters.is_empty() {
            let count = u32::try_from(self.masters.len()).unwrap_or(u32::MAX);
            findings.push(Finding::Masters { count });
        }
        let boots = self
            .kin
            .values()
            .any(|kin| !matches!(kin.role, Role::Serving { .. } | Role::Helper));
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
            let role = if stat.start_stack == master.start_stack {
                findings.push(Finding::Seen { pid });
                Role::Fork {
                    seen: now,
                    start_stack: stat.start_stack,
                }
            } else if let Some(second) = as_master(proc, pid) {
                self.masters.push(second);
                continue;
            } else {
                Role::Helper
            };
            self.kin.insert(
                pid,
                Kin {
                    starttime: stat.starttime,
                    role,
                },
            );
        }
    }

    /// The first that is one. A worker is none, though its command line is its master's.
    ///
    /// RACE: a master with several threads is killed. Its first thread is a zombie, and for a
    /// moment its workers are still the children of another: only what we know tells them from a
    /// master.
    fn first_master(&self, proc: &Proc, pids: impl Iterator<Item = i32>) -> Option<Master> {
        pids.filter_map(|pid| as_master(proc, pid)).find(|found| {
            self.kin
                .get(&found.pid)
                .is_none_or(|kin| kin.has_executed(found.start_stack))
        })
    }

    /// Moves those that boot on: to their heartbeat file, to their first beat, or out.
    fn check_boots(&mut self, proc: &Proc, now: Timestamp, findings: &mut Vec<Finding>) {
        let booting = |kin: &Kin| matches!(kin.role, Role::Fork { .. } | Role::Booting { .. });
        let mut pids: Vec<_> = self
            .kin
            .iter()
            .filter(|(_, kin)| booting(kin))
            .map(|(pid, kin)| (kin.starttime, *pid))
            .collect();
        // Oldest first: a younger fork holds the files of its elder brothers for a moment, until it
        // has closed them, and by then they are claimed.
        pids.sort_unstable();
        for (_, pid) in pids {
            let claimed: Vec<u64> = self.kin.values().filter_map(Kin::inode).collect();
            let Some(kin) = self.kin.get_mut(&pid) else {
                continue;
            };
            if let Some(finding) = kin.step(proc, now, pid, &claimed) {
                findings.push(finding);
            }
            let executed = matches!(kin.role, Role::Helper);
            if executed && let Some(second) = as_master(proc, pid) {
                self.kin.remove(&pid);
                self.masters.push(second);
            }
        }
    }
}

impl Kin {
    /// It has executed a program of its own since its fork.
    const fn has_executed(&self, start_stack_now: u64) -> bool {
        match self.role {
            Role::Fork { start_stack, .. } | Role::Booting { start_stack, .. } => {
                start_stack != start_stack_now
            }
            Role::Serving { .. } => false,
            Role::Helper => true,
        }
    }

    const fn inode(&self) -> Option<u64> {
        match self.role {
            Role::Booting { inode, .. } | Role::Serving { inode } => Some(inode),
            Role::Fork { .. } | Role::Helper => None,
        }
    }

    /// One look at a fork that may be a worker.
    fn step(&mut self, proc: &Proc, now: Timestamp, pid: i32, claimed: &[u64]) -> Option<Finding> {
        let (Role::Fork { start_stack, .. } | Role::Booting { start_stack, .. }) = self.role else {
            return None;
        };
        if matches!(self.role, Role::Fork { seen, .. } if seen == now) {
            // It has no name yet: what is found out about it is told from the next scan on.
            return None;
        }
        // Gone: its descriptor tells of that.
        let stat = proc.stat(pid).ok().filter(|stat| stat.state != 'Z')?;
        // RACE: it is ending. Before it is a zombie it has no memory, and its stack is zero.
        if stat.start_stack == 0 && start_stack != 0 {
            return None;
        }
        if stat.start_stack != start_stack {
            self.role = Role::Helper;
            return Some(Finding::NoWorker { pid });
        }
        if let Role::Fork { seen, .. } = self.role {
            let files = proc.files(pid, PREFIX).unwrap_or_default();
            let mut own = files
                .iter()
                .map(|(_, inode)| *inode)
                .filter(|i| !claimed.contains(i));
            if let (Some(inode), None) = (own.next(), own.next())
                && let Some(heartbeat) = Heartbeat::open(proc, pid, inode)
            {
                self.role = Role::Booting {
                    start_stack,
                    inode,
                    heartbeat,
                };
            } else if now.since(seen) >= HEARTBEAT_WITHIN {
                self.role = Role::Helper;
                return Some(Finding::NoWorker { pid });
            }
        }
        if let Role::Booting {
            inode, heartbeat, ..
        } = &self.role
            && heartbeat.is_beaten()
        {
            self.role = Role::Serving { inode: *inode };
            return Some(Finding::Ready { pid });
        }
        None
    }
}

/// This process, if it executes gunicorn.
fn as_master(proc: &Proc, pid: i32) -> Option<Master> {
    let words: Vec<_> = proc
        .cmdline(pid)
        .ok()?
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let stat = proc.stat(pid).ok().filter(|stat| stat.state != 'Z')?;
    is_gunicorn(&words).then_some(Master {
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

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT_STACK: u64 = 140_000;

    /// What becomes of a fork whose `stat` says that its stack begins there.
    fn step(start_stack: u64) -> Option<Finding> {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("41");
        std::fs::create_dir(&dir).unwrap();
        // proc(5): the fields from 3 on; 22 is the start time, 28 the start of the stack.
        let mut fields = vec!["0".to_owned(); 50];
        fields[0] = "S".to_owned();
        fields[19] = "77".to_owned();
        fields[25] = start_stack.to_string();
        let stat = format!("41 (gunicorn) {}\n", fields.join(" "));
        std::fs::write(dir.join("stat"), stat).unwrap();
        let mut kin = Kin {
            starttime: 77,
            role: Role::Fork {
                seen: Timestamp::default(),
                start_stack: PARENT_STACK,
            },
        };
        let now = Timestamp::default().later(Duration::from_millis(20));
        kin.step(&Proc::at(root.path()), now, 41, &[])
    }

    #[test]
    fn a_worker_that_ends_while_it_boots_is_not_taken_for_a_helper() {
        assert_eq!(step(0), None);
        assert_eq!(step(PARENT_STACK), None);
    }

    #[test]
    fn a_fork_that_executes_another_program_is_no_worker() {
        let helper = Finding::NoWorker { pid: 41 };
        assert_eq!(step(PARENT_STACK + 1), Some(helper));
    }
}
