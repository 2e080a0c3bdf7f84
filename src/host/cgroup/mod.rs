//! Control groups: what holds a cap, a budget and a trip wire, and ends a whole tree at once.
//!
//! [`Found`] says which hierarchies there are, [`Groups`] makes the service's own part of them, and
//! a [`Group`] is one worker's. Version 2 (`cgroup-v2.rst`) and version 1 (`cgroup-v1/memory.rst`)
//! are two languages for the same wishes; on a hybrid machine version 1 has the memory controller
//! and version 2, mounted without it, still kills.

mod charge;
mod contents;
mod divide;
mod files;
mod found;
mod group;
mod groups;
mod handed;
mod oom;
mod owner;
mod pressure;
mod stale;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod machine_tests;

use std::{fmt, io, os::fd::BorrowedFd, path::PathBuf};

use nix::sys::epoll::EpollFlags;

pub use charge::{Charge, Kills};
pub use found::{Found, Obstacle, Place, Version};
pub use group::Group;
pub use groups::{Groups, Trial};
pub use handed::{HandedGroup, HandedGroups};
pub use pressure::Pressure;
pub use stale::remove_stale;

use crate::units::Bytes;

/// Something of a control group did not work.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file could not be read.
    #[error("read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file could not be written.
    #[error("write {data} to {}: {error}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What.
        data: String,
        /// Why.
        error: io::Error,
    },
    /// A group could not be made.
    #[error("make the group {}: {error}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A group could not be removed.
    #[error("remove the group {}: {error}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file does not hold what the kernel documents.
    #[error("understand {}: no {what} in it", path.display())]
    Strange {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// There is no place for groups here.
    #[error("{0}")]
    NoPlace(Obstacle),
    /// The group has no memory controller.
    #[error("limit the memory of the group {name}: no memory controller is available here")]
    NoMemory {
        /// Which.
        name: String,
    },
}

impl CgroupError {
    /// The limit is below the memory that the kernel cannot take back (EBUSY).
    fn is_busy(&self) -> bool {
        matches!(self, Self::Write { error, .. } if error.raw_os_error() == Some(libc::EBUSY))
    }

    /// The process or the group is not there any more, which is normal.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { error, .. } | Self::Write { error, .. } => {
                let code = error.raw_os_error();
                [libc::ESRCH, libc::ENODEV, libc::ENOENT]
                    .map(Some)
                    .contains(&code)
            }
            _ => false,
        }
    }
}

/// Room between what a group holds and a limit that could not be lower.
const SLACK: Bytes = Bytes::mib(1);
/// Tries to set a limit that is too low, each at what the group holds by then.
const TRIES: u32 = 4;

/// One group's memory, in the language of its hierarchy.
trait Memory: fmt::Debug {
    /// Sets or takes away the hard limit, and with it how much of it may be swap. Says which limit
    /// is in force: a higher one, where it holds more than that and the kernel cannot take it back.
    fn set_cap(
        &self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError>;
    /// What it is charged with, page cache included.
    fn usage(&self) -> Result<Bytes, CgroupError>;
    /// What it is charged with and the kernel cannot take back: no page cache.
    fn held(&self) -> Result<Bytes, CgroupError>;
    /// Anonymous pages and shared memory that it is charged with.
    fn charged(&self) -> Result<(Bytes, Bytes), CgroupError>;
    /// The highest the charge ever was, where the kernel keeps it.
    fn peak(&self) -> Option<Bytes>;
    /// Stretches the wire at `room` above the charge of now, in place of an earlier one.
    fn arm(&mut self, room: Bytes) -> Result<(), CgroupError>;
    /// What its two files below are waited for with: `memory.events` can always be read, so only
    /// EPOLLPRI says something there.
    fn interest(&self) -> EpollFlags;
    /// Becomes ready when the wire may have been touched.
    fn wire_fd(&self) -> Option<BorrowedFd<'_>>;
    /// The wire was touched; it is gone then.
    fn take_wire(&mut self) -> bool;
    /// Becomes ready when the OOM killer may have been here.
    fn oom_fd(&self) -> Option<BorrowedFd<'_>>;
    /// It has a cap, and at a limit the kernel kills one of its processes and not all of them.
    fn loses_single_processes(&self) -> bool;
    /// What the OOM killer did here.
    fn ooms(&self) -> Result<Ooms, CgroupError>;
}

/// What the OOM killer did in a group, since the group was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Ooms {
    /// Processes of this group that it ended, whichever limit was hit.
    kills: u64,
    /// How often it was called because of this group's limit; in version 1 because of this one or
    /// one above.
    calls: u64,
}
