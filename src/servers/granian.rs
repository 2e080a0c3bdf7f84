//! granian 2 with several workers. It stops all of them when one exits, unless it was told to start
//! failed workers again. In its main process, the agent prevents that, and gives all workers one
//! listener: by itself each has its own (`SO_REUSEPORT`), and the connections in its queue are
//! reset when it exits.

use super::profile::{Profile, Replacement, Signals};
use crate::units::Signal;

/// The profile of granian.
pub static PROFILE: Profile = Profile {
    name: "granian",
    replace: Replacement::Signal {
        retire: Signal::TERM,
    },
    guard: Some(Signal::USR2),
    signals: Signals {
        reload: Some(Signal::HUP),
        ..Signals::NONE
    },
    ..Profile::OF_TASKS
};
