//! One pretend process: how its memory grows, and where it is charged.

use std::time::Duration;

use supervise::{
    supervisor::event::{Exact, Sample},
    units::{Bytes, Timestamp, WorkerId},
};

use crate::characters::Plan;

/// Where it is in its life. When it is over it is no longer there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    Booting,
    Serving,
    Leaving,
}

/// Who asked it to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asker {
    Nobody,
    Decider,
    /// Its server, which shrinks, reloads, stops or is gone.
    Server,
}

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// What it is called since it was adopted.
    pub(crate) worker: Option<WorkerId>,
    pub(crate) boots_until: Timestamp,
    pub(crate) phase: Phase,
    pub(crate) asked: Asker,
    pub(crate) plan: Plan,
    /// It has its own group, charged with what it touched since it was moved there.
    pub(crate) grouped: bool,
    pub(crate) elsewhere: f64,
    pub(crate) cap: Option<f64>,
    /// The charge at which its wire trips.
    pub(crate) wire: Option<f64>,
    /// Its boot has failed, and it waits before it exits.
    pub(crate) failed: bool,
    pub(crate) helper: f64,
    pub(crate) peak: f64,
    held: f64,
    since: Timestamp,
    rate: f64,
}

/// From a float that is a size.
pub(crate) fn bytes(size: f64) -> Bytes {
    Bytes(1).scaled(size.max(0.0))
}

impl Process {
    pub(crate) fn new(pid: i32, now: Timestamp, plan: Plan) -> Self {
        let first = Bytes::mib(3).as_f64();
        Self {
            pid,
            worker: None,
            boots_until: now.later(plan.boot),
            phase: Phase::Booting,
            asked: Asker::Nobody,
            grouped: false,
            elsewhere: 0.0,
            cap: None,
            wire: None,
            failed: false,
            helper: 0.0,
            peak: 0.0,
            held: first,
            since: now,
            rate: (plan.base.as_f64() - first) / plan.boot.as_secs_f64(),
            plan,
        }
    }

    /// Its own private memory, its helper's left out.
    pub(crate) fn held(&self, now: Timestamp) -> f64 {
        self.held + self.rate * now.since(self.since).as_secs_f64()
    }

    /// Private memory of all its processes.
    pub(crate) fn private(&self, now: Timestamp) -> f64 {
        self.held(now) + self.helper
    }

    pub(crate) const fn rate(&self) -> f64 {
        self.rate
    }

    pub(crate) fn grow(&mut self, now: Timestamp, rate: f64) {
        self.held = self.held(now);
        self.peak = self.peak.max(self.held + self.helper);
        self.since = now;
        self.rate = rate;
    }

    pub(crate) fn give_back(&mut self, now: Timestamp, much: f64) {
        self.grow(now, self.rate);
        self.held = (self.held - much).max(1.0);
    }

    /// Copies all that it shares, because all its objects are looked at.
    pub(crate) fn copy_shared(&mut self, now: Timestamp) {
        self.grow(now, self.rate);
        self.held += self.plan.cow.as_f64();
        self.plan.cow = Bytes::ZERO;
        self.peak = self.peak.max(self.held + self.helper);
    }

    /// Whether its interpreter, which copies what it shared while it exits, reaches the cap by
    /// that.
    pub(crate) fn ends_at_cap(&self, now: Timestamp) -> bool {
        let charge = self.charge(now) + self.plan.cow.as_f64();
        self.phase == Phase::Leaving && self.cap.is_some_and(|cap| self.grouped && charge > cap)
    }

    /// What its own group is charged with.
    pub(crate) fn charge(&self, now: Timestamp) -> f64 {
        (self.private(now) - self.elsewhere).max(0.0)
    }

    /// When its charge will be `limit` at its present rate; never before `now`.
    pub(crate) fn charged_at(&self, now: Timestamp, limit: f64) -> Option<Timestamp> {
        let room = limit - self.charge(now);
        if room <= 0.0 {
            return Some(now);
        }
        let left = Duration::try_from_secs_f64(room / self.rate).ok()?;
        // A microsecond later it is over it, whatever was rounded.
        (self.rate > 0.0).then(|| now.later(left + Duration::from_micros(1)))
    }

    pub(crate) fn sample(&self, now: Timestamp, closely: bool) -> Sample {
        let private = bytes(self.private(now));
        let took = Duration::from_millis(1) + Duration::from_secs_f64(private.as_f64() / 5e10);
        let charge = self.grouped.then(|| bytes(self.charge(now)));
        Sample {
            at: now,
            rss: private.plus(self.plan.shared).plus(self.plan.cow),
            anon: private.plus(self.plan.cow),
            cgroup: charge,
            held: charge,
            shmem: Bytes::ZERO,
            exact: closely.then(|| Exact {
                private,
                anon: private,
                pss: private.plus(self.plan.cow.scaled(0.4)),
                charged: charge,
                took,
                share: None,
            }),
            processes: if self.helper > 0.0 { 2 } else { 1 },
        }
    }
}
