//! Which places are done, as ranges: a hundred million lines in the room of a few.

use std::collections::BTreeMap;

/// A set of places in a source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Skip {
    /// First and last of each range. They neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
}

impl Skip {
    /// Is it in?
    pub fn contains(&self, seq: u64) -> bool {
        self.range_of(seq).is_some()
    }

    /// Puts it in. False: it was in already.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        let mut last = seq;
        if let Some(after) = seq.checked_add(1)
            && let Some(end) = self.ranges.remove(&after)
        {
            last = end;
        }
        if let Some((_, end)) = self.ranges.range_mut(..seq).next_back()
            && end.checked_add(1) == Some(seq)
        {
            *end = last;
        } else {
            self.ranges.insert(seq, last);
        }
        true
    }

    /// Takes it out. False: it was not in.
    pub fn remove(&mut self, seq: u64) -> bool {
        let Some((first, last)) = self.range_of(seq) else {
            return false;
        };
        self.ranges.remove(&first);
        if first < seq {
            self.ranges.insert(first, seq - 1);
        }
        if seq < last {
            self.ranges.insert(seq + 1, last);
        }
        true
    }

    /// How many are in, up to `seq` and with it.
    pub fn count_to(&self, seq: u64) -> u64 {
        let ranges = self.ranges.range(..=seq);
        ranges.map(|(first, last)| last.min(&seq) - first + 1).sum()
    }

    /// The first that is in and not before `seq`.
    pub fn first_from(&self, seq: u64) -> Option<u64> {
        if self.contains(seq) {
            return Some(seq);
        }
        self.ranges.range(seq..).next().map(|(first, _)| *first)
    }

    /// How many are in.
    pub fn count(&self) -> u64 {
        let sizes = self.ranges.iter().map(|(first, last)| last - first + 1);
        sizes.sum()
    }

    /// Takes out all that are in `other`.
    pub(super) fn take_out(&mut self, other: &Self) {
        for (first, last) in &other.ranges {
            for seq in *first..=*last {
                self.remove(seq);
            }
        }
    }

    fn range_of(&self, seq: u64) -> Option<(u64, u64)> {
        let (first, last) = self.ranges.range(..=seq).next_back()?;
        (seq <= *last).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 1_u64..40), 0..200)) {
            let (mut skip, mut set) = (Skip::default(), BTreeSet::new());
            for (is_in, seq) in steps {
                if is_in {
                    prop_assert_eq!(skip.insert(seq), set.insert(seq));
                } else {
                    prop_assert_eq!(skip.remove(seq), set.remove(&seq));
                }
                for probe in 0..42 {
                    prop_assert_eq!(skip.contains(probe), set.contains(&probe));
                    let first = set.range(probe..).next().copied();
                    prop_assert_eq!(skip.first_from(probe), first);
                }
                prop_assert_eq!(skip.count(), set.len() as u64);
                let ranges: Vec<_> = skip.ranges.iter().collect();
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].1 + 1 < *pair[1].0, "they touch: {:?}", ranges);
                }
            }
        }

        #[test]
        fn what_is_in_another_is_taken_out(
            mine in prop::collection::btree_set(1_u64..40, 0..40),
            others in prop::collection::btree_set(1_u64..40, 0..40),
        ) {
            let (mut skip, mut other) = (Skip::default(), Skip::default());
            mine.iter().for_each(|seq| { skip.insert(*seq); });
            others.iter().for_each(|seq| { other.insert(*seq); });
            skip.take_out(&other);
            for seq in 0..42 {
                let is_in = mine.contains(&seq) && !others.contains(&seq);
                prop_assert_eq!(skip.contains(seq), is_in);
            }
        }
    }

    #[test]
    fn a_million_in_a_row_are_one_range() {
        let mut skip = Skip::default();
        for seq in (1..=1_000_000).rev() {
            skip.insert(seq);
        }
        assert_eq!(skip.ranges.len(), 1);
        assert!(skip.insert(u64::MAX) && skip.contains(u64::MAX));
    }
}
