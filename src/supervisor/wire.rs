//! The trip wire of a worker: where it is, and when it may be set again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Timestamp};

/// A wire that tripped before its time is not set again sooner: setting one makes the kernel wait
/// for all its readers (`synchronize_rcu` on cgroup v1), some milliseconds.
const PAUSE: Duration = Duration::from_millis(100);
/// So often in a row the pause is doubled.
const DOUBLINGS_MAX: u32 = 6;

/// An armed trip wire.
///
/// Each time that it trips in vain costs the worker something: on cgroup v2 the kernel holds who
/// has passed `memory.high`, and one huge page above a ceiling of 60 MB is worth 0.6 s. A worker
/// that takes and gives back around its ceiling, or reads files, must not pay that ten times a
/// second, so the pause doubles. Its samples are close by then.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Wire {
    at: Timestamp,
    /// The group's charge at which it trips, where the charge is known. None at all once it has.
    trips_at: Option<Bytes>,
    is_tripped: bool,
    /// How often in a row it had to be set again because it had tripped.
    vain: u32,
}

impl Wire {
    /// Set now, in place of an earlier one.
    pub(super) fn set(now: Timestamp, trips_at: Option<Bytes>, before: Option<Self>) -> Self {
        let tripped = before.filter(|wire| wire.is_tripped);
        Self {
            at: now,
            trips_at,
            is_tripped: false,
            vain: tripped.map_or(0, |wire| wire.vain.saturating_add(1)),
        }
    }

    /// Kept for its moment, so that it is not set again within the pause. One that has stood for
    /// longer than any pause has done its work.
    pub(super) fn trip(&mut self, now: Timestamp) {
        self.is_tripped = true;
        if now.since(self.at) > pause(DOUBLINGS_MAX) {
            self.vain = 0;
        }
    }

    /// It may stay as it is, where it is wished to trip at `wished`, give or take `slack`.
    pub(super) fn fits(&self, now: Timestamp, wished: Option<Bytes>, slack: Bytes) -> bool {
        if now.since(self.at) < pause(self.vain) {
            return true;
        }
        let apart = |armed: Bytes, wished: Bytes| armed.get().abs_diff(wished.get());
        !self.is_tripped
            && self
                .trips_at
                .zip(wished)
                .is_none_or(|(armed, wished)| apart(armed, wished) <= slack.get())
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
    fn a_wire_stays_until_it_is_wished_elsewhere() {
        let wire = Wire::set(at(0), LINE, None);
        assert!(wire.fits(at(5000), LINE, SLACK));
        assert!(wire.fits(at(5000), Some(Bytes::mib(61)), SLACK));
        assert!(wire.fits(at(99), Some(Bytes::mib(70)), SLACK));
        assert!(!wire.fits(at(100), Some(Bytes::mib(70)), SLACK));
        assert!(wire.fits(at(5000), None, SLACK));
    }

    #[test]
    fn one_that_trips_again_and_again_is_set_less_and_less_often() {
        let (mut now, mut times) = (0, 0);
        let mut wire = Wire::set(at(0), LINE, None);
        while now < 60_000 {
            wire.trip(at(now));
            now += 1;
            if !wire.fits(at(now), LINE, SLACK) {
                wire = Wire::set(at(now), LINE, Some(wire));
                times += 1;
            }
        }
        // 0.1 s, 0.2 s and so on to 6.4 s, and then every 6.4 s.
        assert_eq!(times, 14);
    }

    #[test]
    fn one_that_has_stood_for_long_is_set_again_at_once() {
        let first = (0..5).fold(Wire::set(at(0), LINE, None), |mut wire, number| {
            wire.trip(at(number * 10_000));
            Wire::set(at(number * 10_000), LINE, Some(wire))
        });
        let mut wire = first;
        wire.trip(at(100_000));
        assert!(!wire.fits(at(100_000), LINE, SLACK));
        let mut again = Wire::set(at(100_000), LINE, Some(wire));
        again.trip(at(100_001));
        assert!(!again.fits(at(100_200), LINE, SLACK));
    }
}
