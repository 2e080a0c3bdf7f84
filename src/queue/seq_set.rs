//! A set of task numbers, stored as ranges: a hundred million consecutive numbers take the memory
//! of one.

use std::collections::BTreeMap;

/// A set of task numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SeqSet {
    /// First and last number of each range. Ranges neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
}

impl SeqSet {
    /// Whether the set contains `seq`.
    pub fn contains(&self, seq: u64) -> bool {
        self.range_of(seq).is_some()
    }

    /// Adds `seq`. False: the set already contained it.
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

    /// Removes `seq`. False: the set did not contain it.
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

    /// The count of numbers up to and including `seq`.
    pub fn count_to(&self, seq: u64) -> u64 {
        let ranges = self.ranges.range(..=seq);
        ranges.map(|(first, last)| last.min(&seq) - first + 1).sum()
    }

    /// The smallest number that is not below `seq`.
    pub fn first_from(&self, seq: u64) -> Option<u64> {
        if self.contains(seq) {
            return Some(seq);
        }
        self.ranges.range(seq..).next().map(|(first, _)| *first)
    }

    /// The count of all numbers.
    pub fn count(&self) -> u64 {
        let sizes = self.ranges.iter().map(|(first, last)| last - first + 1);
        sizes.sum()
    }

    /// Removes all numbers of `other`.
    pub(super) fn remove_all(&mut self, other: &Self) {
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
        fn it_behaves_like_a_set(
            steps in prop::collection::vec((any::<bool>(), 1_u64..40), 0..200),
        ) {
            let (mut seqs, mut set) = (SeqSet::default(), BTreeSet::new());
            for (is_in, seq) in steps {
                if is_in {
                    prop_assert_eq!(seqs.insert(seq), set.insert(seq));
                } else {
                    prop_assert_eq!(seqs.remove(seq), set.remove(&seq));
                }
                for probe in 0..42 {
                    prop_assert_eq!(seqs.contains(probe), set.contains(&probe));
                    let first = set.range(probe..).next().copied();
                    prop_assert_eq!(seqs.first_from(probe), first);
                }
                prop_assert_eq!(seqs.count(), set.len() as u64);
                let ranges: Vec<_> = seqs.ranges.iter().collect();
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].1 + 1 < *pair[1].0, "they touch: {:?}", ranges);
                }
            }
        }

        #[test]
        fn remove_all_removes_the_numbers_of_the_other_set(
            mine in prop::collection::btree_set(1_u64..40, 0..40),
            others in prop::collection::btree_set(1_u64..40, 0..40),
        ) {
            let (mut seqs, mut other) = (SeqSet::default(), SeqSet::default());
            mine.iter().for_each(|seq| { seqs.insert(*seq); });
            others.iter().for_each(|seq| { other.insert(*seq); });
            seqs.remove_all(&other);
            for seq in 0..42 {
                let is_in = mine.contains(&seq) && !others.contains(&seq);
                prop_assert_eq!(seqs.contains(seq), is_in);
            }
        }
    }

    #[test]
    fn a_million_consecutive_numbers_are_one_range() {
        let mut seqs = SeqSet::default();
        for seq in (1..=1_000_000).rev() {
            seqs.insert(seq);
        }
        assert_eq!(seqs.ranges.len(), 1);
        assert!(seqs.insert(u64::MAX) && seqs.contains(u64::MAX));
    }
}
