//! How many workers a server wants, as far as can be seen from outside, and the spare one.
//!
//! A server is asked for one worker more (gunicorn: TTIN) before a fat one goes, and for one fewer
//! (TTOU) afterwards. "One fewer" retires its oldest, whoever was meant. So the spare is given back
//! when the oldest is due itself, and no innocent goes; only when nobody has been due for a while
//! does the oldest go for it. In between there is one worker more than the operator wants.
//!
//! Refuted: stopping the master while the victim dies, so that it sees the death and TTOU at once.
//! SIGCONT discards a pending TTOU, for it is a stop signal (signal(7)).
//!
//! The operator can change the number behind our back. So the number is what is observed when
//! nothing has moved for a while, and the server is never asked for fewer than that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// Nothing has moved for so long: what is there is what is wanted. gunicorn's master looks at its
/// number at least once a second, and takes up to 0.1 s to fork each.
const SETTLED: Duration = Duration::from_secs(2);
/// The same at start, where nothing is recycled before.
const SETTLED_FIRST: Duration = Duration::from_secs(1);
/// A server that was asked for one more and has not forked by then was not able to.
const RAISE_TIMEOUT: Duration = Duration::from_secs(10);
/// Two like signals within so long may reach it as one: it sleeps up to 0.1 s after each fork.
const MERGES: Duration = Duration::from_millis(200);
/// It is not asked again before then.
const RAISE_PAUSE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Spare {
    wanted: Option<u32>,
    raised: Option<Timestamp>,
    /// The server has forked the spare: it is there, whatever becomes of it.
    forked: bool,
    /// The spare was given back then.
    lowered: Option<Timestamp>,
    /// The last change in the set of workers or in a worker's state.
    changed: Timestamp,
    /// What is there since then has been taken for what is wanted.
    observed: bool,
    /// The server was told something else that moves its workers.
    unsettled: bool,
    masters: u32,
    no_raise_before: Timestamp,
    last_recycle: Timestamp,
}

/// How many workers are in which state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    pub(super) starting: u32,
    pub(super) ready: u32,
    pub(super) draining: u32,
}

impl Count {
    pub(super) const fn live(self) -> u32 {
        self.starting
            .saturating_add(self.ready)
            .saturating_add(self.draining)
    }
}

impl Spare {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self {
            wanted: None,
            raised: None,
            forked: false,
            lowered: None,
            changed: now,
            observed: true,
            unsettled: false,
            masters: 1,
            no_raise_before: now,
            last_recycle: now,
        }
    }

    /// Another master, whose number is not known yet.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let wanted = self.wanted;
        *self = Self::new(now);
        self.wanted = wanted;
        self.unsettled = true;
        self.observed = false;
    }

    pub(super) const fn wanted(&self) -> Option<u32> {
        self.wanted
    }

    pub(super) const fn raised(&self) -> Option<Timestamp> {
        self.raised
    }

    pub(super) const fn last_recycle(&self) -> Timestamp {
        self.last_recycle
    }

    /// Nothing is recycled while the server moves its workers by itself.
    pub(super) const fn is_calm(&self) -> bool {
        self.masters == 1 && !self.unsettled && self.wanted.is_some()
    }

    pub(super) const fn on_change(&mut self, now: Timestamp) {
        self.changed = now;
        self.observed = false;
    }

    pub(super) const fn on_masters(&mut self, now: Timestamp, count: u32) {
        if self.masters != count {
            self.masters = count;
            self.unsettle(now);
        }
    }

    /// The server was told something that moves its workers.
    pub(super) const fn unsettle(&mut self, now: Timestamp) {
        self.unsettled = true;
        self.on_change(now);
    }

    /// A reload sets the number back to the configured one.
    pub(super) const fn on_reload(&mut self, now: Timestamp) {
        self.raised = None;
        self.lowered = None;
        self.unsettle(now);
    }

    /// The operator asked for one more or one fewer. What comes of it is observed; a spare stays
    /// ours meanwhile.
    ///
    /// RACE: we give the spare back, and in the same moment the operator asks for one fewer. A
    /// signal that is pending is not pending twice (signal(7)): the server may hear of one of
    /// them. So the spare is held for still there; if it is not, that is observed. Two for one
    /// more need nothing: the one that comes of them is observed as the operator's.
    pub(super) fn on_wish(&mut self, now: Timestamp, more: bool) {
        self.wanted = self.wanted.map(|wanted| {
            if more {
                wanted.saturating_add(1)
            } else {
                wanted.saturating_sub(1).max(1)
            }
        });
        let merges = self.lowered.filter(|at| !more && now.since(*at) < MERGES);
        if self.raised.is_none() && merges.is_some() {
            self.raised = merges;
            self.forked = true;
        }
        self.unsettle(now);
    }

    pub(super) const fn on_raise(&mut self, now: Timestamp) {
        self.raised = Some(now);
        self.forked = false;
        self.on_change(now);
    }

    pub(super) const fn on_lower(&mut self, now: Timestamp) {
        self.raised = None;
        self.lowered = Some(now);
        self.on_change(now);
    }

    pub(super) const fn on_recycled(&mut self, now: Timestamp) {
        self.last_recycle = now;
    }

    /// Only from what is wanted, no more and no less: else the next fork cannot be told from one
    /// that the server owed, and the spare would be taken for wanted.
    pub(super) fn can_raise(&self, now: Timestamp, count: Count) -> bool {
        let whole = self.wanted == Some(count.live());
        self.raised.is_none() && whole && now >= self.no_raise_before
    }

    /// The server was asked for one more, and no fork followed: true once.
    pub(super) fn raise_failed(&mut self, now: Timestamp) -> bool {
        let Some(since) = self.raised else {
            return false;
        };
        let failed = !self.forked && self.is_calm() && now.since(since) >= RAISE_TIMEOUT;
        if failed {
            self.raised = None;
            self.no_raise_before = now.later(RAISE_PAUSE);
        }
        failed
    }

    /// Takes what is there for what is wanted once nothing has moved for a while. True when that
    /// changed something. `patience` is how long a worker may boot before it is counted as it is.
    pub(super) fn observe(&mut self, now: Timestamp, count: Count, patience: Duration) -> bool {
        self.forked |= self.wanted.is_some_and(|wanted| count.live() > wanted);
        // A spare that was asked for is on its way, or it is given up by `raise_failed`.
        if self.raised.is_some() && !self.forked && self.is_calm() {
            return false;
        }
        let waits = self.waits(count, patience);
        if self.observed || waits.is_none_or(|wait| now.since(self.changed) < wait) {
            return false;
        }
        self.observed = true;
        let live = count.live();
        let before = (self.wanted, self.raised, self.unsettled);
        let wanted = self.wanted.unwrap_or(live);
        if self.raised.is_some() && live > wanted {
            // One of them is ours; the operator may have raised more.
            self.wanted = Some(live.saturating_sub(1));
        } else {
            // If one was ours, it is gone: the server was reloaded behind our back.
            self.raised = None;
            self.wanted = Some(live);
        }
        self.unsettled = false;
        before != (self.wanted, self.raised, self.unsettled)
    }

    /// When to look again whether all has settled.
    pub(super) fn deadline(&self, count: Count, patience: Duration) -> Option<Timestamp> {
        let raising = self.raised.filter(|_| !self.forked && self.is_calm());
        let raising = raising.map(|since| since.later(RAISE_TIMEOUT));
        let open = !self.observed && raising.is_none();
        let waits = self.waits(count, patience).filter(|_| open);
        let settling = waits.map(|wait| self.changed.later(wait));
        raising.into_iter().chain(settling).min()
    }

    /// How long nothing may move before what is there counts. A worker that drains is there and
    /// soon is not: while there is one, nothing can be said.
    const fn waits(&self, count: Count, patience: Duration) -> Option<Duration> {
        match (count.live(), count.draining, count.starting) {
            (0, ..) | (_, 1.., _) => None,
            (_, 0, 0) => Some(self.settles_in()),
            (_, 0, 1..) => Some(patience),
        }
    }

    const fn settles_in(&self) -> Duration {
        if self.wanted.is_none() {
            SETTLED_FIRST
        } else {
            SETTLED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    fn ready(ready: u32) -> Count {
        Count {
            ready,
            ..Count::default()
        }
    }

    /// A server with four workers, seen and settled.
    fn four() -> Spare {
        let mut spare = Spare::new(at(0));
        spare.on_change(at(1));
        assert!(spare.observe(at(2), ready(4), PATIENCE));
        assert_eq!(spare.wanted(), Some(4));
        spare
    }

    #[test]
    fn nothing_is_settled_while_a_worker_boots() {
        let mut spare = Spare::new(at(0));
        spare.on_change(at(1));
        let booting = Count {
            starting: 1,
            ready: 3,
            draining: 0,
        };
        assert!(!spare.observe(at(10), booting, PATIENCE));
        assert!(spare.observe(at(61), booting, PATIENCE));
    }

    #[test]
    fn the_spare_is_not_taken_for_what_is_wanted() {
        let mut spare = four();
        spare.on_raise(at(10));
        spare.on_change(at(11));
        assert!(!spare.observe(at(13), ready(5), PATIENCE));
        assert_eq!((spare.wanted(), spare.raised()), (Some(4), Some(at(10))));
    }

    #[test]
    fn a_reload_behind_our_back_takes_the_spare_along() {
        let mut spare = four();
        spare.on_raise(at(10));
        assert!(!spare.observe(at(11), ready(5), PATIENCE));
        spare.on_change(at(20));
        assert!(spare.observe(at(22), ready(4), PATIENCE));
        assert_eq!((spare.wanted(), spare.raised()), (Some(4), None));
    }

    #[test]
    fn an_operator_who_raises_or_lowers_behind_our_back_is_followed() {
        let mut spare = four();
        spare.on_change(at(10));
        assert!(spare.observe(at(12), ready(6), PATIENCE));
        assert_eq!(spare.wanted(), Some(6));
        spare.on_change(at(20));
        assert!(spare.observe(at(22), ready(3), PATIENCE));
        assert_eq!(spare.wanted(), Some(3));
    }

    /// Four and a spare; it is given back just as an operator asks for one fewer.
    fn lowered_twice(apart: Duration) -> Spare {
        let mut spare = four();
        spare.on_raise(at(10));
        assert!(!spare.observe(at(11), ready(5), PATIENCE));
        spare.on_lower(at(20));
        spare.on_wish(at(20).later(apart), false);
        spare.on_change(at(21));
        spare
    }

    #[test]
    fn two_for_one_fewer_that_merge_leave_the_spare_to_be_given_back() {
        let mut spare = lowered_twice(Duration::from_millis(2));
        assert!(spare.observe(at(23), ready(4), PATIENCE));
        assert!(spare.raised().is_some() && spare.is_calm());
        assert_eq!(spare.wanted(), Some(3));
    }

    #[test]
    fn two_for_one_fewer_that_both_arrive_leave_no_spare() {
        let mut spare = lowered_twice(Duration::from_millis(2));
        assert!(spare.observe(at(23), ready(3), PATIENCE));
        assert_eq!((spare.wanted(), spare.raised()), (Some(3), None));
        let mut apart = lowered_twice(MERGES);
        assert!(apart.observe(at(23), ready(4), PATIENCE));
        assert_eq!((apart.wanted(), apart.raised()), (Some(4), None));
    }

    #[test]
    fn a_fork_that_fails_is_not_waited_for_for_ever() {
        let mut spare = four();
        spare.on_raise(at(10));
        assert!(!spare.observe(at(15), ready(4), PATIENCE));
        assert!(!spare.raise_failed(at(19)));
        assert!(spare.raise_failed(at(20)));
        assert!(!spare.can_raise(at(49), ready(4)) && spare.can_raise(at(50), ready(4)));
    }
}
