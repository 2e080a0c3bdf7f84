//! hypercorn 0.18 with several workers. Its main process starts them with the `spawn` method of
//! multiprocessing, and stops all of them when one exits with another status than 0 (`run.py`).
//!
//! A worker does not handle TERM, and dies from it. With the agent it finishes its requests and
//! exits with 0, as after `max_requests`; its server then starts another one.

use super::profile::{Found, Profile, Replacement, Signals, Workers};
use crate::units::Signal;

/// The profile of hypercorn.
pub static PROFILE: Profile = Profile {
    name: "hypercorn",
    scripts: &[],
    words: &[],
    title: None,
    found: Found::ByBoth,
    workers: Workers::Spawned { word: "spawn_main" },
    replace: Replacement::Signal {
        retire: Signal::TERM,
    },
    // At HUP it stops all its workers, waits for them, and only then starts others. So a reload
    // replaces one after another.
    signals: Signals::NONE,
    boot_failures: &[1],
    is_guarded: true,
    guard: None,
    helpers: None,
};
