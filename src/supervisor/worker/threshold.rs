//! The threshold of a worker: the charge of its cgroup at which the kernel notifies the supervisor,
//! and when it may be set again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Timestamp};

/// A threshold is set again after this pause at the earliest: setting one takes some milliseconds,
/// because the kernel waits for all its readers (`synchronize_rcu` on cgroup v1).
const PAUSE: Duration = Duration::from_millis(100);
/// The pause doubles at most this many times in a row.
const DOUBLINGS_MAX: u32 = 6;

/// A threshold that is set in the kernel.
///
/// Each time a threshold is reached in vain, the worker pays for it. On cgroup v2 the kernel slows
/// down a group above `memory.high`: one huge page above a ceiling of 60 MB costs 0.6 s. A worker
/// that allocates and frees memory around its ceiling, or reads files, must not pay that ten times
/// a second, so the pause doubles. Samples are frequent near the ceiling, so nothing is missed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Threshold {
    /// When it was set.
    at: Timestamp,
    /// The group's charge at which it is reached, if the charge is known.
    at_charge: Option<Bytes>,
    is_reached: bool,
    /// How often in a row a threshold was set again because the last one was reached.
    vain: u32,
}

impl Threshold {
    /// A threshold set now, in place of an earlier one.
    pub(crate) fn set(now: Timestamp, at_charge: Option<Bytes>, before: Option<Self>) -> Self {
        let reached = before.filter(|threshold| threshold.is_reached);
        Self {
            at: now,
            at_charge,
            is_reached: false,
            vain: reached.map_or(0, |threshold| threshold.vain.saturating_add(1)),
        }
    }

    /// The threshold was reached. It is remembered, so that it is not set again within the pause.
    /// If it had been set for longer than any pause, the next pause is the shortest again.
    pub(crate) fn on_reached(&mut self, now: Timestamp) {
        self.is_reached = true;
        if now.since(self.at) > pause(DOUBLINGS_MAX) {
            self.vain = 0;
        }
    }

    /// Whether this threshold may stay as it is, if one is wanted at this charge plus or minus
    /// `slack`.
    pub(crate) fn fits(&self, now: Timestamp, wanted: Option<Bytes>, slack: Bytes) -> bool {
        if now.since(self.at) < pause(self.vain) {
            return true;
        }
        let apart = |set: Bytes, wanted: Bytes| set.get().abs_diff(wanted.get());
        !self.is_reached
            && self
                .at_charge
                .zip(wanted)
                .is_none_or(|(set, wanted)| apart(set, wanted) <= slack.get())
    }
}

fn pause(vain: u32) -> Duration {
    PAUSE * (1 << vain.min(DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Option<Bytes> = Some(Bytes::mib(60));
    const SLACK: Bytes = Bytes::mib(1);

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn a_threshold_stays_until_another_charge_is_wanted() {
        let threshold = Threshold::set(at(0), LINE, None);
        assert!(threshold.fits(at(5000), LINE, SLACK));
        assert!(threshold.fits(at(5000), Some(Bytes::mib(61)), SLACK));
        assert!(threshold.fits(at(99), Some(Bytes::mib(70)), SLACK));
        assert!(!threshold.fits(at(100), Some(Bytes::mib(70)), SLACK));
        assert!(threshold.fits(at(5000), None, SLACK));
    }

    #[test]
    fn a_threshold_reached_again_and_again_is_set_less_and_less_often() {
        let (mut now, mut times) = (0, 0);
        let mut threshold = Threshold::set(at(0), LINE, None);
        while now < 60_000 {
            threshold.on_reached(at(now));
            now += 1;
            if !threshold.fits(at(now), LINE, SLACK) {
                threshold = Threshold::set(at(now), LINE, Some(threshold));
                times += 1;
            }
        }
        // 0.1 s, 0.2 s and so on to 6.4 s, and then every 6.4 s.
        assert_eq!(times, 14);
    }

    #[test]
    fn a_threshold_that_was_set_for_long_is_set_again_at_once() {
        let first = (0..5).fold(
            Threshold::set(at(0), LINE, None),
            |mut threshold, number| {
                threshold.on_reached(at(number * 10_000));
                Threshold::set(at(number * 10_000), LINE, Some(threshold))
            },
        );
        let mut threshold = first;
        threshold.on_reached(at(100_000));
        assert!(!threshold.fits(at(100_000), LINE, SLACK));
        let mut again = Threshold::set(at(100_000), LINE, Some(threshold));
        again.on_reached(at(100_001));
        assert!(!again.fits(at(100_200), LINE, SLACK));
    }
}
