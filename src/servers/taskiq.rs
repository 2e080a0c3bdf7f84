//! The worker of taskiq 0.13. Its process manager starts another process within a second of the
//! exit of one. A process that gets TERM finishes its tasks (`cli/worker/process_manager.py`).

use super::profile::{Found, Profile, Replacement, Serves, Signals, Workers};
use crate::units::Signal;

/// The profile of taskiq.
pub static PROFILE: Profile = Profile {
    name: "taskiq",
    scripts: &[],
    // `taskiq scheduler` has no workers.
    words: &["worker"],
    title: None,
    found: Found::ByBoth,
    workers: Workers::Children(Serves::Tasks),
    replace: Replacement::Signal {
        retire: Signal::TERM,
    },
    signals: Signals {
        reload: None,
        second_master: None,
        quit: None,
        stop: None,
    },
    boot_failures: &[],
    is_guarded: false,
};
