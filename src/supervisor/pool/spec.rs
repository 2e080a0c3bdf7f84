//! The settings of a pool.

use std::time::Duration;

use crate::supervisor::spec::MemorySpec;

/// The settings of a pool, validated.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// The number of slots; at least 1.
    pub workers: u32,
    /// A worker is replaced after this many tasks.
    pub max_tasks: Option<u64>,
    /// A worker is replaced at this age.
    pub max_age: Option<Duration>,
    /// The limits: a worker over its ceiling is replaced after its task, the kernel kills one over
    /// its cap, and all together stay below the budget.
    pub memory: MemorySpec,
    /// A task that runs longer is killed with its worker.
    pub task_timeout: Option<Duration>,
    /// How often a failed task is run again.
    pub retries: u32,
    /// How often a task whose worker reached its cap is run again, in a worker of its own.
    pub oom_retries: u32,
    /// The tasks that a worker has at a time; `None`: as many as it runs in a millisecond.
    pub batch: Option<u32>,
    /// The first failure ends the run.
    pub stop_on_error: bool,
}
