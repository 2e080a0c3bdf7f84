//! The requests of operators.

use crate::units::WorkerId;

/// An operator's request.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Replace this worker.
    Recycle(WorkerId),
    /// Replace all workers that are alive now, one after the other.
    RecycleAll,
    /// The same, to load new code.
    Reload,
    /// Report on the memory of this worker.
    Report(WorkerId),
    /// Set the number of workers.
    Scale(u32),
    /// Switch to the newly installed binary.
    Upgrade,
    /// Stop the service.
    Stop(Stop),
}

/// How to stop a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Let the command finish its requests first.
    Graceful,
    /// Kill all processes at once.
    Now,
}
