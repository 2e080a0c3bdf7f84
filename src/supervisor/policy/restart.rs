//! The delay before a service that ended by itself is restarted.
//!
//! The delay grows with each end in a sliding window. When the window is full, the supervisor gives
//! up and tells the operator: another attempt does not help a program that fails on import.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::supervisor::spec::RestartSpec;
use crate::units::Timestamp;

/// The unplanned ends of the service within the window.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Restarts {
    policy: RestartSpec,
    /// Oldest first; never longer than `policy.limit`.
    recent: VecDeque<Timestamp>,
}

/// What follows an unplanned end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Start the service again at this time.
    At(Timestamp),
    /// Do not start it again.
    GiveUp,
}

impl Restarts {
    pub(crate) const fn new(policy: RestartSpec) -> Self {
        Self {
            policy,
            recent: VecDeque::new(),
        }
    }

    pub(crate) const fn set_policy(&mut self, policy: RestartSpec) {
        self.policy = policy;
    }

    /// Records an unplanned end, and decides what follows.
    pub(crate) fn on_end(&mut self, now: Timestamp) -> Verdict {
        self.recent
            .retain(|&end| now.since(end) < self.policy.window);
        let earlier = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if earlier >= self.policy.limit {
            return Verdict::GiveUp;
        }
        // The exponent is the number of earlier ends, so that a single end costs the minimum delay.
        let delay = self
            .policy
            .delay_min
            .saturating_mul(2_u32.saturating_pow(earlier));
        self.recent.push_back(now);
        Verdict::At(now.later(delay.min(self.policy.delay_max)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supervisor::spec::RestartWhen;

    /// Expects that ends at these seconds are followed by starts at those. `None`: given up.
    fn check(ends: &[u64], starts: &[Option<u64>]) {
        let second = Duration::from_secs;
        let mut restarts = Restarts::new(RestartSpec {
            when: RestartWhen::Always,
            delay_min: second(1),
            delay_max: second(3),
            limit: 3,
            window: second(60),
        });
        let at = |s| Timestamp::default().later(second(s));
        let verdicts: Vec<_> = ends.iter().map(|&end| restarts.on_end(at(end))).collect();
        let wanted: Vec<_> = starts
            .iter()
            .map(|start| start.map_or(Verdict::GiveUp, |s| Verdict::At(at(s))))
            .collect();
        assert_eq!(verdicts, wanted);
    }

    #[test]
    fn the_delay_doubles_up_to_its_maximum() {
        check(&[0, 10, 20], &[Some(1), Some(12), Some(23)]);
    }

    #[test]
    fn one_end_above_the_limit_gives_up() {
        check(&[0, 1, 2, 3], &[Some(1), Some(3), Some(5), None]);
    }

    #[test]
    fn ends_before_the_window_do_not_count() {
        check(&[0, 1, 2, 62], &[Some(1), Some(3), Some(5), Some(63)]);
    }
}
