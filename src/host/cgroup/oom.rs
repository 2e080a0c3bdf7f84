//! The limit that called the OOM killer.

use serde::{Deserialize, Serialize};

use crate::supervisor::input::Oom;

/// The counts of the OOM killer that concern one group.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Counts {
    /// Killed processes of the group, whichever limit was hit.
    pub(super) kills: u64,
    /// Calls by the group's own limit.
    pub(super) own: u64,
    /// Calls by the limit on all groups together.
    pub(super) budget: u64,
    /// Calls by limits above that.
    pub(super) above: u64,
}

/// Finds the limit that called the OOM killer. In version 1, all groups below the limit are
/// notified of a call (`nested`), so a level's own calls are those that the level above was not
/// notified of. If two limits called at the same time, the innermost one is taken, because only it
/// is sure to have killed here.
pub(super) fn judge(before: Counts, after: Counts, nested: bool) -> Oom {
    let [own, budget, above] = [
        after.own.saturating_sub(before.own),
        after.budget.saturating_sub(before.budget),
        after.above.saturating_sub(before.above),
    ];
    let from_above = |calls: u64| if nested { calls } else { 0 };
    if after.kills <= before.kills {
        Oom::No
    } else if own > from_above(budget) {
        Oom::Cap
    } else if budget > from_above(above) {
        Oom::Budget
    } else {
        Oom::Elsewhere
    }
}

/// The counts after one end was accounted for. RACE: the OOM killer may have killed two processes
/// before we handle the first end; the second end must be attributed to it as well.
pub(super) const fn after_one(before: Counts, now: Counts) -> Counts {
    if now.kills > before.kills.saturating_add(1) {
        Counts {
            kills: before.kills + 1,
            ..before
        }
    } else {
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts before and after: kills, own calls, calls of the budget, calls above it.
    fn check(nested: bool, before: [u64; 4], after: [u64; 4], expected: Oom) {
        let counts = |[kills, own, budget, above]: [u64; 4]| Counts {
            kills,
            own,
            budget,
            above,
        };
        assert_eq!(judge(counts(before), counts(after), nested), expected);
    }

    #[test]
    fn a_call_without_a_kill_in_this_group_is_not_an_oom() {
        check(true, [0; 4], [0; 4], Oom::No);
        check(true, [0; 4], [0, 1, 1, 0], Oom::No);
        check(false, [2, 2, 0, 0], [2, 2, 1, 0], Oom::No);
    }

    #[test]
    fn in_version_1_all_groups_below_the_limit_count_a_call() {
        check(true, [0; 4], [1, 1, 0, 0], Oom::Cap);
        check(true, [0; 4], [1, 1, 1, 0], Oom::Budget);
        check(true, [0; 4], [1, 1, 1, 1], Oom::Elsewhere);
        check(true, [0; 4], [1, 0, 0, 0], Oom::Elsewhere);
        // The budget killed a neighbour meanwhile.
        check(true, [0; 4], [1, 2, 1, 0], Oom::Cap);
    }

    #[test]
    fn in_version_2_each_limit_counts_its_own_calls() {
        check(false, [0; 4], [2, 1, 0, 0], Oom::Cap);
        check(false, [0; 4], [1, 0, 1, 0], Oom::Budget);
        check(false, [0; 4], [1, 0, 0, 0], Oom::Elsewhere);
        check(false, [0; 4], [1, 1, 1, 0], Oom::Cap);
    }

    #[test]
    fn counts_before_the_last_check_are_ignored() {
        check(true, [1, 1, 0, 0], [2, 2, 1, 0], Oom::Budget);
        check(false, [1, 1, 0, 0], [2, 1, 0, 0], Oom::Elsewhere);
    }

    #[test]
    fn two_kills_are_attributed_to_two_ends() {
        let counts = |kills, own| Counts {
            kills,
            own,
            ..Counts::default()
        };
        let now = counts(2, 1);
        let first = after_one(counts(0, 0), now);
        assert_eq!(judge(first, now, true), Oom::Cap);
        let second = after_one(first, now);
        assert_eq!(judge(second, now, true), Oom::No);
    }
}
