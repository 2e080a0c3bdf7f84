//! A worker and its ceiling: what the worker held when it became ready, whether its warm-up is
//! over, since when it has been over its ceiling, and whether the ceiling applies to it at all.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Timestamp};

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct CeilingState {
    /// The first exact figure after it became ready. `None`: there is none yet.
    #[serde(rename = "birth")]
    memory_when_ready: Option<Bytes>,
    /// Its warm-up is over.
    warm: bool,
    /// Recycling cannot help, so the worker is not compared with its ceiling.
    exempt: bool,
    /// Since when it has been over its ceiling.
    over_since: Option<Timestamp>,
    /// It has stayed below its ceiling for long enough to show that recycling helps.
    proved: bool,
}

impl CeilingState {
    /// The ceiling that applies to this worker: the first of `lowered`, the lowest first, that is
    /// above what it held when it became ready, or else `full`.
    pub(crate) fn ceiling(&self, full: Bytes, lowered: [Bytes; 2]) -> Option<Bytes> {
        let least = self.memory_when_ready.unwrap_or_default();
        let above = lowered.into_iter().find(|limit| least < *limit);
        (!self.exempt).then(|| above.unwrap_or(full))
    }

    pub(crate) const fn memory_when_ready(&self) -> Option<Bytes> {
        self.memory_when_ready
    }

    pub(crate) const fn is_warm(&self) -> bool {
        self.warm
    }

    pub(crate) const fn over_since(&self) -> Option<Timestamp> {
        self.over_since
    }

    pub(crate) const fn has_proved(&self) -> bool {
        self.proved
    }

    /// The worker is ready, and this is its first exact figure.
    pub(crate) const fn on_ready(&mut self, memory: Bytes) {
        self.memory_when_ready = Some(memory);
    }

    pub(crate) const fn on_warm(&mut self) {
        self.warm = true;
    }

    /// The ceiling no longer applies to this worker.
    pub(crate) const fn exempt(&mut self) {
        self.exempt = true;
    }

    pub(crate) fn on_over(&mut self, now: Timestamp) {
        self.over_since.get_or_insert(now);
    }

    pub(crate) const fn on_below(&mut self) {
        self.over_since = None;
    }

    pub(crate) const fn on_proved(&mut self) {
        self.proved = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_lowers_the_ceiling_unless_the_worker_was_above_when_it_became_ready() {
        let (full, lowered) = (Bytes::mib(300), [Bytes::mib(270), Bytes::mib(280)]);
        let mut state = CeilingState::default();
        assert_eq!(state.ceiling(full, lowered), Some(lowered[0]));
        state.on_ready(Bytes::mib(275));
        assert_eq!(state.ceiling(full, lowered), Some(lowered[1]));
        state.on_ready(Bytes::mib(290));
        assert_eq!(state.ceiling(full, lowered), Some(full));
        state.exempt();
        assert_eq!(state.ceiling(full, lowered), None);
    }

    #[test]
    fn a_worker_is_over_its_ceiling_since_the_first_sample_above() {
        let at = Timestamp::from_nanos;
        let mut state = CeilingState::default();
        state.on_over(at(1));
        state.on_over(at(2));
        assert_eq!(state.over_since(), Some(at(1)));
        state.on_below();
        assert_eq!(state.over_since(), None);
    }
}
