//! What a pool is made of, and how it went.

use std::path::PathBuf;

use super::Onlooker;
use crate::{
    agent::pool::Orders,
    queue::{Sink, Source},
    supervisor::{
        pool::{event::Over, spec::PoolSpec},
        spec::Spec,
    },
    units::Signal,
};

/// What a pool is made of.
pub struct Parts {
    /// The wishes.
    pub pool: PoolSpec,
    /// The machine's side of them: the command is the Python interpreter.
    pub spec: Spec,
    /// The Python side of them.
    pub orders: Orders,
    /// Workers are forked from the template even if forks cannot share what its imports hold.
    pub forks_always: bool,
    /// An executor's setup, for each worker.
    pub setup: Option<Vec<u8>>,
    /// Where tasks come from.
    pub source: Box<dyn Source>,
    /// Where results go.
    pub sink: Box<dyn Sink>,
    /// Where the Python side's files are put.
    pub directory: PathBuf,
    /// Who looks on.
    pub onlooker: Box<dyn Onlooker>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks that were stopped before their end and have no result.
    pub cut: u64,
    /// How the pool ended.
    pub over: Over,
    /// The signal that stopped it.
    pub stopped_by: Option<Signal>,
}
