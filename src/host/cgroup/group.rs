//! One worker's group: its cap, its figures, its wire, its processes and its end.

use std::{
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::epoll::EpollFlags;

use super::{CgroupError, Memory, files, oom::Counts, tree, tree::Tree};
use crate::units::Bytes;

/// A group below the service's own. Where no hierarchy is available it is only a name: it holds
/// nobody ([`Group::holds_processes`]) and has no figures.
#[derive(Debug)]
pub struct Group {
    pub(super) name: String,
    /// Its folder in a version 1 hierarchy.
    pub(super) v1: Option<PathBuf>,
    /// Its folder in a version 2 hierarchy, with the memory controller or without.
    pub(super) v2: Option<Tree>,
    pub(super) memory: Option<Box<dyn Memory>>,
    /// What the OOM killer had done when it was last asked for.
    pub(super) seen: Counts,
}

impl Group {
    /// No group at all.
    pub fn nowhere(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            v1: None,
            v2: None,
            memory: None,
            seen: Counts::default(),
        }
    }

    /// Moves a process in, with all its threads. What it has touched before stays charged to the
    /// group it comes from, and its children stay where they are.
    pub fn add(&mut self, pid: i32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        self.procs_files()
            .iter()
            .try_for_each(|file| files::write(file, &pid))
    }

    /// Its folder in a version 2 hierarchy, if there is one: a process can be born there (clone(2),
    /// `CLONE_INTO_CGROUP`).
    pub fn birthplace(&self) -> Option<OwnedFd> {
        let dir = &self.v2.as_ref()?.dir;
        File::open(dir).ok().map(OwnedFd::from)
    }

    /// Lets the kernel hold a cap, `swap` of it on disk at most; `None` takes either away. Says
    /// which limit is in force: a higher one, where the group holds more than that already.
    pub fn set_cap(
        &mut self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError> {
        self.memory()?.set_cap(cap, swap)
    }

    /// Lets it be so many processes and threads. The controller must have been handed on.
    pub fn set_pids(&self, max: u64) -> Result<(), CgroupError> {
        let dir = self.v2.as_ref().map(|tree| tree.dir.join("pids.max"));
        dir.map_or(Ok(()), |file| files::write(&file, &max.to_string()))
    }

    /// Stretches a wire at `room` above the charge of now, in place of an earlier one. Gives
    /// [`Group::wire_fd`] a new file.
    pub fn arm(&mut self, room: Bytes) -> Result<(), CgroupError> {
        match &mut self.memory {
            Some(memory) => memory.arm(room),
            None => Err(self.no_memory()),
        }
    }

    /// The wire was touched since it was armed. It is gone then and must be armed again; false for
    /// a false alarm, and when the group has ended.
    pub fn take_wire(&mut self) -> bool {
        self.memory
            .as_mut()
            .is_some_and(|memory| memory.take_wire())
    }

    /// What the two files below are waited for with; EPOLLIN in version 1, EPOLLPRI in version 2.
    pub fn interest(&self) -> EpollFlags {
        let memory = self.memory.as_ref();
        memory.map_or_else(EpollFlags::empty, |memory| memory.interest())
    }

    /// Answered by [`Group::take_wire`]. A new file with each arming, closed once it was touched.
    pub fn wire_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.wire_fd()
    }

    /// Answered by [`super::Groups::oom`]. Version 1 wakes every group below the limit that was
    /// hit, version 2 also wakes for other events of memory.
    pub fn oom_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.oom_fd()
    }

    /// It has a cap, and at a limit the kernel kills one of its processes and not all of them.
    pub fn loses_single_processes(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.loses_single_processes())
    }

    /// What it is charged with, page cache included.
    pub fn usage(&self) -> Option<Bytes> {
        self.memory.as_ref()?.usage().ok()
    }

    /// What it is charged with and the kernel cannot take back: no page cache.
    pub fn held(&self) -> Option<Bytes> {
        self.memory.as_ref()?.held().ok()
    }

    /// Anonymous pages and shared memory that it is charged with.
    pub fn charged(&self) -> Option<(Bytes, Bytes)> {
        self.memory.as_ref()?.charged().ok()
    }

    /// The highest the charge ever was, where the kernel keeps it.
    pub fn peak(&self) -> Option<Bytes> {
        self.memory.as_ref()?.peak()
    }

    /// Its processes are known to the kernel as a whole.
    pub fn holds_processes(&self) -> bool {
        self.v1.is_some() || self.v2.is_some()
    }

    /// Adds all its processes to `into`, in no order.
    pub fn pids(&self, into: &mut Vec<i32>) -> Result<(), CgroupError> {
        if let Some(v2) = &self.v2 {
            return v2.pids(into);
        }
        if let Some(v1) = &self.v1 {
            into.extend(files::pids(&files::read(&v1.join("cgroup.procs"))?));
        }
        Ok(())
    }

    /// Into each of these a process that is to live here writes `0` before its execve(2).
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.dirs().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// SIGKILL for all its processes. They are not gone yet when this returns.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // Any of the two folders holds all of them, and the second may kill at one blow.
        self.dirs().last().map_or(Ok(()), tree::kill_all)
    }

    /// Nobody lives in it.
    pub fn is_empty(&self) -> bool {
        self.dirs().all(tree::is_empty)
    }

    /// Removes it. Fails while somebody lives in it, and may be tried again.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.dirs().try_for_each(files::remove)
    }

    fn memory(&self) -> Result<&dyn Memory, CgroupError> {
        self.memory.as_deref().ok_or_else(|| self.no_memory())
    }

    fn no_memory(&self) -> CgroupError {
        CgroupError::NoMemory {
            name: self.name.clone(),
        }
    }

    pub(super) fn dirs(&self) -> impl Iterator<Item = &Path> {
        let v2 = self.v2.as_ref().map(|tree| tree.dir.as_path());
        self.v1.as_deref().into_iter().chain(v2)
    }
}
