//! The whole picture, for those who ask.

use super::{
    Supervisor,
    event::{CapMechanism, Machine},
    report::Snapshot,
    spec::Kind,
};
use crate::units::Timestamp;

impl Supervisor {
    /// The whole picture.
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let machine = self.machine.clone().unwrap_or_default();
        let mode = match (self.spec.kind, self.is_job()) {
            (Kind::Server(_), _) => "server",
            (Kind::Single, true) => "job",
            (Kind::Single, false) => "fleet",
        };
        Snapshot {
            name: self.spec.name.clone(),
            mode: mode.to_owned(),
            command_pid: self.service.pid(),
            ready: self.service.answers() && !self.service.is_stopping(),
            stopping: self.service.is_stopping(),
            problem: self.ends_loop.problem(now),
            caps: machine.caps,
            enforced: self.limits.cap.bytes.is_some()
                && machine.caps != CapMechanism::Rlimit
                && !self.has_failed_caps(),
            why_not: self.why_not(&machine),
            wire: machine.wire && self.spec.memory.wire,
            measure: self.spec.memory.measure.to_string(),
            limits: self.limits.clone(),
            workers: self
                .workers
                .values()
                .map(|worker| worker.view(now, self.ceiling_of(worker)))
                .collect(),
            recycles: self.recycles.clone(),
            unplanned: self.unplanned.clone(),
            restarts: self.service.restarts(),
            ends: self.ends.iter().cloned().collect(),
            requests: self.all_done(),
            rescues: self.memo.rescues,
            suspended: self.starts.view(now),
            failed_starts: self.starts.total(),
            leftovers: self.leftovers.view(),
            leftovers_ended: self.leftovers.ended(),
        }
    }

    fn why_not(&self, machine: &Machine) -> Option<String> {
        if self.limits.cap.bytes.is_none() {
            return Some("there is no cap to hold: it is switched off".to_owned());
        }
        if self.has_failed_caps() {
            return Some("a cap could not be set; the events say which and why".to_owned());
        }
        machine.why_not.clone()
    }

    fn has_failed_caps(&self) -> bool {
        self.workers.values().any(|worker| worker.cap_failed)
    }
}
