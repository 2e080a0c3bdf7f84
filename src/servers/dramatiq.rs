//! dramatiq 2. It stops all its workers when one exits (`cli.py`).

use super::profile::{Profile, Replacement, Signals};
use crate::units::Signal;

/// The profile of dramatiq.
pub static PROFILE: Profile = Profile {
    name: "dramatiq",
    replace: Replacement::Never {
        hint: "a fleet of it can be recycled: `supervise -n 4 -- dramatiq -p 1 ...`",
    },
    signals: Signals {
        reload: Some(Signal::HUP),
        ..Signals::NONE
    },
    ..Profile::OF_TASKS
};
