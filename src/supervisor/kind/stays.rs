//! Workers that are not replaced, because their server would stop all its workers.

use crate::{
    servers::profile::Replacement,
    supervisor::{Supervisor, policy::candidates::Candidate, worker::Worker},
    units::WorkerId,
};

/// The switch that allows a replacement in any case.
const SWITCH: &str = "`--server none`, which recycles the program as a whole";

impl Supervisor {
    /// A worker, or the command, does not handle the signal that would make it leave, so it dies
    /// from it; or its server would stop.
    pub(crate) fn on_leaves_badly(&mut self, worker: WorkerId) {
        if let Some(worker) = self.state.workers.get_mut(&worker) {
            worker.kernel_mut().on_leaves_badly();
        }
    }

    /// Why a worker must not be asked to leave. `None`: it may be.
    pub(crate) fn must_stay(&self, worker: &Worker) -> Option<String> {
        let profile = self.profile()?;
        let name = profile.name;
        match profile.replace {
            Replacement::Never { hint } => Some(format!(
                "{name} stops all its workers when one exits. hint: {hint}; or {SWITCH}"
            )),
            Replacement::Signal { retire } if worker.kernel().leaves_badly() => {
                let id = worker.id();
                let what = match profile.guard {
                    Some(_) => format!("{name} stops all its workers when one exits"),
                    None => format!("{id} does not finish its work at {retire}"),
                };
                Some(format!(
                    "without the agent and its drain, {what}. hint: `agent.load = \"auto\"` and \
                     `agent.drain`; or {SWITCH}"
                ))
            }
            Replacement::Signal { .. } | Replacement::Surge { .. } => None,
        }
    }

    /// Leaves out the workers that must not be asked to leave, and says so once.
    pub(crate) fn keep_those_that_must_stay(&mut self, candidates: &mut Vec<Candidate>) {
        candidates.retain(|candidate| {
            let worker = self.state.workers.get(&candidate.worker);
            let Some(why) = worker.and_then(|worker| self.must_stay(worker)) else {
                return true;
            };
            let Candidate { worker, cause, .. } = *candidate;
            self.explain(candidate, "must not be asked to leave");
            self.warn_once("stays", || {
                format!("{worker} should be replaced ({cause}) and stays, under its cap: {why}")
            });
            false
        });
    }

    /// Why the workers are not all replaced. `None`: they can be.
    pub(crate) fn any_must_stay(&self) -> Option<String> {
        let mut workers = self.state.workers.values();
        workers.find_map(|worker| self.must_stay(worker))
    }
}

#[cfg(test)]
#[path = "stays_tests.rs"]
mod tests;
