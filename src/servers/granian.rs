//! granian 2 with several workers. It stops all of them when one exits, unless it was told to start
//! failed workers again. Each worker has listeners of its own (`SO_REUSEPORT`), and the connections
//! in their queues are reset when it exits.

use super::profile::{Profile, Replacement, Signals};
use crate::units::Signal;

/// The profile of granian.
pub static PROFILE: Profile = Profile {
    name: "granian",
    replace: Replacement::Never {
        hint: "its own `--workers-max-rss` replaces a worker at a number of mebibytes",
    },
    signals: Signals {
        reload: Some(Signal::HUP),
        ..Signals::NONE
    },
    ..Profile::OF_TASKS
};
