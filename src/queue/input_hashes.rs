//! A journal's hashes of its input: for each line with a result, a hash of the input up to the end
//! of that line.

use std::{collections::BTreeMap, fmt};

/// Above this number, half of the hashes are dropped. Each difference is still found, because a
/// hash covers all lines before it. The message then names a range of lines.
const MAX: usize = 1 << 18;

/// Line numbers, with the hash of the input up to the end of the line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct InputHashes {
    by_line: BTreeMap<u64, u64>,
    /// Only multiples of this number, and the last line, are kept.
    step: u64,
    max: usize,
}

/// How the input differs from the input of the journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Difference {
    /// A line has changed. It is one of the lines from the first to the second number.
    Between(u64, u64),
    /// The input has `lines` lines, and the journal has a result for the line `last_result`.
    Shorter { lines: u64, last_result: u64 },
}

impl Default for InputHashes {
    fn default() -> Self {
        Self::with_max(MAX)
    }
}

impl InputHashes {
    const fn with_max(max: usize) -> Self {
        Self {
            by_line: BTreeMap::new(),
            step: 1,
            max,
        }
    }

    /// Adds the hash of the input up to the end of `line`.
    pub(super) fn insert(&mut self, line: u64, hash: u64) {
        let last = self.last_line();
        if line < last && !line.is_multiple_of(self.step) {
            return;
        }
        self.by_line.insert(line, hash);
        if line > last && !last.is_multiple_of(self.step) {
            self.by_line.remove(&last);
        }
        while self.by_line.len() > self.max {
            self.step *= 2;
            let (step, last) = (self.step, self.last_line());
            self.by_line
                .retain(|line, _| line.is_multiple_of(step) || *line == last);
        }
    }

    /// The last line with a hash, or 0.
    pub(super) fn last_line(&self) -> u64 {
        self.by_line.last_key_value().map_or(0, |(line, _)| *line)
    }

    /// Compares `hash` with the known hash of `line`, if there is one.
    pub(super) fn check(&self, line: u64, hash: u64) -> Result<(), Difference> {
        let known = self.by_line.get(&line);
        if known.is_none_or(|known| *known == hash) {
            return Ok(());
        }
        let before = self.by_line.range(..line).next_back();
        let before = before.map_or(0, |(line, _)| *line);
        Err(Difference::Between(before + 1, line))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between(first, last) if first == last => {
                write!(f, "line {last} differs")
            }
            Self::Between(first, last) => write!(f, "one of the lines {first} to {last} differs"),
            Self::Shorter { lines, last_result } => {
                write!(f, "this input ends after line {lines}, but the journal ")?;
                write!(f, "has a result for line {last_result}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_narrowed_down_to_the_lines_after_the_previous_hash() {
        let mut hashes = InputHashes::default();
        for line in [2, 5, 4] {
            hashes.insert(line, line * 10);
        }
        assert_eq!(hashes.last_line(), 5);
        assert_eq!(hashes.check(1, 7), Ok(()));
        assert_eq!(hashes.check(2, 20), Ok(()));
        let message = |line| hashes.check(line, 7).unwrap_err().to_string();
        assert_eq!(message(2), "one of the lines 1 to 2 differs");
        assert_eq!(message(4), "one of the lines 3 to 4 differs");
        assert_eq!(message(5), "line 5 differs");
    }

    #[test]
    fn above_the_maximum_hashes_are_thinned_out_and_the_last_is_kept() {
        let mut hashes = InputHashes::with_max(8);
        for line in 1..=1001 {
            hashes.insert(line, line);
            assert!(hashes.by_line.len() <= 8);
            assert_eq!(hashes.last_line(), line);
            assert!(hashes.check(line, 0).is_err(), "the last one is known");
        }
        // The same in reverse order.
        for line in (1..=1001).rev() {
            hashes.insert(line, line);
        }
        assert!(hashes.by_line.len() <= 8 && hashes.last_line() == 1001);
        let all = (1..=1001).filter(|line| hashes.check(*line, 0).is_err());
        assert!(all.count() > 4);
    }
}
