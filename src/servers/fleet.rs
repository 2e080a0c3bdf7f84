//! A fleet: copies of any program. Their parent is our own (`host/process/fleet.rs`).

use super::{
    gunicorn,
    profile::{Found, Profile, Signals, Workers},
};
use crate::units::Signal;

/// The name of the parent's process.
pub const TITLE: &str = "supervise-fleet";

/// Tells the parent that the supervisor stops a copy which is not to be replaced (SIGPWR).
pub const ONE_FEWER: Signal = Signal(30);

/// The profile of the parent.
pub static PROFILE: Profile = Profile {
    name: "fleet",
    scripts: &[],
    words: &[],
    title: Some(TITLE),
    found: Found::ByBoth,
    workers: Workers::Copies,
    // The parent handles the signals of gunicorn's master. A copy gets `stop.signal`, not TERM.
    replace: gunicorn::REPLACEMENT,
    signals: Signals {
        quit: Some(Signal::QUIT),
        ..Signals::NONE
    },
    // The parent never ends because a copy fails.
    boot_failures: &[],
    is_guarded: false,
    guard: None,
    helpers: None,
};
