//! What fills the budget beside the memory of processes.

use super::{Groups, Version, files};
use crate::{supervisor::event::Contents, units::Bytes};

impl Groups {
    /// What of it is no process's own memory.
    pub fn contents(&self) -> Option<Contents> {
        let (dir, shared) = match self.memory? {
            Version::V1 => (self.v1.as_ref()?, "total_shmem"),
            Version::V2 => (self.v2.as_ref()?, "shmem"),
        };
        let text = files::read(&dir.join("memory.stat")).ok()?;
        let entry = |name| files::entry(&text, name).unwrap_or(0);
        // Linux 5.18 has the sum; version 1 has it in a file of its own.
        let kernel = match self.memory? {
            Version::V1 => files::number(&dir.join("memory.kmem.usage_in_bytes")).unwrap_or(0),
            Version::V2 => entry("kernel").max(
                entry("pagetables")
                    .saturating_add(entry("kernel_stack"))
                    .saturating_add(entry("slab_unreclaimable")),
            ),
        };
        Some(Contents {
            shared: Bytes(entry(shared)),
            kernel: Bytes(kernel),
            ..Contents::default()
        })
    }
}
