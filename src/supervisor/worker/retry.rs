//! Something that an agent is asked for again while its worker is busy.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// The pause is longer by itself after each this many times.
const RARER_AFTER: u32 = 8;

/// How often the agent was asked, and when it is asked next.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Retry {
    /// It was asked this many times, and may be asked at this time.
    Wanted { tries: u32, at: Timestamp },
    /// It is done, or was given up.
    Over,
}

impl Default for Retry {
    fn default() -> Self {
        Self::Wanted {
            tries: 0,
            at: Timestamp::default(),
        }
    }
}

impl Retry {
    /// When the agent may be asked. `None`: not any more.
    pub(crate) const fn at(self) -> Option<Timestamp> {
        match self {
            Self::Wanted { at, .. } => Some(at),
            Self::Over => None,
        }
    }

    /// When to ask an agent again that was busy.
    pub(crate) fn again_at(self) -> Option<Timestamp> {
        match self {
            Self::Wanted { tries, at } => (tries > 0).then_some(at),
            Self::Over => None,
        }
    }

    /// The worker was busy. It is given up after `most` times, and asked less and less often.
    pub(crate) fn on_busy(&mut self, now: Timestamp, pause: Duration, most: u32) {
        *self = match *self {
            Self::Wanted { tries, .. } if tries < most => Self::Wanted {
                tries: tries.saturating_add(1),
                at: now.later(pause.saturating_mul(1 + tries / RARER_AFTER)),
            },
            Self::Wanted { .. } | Self::Over => Self::Over,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_worker_is_asked_again_after_each_pause_and_then_given_up() {
        let (pause, most) = (Duration::from_millis(20), 2);
        let mut retry = Retry::default();
        assert_eq!(
            (retry.at(), retry.again_at()),
            (Some(Timestamp::ZERO), None)
        );
        for tries in 1..=2 {
            let now = Timestamp::from_nanos(tries * 1_000_000_000);
            retry.on_busy(now, pause, most);
            assert_eq!(retry.again_at(), Some(now.later(pause)));
            assert_eq!(retry.at(), retry.again_at());
        }
        retry.on_busy(Timestamp::from_nanos(3_000_000_000), pause, most);
        assert_eq!((retry, retry.at()), (Retry::Over, None));
    }
}
