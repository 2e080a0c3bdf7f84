//! How soon a service that ended by itself may live again.
//!
//! Starts are spaced by a growing delay and counted in a sliding window. When the window is full
//! the service is given up and the operator is told: a program that dies on import is not cured by
//! the next attempt.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::spec::RestartSpec;
use crate::units::Timestamp;

/// What is remembered of unplanned ends.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Restarts {
    policy: RestartSpec,
    /// Oldest first; never longer than `policy.limit`.
    recent: VecDeque<Timestamp>,
}

/// What follows from an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Start again then.
    At(Timestamp),
    /// Start no more.
    GiveUp,
}

impl Restarts {
    pub(super) const fn new(policy: RestartSpec) -> Self {
        Self {
            policy,
            recent: VecDeque::new(),
        }
    }

    /// Another policy from now on.
    pub(super) const fn set_policy(&mut self, policy: RestartSpec) {
        self.policy = policy;
    }

    /// Notes an unplanned end and says what follows from it.
    pub(super) fn on_end(&mut self, now: Timestamp) -> Verdict {
        self.recent
            .retain(|&end| now.since(end) < self.policy.window);
        let earlier = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if earlier >= self.policy.limit {
            return Verdict::GiveUp;
        }
        // The exponent is the number of earlier ends, so that a lone one costs the least.
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

    /// Ends at these seconds are followed by starts at those; `None` is given up.
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
    fn the_wait_doubles_up_to_its_limit() {
        check(&[0, 10, 20], &[Some(1), Some(12), Some(23)]);
    }

    #[test]
    fn one_end_too_many_gives_up() {
        check(&[0, 1, 2, 3], &[Some(1), Some(3), Some(5), None]);
    }

    #[test]
    fn old_ends_are_forgiven() {
        check(&[0, 1, 2, 62], &[Some(1), Some(3), Some(5), Some(63)]);
    }
}
