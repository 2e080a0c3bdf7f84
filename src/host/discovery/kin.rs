//! A child of a master: a worker that boots or serves, or a helper of the server.

use std::time::Duration;

use super::Finding;
use crate::{
    host::{
        heartbeat::{Heartbeat, PREFIX},
        procfs::Proc,
    },
    units::Timestamp,
};

/// A fork that has no heartbeat file of its own after this time is not a worker.
pub(super) const HEARTBEAT_WITHIN: Duration = Duration::from_secs(2);
/// Age at which a helper is reported. One that only runs a short program has ended by then.
const HELPER_TOLD: Duration = Duration::from_secs(2);

/// A child of a master.
#[derive(Debug)]
pub(super) struct Kin {
    /// Its master.
    pub(super) parent: i32,
    pub(super) starttime: u64,
    pub(super) seen: Timestamp,
    /// Where its stack began when it was first seen.
    pub(super) start_stack: u64,
    /// When first seen, it was a fork of its master that had not executed a program.
    pub(super) forked: bool,
    pub(super) role: Role,
}

#[derive(Debug)]
pub(super) enum Role {
    /// May be a worker: which file is its own is not clear yet.
    Fork,
    /// Holds a heartbeat file of its own and has not beaten.
    Booting { inode: u64, heartbeat: Heartbeat },
    /// Has beaten.
    Serving { inode: u64 },
    /// The server's helper.
    Helper { told: bool },
}

impl Kin {
    /// It has executed a program of its own since its fork.
    pub(super) const fn has_executed(&self, start_stack_now: u64) -> bool {
        !self.forked || self.start_stack != start_stack_now
    }

    pub(super) const fn is_booting(&self) -> bool {
        matches!(self.role, Role::Fork | Role::Booting { .. })
    }

    pub(super) const fn inode(&self) -> Option<u64> {
        match self.role {
            Role::Booting { inode, .. } | Role::Serving { inode } => Some(inode),
            Role::Fork | Role::Helper { .. } => None,
        }
    }

    /// Reports a helper that stays, once.
    pub(super) fn tell_helper(&mut self, now: Timestamp, pid: i32) -> Option<Finding> {
        let lasts = now.since(self.seen) >= HELPER_TOLD;
        let told = lasts && !matches!(self.role, Role::Helper { told: true });
        if told {
            self.role = Role::Helper { told };
        }
        told.then_some(Finding::Helper { pid })
    }

    /// One look at a fork that may be a worker.
    pub(super) fn step(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        (pid, start_stack): (i32, u64),
        claimed: &[u64],
    ) -> Option<Finding> {
        // RACE: it is ending. Before it is a zombie it has no memory, and its stack is zero.
        if start_stack == 0 && self.start_stack != 0 {
            return None;
        }
        if start_stack != self.start_stack {
            self.role = Role::Helper { told: false };
            return Some(Finding::NoWorker { pid });
        }
        if matches!(self.role, Role::Fork) {
            let own = own_files(proc, self.parent, pid, claimed).unwrap_or_default();
            self.role = claim(proc, pid, &own);
        }
        match &self.role {
            Role::Fork if now.since(self.seen) >= HEARTBEAT_WITHIN => {
                self.role = Role::Helper { told: false };
                Some(Finding::NoWorker { pid })
            }
            Role::Booting { inode, heartbeat } if heartbeat.is_beaten() => {
                self.role = Role::Serving { inode: *inode };
                Some(Finding::Ready { pid })
            }
            Role::Fork | Role::Booting { .. } | Role::Serving { .. } | Role::Helper { .. } => None,
        }
    }
}

/// The heartbeat files of a fork that its master holds as well and no other worker has claimed;
/// `None` if we may not look.
pub(super) fn own_files(proc: &Proc, master: i32, pid: i32, claimed: &[u64]) -> Option<Vec<u64>> {
    let inodes = |pid| {
        let files = proc.files(pid, PREFIX).ok()?;
        Some(files.into_iter().map(|(_, inode)| inode))
    };
    let made: Vec<u64> = inodes(master)?.collect();
    let own = inodes(pid)?.filter(|inode| made.contains(inode) && !claimed.contains(inode));
    Some(own.collect())
}

/// A fork with one file of its own boots as a worker; with several it is too early to say.
pub(super) fn claim(proc: &Proc, pid: i32, own: &[u64]) -> Role {
    let [inode] = *own else { return Role::Fork };
    let heartbeat = Heartbeat::open(proc, pid, inode);
    heartbeat.map_or(Role::Fork, |heartbeat| Role::Booting { inode, heartbeat })
}

/// It holds heartbeat files, and a fork of it holds one of them.
pub(super) fn has_workers(proc: &Proc, pid: i32) -> bool {
    let files = proc.files(pid, PREFIX).unwrap_or_default();
    let Some(stack) = proc.stat(pid).ok().map(|stat| stat.start_stack) else {
        return false;
    };
    if files.is_empty() {
        return false;
    }
    let mut children = Vec::new();
    // An error means that it has just gone.
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

    /// What becomes of a fork whose `stat` says that its stack begins there.
    fn step(start_stack: u64) -> Option<Finding> {
        let root = tempfile::tempdir().unwrap();
        let mut kin = Kin {
            parent: 40,
            starttime: 77,
            seen: Timestamp::default(),
            start_stack: PARENT_STACK,
            forked: true,
            role: Role::Fork,
        };
        let now = Timestamp::default().later(Duration::from_millis(20));
        kin.step(&Proc::at(root.path()), now, (41, start_stack), &[])
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
