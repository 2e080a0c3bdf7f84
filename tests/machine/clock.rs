//! The only clock of these tests, and the only place that sleeps.

#![expect(
    clippy::disallowed_methods,
    reason = "a test beside real processes has to look at the clock and wait; it does so here"
)]

use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(10);

/// The time.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns at `moment`, or at once when that is over.
pub(crate) fn until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(now()));
}

/// Looks again and again until `look` has an answer; `None` when `limit` is over.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now() + limit;
    loop {
        // The look after the end counts: what came true in time is not missed by a slow machine.
        let late = now() >= end;
        if let Some(found) = look() {
            return Some(found);
        }
        if late {
            return None;
        }
        thread::sleep(LOOK);
    }
}
