//! Sizes as people write them, and the smallest size for a memory limit.

use std::{fmt, str::FromStr};

use super::{Bytes, UNITS};

/// A size as people write it: a number of bytes, or a percentage of the memory available to the
/// service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// A number of bytes.
    Bytes(Bytes),
    /// A percentage of the available memory; above 0, at most 100.
    Percent(f64),
}

impl Size {
    /// The number of bytes, if the service has `available` bytes of memory.
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

/// The smallest memory limit. A bare `50` is a mistake, because no process runs with 50 bytes.
const LIMIT_MIN: Bytes = Bytes::mib(1);
/// A bare number up to this one was meant in mebibytes. As mebibytes it is 64 gibibytes.
const MEBIBYTES_MAX: u64 = 64 << 10;

impl Size {
    /// Parses the size of a memory limit, like [`Size::from_str`], but at least 1M.
    pub fn limit(text: &str) -> Result<Self, String> {
        let size: Self = text.parse().map_err(|error: SizeError| error.to_string())?;
        match size {
            Self::Bytes(bytes) if bytes < LIMIT_MIN => Err(too_small(text.trim(), bytes)),
            Self::Bytes(_) | Self::Percent(_) => Ok(size),
        }
    }

    /// Why this size is too small for a limit with `available` bytes of memory; `None` if it is
    /// not.
    pub fn too_small(self, available: Bytes) -> Option<String> {
        let bytes = self.of(available);
        (bytes < LIMIT_MIN).then(|| {
            format!("`{self}` of {available} is {bytes}, and a limit on memory is at least 1M")
        })
    }
}

fn too_small(text: &str, bytes: Bytes) -> String {
    let is = match bytes.get() {
        1 => "1 byte".to_owned(),
        few @ ..1024 => format!("{few} bytes"),
        _ => bytes.to_string(),
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let digits = text.get(..digits.unwrap_or(text.len())).unwrap_or(text);
    let meant = digits.parse().ok().filter(|number: &f64| {
        let bytes = LIMIT_MIN.scaled(*number);
        (LIMIT_MIN.get()..=MEBIBYTES_MAX << 20).contains(&bytes.get())
    });
    let hint = meant.map_or_else(String::new, |_| format!("; did you mean `{digits}M`?"));
    format!("`{text}` is {is}, and a limit on memory is at least 1M{hint}")
}

/// Why a text is not a size.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<Size, SizeError> {
        text.parse()
    }

    #[test]
    fn units_of_sizes_are_binary() {
        assert_eq!(size("300M"), Ok(Size::Bytes(Bytes::mib(300))));
        assert_eq!(size("1.5G"), Ok(Size::Bytes(Bytes::mib(1536))));
        assert_eq!(size("512MiB"), Ok(Size::Bytes(Bytes::mib(512))));
        assert_eq!(size("1024"), Ok(Size::Bytes(Bytes(1024))));
        assert_eq!(size("80%"), Ok(Size::Percent(80.0)));
        assert_eq!(Size::Percent(80.0).of(Bytes(1000)), Bytes(800));
    }

    #[test]
    fn an_invalid_size_is_refused_with_the_reason() {
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
    fn a_limit_below_a_mebibyte_is_refused_with_the_likely_intention() {
        for (text, said) in [
            (
                "50",
                "`50` is 50 bytes, and a limit on memory is at least 1M; did you mean `50M`?",
            ),
            ("1", "is 1 byte, and"),
            (
                "1.5K",
                "`1.5K` is 1.50K, and a limit on memory is at least 1M; did you mean `1.5M`?",
            ),
            ("300KiB", "did you mean `300M`?"),
            (
                "4096",
                "`4096` is 4K, and a limit on memory is at least 1M; did you mean `4096M`?",
            ),
            ("0", "above zero"),
            ("x", "no number"),
        ] {
            let error = Size::limit(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        // This number would be a terabyte in mebibytes, which is not likely.
        assert!(!Size::limit("1048575").unwrap_err().contains("did you mean"));
        assert!(!Size::limit("0.5M").unwrap_err().contains("did you mean"));
        assert_eq!(Size::limit("1M"), Ok(Size::Bytes(Bytes::mib(1))));
        assert_eq!(Size::limit("1048576"), Ok(Size::Bytes(Bytes::mib(1))));
    }

    #[test]
    fn a_percentage_below_a_mebibyte_is_too_small_for_a_limit() {
        let said = Size::Percent(0.01).too_small(Bytes::mib(1024)).unwrap();
        assert!(said.contains("`0.01%` of 1G is 105K"), "{said}");
        assert_eq!(Size::Percent(80.0).too_small(Bytes::mib(64)), None);
    }
}
