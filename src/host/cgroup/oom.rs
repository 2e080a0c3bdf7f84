//! Whose limit called the OOM killer.

use serde::{Deserialize, Serialize};

use crate::supervisor::event::Oom;

/// What the OOM killer has done as far as it concerns one group.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Counts {
    pub(super) kills: u64,
    pub(super) own: u64,
    pub(super) budget: u64,
    pub(super) above: u64,
}

/// Whose limit it was. In version 1 a call of the OOM killer is told to all groups below the limit
/// (`nested`), so each level's own calls are those that the level above was not told of. Where two
/// limits called in the same time, the innermost is taken: it can only have killed here.
pub(super) fn judge(before: Counts, after: Counts, nested: bool) -> Oom {
    let [own, budget, above] = [
        after.own.saturating_sub(before.own),
        after.budget.saturating_sub(before.budget),
        after.above.saturating_sub(before.above),
    ];
    let told = |from_above: u64| if nested { from_above } else { 0 };
    if after.kills <= before.kills {
        Oom::No
    } else if own > told(budget) {
        Oom::Cap
    } else if budget > told(above) {
        Oom::Budget
    } else {
        Oom::Elsewhere
    }
}

/// What is left to ask about after one end was. RACE: the killer may have ended two by the time we
/// hear of the first; the second is its doing as well.
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

    /// What was counted before and after, as kills, own calls, the budget's calls, those above.
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
    fn without_a_kill_here_it_was_somebody_else() {
        check(true, [0; 4], [0; 4], Oom::No);
        check(true, [0; 4], [0, 1, 1, 0], Oom::No);
        check(false, [2, 2, 0, 0], [2, 2, 1, 0], Oom::No);
    }

    #[test]
    fn version_1_tells_everybody_below_the_limit() {
        check(true, [0; 4], [1, 1, 0, 0], Oom::Cap);
        check(true, [0; 4], [1, 1, 1, 0], Oom::Budget);
        check(true, [0; 4], [1, 1, 1, 1], Oom::Elsewhere);
        check(true, [0; 4], [1, 0, 0, 0], Oom::Elsewhere);
        // The budget ended a neighbour meanwhile.
        check(true, [0; 4], [1, 2, 1, 0], Oom::Cap);
    }

    #[test]
    fn version_2_counts_each_limit_by_itself() {
        check(false, [0; 4], [2, 1, 0, 0], Oom::Cap);
        check(false, [0; 4], [1, 0, 1, 0], Oom::Budget);
        check(false, [0; 4], [1, 0, 0, 0], Oom::Elsewhere);
        check(false, [0; 4], [1, 1, 1, 0], Oom::Cap);
    }

    #[test]
    fn what_was_told_before_is_over() {
        check(true, [1, 1, 0, 0], [2, 2, 1, 0], Oom::Budget);
        check(false, [1, 1, 0, 0], [2, 1, 0, 0], Oom::Elsewhere);
    }

    #[test]
    fn two_kills_are_two_ends() {
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
