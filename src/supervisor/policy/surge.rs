//! How many workers a server wants, as seen from outside, and the surge worker.
//!
//! Before a worker is replaced, the server is asked for one worker more (gunicorn: TTIN). Later it
//! is asked for one worker fewer (TTOU). TTOU retires the oldest worker (uvicorn: the newest). So
//! the surge lasts until that worker has to be replaced itself: then TTOU ends the surge, and no
//! healthy worker is retired for it. If no worker had to be replaced for a while, that worker is
//! retired just to end the surge. Until then there is one worker more than the operator wants.
//!
//! It does not work to stop the master with SIGSTOP while the worker exits, so that the master sees
//! the exit and TTOU together: SIGCONT discards a pending TTOU, which is a stop signal (signal(7)).
//!
//! An operator can change the number of workers without the supervisor. So the wanted number is the
//! number observed when the workers have not changed for a while. The supervisor never asks the
//! server for fewer workers than that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// If the workers have not changed for this long, their number is the wanted number. gunicorn's
/// master checks its number of workers at least once a second, and takes up to 0.1 s for each fork.
const SETTLED: Duration = Duration::from_secs(2);
/// The same after the first start, before which nothing can have been recycled.
const SETTLED_FIRST: Duration = Duration::from_secs(1);
/// The server cannot fork a surge worker if it has not done so within this time.
const RAISE_TIMEOUT: Duration = Duration::from_secs(10);
/// Two equal signals within this time may reach the server as one, because it sleeps for up to
/// 0.1 s after each fork.
const MERGES: Duration = Duration::from_millis(200);
/// The pause after a failed request for a surge worker.
const RAISE_PAUSE: Duration = Duration::from_secs(30);

/// How long to wait before the number of workers counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// While a worker boots.
    pub(crate) boot: Duration,
    /// While there are fewer workers than before. `None`: as otherwise.
    pub(crate) fewer: Option<Duration>,
    /// A surge worker that has ended is started again, so the surge lasts.
    pub(crate) keeps_surge: bool,
}

/// The wanted number of workers, and the state of the surge worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Surge {
    wanted: Option<u32>,
    /// When the server was asked for the surge worker. `None`: there is no surge.
    raised: Option<Timestamp>,
    /// The server has forked the surge worker.
    forked: bool,
    /// When the server was last asked for one worker fewer.
    lowered: Option<Timestamp>,
    /// The last change in the set of workers or in a worker's state.
    changed: Timestamp,
    /// The number of workers since the last change has been taken as the wanted number.
    observed: bool,
    /// The server was told something else that changes its workers.
    unsettled: bool,
    masters: u32,
    /// The largest number of workers alive at once since the server was started.
    most: u32,
    no_raise_before: Timestamp,
    last_recycle: Timestamp,
    /// The number of copies of a fleet was chosen since the server was started.
    #[serde(default)]
    chosen: bool,
}

/// The number of workers in each state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Count {
    pub(crate) starting: u32,
    pub(crate) ready: u32,
    pub(crate) draining: u32,
}

impl Count {
    pub(crate) const fn live(self) -> u32 {
        self.starting
            .saturating_add(self.ready)
            .saturating_add(self.draining)
    }
}

impl Surge {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self {
            wanted: None,
            raised: None,
            forked: false,
            lowered: None,
            changed: now,
            observed: true,
            unsettled: false,
            masters: 1,
            most: 0,
            no_raise_before: now,
            last_recycle: now,
            chosen: false,
        }
    }

    /// Another master runs. Its number of workers is not known yet.
    pub(crate) fn forget(&mut self, now: Timestamp) {
        let wanted = self.wanted;
        *self = Self::new(now);
        self.wanted = wanted;
        self.unsettled = true;
        self.observed = false;
    }

    pub(crate) const fn wanted(&self) -> Option<u32> {
        self.wanted
    }

    pub(crate) const fn raised(&self) -> Option<Timestamp> {
        self.raised
    }

    pub(crate) const fn last_recycle(&self) -> Timestamp {
        self.last_recycle
    }

    /// There is one master, and its number of workers is known and settled. Workers are recycled
    /// only then.
    pub(crate) const fn is_calm(&self) -> bool {
        self.masters == 1 && !self.unsettled && self.wanted.is_some()
    }

    /// The number of workers has not settled yet since the first start.
    pub(crate) const fn is_first_number_open(&self) -> bool {
        self.masters == 1 && self.wanted.is_none()
    }

    /// A lower bound of the number of workers that the server wants.
    pub(crate) const fn most_seen(&self) -> u32 {
        self.most
    }

    pub(crate) const fn choose(&mut self) {
        self.chosen = true;
    }

    pub(crate) const fn has_chosen(&self) -> bool {
        self.chosen
    }

    pub(crate) const fn on_change(&mut self, now: Timestamp) {
        self.changed = now;
        self.observed = false;
    }

    pub(crate) const fn on_masters(&mut self, now: Timestamp, count: u32) {
        if self.masters != count {
            self.masters = count;
            self.unsettle(now);
        }
    }

    /// The server was told something that changes its workers.
    pub(crate) const fn unsettle(&mut self, now: Timestamp) {
        self.unsettled = true;
        self.on_change(now);
    }

    /// A reload sets the number of workers back to the configured one.
    pub(crate) const fn on_reload(&mut self, now: Timestamp) {
        self.raised = None;
        self.lowered = None;
        self.unsettle(now);
    }

    /// The operator asked the server for one worker more or one less. The result is observed. The
    /// surge worker does not count as the operator's meanwhile.
    ///
    /// RACE: the supervisor sends TTOU to end the surge, and the operator sends TTOU at the same
    /// time. A signal cannot be pending twice (signal(7)), so the server may receive only one of
    /// them. So the surge worker is assumed to be still there; if it is not, that is observed. Two
    /// TTIN need no such care: if one worker comes of them, it is observed as the operator's.
    pub(crate) fn on_request(&mut self, now: Timestamp, more: bool) {
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

    pub(crate) const fn on_raise(&mut self, now: Timestamp) {
        self.raised = Some(now);
        self.forked = false;
        self.on_change(now);
    }

    pub(crate) const fn on_lower(&mut self, now: Timestamp) {
        self.raised = None;
        self.lowered = Some(now);
        self.on_change(now);
    }

    pub(crate) const fn on_recycled(&mut self, now: Timestamp) {
        self.last_recycle = now;
    }

    /// A surge is started only while exactly the wanted number of workers is alive. Otherwise the
    /// next fork could be one that the server owed anyway, and the surge worker would be counted as
    /// wanted.
    pub(crate) fn can_raise(&self, now: Timestamp, count: Count) -> bool {
        let whole = self.wanted == Some(count.live());
        self.raised.is_none() && whole && now >= self.no_raise_before
    }

    /// The server was asked for a surge worker, and has not forked it in time.
    pub(crate) fn has_failed(&self, now: Timestamp) -> bool {
        let late = |since| now.since(since) >= RAISE_TIMEOUT;
        !self.forked && self.is_calm() && self.raised.is_some_and(late)
    }

    /// The surge worker is given up.
    pub(crate) fn on_failed(&mut self, now: Timestamp) {
        self.raised = None;
        self.no_raise_before = now.later(RAISE_PAUSE);
    }

    /// Takes the number of workers as the wanted number, once the workers have not changed for a
    /// while. Returns true if that changed something.
    pub(crate) fn observe(&mut self, now: Timestamp, count: Count, patience: Patience) -> bool {
        self.most = self.most.max(count.live());
        self.forked |= self.wanted.is_some_and(|wanted| count.live() > wanted);
        // A surge worker that was asked for will be forked, or is given up by `on_failed`.
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
            // One of them is the surge worker. The operator may have added others.
            self.wanted = Some(live.saturating_sub(1));
        } else if self.raised.is_some() && patience.keeps_surge && live == wanted {
            // The surge worker could not start, and is started again after a pause.
        } else {
            // If there was a surge, it has ended: an operator reloaded the server directly.
            self.raised = None;
            self.wanted = Some(live);
        }
        self.unsettled = false;
        before != (self.wanted, self.raised, self.unsettled)
    }

    /// When to observe the number of workers again.
    pub(crate) fn deadline(&self, count: Count, patience: Patience) -> Option<Timestamp> {
        let raising = self.raised.filter(|_| !self.forked && self.is_calm());
        let raising = raising.map(|since| since.later(RAISE_TIMEOUT));
        let open = !self.observed && raising.is_none();
        let waits = self.waits(count, patience).filter(|_| open);
        let settling = waits.map(|wait| self.changed.later(wait));
        raising.into_iter().chain(settling).min()
    }

    /// How long the workers must not change before their number counts. `None`: it cannot count,
    /// because a worker drains and will be gone soon, or because there is none.
    fn waits(&self, count: Count, patience: Patience) -> Option<Duration> {
        let settles = || {
            let is_fewer = self.wanted.is_some_and(|wanted| count.live() < wanted);
            let fewer = patience.fewer.filter(|_| is_fewer);
            fewer.unwrap_or_else(|| self.settles_in())
        };
        match (count.live(), count.draining, count.starting) {
            (0, ..) | (_, 1.., _) => None,
            (_, 0, 0) => Some(settles()),
            (_, 0, 1..) => Some(patience.boot),
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

    const PATIENCE: Patience = Patience {
        boot: Duration::from_secs(60),
        fewer: None,
        keeps_surge: false,
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    fn ready(ready: u32) -> Count {
        Count {
            ready,
            ..Count::default()
        }
    }

    /// A server with four workers whose number has settled.
    fn four() -> Surge {
        let mut surge = Surge::new(at(0));
        surge.on_change(at(1));
        assert!(surge.observe(at(2), ready(4), PATIENCE));
        assert_eq!(surge.wanted(), Some(4));
        surge
    }

    #[test]
    fn a_server_that_takes_long_to_replace_a_worker_still_wants_as_many() {
        let patience = Patience {
            fewer: Some(Duration::from_secs(60)),
            ..PATIENCE
        };
        let mut surge = four();
        surge.on_change(at(10));
        assert!(!surge.observe(at(20), ready(3), patience));
        assert_eq!(surge.wanted(), Some(4));
        assert_eq!(surge.deadline(ready(3), patience), Some(at(70)));
        assert!(surge.observe(at(70), ready(3), patience));
        assert_eq!(surge.wanted(), Some(3));
        surge.on_change(at(80));
        assert!(surge.observe(at(82), ready(5), patience));
    }

    #[test]
    fn the_number_does_not_settle_while_a_worker_boots_until_patience_ends() {
        let mut surge = Surge::new(at(0));
        surge.on_change(at(1));
        let booting = Count {
            starting: 1,
            ready: 3,
            draining: 0,
        };
        assert!(!surge.observe(at(10), booting, PATIENCE));
        assert!(surge.observe(at(61), booting, PATIENCE));
    }

    #[test]
    fn the_surge_worker_does_not_count_as_wanted() {
        let mut surge = four();
        surge.on_raise(at(10));
        surge.on_change(at(11));
        assert!(!surge.observe(at(13), ready(5), PATIENCE));
        assert_eq!((surge.wanted(), surge.raised()), (Some(4), Some(at(10))));
    }

    #[test]
    fn a_reload_by_an_operator_ends_the_surge() {
        let mut surge = four();
        surge.on_raise(at(10));
        assert!(!surge.observe(at(11), ready(5), PATIENCE));
        surge.on_change(at(20));
        assert!(surge.observe(at(22), ready(4), PATIENCE));
        assert_eq!((surge.wanted(), surge.raised()), (Some(4), None));
    }

    #[test]
    fn a_number_of_workers_changed_by_an_operator_becomes_the_wanted_number() {
        let mut surge = four();
        surge.on_change(at(10));
        assert!(surge.observe(at(12), ready(6), PATIENCE));
        assert_eq!(surge.wanted(), Some(6));
        surge.on_change(at(20));
        assert!(surge.observe(at(22), ready(3), PATIENCE));
        assert_eq!(surge.wanted(), Some(3));
    }

    /// Four workers and a surge worker. The supervisor ends the surge, and an operator asks for one
    /// worker less, `apart` later.
    fn lowered_twice(apart: Duration) -> Surge {
        let mut surge = four();
        surge.on_raise(at(10));
        assert!(!surge.observe(at(11), ready(5), PATIENCE));
        surge.on_lower(at(20));
        surge.on_request(at(20).later(apart), false);
        surge.on_change(at(21));
        surge
    }

    #[test]
    fn after_two_ttou_that_merge_the_surge_is_still_there() {
        let mut surge = lowered_twice(Duration::from_millis(2));
        assert!(surge.observe(at(23), ready(4), PATIENCE));
        assert!(surge.raised().is_some() && surge.is_calm());
        assert_eq!(surge.wanted(), Some(3));
    }

    #[test]
    fn after_two_ttou_that_both_arrive_there_is_no_surge() {
        let mut surge = lowered_twice(Duration::from_millis(2));
        assert!(surge.observe(at(23), ready(3), PATIENCE));
        assert_eq!((surge.wanted(), surge.raised()), (Some(3), None));
        let mut apart = lowered_twice(MERGES);
        assert!(apart.observe(at(23), ready(4), PATIENCE));
        assert_eq!((apart.wanted(), apart.raised()), (Some(4), None));
    }

    #[test]
    fn a_surge_lasts_if_its_worker_ends_and_is_started_again_later() {
        for (keeps_surge, wanted) in [(true, 4), (false, 5)] {
            let patience = Patience {
                keeps_surge,
                ..PATIENCE
            };
            let mut surge = four();
            surge.on_raise(at(10));
            assert!(!surge.observe(at(11), ready(5), patience));
            surge.on_change(at(12));
            surge.observe(at(14), ready(4), patience);
            assert_eq!(surge.raised().is_some(), keeps_surge);
            surge.on_change(at(20));
            surge.observe(at(22), ready(5), patience);
            assert_eq!(surge.wanted(), Some(wanted));
        }
    }

    #[test]
    fn a_surge_worker_that_is_not_forked_in_time_is_given_up() {
        let mut surge = four();
        surge.on_raise(at(10));
        assert!(!surge.observe(at(15), ready(4), PATIENCE));
        assert!(!surge.has_failed(at(19)));
        assert!(surge.has_failed(at(20)));
        surge.on_failed(at(20));
        assert!(!surge.can_raise(at(49), ready(4)) && surge.can_raise(at(50), ready(4)));
    }
}
