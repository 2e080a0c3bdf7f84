//! The memory of processes: a cheap measurement of each process, an exact one that reads its
//! mappings on a thread, and files in memory.

pub mod proc_memory;
pub mod procfs;
mod smaps;
pub(super) mod smaps_sampler;
pub(super) mod tmpfs;
