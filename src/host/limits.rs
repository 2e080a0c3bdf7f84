//! Limits that hold for the service as a whole, and what of a worker's is not its memory.

use super::{Host, cgroup::Group, rights};
use crate::{
    supervisor::{
        event::{Effect, Machine},
        spec::Limit,
    },
    units::Bytes,
};

impl Host {
    /// What this machine lets us enforce.
    pub(super) fn machine(&self) -> Machine {
        let trial = self.groups.trial();
        let why_not = self
            .groups
            .obstacle()
            .map(|obstacle| format!("{}; {}", obstacle.why, obstacle.how));
        Machine {
            caps: self.groups.caps(),
            why_not,
            wire: trial.wire,
            budget: trial.budget,
            priority: rights::may_raise_priority(),
        }
    }

    /// Those beside the memory controller, where they were wished for.
    pub(super) fn enable_controllers(&mut self) {
        let wished = self.spec.cgroup;
        let weight = wished
            .cpu_weight
            .map(|weight| self.groups.set_cpu_weight(weight));
        let pids = wished.pids_max.map(|_| self.groups.enable("pids"));
        for (result, what) in [(weight, "cpu_weight"), (pids, "pids_max")] {
            if let Some(Err(error)) = result {
                let what = format!("hold cgroup.{what}, which is off: {error}");
                self.fail(what, None, Effect::Other);
            }
        }
    }

    /// Where this is not held, that was said at start.
    pub(super) fn limit_pids(&self, group: &Group) {
        if let Some(max) = self.spec.cgroup.pids_max {
            let _ = group.set_pids(max);
        }
    }
}

/// How much of a cap may be swap; nothing, unless it was wished for.
pub(super) fn swap_allowed(limit: Limit, available: Bytes) -> Option<Bytes> {
    match limit {
        Limit::Off | Limit::Auto => Some(Bytes::ZERO),
        Limit::At(size) => Some(size.of(available)),
    }
}
