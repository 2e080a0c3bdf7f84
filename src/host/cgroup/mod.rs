//! Control groups: they enforce a cap, a budget and a threshold, and kill a whole tree at once.
//!
//! [`Found`] describes the hierarchies of this machine, [`Groups`] is the service's own part of
//! them, and a [`Group`] belongs to one worker. `ServiceGroups` is the component that the host
//! works with. Version 2 (`cgroup-v2.rst`) and version 1 (`cgroup-v1/memory.rst`) have different
//! files for the same limits; the traits of `backend.rs` cover both. On a hybrid machine, version 1
//! has the memory controller; version 2, mounted without it, is used to kill.

mod backend;
mod charge;
mod divide;
mod files;
mod found;
mod group;
mod groups;
mod handover;
mod oom;
mod owner;
mod pressure;
mod service;
mod stale;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod machine_tests;

use std::{io, path::PathBuf};

pub use backend::Version;
pub use charge::{Charge, ContainerKills};
pub use found::{Found, Obstacle, Place};
pub use group::Group;
pub use groups::{Groups, Trial};
pub use handover::{GroupState, GroupsState};
pub use pressure::Pressure;
pub(in crate::host) use service::{ServiceGroups, ServiceGroupsState};
pub use stale::remove_stale;

/// An operation on a control group failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file could not be read.
    #[error("read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// A file could not be written.
    #[error("write {data} to {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The text.
        data: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// A group could not be made.
    #[error("make the group {}: {error}", path.display())]
    Make {
        /// The directory of the group.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// A group could not be removed.
    #[error("remove the group {}: {error}", path.display())]
    Remove {
        /// The directory of the group.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The text of a file is not what the kernel documents.
    #[error("parse {}: no {what} in it", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// The missing part.
        what: &'static str,
    },
    /// No group can be made here.
    #[error("{0}")]
    NoPlace(Obstacle),
    /// The group has no memory controller.
    #[error("limit the memory of the group {name}: no memory controller is available here")]
    NoMemory {
        /// The name of the group.
        name: String,
    },
}

impl CgroupError {
    /// Whether the limit is below the memory that the kernel cannot take back (EBUSY).
    fn is_busy(&self) -> bool {
        matches!(self, Self::Write { error, .. } if error.raw_os_error() == Some(libc::EBUSY))
    }

    /// Whether the process or the group is gone, which is normal.
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
