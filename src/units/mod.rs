//! The types that all layers share: bytes, sizes, timestamps and ids.

#[cfg(test)]
pub(crate) mod golden;
mod signal;
mod size;

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use signal::Signal;
pub use size::{Size, SizeError};

/// A number of bytes. It is shown in binary units, like those of `systemd`, `docker` and the cgroup
/// files.
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
    /// Zero bytes.
    pub const ZERO: Self = Self(0);

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// As a plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `self` minus `other`, at least zero.
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, without overflow.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `self` times `part` (0.5 is a half). A negative or extreme part gives zero or the largest
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

/// `whole` times `part`. A negative or extreme part gives zero or the largest number.
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

/// A point in time on the machine's monotonic clock (`CLOCK_MONOTONIC`), which can be compared with
/// the times that other processes on this machine write.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The clock's zero, before every event.
    pub const ZERO: Self = Self(0);

    /// The time `nanos` after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero if `earlier` is not before `self`.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The next time that is a multiple of `period`. Periodic work that need not be exact runs
    /// together at these times, and wakes us once.
    pub fn next_multiple(self, period: Duration) -> Self {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        let past = self.0.checked_rem(period).unwrap_or(0);
        Self(self.0.saturating_sub(past).saturating_add(period))
    }

    /// The time `by` later.
    pub fn later(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// The id of a worker process: a counter, and not a pid, which can be reused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct WorkerId(NonZeroU64);

impl WorkerId {
    /// The id of the first worker.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The id after this one.
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

/// The id of a start of the command: a counter that begins with 1.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}", self.0)
    }
}

/// The id of an operator's request that waits for its answer: a counter.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestId(pub u64);

/// The names of getrlimit(2), in alphabetical order.
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

/// The id of a kept report: a counter that continues after a restart of the supervisor.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct ReportId(pub u64);

impl ReportId {
    /// The id after this one.
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

    /// Parses what `Display` writes.
    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix('r')
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not the id of a report; write r1, r2, …"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_three_figures_and_a_unit() {
        assert_eq!(Bytes::mib(300).to_string(), "300M");
        assert_eq!(Bytes::mib(1536).to_string(), "1.50G");
        assert_eq!(Bytes(17).to_string(), "17");
    }
}
