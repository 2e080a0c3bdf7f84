//! How a worker has reached its cap: by its growth, or by its exit.

use std::time::Duration;

use supervise::units::{Timestamp, WorkerId};

use crate::{record::Record, world::World};

/// Growth within this time is recent.
const RECENT: Duration = Duration::from_millis(250);
/// A sample may be older than its timestamp by this, in a worker that the kernel is about to kill.
const NOTICED_LATE: Duration = Duration::from_millis(100);

/// How a worker has reached its cap, as far as its samples can tell.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReachedBy {
    /// It grew.
    Growth,
    /// Its interpreter copied what it shared while it exited. The cause is then the one for which
    /// it was leaving.
    Copying,
    Either,
}

pub(super) fn reached_cap_by(
    worker: WorkerId,
    now: Timestamp,
    (record, world): (&Record, &World),
) -> ReachedBy {
    let (Some(seen), Some(fate), Some(cap)) = (
        record.workers.get(&worker),
        world.fates.get(&worker),
        record.cap(),
    ) else {
        return ReachedBy::Growth;
    };
    let (shared, private) = seen.shared();
    if private >= cap || private.plus(shared) < cap {
        return ReachedBy::Growth;
    }
    // The samples of the last while show its last growth and no other.
    let (since, rate) = fate.growth;
    let mut samples = seen.values.iter().rev().map(|(at, _)| *at);
    let last = samples.next().unwrap_or_default();
    let mut before = samples.skip_while(|at| last.since(*at) < RECENT);
    let steady = before.next().is_some_and(|before| since <= before);
    let elapsed = now.since(last) + NOTICED_LATE;
    let grown = private.as_f64() + rate * elapsed.as_secs_f64();
    let part = grown / cap.as_f64();
    match (steady, fate.copied) {
        (true, true) if part < 0.95 => ReachedBy::Copying,
        (true, false) if part >= 1.0 => ReachedBy::Growth,
        _ => ReachedBy::Either,
    }
}
