//! Signals by their names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A signal number. It is shown as its name, without `SIG`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Signal(pub i32);

/// Names and numbers of signal(7), which are the same on Linux for x86-64 and arm64.
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

#[expect(missing_docs, reason = "the names are those of signal(7)")]
impl Signal {
    pub const HUP: Self = Self(1);
    pub const INT: Self = Self(2);
    pub const QUIT: Self = Self(3);
    pub const ABRT: Self = Self(6);
    pub const KILL: Self = Self(9);
    pub const USR1: Self = Self(10);
    pub const USR2: Self = Self(12);
    pub const PIPE: Self = Self(13);
    pub const TERM: Self = Self(15);
    pub const CHLD: Self = Self(17);
    pub const CONT: Self = Self(18);
    pub const STOP: Self = Self(19);
    pub const TTIN: Self = Self(21);
    pub const TTOU: Self = Self(22);
    pub const WINCH: Self = Self(28);
    /// The signal for `supervise reload`: `RTMIN+1`. The C library uses the kernel's first two
    /// real-time signals (nptl(7)), so RTMIN is 34.
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

    /// Parses `TERM`, `SIGTERM`, `term` or `15`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_name_is_parsed_to_its_number() {
        for (name, number) in SIGNALS {
            assert_eq!(name.parse(), Ok(Signal(number)));
            assert_eq!(Signal(number).to_string(), name);
        }
        assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
        assert!("NOPE".parse::<Signal>().is_err());
    }
}
