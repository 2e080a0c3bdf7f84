//! The words all layers share: bytes, sizes, moments and identities.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

/// A number of bytes. Shown with binary units, as `systemd`, `docker` and the cgroup files mean
/// them.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
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

/// A size as people write it: a number of bytes, or a share of the memory this service may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// So many bytes.
    Bytes(Bytes),
    /// So many hundredths of what this service may have; above 0, at most 100.
    Percent(f64),
}

impl Size {
    /// The bytes this means where the service may have `available`.
    pub fn of(self, available: Bytes) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => available.scaled(percent / 100.0),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Why a text is no size.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not a size: {why}; write bytes, `300M`, `1.5G` or `80%`")]
pub struct SizeError {
    text: String,
    why: &'static str,
}

impl FromStr for Size {
    type Err = SizeError;

    /// Units are binary: K, M, G, T, P, with an optional `iB` or `B`, in either case.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let fail = |why| SizeError {
            text: text.to_owned(),
            why,
        };
        let trimmed = text.trim();
        let (number, percent) = match trimmed.strip_suffix('%') {
            Some(number) => (number.trim_end(), true),
            None => (trimmed, false),
        };
        let split = number
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(number.len());
        let (digits, unit) = number.split_at(split);
        if number.starts_with('-') {
            return Err(fail("it is negative"));
        }
        if digits.is_empty() {
            return Err(fail("it has no number"));
        }
        let value: f64 = digits
            .parse()
            .map_err(|_| fail("its number cannot be read"))?;
        if percent {
            if !unit.is_empty() {
                return Err(fail("a percentage has no unit"));
            }
            if value <= 0.0 || value > 100.0 {
                return Err(fail("a percentage is above 0 and at most 100"));
            }
            return Ok(Self::Percent(value));
        }
        let factor = unit_factor(unit.trim()).ok_or_else(|| fail("its unit is unknown"))?;
        let bytes = Bytes(factor).scaled(value);
        if bytes == Bytes::ZERO {
            return Err(fail("it must be above zero (`none` switches a limit off)"));
        }
        if bytes.0 > 1 << 53 {
            return Err(fail("it is larger than any machine"));
        }
        Ok(Self::Bytes(bytes))
    }
}

fn unit_factor(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    let letter = upper
        .strip_suffix("IB")
        .or_else(|| upper.strip_suffix('B'))
        .unwrap_or(&upper);
    if letter.is_empty() {
        return Some(1);
    }
    UNITS
        .iter()
        .find(|(known, _)| letter.len() == 1 && letter.starts_with(*known))
        .map(|(_, f)| *f)
}

/// A moment on the machine's monotonic clock (`CLOCK_MONOTONIC`), so that it can be compared with
/// what other processes on this machine write down.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
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
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
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
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}", self.0)
    }
}

/// An operator's request that waits for its answer. A counter.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestId(pub u64);

/// A signal by its number, shown by its name without `SIG`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Signal(pub i32);

/// Names and numbers of signal(7) on Linux x86-64 and arm64, which agree.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

#[expect(missing_docs, reason = "the names are signal(7)'s")]
impl Signal {
    pub const HUP: Self = Self(1);
    pub const INT: Self = Self(2);
    pub const QUIT: Self = Self(3);
    pub const KILL: Self = Self(9);
    pub const USR1: Self = Self(10);
    pub const USR2: Self = Self(12);
    pub const TERM: Self = Self(15);
    pub const CHLD: Self = Self(17);
    pub const CONT: Self = Self(18);
    pub const STOP: Self = Self(19);
    pub const TTIN: Self = Self(21);
    pub const TTOU: Self = Self(22);
    pub const WINCH: Self = Self(28);
    /// What `supervise reload` is, as a signal to us: `RTMIN+1`. The kernel's first two real-time
    /// signals are the C library's (nptl(7)), so that RTMIN is 34.
    pub const RELOAD: Self = Self(35);
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Signal {
    type Err = String;

    /// `TERM`, `SIGTERM`, `term` or `15`.
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let by_name = SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number);
        by_name
            .or_else(|| name.parse().ok().filter(|number| (1..=64).contains(number)))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a signal; write TERM, INT, QUIT, …"))
    }
}

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
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
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

    fn size(text: &str) -> Result<Size, SizeError> {
        text.parse()
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size("300M"), Ok(Size::Bytes(Bytes::mib(300))));
        assert_eq!(size("1.5G"), Ok(Size::Bytes(Bytes::mib(1536))));
        assert_eq!(size("512MiB"), Ok(Size::Bytes(Bytes::mib(512))));
        assert_eq!(size("1024"), Ok(Size::Bytes(Bytes(1024))));
        assert_eq!(size("80%"), Ok(Size::Percent(80.0)));
        assert_eq!(Size::Percent(80.0).of(Bytes(1000)), Bytes(800));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        for (text, why) in [
            ("300Q", "unit"),
            ("-5", "negative"),
            ("0", "above zero"),
            ("1e99", "unit"),
            ("", "no number"),
            ("120%", "percentage"),
            ("9999999P", "machine"),
            ("1.2.3M", "read"),
        ] {
            let error = size(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn bytes_read_back_as_they_are_shown() {
        assert_eq!(Bytes::mib(300).to_string(), "300M");
        assert_eq!(Bytes::mib(1536).to_string(), "1.50G");
        assert_eq!(Bytes(17).to_string(), "17");
    }

    #[test]
    fn every_signal_reads_back_by_its_name() {
        for (name, number) in SIGNALS {
            assert_eq!(name.parse(), Ok(Signal(number)));
            assert_eq!(Signal(number).to_string(), name);
        }
        assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
        assert!("NOPE".parse::<Signal>().is_err());
    }
}
