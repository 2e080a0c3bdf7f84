//! The interface to a version of control groups. A further version is a variant of [`Version`] and
//! a file beside `v1.rs` and `v2.rs`; nothing else depends on the version.

use std::{
    fmt,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use nix::sys::epoll::EpollFlags;
use serde::{Deserialize, Serialize};

use super::{CgroupError, Charge, Place, oom::Counts, v1, v2};
use crate::{
    supervisor::input::{CapMechanism, Contents},
    units::Bytes,
};

/// A version of control groups.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all controllers.
    V2,
}

impl Version {
    /// All versions that may be mounted.
    pub(super) const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// The implementation of this version.
    pub(super) fn backend(self) -> &'static dyn Backend {
        match self {
            Self::V1 => &v1::Version1,
            Self::V2 => &v2::Version2,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend().name())
    }
}

/// One version of control groups.
pub(super) trait Backend {
    /// Its name for operators.
    fn name(&self) -> &'static str;
    /// The decider's name for it, as a mechanism of caps.
    fn mechanism(&self) -> CapMechanism;
    /// The files of a cap and of a threshold, for operators.
    fn limit_files(&self) -> [&'static str; 2];

    /// Whether a file system of this kind, mounted with these options, has its hierarchy.
    fn is_mounted(&self, kind: &str, options: &str) -> bool;
    /// Whether a line of `/proc/self/cgroup` with these controllers is for its hierarchy.
    fn is_listed(&self, controllers: &str) -> bool;
    /// Whether the memory controller works at this place.
    fn has_memory(&self, place: &Place) -> bool;
    /// Whether one hierarchy is for all controllers, even if it lacks memory: processes can be
    /// created in a group, be killed with it, and be limited by other controllers.
    fn is_unified(&self) -> bool;
    /// How many groups on our path, beginning with our own, may contain groups of an earlier run.
    fn levels(&self) -> usize;

    /// The memory limits on our path.
    fn limits(&self, place: &Place) -> Vec<Bytes>;
    /// The charge of this group, and its limit; `None` if it has no limit.
    fn charge(&self, dir: &Path) -> Option<Charge>;
    /// How often the OOM killer has killed in this group.
    fn kills(&self, dir: &Path) -> Option<u64>;

    /// Prepares the group in which our own group is made.
    fn make_base(&self, place: &Place, pid: i32) -> Result<Base, CgroupError>;
    /// Prepares our group for the groups of workers.
    fn prepare(&self, dir: &Path) -> Result<(), CgroupError>;
    /// Sets or removes the limit of our group.
    fn set_budget(&self, dir: &Path, budget: Option<Bytes>) -> Result<(), CgroupError>;
    /// The memory of our group that the kernel cannot take back: anonymous pages, and shared memory
    /// including the files of a tmpfs.
    fn held(&self, dir: &Path) -> Option<Bytes>;
    /// The part of it that is not memory of a single process.
    fn contents(&self, dir: &Path) -> Option<Contents>;
    /// Counts the calls of the OOM killer by our group's limit and by limits above it.
    fn watch_calls(&self, dir: &Path) -> Option<Box<dyn Calls>>;
    /// Whether all groups below the limit are notified of a call of the OOM killer as well.
    fn nests_calls(&self) -> bool;

    /// The memory of a group of ours.
    fn open(&self, dir: &Path) -> Result<Box<dyn Memory>, CgroupError>;
    /// Whether swap is counted in this group.
    fn counts_swap(&self, dir: &Path) -> bool;
    /// Prepares a group of the previous binary, with its counts: removes the threshold, whose
    /// descriptor is closed, and returns the counts that still hold.
    fn recover(&self, dir: &Path, seen: Counts) -> Counts;
}

/// The group in which our group is made.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) dir: PathBuf,
    /// The group that we have left for a leaf of it.
    pub(super) divided: Option<PathBuf>,
}

/// Calls of the OOM killer since the watch began.
pub(super) trait Calls: fmt::Debug {
    /// The calls by our group's limit, and by limits above it.
    fn counts(&self) -> Result<(u64, u64), CgroupError>;
}

/// Room between the memory of a group and the lowest possible limit.
pub(super) const SLACK: Bytes = Bytes::mib(1);
/// Attempts to set a limit that is too low, each at the current memory of the group.
pub(super) const TRIES: u32 = 4;

/// The memory of one group.
pub(super) trait Memory: fmt::Debug {
    /// Sets or removes the hard limit, and how much of it may be swap. Returns the limit in force,
    /// which is higher if the group has more memory that the kernel cannot take back.
    fn set_cap(
        &self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError>;
    /// Its charge, including page cache.
    fn usage(&self) -> Result<Bytes, CgroupError>;
    /// Its charge without page cache: the memory that the kernel cannot take back.
    fn held(&self) -> Result<Bytes, CgroupError>;
    /// The anonymous pages and the shared memory charged to it.
    fn charged(&self) -> Result<(Bytes, Bytes), CgroupError>;
    /// The highest charge so far, if the kernel records it.
    fn peak(&self) -> Option<Bytes>;
    /// Sets a threshold at `room` above the current charge, and removes an earlier one.
    fn set_threshold(&mut self, room: Bytes) -> Result<(), CgroupError>;
    /// The events to wait for on its two descriptors. `memory.events` is always readable, so only
    /// EPOLLPRI has a meaning there.
    fn interest(&self) -> EpollFlags;
    /// Becomes ready when the threshold may have been crossed.
    fn threshold_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Whether the threshold was crossed. If so it is removed.
    fn take_threshold(&mut self) -> bool;
    /// Becomes ready when the OOM killer may have been called.
    fn oom_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Whether it has a cap at which the kernel kills one of its processes, and not all of them.
    fn loses_single_processes(&self) -> bool;
    /// What the OOM killer has done here.
    fn ooms(&self) -> Result<Ooms, CgroupError>;
}

/// What the OOM killer has done in a group, since the group was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Ooms {
    /// Killed processes of this group, whichever limit was hit.
    pub(super) kills: u64,
    /// Calls by this group's limit; in version 1, by this limit or one above it.
    pub(super) calls: u64,
}
