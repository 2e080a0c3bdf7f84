//! What a journal knows of its input: a hash of all lines up to each one that has a result.

use std::{collections::BTreeMap, fmt};

/// With more than this, half of them are forgotten: a difference is found as surely, and its place
/// is told less exactly.
const MOST: usize = 1 << 18;

/// Hashes of the input, by the line up to which they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Marks {
    by_line: BTreeMap<u64, u64>,
    /// Of the lines only multiples of this are kept, and the last one.
    step: u64,
    most: usize,
}

/// How an input is another one than that of the journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Difference {
    /// One of these lines is not what it was.
    Between(u64, u64),
    /// It has only so many lines, and the journal knows of so many.
    Shorter(u64, u64),
}

impl Default for Marks {
    fn default() -> Self {
        Self::with(MOST)
    }
}

impl Marks {
    const fn with(most: usize) -> Self {
        Self {
            by_line: BTreeMap::new(),
            step: 1,
            most,
        }
    }

    /// The hash of the input up to and with a line.
    pub(super) fn insert(&mut self, line: u64, mark: u64) {
        let last = self.last();
        if line < last && !line.is_multiple_of(self.step) {
            return;
        }
        self.by_line.insert(line, mark);
        if line > last && !last.is_multiple_of(self.step) {
            self.by_line.remove(&last);
        }
        while self.by_line.len() > self.most {
            self.step *= 2;
            let (step, last) = (self.step, self.last());
            self.by_line
                .retain(|line, _| line.is_multiple_of(step) || *line == last);
        }
    }

    /// The last line of which something is known; 0: none.
    pub(super) fn last(&self) -> u64 {
        self.by_line.last_key_value().map_or(0, |(line, _)| *line)
    }

    /// Compares what is known of a line with what it is.
    pub(super) fn check(&self, line: u64, mark: u64) -> Result<(), Difference> {
        let known = self.by_line.get(&line);
        if known.is_none_or(|known| *known == mark) {
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
            Self::Shorter(lines, known) => {
                write!(
                    f,
                    "it ends after line {lines}, and line {known} has a result"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_as_exactly_as_is_known() {
        let mut marks = Marks::default();
        for line in [2, 5, 4] {
            marks.insert(line, line * 10);
        }
        assert_eq!(marks.last(), 5);
        assert_eq!(marks.check(1, 7), Ok(()));
        assert_eq!(marks.check(2, 20), Ok(()));
        let told = |line| marks.check(line, 7).unwrap_err().to_string();
        assert_eq!(told(2), "one of the lines 1 to 2 differs");
        assert_eq!(told(4), "one of the lines 3 to 4 differs");
        assert_eq!(told(5), "line 5 differs");
    }

    #[test]
    fn many_are_thinned_out_and_the_last_is_kept() {
        let mut marks = Marks::with(8);
        for line in 1..=1001 {
            marks.insert(line, line);
            assert!(marks.by_line.len() <= 8);
            assert_eq!(marks.last(), line);
            assert!(marks.check(line, 0).is_err(), "the last one is known");
        }
        // In any order, too.
        for line in (1..=1001).rev() {
            marks.insert(line, line);
        }
        assert!(marks.by_line.len() <= 8 && marks.last() == 1001);
        let all = (1..=1001).filter(|line| marks.check(*line, 0).is_err());
        assert!(all.count() > 4);
    }
}
