//! What the host holds: a process with its descriptor and its group.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::WorkerId;

/// A fork server of a pool. Each number is used once, so that the group of a fork server that has
/// ended is not taken for the group of its successor in the same slot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) struct ForkServerId(pub(super) u64);

/// A process that is held, with all its child processes. Its text is the name of its group.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum HeldId {
    /// A worker of a server, or the command.
    Worker(WorkerId),
    /// A fork server of a pool. The decider knows only its slot.
    ForkServer(ForkServerId),
}

impl HeldId {
    /// The worker that the decider knows by this identity.
    pub(super) const fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Worker(worker) => Some(worker),
            Self::ForkServer(_) => None,
        }
    }
}

impl From<WorkerId> for HeldId {
    fn from(worker: WorkerId) -> Self {
        Self::Worker(worker)
    }
}

impl fmt::Display for HeldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(worker) => worker.fmt(f),
            Self::ForkServer(ForkServerId(number)) => write!(f, "f{number}"),
        }
    }
}
