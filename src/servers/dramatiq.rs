//! dramatiq 2. It stops all its workers when one exits (`cli.py`).

use super::profile::{Found, Profile, Replacement, Serves, Signals, Workers};
use crate::units::Signal;

/// The profile of dramatiq.
pub static PROFILE: Profile = Profile {
    name: "dramatiq",
    scripts: &[],
    words: &[],
    title: None,
    found: Found::ByBoth,
    workers: Workers::Children(Serves::Tasks),
    replace: Replacement::Never {
        hint: "a fleet of it can be recycled: `supervise -n 4 -- dramatiq -p 1 ...`",
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
