//! The clock of these tests. Nothing else reads the time or sleeps.

#![expect(
    clippy::disallowed_methods,
    reason = "tests with real processes must read the clock and wait, and do it only here"
)]

use std::{
    thread,
    time::{Duration, Instant},
};

/// The time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(10);

pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sleeps until `moment`. Returns immediately if it has passed.
pub(crate) fn until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(now()));
}

/// Calls `look` until it returns a value. Returns `None` when `limit` is over.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now() + limit;
    loop {
        // Check once more after the end: on a slow machine the condition may have become true
        // in time.
        let late = now() >= end;
        if let Some(found) = look() {
            return Some(found);
        }
        if late {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}
