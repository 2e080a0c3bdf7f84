//! Whether a second copy of a single program may run beside the first: the program accepts
//! connections at the sockets that are passed to it, and listens nowhere else. If it listened at an
//! address of its own, the second copy would fail, or take its connections.

use std::time::Duration;

use super::{
    search::is_parent_of_copies,
    waits::{Wait, wait_of_tree},
};
use crate::{
    host::{listen::listens, memory::procfs::Proc},
    units::Timestamp,
};

/// A server that the program has started has shown itself by then.
const ACCEPTS_FOR: Duration = Duration::from_secs(1);
/// In poll(2) and select(2) it is not known for what the program waits. While it starts, it may
/// wait for another program.
const POLLS_FOR: Duration = Duration::from_secs(5);

/// How long a program has waited for connections.
#[derive(Debug, Default)]
pub(super) struct Waits {
    accepts_since: Option<Timestamp>,
    polls_since: Option<Timestamp>,
}

impl Waits {
    /// Whether a second copy of the program may run. `parent`: the command, which is the parent of
    /// the first copy.
    pub(super) fn check(&mut self, proc: &Proc, now: Timestamp, parent: i32) -> bool {
        let mut copies = Vec::new();
        if !is_parent_of_copies(proc, parent) || proc.children(parent, &mut copies).is_err() {
            return false;
        }
        let [copy] = *copies else { return false };
        match wait_of_tree(proc, parent, copy) {
            Wait::ForConnections => {
                self.accepts_since.get_or_insert(now);
                self.polls_since.get_or_insert(now);
            }
            Wait::Unknown => {
                self.polls_since.get_or_insert(now);
            }
            // It has much to do: its load may leave no second without a request.
            Wait::Runs => {}
            Wait::ForOther => *self = Self::default(),
        }
        let lasts =
            |since: Option<Timestamp>, least| since.is_some_and(|since| now.since(since) >= least);
        let waits = lasts(self.accepts_since, ACCEPTS_FOR) || lasts(self.polls_since, POLLS_FOR);
        waits && !listens_elsewhere(proc, parent, copy)
    }
}

/// Whether the program listens at a socket that was not passed to it.
fn listens_elsewhere(proc: &Proc, parent: i32, copy: i32) -> bool {
    let passed = inodes(proc, parent);
    let mut tree = vec![copy];
    tree.extend(proc.descendants(copy));
    let mut own: Vec<u64> = tree.into_iter().flat_map(|pid| inodes(proc, pid)).collect();
    own.retain(|inode| !passed.contains(inode));
    listens(proc, copy, &own)
}

fn inodes(proc: &Proc, pid: i32) -> Vec<u64> {
    let sockets = proc.sockets(pid).unwrap_or_default();
    sockets.into_iter().map(|(_, inode)| inode).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    const PARENT: i32 = 40;
    const COPY: i32 = 41;
    const OWN: u64 = 78;

    /// The parent of a copy that is blocked in this call, at the socket that was passed to it.
    fn program(root: &Path, call: i64) {
        for (pid, children, title) in [(PARENT, "41", "supervise-fleet"), (COPY, "", "python")] {
            let task = root.join(format!("{pid}/task/{pid}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("children"), children).unwrap();
            fs::write(task.join("syscall"), format!("{call} 0x3 0x0 0x7ffd2")).unwrap();
            let folder = root.join(pid.to_string());
            fs::write(folder.join("cmdline"), format!("{title}\0")).unwrap();
            let stat = format!("{pid} ({title}) S 1 1 1 0 -1 0{}", " 0".repeat(43));
            fs::write(folder.join("stat"), stat).unwrap();
            fs::create_dir_all(folder.join("fd")).unwrap();
            symlink("socket:[77]", folder.join("fd/3")).unwrap();
            fs::create_dir_all(folder.join("net")).unwrap();
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    /// The first second at which a second copy may run.
    fn overlaps_at(root: &Path) -> Option<u64> {
        let (proc, mut waits) = (Proc::at(root), Waits::default());
        (0..20).find(|second| waits.check(&proc, at(*second), PARENT))
    }

    #[test]
    fn a_program_that_accepts_at_its_passed_socket_may_run_twice() {
        for (call, second) in [
            (libc::SYS_accept4, Some(1)),
            (libc::SYS_ppoll, Some(5)),
            (libc::SYS_read, None),
        ] {
            let root = tempfile::tempdir().unwrap();
            program(root.path(), call);
            assert_eq!(overlaps_at(root.path()), second, "{call}");
        }
    }

    #[test]
    fn a_program_that_listens_at_an_address_of_its_own_may_not_run_twice() {
        let root = tempfile::tempdir().unwrap();
        program(root.path(), libc::SYS_accept4);
        let row = |inode| {
            format!("head\n   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 1000 0 {inode} 1\n")
        };
        let table = root.path().join("41/net/tcp");
        symlink(format!("socket:[{OWN}]"), root.path().join("41/fd/5")).unwrap();
        fs::write(&table, row(OWN)).unwrap();
        assert_eq!(overlaps_at(root.path()), None);
        fs::write(&table, row(77)).unwrap();
        assert_eq!(overlaps_at(root.path()), Some(1), "it is the passed socket");
    }

    #[test]
    fn a_program_without_the_parent_of_a_fleet_may_not_run_twice() {
        let root = tempfile::tempdir().unwrap();
        program(root.path(), libc::SYS_accept4);
        fs::write(root.path().join("40/cmdline"), "sh\0").unwrap();
        assert_eq!(overlaps_at(root.path()), None);
    }
}
