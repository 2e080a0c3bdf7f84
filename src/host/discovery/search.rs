//! The search for masters and then for their children.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::kin::{
    HEARTBEAT_WITHIN, Kin, Role, has_child_workers, has_spawned_workers, has_workers, own_files,
    role_by_files, role_of_child, role_of_spawned,
};
use crate::{
    host::memory::procfs::Proc,
    servers::{
        PROFILES, fleet, is_main,
        profile::{Found, Profile, Workers},
    },
    units::Timestamp,
};

/// Without fork events: interval of the search, and so the delay until a worker is seen.
const SCAN: Duration = Duration::from_millis(80);
/// With fork events: interval of the search, in case an event was lost.
const SCAN_SLOW: Duration = Duration::from_secs(1);
/// Interval at which the heartbeat file of a booting worker is checked (about 1 us each).
const BOOT_POLL: Duration = Duration::from_millis(20);

/// A result of a scan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::host) enum Finding {
    /// A worker, or a process that looks like one so far.
    Seen { pid: i32 },
    /// A process seen before is not a worker.
    NoWorker { pid: i32 },
    /// A worker serves.
    Ready { pid: i32 },
    /// A child of a master that is not a worker, and keeps running.
    Helper { pid: i32 },
    /// The number of masters that serve now.
    Masters { count: u32 },
}

/// The search during one start of the command.
#[derive(Debug)]
pub(super) struct Search {
    server: &'static Profile,
    /// The process below which masters are searched: the command, or its successor.
    root: i32,
    masters: Vec<Master>,
    /// The children of the masters, by pid.
    kin: BTreeMap<i32, Kin>,
    next_scan: Timestamp,
    has_fork_events: bool,
    /// A fork of another program that looks like a master by its files, and since when.
    likely: Option<(i32, Timestamp)>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Master {
    pid: i32,
    starttime: u64,
    start_stack: u64,
}

/// The state that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::host) struct SearchState {
    root: i32,
    masters: Vec<Master>,
    kin: Vec<KinState>,
}

#[derive(Debug, Deserialize, Serialize)]
struct KinState {
    pid: i32,
    parent: i32,
    starttime: u64,
    start_stack: u64,
    forked: bool,
    known: Known,
}

/// The role of a child, as it is handed over.
#[derive(Debug, Deserialize, Serialize)]
enum Known {
    Fork,
    Serving {
        inode: u64,
    },
    Spawned,
    Accepting,
    Helper {
        #[serde(rename = "told")]
        reported: bool,
    },
}

impl Search {
    pub(super) fn hand_over(&self, waiting: &[i32]) -> SearchState {
        let known = |pid: i32, kin: &Kin| match kin.role {
            Role::Accepting if waiting.contains(&pid) => Known::Spawned,
            // Its heartbeat file is found again.
            Role::Fork | Role::Booting { .. } => Known::Fork,
            Role::Serving { inode } => Known::Serving { inode },
            Role::Spawned => Known::Spawned,
            Role::Accepting => Known::Accepting,
            Role::Helper { reported } => Known::Helper { reported },
        };
        let kin = self.kin.iter().map(|(pid, kin)| KinState {
            pid: *pid,
            parent: kin.parent,
            starttime: kin.starttime,
            start_stack: kin.start_stack,
            forked: kin.forked,
            known: known(*pid, kin),
        });
        SearchState {
            root: self.root,
            masters: self.masters.clone(),
            kin: kin.collect(),
        }
    }

    pub(super) fn take_over(
        state: SearchState,
        server: &'static Profile,
        has_fork_events: bool,
        now: Timestamp,
    ) -> Self {
        let role = |known| match known {
            Known::Fork => Role::Fork,
            Known::Serving { inode } => Role::Serving { inode },
            Known::Spawned => Role::Spawned,
            Known::Accepting => Role::Accepting,
            Known::Helper { reported } => Role::Helper { reported },
        };
        let kin = state.kin.into_iter().map(|kin| {
            let known = Kin {
                parent: kin.parent,
                starttime: kin.starttime,
                seen: now,
                start_stack: kin.start_stack,
                forked: kin.forked,
                role: role(kin.known),
                waits_since: None,
            };
            (kin.pid, known)
        });
        Self {
            masters: state.masters,
            kin: kin.collect(),
            ..Self::new(state.root, server, has_fork_events, now)
        }
    }

    pub(super) const fn new(
        root: i32,
        server: &'static Profile,
        has_fork_events: bool,
        now: Timestamp,
    ) -> Self {
        Self {
            server,
            root,
            masters: Vec::new(),
            kin: BTreeMap::new(),
            next_scan: now,
            has_fork_events,
            likely: None,
        }
    }

    /// When the next scan is due.
    pub(super) const fn deadline(&self) -> Timestamp {
        self.next_scan
    }

    /// A process has forked: scan at once.
    pub(super) const fn scan_at_once(&mut self, now: Timestamp) {
        self.next_scan = now;
    }

    /// The masters, in the order in which they were found.
    pub(super) fn masters(&self) -> Vec<i32> {
        self.masters.iter().map(|master| master.pid).collect()
    }

    /// The master that gets signals.
    pub(super) fn main_master(&self) -> Option<i32> {
        self.masters.first().map(|master| master.pid)
    }

    /// The children of the masters that were reported not to be workers, and whether they are forks
    /// that run the server's own code.
    pub(super) fn helpers(&self) -> Vec<(i32, bool)> {
        let helpers = self.kin.iter();
        let helpers =
            helpers.filter(|(_, kin)| matches!(kin.role, Role::Helper { reported: true }));
        helpers.map(|(pid, kin)| (*pid, kin.forked)).collect()
    }

    /// Whether this is a master or a child of one.
    pub(super) fn is_master_or_child(&self, pid: i32) -> bool {
        self.kin.contains_key(&pid) || self.masters.iter().any(|master| master.pid == pid)
    }

    /// Forgets a worker whose process has ended.
    pub(super) fn forget(&mut self, pid: i32) {
        self.kin.remove(&pid);
    }

    /// The command has ended: finds a master that still runs. The search then continues below that
    /// master.
    pub(super) fn successor(&mut self, proc: &Proc) -> Option<i32> {
        self.masters.retain(|master| is_alive(proc, *master));
        if self.masters.is_empty() {
            // RACE: gunicorn starts a second master on USR2. The first may end before the second
            // was recognized; the second is then still among the children.
            let kin: Vec<_> = self.kin.keys().copied().collect();
            let found = self.named_master(proc, &kin);
            self.masters.extend(found);
        }
        let successor = self.main_master()?;
        self.root = successor;
        Some(successor)
    }

    /// Scans. New children come in the order of their age, the oldest first.
    pub(super) fn scan(&mut self, proc: &Proc, now: Timestamp) -> Vec<Finding> {
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
        let is_any_booting = self.kin.values().any(Kin::is_booting);
        self.next_scan = match (
            is_any_booting || self.masters.is_empty(),
            self.has_fork_events,
        ) {
            (true, _) => now.later(BOOT_POLL),
            (false, true) => now.next_multiple(SCAN_SLOW),
            (false, false) => now.later(SCAN),
        };
        findings
    }

    /// Adds the new children of a master, and other masters among them.
    fn scan_children(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        master: Master,
        findings: &mut Vec<Finding>,
    ) {
        let mut children = Vec::new();
        // This fails for a master that has just ended; the next scan removes it.
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
            let is_other = !forked && self.server.workers != Workers::Copies;
            if is_other && let Some(second) = as_master(proc, self.server, pid) {
                self.masters.push(second);
                continue;
            }
            let role = match (self.server.workers, forked) {
                (Workers::Forks { .. }, true) => self.role_of_fork(proc, master.pid, pid),
                (Workers::Forks { .. }, false) => Role::Helper { reported: false },
                (Workers::Spawned { .. }, true) => Role::Fork,
                (Workers::Spawned { word }, false) => role_of_spawned(proc, pid, word),
                (Workers::Children(_), _) => role_of_child(proc, pid, forked),
                (Workers::Copies, _) => Role::Spawned,
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
                waits_since: None,
            };
            self.kin.insert(pid, kin);
        }
    }

    /// The role of a fork of a master, judged by the files that it has inherited.
    fn role_of_fork(&self, proc: &Proc, master: i32, pid: i32) -> Role {
        match own_files(proc, master, pid, &self.claimed()) {
            Some(own) if own.is_empty() => Role::Helper { reported: false },
            Some(own) => role_by_files(proc, pid, &own),
            // We may not read its files: only its name and its stack show that it is a worker.
            None => Role::Fork,
        }
    }

    /// The heartbeat files that belong to known workers.
    fn claimed(&self) -> Vec<u64> {
        self.kin.values().filter_map(Kin::inode).collect()
    }

    /// The first process that is a master by its command line. A worker has the command line of its
    /// master, but is not a master.
    ///
    /// RACE: a master with several threads is killed. Its first thread is a zombie, and for a
    /// moment its workers are still children of another thread. Only what was known before
    /// distinguishes them from a master.
    fn named_master(&self, proc: &Proc, pids: &[i32]) -> Option<Master> {
        let mut all = pids
            .iter()
            .filter_map(|pid| as_master(proc, self.server, *pid));
        all.find(|found| self.may_be_master(found))
    }

    /// Whether this process can be a master. A known child of a master can be one only if it has
    /// executed a program since.
    fn may_be_master(&self, found: &Master) -> bool {
        let kin = self.kin.get(&found.pid);
        kin.is_none_or(|kin| kin.has_executed(found.start_stack))
    }

    /// The topmost program that has the server's workers, whatever its name is.
    ///
    /// RACE: gunicorn's dirty arbiter starts before the first worker of its master, and looks like
    /// a master until then. It is a fork of its parent, so a fork counts as a master only if no
    /// process above it has become one for a while.
    fn embedding_master(&mut self, proc: &Proc, now: Timestamp, pids: &[i32]) -> Option<Master> {
        let server = self.server;
        let mut all = pids.iter().filter_map(|pid| embedding(proc, server, *pid));
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

    /// Checks all children that do not serve yet: for their heartbeat file, their first
    /// notification, or that they are helpers.
    fn check_kin(&mut self, proc: &Proc, now: Timestamp, findings: &mut Vec<Finding>) {
        let serves = |kin: &Kin| matches!(kin.role, Role::Serving { .. } | Role::Accepting);
        let mut pids: Vec<_> = self
            .kin
            .iter()
            .filter(|(_, kin)| !serves(kin) && kin.seen != now)
            .map(|(pid, kin)| (kin.starttime, *pid))
            .collect();
        // The oldest first: a younger fork holds the files of older workers until it has closed
        // them, and by then those files are claimed.
        pids.sort_unstable();
        for (_, pid) in pids {
            let claimed = self.claimed();
            let Some(kin) = self.kin.get_mut(&pid) else {
                continue;
            };
            if let Some(ready) = kin.check_heartbeat(pid) {
                findings.push(ready);
                continue;
            }
            let stat = proc.stat(pid).ok().filter(|stat| stat.state != 'Z');
            let stat = stat.filter(|stat| stat.starttime == kin.starttime);
            let is_helper = matches!(kin.role, Role::Helper { .. });
            let Some(stat) = stat else {
                // The end of a worker is reported by its own descriptor.
                if is_helper {
                    self.kin.remove(&pid);
                }
                continue;
            };
            let found = match self.server.workers {
                _ if is_helper => kin.report_helper(now, pid),
                Workers::Spawned { word } => kin.check_spawned(proc, now, pid, word),
                Workers::Children(serves) => {
                    let how = (serves, self.server.retire());
                    kin.check_child(proc, now, (pid, stat.state), how)
                }
                Workers::Copies => kin.check_copy(proc, now, pid),
                Workers::Forks { .. } => {
                    kin.check_fork(proc, now, (pid, stat.start_stack), &claimed)
                }
            };
            let is_helper = matches!(kin.role, Role::Helper { .. });
            let second = if is_helper && kin.has_executed(stat.start_stack) {
                as_master(proc, self.server, pid).or_else(|| embedding(proc, self.server, pid))
            } else {
                None
            };
            if let Some(second) = second {
                self.kin.remove(&pid);
                self.masters.push(second);
            }
            findings.extend(found.filter(|found| {
                let is_helper_report = matches!(found, Finding::Helper { .. });
                second.is_none() || !is_helper_report
            }));
        }
    }
}

/// The main process of a server among this process and its descendants.
pub(super) fn server_below(proc: &Proc, root: i32) -> Option<(i32, &'static Profile)> {
    let mut all = vec![root];
    all.extend(proc.descendants(root));
    PROFILES.into_iter().find_map(|server| {
        let is_named = |pid: &&i32| {
            server.found == Found::ByCommand && as_master(proc, server, **pid).is_some()
        };
        let embeds = |pid: &&i32| embedding(proc, server, **pid).is_some();
        let found = all
            .iter()
            .find(is_named)
            .or_else(|| all.iter().find(embeds));
        found.map(|pid| (*pid, server))
    })
}

/// Whether this process is the parent of copies of a program.
pub(super) fn is_parent_of_copies(proc: &Proc, pid: i32) -> bool {
    as_master(proc, &fleet::PROFILE, pid).is_some()
}

/// This process, if it executes the server.
fn as_master(proc: &Proc, server: &Profile, pid: i32) -> Option<Master> {
    let words: Vec<_> = proc
        .cmdline(pid)
        .ok()?
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    is_main(server, &words)
        .then(|| master_at(proc, pid))
        .flatten()
}

/// This process, if it has the server's workers, whatever its name is.
fn embedding(proc: &Proc, server: &Profile, pid: i32) -> Option<Master> {
    let may_be = match server.found {
        Found::ByCommand => true,
        // Other servers start their workers in the same way.
        Found::ByWorkers => proc.catches(pid, &server.handled()),
        Found::ByBoth => as_master(proc, server, pid).is_some(),
    };
    let has_its_workers = || match server.workers {
        Workers::Forks { .. } => has_workers(proc, pid),
        // Their parent has a name of its own.
        Workers::Copies => false,
        Workers::Spawned { word } => has_spawned_workers(proc, pid, word),
        Workers::Children(serves) => has_child_workers(proc, pid, (serves, server.retire())),
    };
    (may_be && has_its_workers())
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

/// Whether this is still the same process, and not a zombie or another process with its pid.
fn is_alive(proc: &Proc, master: Master) -> bool {
    proc.stat(master.pid)
        .is_ok_and(|stat| stat.starttime == master.starttime && stat.state != 'Z')
}
