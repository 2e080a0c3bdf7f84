//! granian 2 with several workers. It stops all of them when one exits, unless it was told to start
//! failed workers again. Each worker has listeners of its own (`SO_REUSEPORT`), and the connections
//! in their queues are reset when it exits.

use super::profile::{Found, Profile, Replacement, Serves, Signals, Workers};
use crate::units::Signal;

/// The profile of granian.
pub static PROFILE: Profile = Profile {
    name: "granian",
    scripts: &[],
    words: &[],
    title: None,
    found: Found::ByBoth,
    workers: Workers::Children(Serves::Tasks),
    replace: Replacement::Never {
        hint: "its own `--workers-max-rss` replaces a worker at a number of mebibytes",
    },
    signals: Signals {
        reload: Some(Signal::HUP),
        second_master: None,
        quit: None,
        stop: None,
    },
    boot_failures: &[],
    is_guarded: false,
};
