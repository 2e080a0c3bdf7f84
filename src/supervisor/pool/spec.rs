//! What a pool is to be.

use std::time::Duration;

use crate::supervisor::spec::MemorySpec;

/// The wishes for a pool, validated.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// So many slots; at least 1.
    pub workers: u32,
    /// A worker goes after so many tasks.
    pub max_tasks: Option<u64>,
    /// A worker goes when it is that old.
    pub max_age: Option<Duration>,
    /// The limits: a worker over its ceiling goes after its task, the kernel ends one over its cap,
    /// and all together stay below the budget.
    pub memory: MemorySpec,
    /// A task that runs longer is killed with its worker.
    pub task_timeout: Option<Duration>,
    /// A task that failed is run up to so many times more.
    pub retries: u32,
    /// A task whose worker met its cap is run, alone, up to so many times more.
    pub oom_retries: u32,
    /// So many tasks are under way at a worker; `None`: as many as fit into a millisecond.
    pub batch: Option<u32>,
    /// The first failure ends the run.
    pub stop_on_error: bool,
}
