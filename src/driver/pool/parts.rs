//! The inputs and the result of a pool's run.

use std::path::PathBuf;

use super::Observer;
use crate::{
    agent::pool::Orders,
    queue::{Sink, Source},
    supervisor::{
        pool::{input::Over, spec::PoolSpec},
        spec::Spec,
    },
    units::Signal,
};

/// The inputs of a pool.
pub struct Parts {
    /// The settings of the pool.
    pub pool: PoolSpec,
    /// The settings for the machine; the command is the Python interpreter.
    pub spec: Spec,
    /// The settings for the Python side.
    pub orders: Orders,
    /// Whether to fork workers from the template even if its imports hold what forked workers
    /// cannot share.
    pub forks_always: bool,
    /// An executor's setup message, for each worker.
    pub setup: Option<Vec<u8>>,
    /// The source of the tasks.
    pub source: Box<dyn Source>,
    /// The destination of the results.
    pub sink: Box<dyn Sink>,
    /// The directory for the files of the Python side.
    pub directory: PathBuf,
    /// Shows messages and progress.
    pub observer: Box<dyn Observer>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that had begun when the pool stopped, and have no result.
    pub abandoned: u64,
    /// How the pool ended.
    pub over: Over,
    /// The signal that stopped it.
    pub stopped_by: Option<Signal>,
}
