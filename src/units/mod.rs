//! The words all layers share: bytes, sizes, moments and identities.

#[cfg(test)]
pub(crate) mod golden;
mod signal;
mod size;

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use signal::Signal;
pub use size::{Size, SizeError};

/// A number of bytes. Shown with binary units, as `systemd`, `docker` and the cgroup files mean
/// them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Bytes(pub u64);

const UNITS: [(char, u64); 5] = [
    ('K', 1 << 10),
    ('M', 1 << 20),
    ('G', 1 << 30),
    ('T', 1 << 40),
    ('P', 1 << 50),
];

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What is left of `self` after `other`, never below zero.
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Both together, never wrapping.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `self` times `part` (0.5 is a half); a negative or absurd part gives zero or the largest
    /// size.
    pub fn scaled(self, part: f64) -> Self {
        Self(scaled(self.0, part))
    }

    /// As a float, for slopes and ratios.
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory sizes are far below 2^53"
    )]
    pub const fn as_f64(self) -> f64 {
        self.0 as f64
    }
}

/// `whole` times `part`; a negative or absurd part gives zero or the largest number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "float casts saturate, and sizes and counts keep 53 bits of precision"
)]
pub fn scaled(whole: u64, part: f64) -> u64 {
    (whole as f64 * part) as u64
}

impl fmt::Display for Bytes {
    /// Three figures and a unit: `298M`, `1.50G`, `17K`, `512`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((letter, unit)) = UNITS.iter().rev().find(|(_, unit)| self.0 >= *unit) else {
            return write!(f, "{}", self.0);
        };
        let value = self.as_f64() / Self(*unit).as_f64();
        if self.0.is_multiple_of(*unit) || value >= 100.0 {
            write!(f, "{value:.0}{letter}")
        } else if value >= 10.0 {
            write!(f, "{value:.1}{letter}")
        } else {
            write!(f, "{value:.2}{letter}")
        }
    }
}

/// A moment on the machine's monotonic clock (`CLOCK_MONOTONIC`), so that it can be compared with
/// what other processes on this machine write down.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `nanos` after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The next moment that is a whole multiple of `period`: what is done now and then and need not
    /// be exact happens together, and wakes us once.
    pub fn next_multiple(self, period: Duration) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        let past = self.0.checked_rem(period).unwrap_or(0);
        Self(self.0.saturating_sub(past).saturating_add(period))
    }

    /// The moment `by` later.
    pub fn later(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// One process life. A counter, never a pid, and never used again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct WorkerId(NonZeroU64);

impl WorkerId {
    /// The first one.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The one after this.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.0)
    }
}

impl FromStr for WorkerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix('w')
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a worker: they are named `w1`, `w2`, …"))
    }
}

/// One start of the command. A counter: the first start is run 1.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}", self.0)
    }
}

/// An operator's request that waits for its answer. A counter.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestId(pub u64);

/// The names of getrlimit(2), in the order of the alphabet.
pub const RLIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A report that is kept: counts up, and goes on counting after a restart of the supervisor.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct ReportId(pub u64);

impl ReportId {
    /// The one after it.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl FromStr for ReportId {
    type Err = String;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix('r')
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no report; its id is like r3"))
    }
}

/// A make of server that is known (see `servers`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerKind {
    /// gunicorn 20 to 27.
    Gunicorn,
}

/// How a make of server treats its workers (the values are in `servers`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Habits {
    /// Which make.
    pub kind: ServerKind,
    /// Ends one worker gracefully; its master replaces it.
    pub retire: Signal,
    /// Sent to the master, it raises one more worker.
    pub raise: Signal,
    /// Sent to the master, it wants one worker fewer and retires its oldest.
    pub lower: Signal,
    /// Sent to the master, all workers are replaced, and the number is the configured one again.
    pub reload: Signal,
    /// Sent to the master, a second one is started beside it.
    pub second_master: Signal,
    /// Sent to the master, it ends without waiting for what is in flight.
    pub quit: Signal,
    /// A worker that exits with one of these stops the whole server.
    pub boot_failures: [i32; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_back_as_they_are_shown() {
        assert_eq!(Bytes::mib(300).to_string(), "300M");
        assert_eq!(Bytes::mib(1536).to_string(), "1.50G");
        assert_eq!(Bytes(17).to_string(), "17");
    }
}
