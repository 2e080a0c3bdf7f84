//! When to decide again which workers are replaced, and the last decision about each of them.

use std::collections::BTreeMap;

use crate::units::{Timestamp, WorkerId};

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// When to decide next.
    next: Option<Timestamp>,
    /// The last decision about each candidate.
    decisions: BTreeMap<WorkerId, &'static str>,
}

impl Plan {
    /// Something has changed that may make a worker a candidate, or may allow its replacement.
    pub(crate) const fn touch(&mut self) {
        self.next = Some(Timestamp::ZERO);
    }

    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// The decision is made now.
    pub(crate) const fn begin(&mut self) {
        self.next = None;
    }

    pub(crate) const fn next(&self) -> Option<Timestamp> {
        self.next
    }

    /// Records the decision about a candidate. Returns true if it differs from the last one.
    pub(crate) fn note(&mut self, worker: WorkerId, decision: &'static str) -> bool {
        self.decisions.insert(worker, decision) != Some(decision)
    }

    /// The worker has ended.
    pub(crate) fn forget(&mut self, worker: WorkerId) {
        self.decisions.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_new_only_when_it_differs_from_the_last_one() {
        let mut plan = Plan::default();
        let worker = WorkerId::FIRST;
        assert!(plan.note(worker, "waits"));
        assert!(!plan.note(worker, "waits"));
        assert!(plan.note(worker, "is replaced"));
        assert!(plan.note(worker, "waits"));
        plan.forget(worker);
        assert!(plan.note(worker, "waits"));
    }

    #[test]
    fn the_earliest_time_is_kept() {
        let at = Timestamp::from_nanos;
        let mut plan = Plan::default();
        plan.wake_at(at(9));
        plan.wake_at(at(5));
        plan.wake_at(at(7));
        assert_eq!(plan.next(), Some(at(5)));
        plan.touch();
        assert_eq!(plan.next(), Some(Timestamp::ZERO));
        plan.begin();
        assert_eq!(plan.next(), None);
    }
}
