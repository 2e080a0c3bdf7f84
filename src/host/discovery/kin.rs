//! A child of a master: a worker that boots or serves, or a helper of the server.

use std::time::Duration;

use super::{
    Finding,
    heartbeat::{Heartbeat, PREFIX},
    waits::{Wait, holds_sockets, wait_of_tree, waits_for_connections},
};
use crate::{
    host::memory::procfs::Proc,
    servers::profile::Serves,
    units::{Signal, Timestamp},
};

/// A fork that has no heartbeat file of its own after this time is not a worker.
pub(super) const HEARTBEAT_WITHIN: Duration = Duration::from_secs(2);
/// What is in the command line of a process that multiprocessing has spawned.
const SPAWNED: &str = "spawn_main";
/// A copy serves when it has been in a wait that may be one for connections for this long. Without
/// sockets, that is from its start.
const UP_AFTER: Duration = Duration::from_secs(1);
/// A worker for tasks that does not wait serves at this age: it has much to do.
const UP_ANYWAY: Duration = Duration::from_secs(10);
/// Age at which a helper is reported. A helper that runs a short program only has ended by then.
const HELPER_REPORTED_AFTER: Duration = Duration::from_secs(2);

/// A child of a master.
#[derive(Debug)]
pub(super) struct Kin {
    /// Its master.
    pub(super) parent: i32,
    pub(super) starttime: u64,
    /// When it was first seen.
    pub(super) seen: Timestamp,
    /// The address of its stack when it was first seen.
    pub(super) start_stack: u64,
    /// Whether it was a fork of its master that had not executed a program when it was first seen.
    pub(super) forked: bool,
    pub(super) role: Role,
    /// Since when it has been in a wait that may be one for connections ([`Wait::Unknown`]).
    pub(super) waits_since: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) enum Role {
    /// May be a worker: its heartbeat file is not known yet.
    Fork,
    /// A worker that has a heartbeat file of its own, and has not notified its master yet.
    Booting { inode: u64, heartbeat: Heartbeat },
    /// A worker that has notified its master.
    Serving { inode: u64 },
    /// Executes the program of a worker, and does not wait for connections yet.
    Spawned,
    /// Waits for connections.
    Accepting,
    /// A helper of the server.
    Helper { reported: bool },
}

impl Kin {
    /// Whether it has executed a program since its fork.
    pub(super) const fn has_executed(&self, start_stack_now: u64) -> bool {
        !self.forked || self.start_stack != start_stack_now
    }

    pub(super) const fn is_booting(&self) -> bool {
        matches!(self.role, Role::Fork | Role::Booting { .. } | Role::Spawned)
    }

    pub(super) const fn inode(&self) -> Option<u64> {
        match self.role {
            Role::Booting { inode, .. } | Role::Serving { inode } => Some(inode),
            Role::Fork | Role::Spawned | Role::Accepting | Role::Helper { .. } => None,
        }
    }

    /// Checks a child that executes a worker's program, or soon will.
    pub(super) fn check_spawned(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        pid: i32,
        word: &str,
    ) -> Option<Finding> {
        if matches!(self.role, Role::Fork) {
            match role_of_spawned(proc, pid, word) {
                Role::Spawned => self.role = Role::Spawned,
                // A fork has its parent's command line until it executes a program.
                _ if now.since(self.seen) < HEARTBEAT_WITHIN => return None,
                _ => {
                    self.role = Role::Helper { reported: false };
                    return Some(Finding::NoWorker { pid });
                }
            }
        }
        if matches!(self.role, Role::Spawned) && waits_for_connections(proc, self.parent, pid) {
            return self.accepts(pid);
        }
        None
    }

    /// Checks a child that is a worker of a server, or a helper that looks like one.
    pub(super) fn check_child(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        (pid, state): (i32, char),
        (serves, retire): (Serves, Option<Signal>),
    ) -> Option<Finding> {
        if matches!(self.role, Role::Fork) {
            // Its command line was not known yet.
            self.role = role_of_child(proc, pid, self.forked);
            if matches!(self.role, Role::Helper { .. }) {
                return Some(Finding::NoWorker { pid });
            }
        }
        match serves {
            Serves::Connections => {
                if !waits_for_connections(proc, self.parent, pid) {
                    return None;
                }
                // A gateway waits for connections, too.
                if retire.is_some_and(|retire| !proc.catches(pid, &[retire])) {
                    self.role = Role::Helper { reported: false };
                    return Some(Finding::NoWorker { pid });
                }
                self.accepts(pid)
            }
            Serves::Tasks => {
                let since = match state {
                    'S' => *self.waits_since.get_or_insert(now),
                    // It has much to do: its tasks may leave no second without one.
                    'R' => now,
                    _ => {
                        self.waits_since = None;
                        now
                    }
                };
                let is_up = now.since(since) >= UP_AFTER || now.since(self.seen) >= UP_ANYWAY;
                is_up.then(|| self.accepts(pid)).flatten()
            }
        }
    }

    /// Checks a copy of a program.
    pub(super) fn check_copy(&mut self, proc: &Proc, now: Timestamp, pid: i32) -> Option<Finding> {
        let wait = if holds_sockets(proc, self.parent) {
            wait_of_tree(proc, self.parent, pid)
        } else {
            Wait::Unknown
        };
        let since = match wait {
            Wait::ForConnections => return self.accepts(pid),
            Wait::Unknown => *self.waits_since.get_or_insert(now),
            // It has much to do: its load may leave no second without a request.
            Wait::Runs => return None,
            Wait::ForOther => {
                self.waits_since = None;
                return None;
            }
        };
        (now.since(since) >= UP_AFTER)
            .then(|| self.accepts(pid))
            .flatten()
    }

    fn accepts(&mut self, pid: i32) -> Option<Finding> {
        self.role = Role::Accepting;
        Some(Finding::Ready { pid })
    }

    /// Reports a helper that keeps running, once.
    pub(super) fn report_helper(&mut self, now: Timestamp, pid: i32) -> Option<Finding> {
        let lasts = now.since(self.seen) >= HELPER_REPORTED_AFTER;
        let is_due = lasts && !matches!(self.role, Role::Helper { reported: true });
        if is_due {
            self.role = Role::Helper { reported: true };
        }
        is_due.then_some(Finding::Helper { pid })
    }

    /// Checks whether a booting worker has notified its master. This needs no further descriptor.
    ///
    /// RACE: if many workers boot at once, their heartbeat files take our last descriptors. Nothing
    /// else about them can be read then, and only this check frees descriptors.
    pub(super) fn check_heartbeat(&mut self, pid: i32) -> Option<Finding> {
        match &self.role {
            Role::Booting { inode, heartbeat } if heartbeat.has_notified() => {
                self.role = Role::Serving { inode: *inode };
                Some(Finding::Ready { pid })
            }
            Role::Fork
            | Role::Booting { .. }
            | Role::Serving { .. }
            | Role::Spawned
            | Role::Accepting
            | Role::Helper { .. } => None,
        }
    }

    /// Checks a fork that may be a worker.
    pub(super) fn check_fork(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        (pid, start_stack): (i32, u64),
        claimed: &[u64],
    ) -> Option<Finding> {
        // RACE: it is ending. It loses its memory before it is a zombie, and then its stack reads
        // as zero.
        if start_stack == 0 && self.start_stack != 0 {
            return None;
        }
        if start_stack != self.start_stack {
            self.role = Role::Helper { reported: false };
            return Some(Finding::NoWorker { pid });
        }
        if matches!(self.role, Role::Fork) {
            let own = own_files(proc, self.parent, pid, claimed).unwrap_or_default();
            self.role = role_by_files(proc, pid, &own);
        }
        match &self.role {
            Role::Fork if now.since(self.seen) >= HEARTBEAT_WITHIN => {
                self.role = Role::Helper { reported: false };
                Some(Finding::NoWorker { pid })
            }
            Role::Fork
            | Role::Booting { .. }
            | Role::Serving { .. }
            | Role::Spawned
            | Role::Accepting
            | Role::Helper { .. } => None,
        }
    }
}

/// The heartbeat files of a fork that its master holds as well and that no other worker has
/// claimed. `None` if we may not read them.
pub(super) fn own_files(proc: &Proc, master: i32, pid: i32, claimed: &[u64]) -> Option<Vec<u64>> {
    let inodes = |pid| {
        let files = proc.files(pid, PREFIX).ok()?;
        Some(files.into_iter().map(|(_, inode)| inode))
    };
    let made: Vec<u64> = inodes(master)?.collect();
    let own = inodes(pid)?.filter(|inode| made.contains(inode) && !claimed.contains(inode));
    Some(own.collect())
}

/// A fork with one file of its own is a booting worker. With several files it is not known yet.
pub(super) fn role_by_files(proc: &Proc, pid: i32, own: &[u64]) -> Role {
    let [inode] = *own else { return Role::Fork };
    let heartbeat = Heartbeat::open(proc, pid, inode);
    heartbeat.map_or(Role::Fork, |heartbeat| Role::Booting { inode, heartbeat })
}

/// A child whose command line has this word is a booting worker.
///
/// RACE: during its execve(2) it has a new stack, but its command line is still empty. Its role is
/// not known yet then.
pub(super) fn role_of_spawned(proc: &Proc, pid: i32, word: &str) -> Role {
    let words = proc.cmdline(pid).unwrap_or_default();
    if words.is_empty() {
        return Role::Fork;
    }
    let is_worker = words.iter().any(|one| one.to_string_lossy().contains(word));
    if is_worker {
        Role::Spawned
    } else {
        Role::Helper { reported: false }
    }
}

/// Whether one of its children executes the program of a worker and waits for connections at a
/// socket that this process holds, too.
pub(super) fn has_spawned_workers(proc: &Proc, pid: i32, word: &str) -> bool {
    let mut children = Vec::new();
    // This fails for a process that has just ended.
    let _ = proc.children(pid, &mut children);
    children.into_iter().any(|child| {
        let is_spawned = matches!(role_of_spawned(proc, child, word), Role::Spawned);
        is_spawned && waits_for_connections(proc, pid, child)
    })
}

/// The role of a child that is a fork of its server, or executes a program. multiprocessing's
/// resource tracker executes one, too.
pub(super) fn role_of_child(proc: &Proc, pid: i32, forked: bool) -> Role {
    if forked {
        Role::Spawned
    } else {
        role_of_spawned(proc, pid, SPAWNED)
    }
}

/// Whether one of its children is a worker. Without a master process, a server may have a gateway
/// as its only child.
pub(super) fn has_child_workers(
    proc: &Proc,
    pid: i32,
    (serves, retire): (Serves, Option<Signal>),
) -> bool {
    let Some(stack) = proc.stat(pid).ok().map(|stat| stat.start_stack) else {
        return false;
    };
    let mut children = Vec::new();
    // This fails for a process that has just ended.
    let _ = proc.children(pid, &mut children);
    children.into_iter().any(|child| {
        let stat = proc.stat(child).ok().filter(|stat| stat.state != 'Z');
        let Some(forked) = stat.map(|stat| stat.start_stack == stack) else {
            return false;
        };
        let is_worker = || match serves {
            Serves::Connections => {
                let handles = |signal| proc.catches(child, &[signal]);
                waits_for_connections(proc, pid, child) && retire.is_none_or(handles)
            }
            Serves::Tasks => true,
        };
        matches!(role_of_child(proc, child, forked), Role::Spawned) && is_worker()
    })
}

/// Whether it holds heartbeat files, and a fork of it holds one of them.
pub(super) fn has_workers(proc: &Proc, pid: i32) -> bool {
    let files = proc.files(pid, PREFIX).unwrap_or_default();
    let Some(stack) = proc.stat(pid).ok().map(|stat| stat.start_stack) else {
        return false;
    };
    if files.is_empty() {
        return false;
    }
    let mut children = Vec::new();
    // This fails for a process that has just ended.
    let _ = proc.children(pid, &mut children);
    children.into_iter().any(|child| {
        let forked = proc.stat(child).is_ok_and(|stat| stat.start_stack == stack);
        forked && own_files(proc, pid, child, &[]).is_some_and(|own| !own.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT_STACK: u64 = 140_000;

    /// Checks a fork whose stack has this address.
    fn check_fork(start_stack: u64) -> Option<Finding> {
        let root = tempfile::tempdir().unwrap();
        let mut kin = Kin {
            parent: 40,
            starttime: 77,
            seen: Timestamp::default(),
            start_stack: PARENT_STACK,
            forked: true,
            role: Role::Fork,
            waits_since: None,
        };
        let now = Timestamp::default().later(Duration::from_millis(20));
        kin.check_fork(&Proc::at(root.path()), now, (41, start_stack), &[])
    }

    #[test]
    fn a_worker_that_ends_during_boot_is_not_taken_for_a_helper() {
        assert_eq!(check_fork(0), None);
        assert_eq!(check_fork(PARENT_STACK), None);
    }

    #[test]
    fn a_fork_that_executes_another_program_is_not_a_worker() {
        let helper = Finding::NoWorker { pid: 41 };
        assert_eq!(check_fork(PARENT_STACK + 1), Some(helper));
    }
}
