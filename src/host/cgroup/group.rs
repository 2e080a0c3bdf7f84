//! One worker's group: its cap, its memory, its threshold, its processes and its end.

use std::{
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::epoll::EpollFlags;

use serde::{Deserialize, Serialize};

use super::{CgroupError, Version, backend::Memory, files, oom::Counts, tree};
use crate::units::Bytes;

/// A directory of ours in one hierarchy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Folder {
    pub(super) version: Version,
    pub(super) dir: PathBuf,
    /// Whether memory is limited here.
    pub(super) has_memory: bool,
}

impl Folder {
    /// A folder without the memory controller.
    pub(super) const fn new(version: Version, dir: PathBuf) -> Self {
        Self {
            version,
            dir,
            has_memory: false,
        }
    }

    /// The directory in a unified hierarchy.
    pub(super) fn unified(folders: &[Self]) -> Option<&Path> {
        let is_unified = |folder: &&Self| folder.version.backend().is_unified();
        Some(&folders.iter().find(is_unified)?.dir)
    }
}

/// A group below the service's own. If no hierarchy is available it is only a name: it has no
/// processes ([`Group::holds_processes`]) and no figures.
#[derive(Debug)]
pub struct Group {
    pub(super) name: String,
    /// Its directory in each hierarchy, the unified one last.
    pub(super) folders: Vec<Folder>,
    pub(super) memory: Option<Box<dyn Memory>>,
    /// The kills of the OOM killer, as of the last check.
    pub(super) seen: Counts,
}

impl Group {
    /// A group that exists in no hierarchy.
    pub fn nowhere(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            folders: Vec::new(),
            memory: None,
            seen: Counts::default(),
        }
    }

    /// Moves a process into the group, with all its threads. Memory that it has touched before
    /// stays charged to its earlier group, and its children stay where they are.
    pub fn add(&mut self, pid: i32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        self.procs_files()
            .iter()
            .try_for_each(|file| files::write(file, &pid))
    }

    /// Moves these processes into the group. Processes that have ended meanwhile are left out.
    pub fn add_those_left(&mut self, pids: Vec<i32>) -> Result<(), CgroupError> {
        pids.into_iter().try_for_each(|pid| {
            let added = self.add(pid);
            added.or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })
        })
    }

    /// Its directory in a unified hierarchy, if there is one. A process can be created in it
    /// (clone(2), `CLONE_INTO_CGROUP`).
    pub fn unified_fd(&self) -> Option<OwnedFd> {
        let dir = Folder::unified(&self.folders)?;
        File::open(dir).ok().map(OwnedFd::from)
    }

    /// Makes the kernel enforce a cap, at most `swap` of it in swap. `None` removes either limit.
    /// Returns the limit in force, which is higher than the cap if the group has more memory
    /// already.
    pub fn set_cap(
        &mut self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError> {
        self.memory()?.set_cap(cap, swap)
    }

    /// Limits the number of its processes and threads. The controller must be enabled.
    pub fn set_pids(&self, max: u64) -> Result<(), CgroupError> {
        let file = Folder::unified(&self.folders).map(|dir| dir.join("pids.max"));
        file.map_or(Ok(()), |file| files::write(&file, &max.to_string()))
    }

    /// Sets a threshold at `room` above the current charge, and removes an earlier one.
    /// [`Group::threshold_fd`] is a new descriptor then.
    pub fn set_threshold(&mut self, room: Bytes) -> Result<(), CgroupError> {
        match &mut self.memory {
            Some(memory) => memory.set_threshold(room),
            None => Err(self.no_memory()),
        }
    }

    /// Whether the threshold was crossed since it was set. If so it is removed, and must be set
    /// again. False for a false alarm, and if the group has ended.
    pub fn take_threshold(&mut self) -> bool {
        self.memory
            .as_mut()
            .is_some_and(|memory| memory.take_threshold())
    }

    /// The events to wait for on the two descriptors below: EPOLLIN in version 1, EPOLLPRI in
    /// version 2.
    pub fn interest(&self) -> EpollFlags {
        let memory = self.memory.as_ref();
        memory.map_or_else(EpollFlags::empty, |memory| memory.interest())
    }

    /// The descriptor of the threshold. After an event, call [`Group::take_threshold`]. Each
    /// threshold has a new descriptor, which is closed when the threshold is crossed.
    pub fn threshold_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.threshold_fd()
    }

    /// The descriptor for the OOM killer. After an event, call [`super::Groups::oom`]. Version 1
    /// wakes every group below the limit that was hit, and version 2 also wakes for other events of
    /// memory.
    pub fn oom_fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.oom_fd()
    }

    /// Whether it has a cap at which the kernel kills one of its processes, and not all of them.
    pub fn loses_single_processes(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.loses_single_processes())
    }

    /// Its charge, including page cache.
    pub fn usage(&self) -> Option<Bytes> {
        self.memory.as_ref()?.usage().ok()
    }

    /// Its charge without page cache: the memory that the kernel cannot take back.
    pub fn held(&self) -> Option<Bytes> {
        self.memory.as_ref()?.held().ok()
    }

    /// The anonymous pages and the shared memory charged to it.
    pub fn charged(&self) -> Option<(Bytes, Bytes)> {
        self.memory.as_ref()?.charged().ok()
    }

    /// The highest charge so far, if the kernel records it.
    pub fn peak(&self) -> Option<Bytes> {
        self.memory.as_ref()?.peak()
    }

    /// Whether the group exists, so that the kernel knows its processes.
    pub fn holds_processes(&self) -> bool {
        !self.folders.is_empty()
    }

    /// Adds all its processes to `into`, in no particular order.
    pub fn pids(&self, into: &mut Vec<i32>) -> Result<(), CgroupError> {
        if let Some(dir) = self.dirs().last() {
            into.extend(files::pids(&files::read(&dir.join("cgroup.procs"))?));
        }
        Ok(())
    }

    /// A process enters the group by writing `0` into each of these files before its execve(2).
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.dirs().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Sends SIGKILL to all its processes. They may still be ending when this returns.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // Each directory has all processes; the unified one can kill all at once.
        self.dirs().last().map_or(Ok(()), tree::kill_all)
    }

    /// Whether no process is in it.
    pub fn is_empty(&self) -> bool {
        self.dirs().all(tree::is_empty)
    }

    /// Removes it. Fails while a process is in it, and can be tried again.
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

    /// Whether swap is counted in it.
    pub(super) fn counts_swap(&self) -> bool {
        let mut folders = self.folders.iter();
        folders.any(|folder| folder.version.backend().counts_swap(&folder.dir))
    }

    pub(super) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(|folder| folder.dir.as_path())
    }
}
