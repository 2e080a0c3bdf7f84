//! The settings of a pool.

use std::{path::PathBuf, time::Duration};

use crate::supervisor::spec::{Leaks, MemorySpec, Spec};

/// `[pool]`: how a pool runs its tasks.
#[derive(Clone, Debug, Default)]
pub struct PoolSettings {
    /// The function to call for each task. `None`: an executor sends its functions.
    pub function: Option<String>,
    /// The number of workers, at least 1. `None`: the number of cores.
    pub workers: Option<u32>,
    /// A task that runs longer is killed with its worker.
    pub task_timeout: Option<Duration>,
    /// How often a failed task is run again.
    pub retries: u32,
    /// How often a task whose worker reached its cap is run again, in a worker of its own.
    pub oom_retries: u32,
    /// The Python interpreter.
    pub python: Option<PathBuf>,
    /// Modules to import once for all workers.
    pub imports: Vec<String>,
    /// How workers start.
    pub start: StartMethod,
    /// Tasks sent to a worker at a time. `None`: as many as it runs in a millisecond.
    pub batch: Option<u32>,
    /// The file with tasks. `None`: standard input.
    pub input: Option<PathBuf>,
    /// The file for results. `None`: standard output.
    pub output: Option<PathBuf>,
    /// Results are written in the order of the tasks.
    pub is_ordered: bool,
    /// Each line of the input is a string, not JSON.
    pub is_plain: bool,
    /// How a task's `args` are passed.
    pub call: Call,
    /// The function to call first in each worker.
    pub initializer: Option<String>,
    /// The file of the journal.
    pub journal: Option<PathBuf>,
    /// Tasks with a result in the journal do not run again.
    pub resumes: bool,
    /// With `resumes`, tasks that failed run again.
    pub retries_failed: bool,
    /// The first failure ends the run.
    pub stops_on_error: bool,
    /// The name is configured, not derived.
    pub is_named: bool,
    /// The directory for the pool's own files.
    pub directory: PathBuf,
}

/// How the workers of a pool start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StartMethod {
    /// Forked from the template, unless its imports have made something that forked processes
    /// cannot share.
    #[default]
    Auto,
    /// Forked from the template.
    Template,
    /// Each worker imports by itself.
    Fresh,
}

/// How the `args` of a task are passed to the function.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Call {
    /// As one value.
    #[default]
    One,
    /// As positional arguments.
    Args,
    /// As keyword arguments.
    Kwargs,
}

/// The settings that the decisions of a pool depend on.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// The number of slots. At least 1.
    pub workers: u32,
    /// A worker is replaced after this many tasks.
    pub max_tasks: Option<u64>,
    /// A worker is replaced at this age.
    pub max_age: Option<Duration>,
    /// The limits. A worker over its ceiling is replaced after its task. The kernel kills a worker
    /// over its cap. The whole pool stays below the budget.
    pub memory: MemorySpec,
    /// A task that runs longer is killed with its worker.
    pub task_timeout: Option<Duration>,
    /// How often a failed task is run again.
    pub retries: u32,
    /// How often a task whose worker reached its cap is run again, in a worker of its own.
    pub oom_retries: u32,
    /// The tasks that a worker has at a time. `None`: as many as it runs in a millisecond.
    pub batch: Option<u32>,
    /// The first failure ends the run.
    pub stop_on_error: bool,
    /// The pool's name.
    pub name: String,
    /// The function that it calls. `None`: an executor sends its functions.
    pub function: Option<String>,
    /// The number of ends that are kept.
    pub history: usize,
    /// A worker over its ceiling makes a memory report before it exits.
    pub reports: bool,
    /// The time limit of a memory report.
    pub time_box: Duration,
}

impl PoolSpec {
    /// Takes the settings from those of a service. The number of workers is `cores` if it is not
    /// configured.
    pub fn of(spec: &Spec, settings: &PoolSettings, cores: u32) -> Self {
        Self {
            workers: settings.workers.unwrap_or(cores),
            max_tasks: spec.recycle.max_tasks,
            max_age: spec.recycle.max_age,
            memory: spec.memory,
            task_timeout: settings.task_timeout,
            retries: settings.retries,
            oom_retries: settings.oom_retries,
            batch: settings.batch,
            stop_on_error: settings.stops_on_error,
            name: spec.name.clone(),
            function: settings.function.clone(),
            history: spec.control.history,
            reports: spec.leaks.ask != Leaks::Off,
            time_box: spec.leaks.time_box,
        }
    }
}
