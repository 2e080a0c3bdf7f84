//! The record of past ends with their counts, for later questions, and of the warnings given.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::supervisor::event::{End, Limits};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Record {
    /// The limits of the last event about limits.
    limits: Option<Limits>,
    /// The subjects of the warnings given. Each is warned about only once.
    warned: BTreeSet<String>,
    recycles: BTreeMap<String, u64>,
    unplanned: BTreeMap<String, u64>,
    /// Oldest first.
    ends: VecDeque<End>,
}

impl Record {
    /// Records these limits. Returns true if they differ from the last ones.
    pub(super) fn are_new(&mut self, limits: &Limits) -> bool {
        let are_new = self.limits.as_ref() != Some(limits);
        if are_new {
            self.limits = Some(limits.clone());
        }
        are_new
    }

    /// Records a warning about this subject. Returns true the first time.
    pub(super) fn warn_first(&mut self, about: String) -> bool {
        self.warned.insert(about)
    }

    /// Records and counts an end. The last `most` ends are kept.
    pub(super) fn keep_end(&mut self, end: End, most: usize) {
        let counts = if end.cause.is_recycle() {
            &mut self.recycles
        } else {
            &mut self.unplanned
        };
        let count = counts.entry(end.cause.to_string()).or_default();
        *count = count.saturating_add(1);
        if self.ends.len() >= most {
            self.ends.pop_front();
        }
        self.ends.push_back(end);
    }

    /// The last ends, oldest first.
    pub(super) const fn ends(&self) -> &VecDeque<End> {
        &self.ends
    }

    /// Planned ends, by cause.
    pub(super) const fn recycles(&self) -> &BTreeMap<String, u64> {
        &self.recycles
    }

    /// Other ends, by cause.
    pub(super) const fn unplanned(&self) -> &BTreeMap<String, u64> {
        &self.unplanned
    }
}
