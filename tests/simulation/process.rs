//! One simulated process: how its memory grows, and where it is charged.

use std::time::Duration;

use supervise::{
    supervisor::input::{Exact, Sample},
    units::{Bytes, Timestamp, WorkerId},
};

use crate::characters::Plan;

/// The phase of its life. A process that has ended is removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    Booting,
    Serving,
    Leaving,
}

/// Which process sent it a stop signal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asker {
    None,
    Decider,
    /// Its server, because it lowers its workers, reloads, stops or has ended.
    Server,
}

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Its worker id, once it is adopted.
    pub(crate) worker: Option<WorkerId>,
    pub(crate) boots_until: Timestamp,
    pub(crate) phase: Phase,
    pub(crate) asked: Asker,
    pub(crate) plan: Plan,
    /// It has its own group, which is charged for the pages it touched since it was moved there.
    pub(crate) grouped: bool,
    /// Memory from before the move, which its group is not charged for.
    pub(crate) elsewhere: f64,
    pub(crate) cap: Option<f64>,
    /// The charge at which the decider gets `ThresholdReached`.
    pub(crate) threshold: Option<f64>,
    /// Its boot has failed, and it waits before it exits.
    pub(crate) failed: bool,
    /// The memory of its child process.
    pub(crate) helper: f64,
    pub(crate) peak: f64,
    /// Its own private memory at `since`, and its growth in bytes a second from then on.
    held: f64,
    since: Timestamp,
    rate: f64,
}

/// Converts a size from a float.
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
            asked: Asker::None,
            grouped: false,
            elsewhere: 0.0,
            cap: None,
            threshold: None,
            failed: false,
            helper: 0.0,
            peak: 0.0,
            held: first,
            since: now,
            rate: (plan.base.as_f64() - first) / plan.boot.as_secs_f64(),
            plan,
        }
    }

    /// Its own private memory, without that of its child process.
    pub(crate) fn held(&self, now: Timestamp) -> f64 {
        self.held + self.rate * now.since(self.since).as_secs_f64()
    }

    /// The private memory of it and its child process.
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

    pub(crate) fn free(&mut self, now: Timestamp, size: f64) {
        self.grow(now, self.rate);
        self.held = (self.held - size).max(1.0);
    }

    /// Copies all its shared pages, because every object is visited.
    pub(crate) fn copy_shared(&mut self, now: Timestamp) {
        self.grow(now, self.rate);
        self.held += self.plan.cow.as_f64();
        self.plan.cow = Bytes::ZERO;
        self.peak = self.peak.max(self.held + self.helper);
    }

    /// Whether it reaches its cap because its interpreter copies shared pages while it exits.
    pub(crate) fn ends_at_cap(&self, now: Timestamp) -> bool {
        let charge = self.charge(now) + self.plan.cow.as_f64();
        self.phase == Phase::Leaving && self.cap.is_some_and(|cap| self.grouped && charge > cap)
    }

    /// Whether its growth alone has reached the cap.
    pub(crate) fn is_at_cap(&self, now: Timestamp) -> bool {
        let charge = self.charge(now);
        self.cap.is_some_and(|cap| self.grouped && charge >= cap)
    }

    /// Its growth in bytes a second, and since when it has been the same.
    pub(crate) const fn growth(&self) -> (Timestamp, f64) {
        (self.since, self.rate)
    }

    /// The memory that its own group is charged for.
    pub(crate) fn charge(&self, now: Timestamp) -> f64 {
        (self.private(now) - self.elsewhere).max(0.0)
    }

    /// When its charge reaches `limit` at its present rate, but not before `now`.
    pub(crate) fn charged_at(&self, now: Timestamp, limit: f64) -> Option<Timestamp> {
        let room = limit - self.charge(now);
        if room <= 0.0 {
            return Some(now);
        }
        let left = Duration::try_from_secs_f64(room / self.rate).ok()?;
        // A microsecond more, so that it is over the limit despite rounding.
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
