//! The monotonic clock. It is read here only; everything else gets the time as an argument.

use std::time::Duration;

use crate::units::Timestamp;

/// Now, on `CLOCK_MONOTONIC` (clock_gettime(2)).
pub fn now() -> Timestamp {
    read(libc::CLOCK_MONOTONIC)
}

/// The CPU time of this thread, as a time since its start.
pub fn cpu_time() -> Timestamp {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[expect(unsafe_code, reason = "std hides the number behind Instant")]
fn read(clock: libc::clockid_t) -> Timestamp {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to our own variable; both clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp::default().later(Duration::new(seconds, nanos))
}

/// Seconds since 1970, for people and for other programs.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place where it is read"
)]
pub fn unix_seconds() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
