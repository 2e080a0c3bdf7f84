//! The consumer of huey 3.5 with `-k process`. A worker loses its task at TERM, and ignores INT.
//! With the agent it exits at INT when it has finished its task, as after `-M`; the consumer then
//! starts another one (`consumer.py`). Its scheduler is replaced in the same way.

use super::profile::{Profile, Replacement, Signals};
use crate::units::Signal;

/// The profile of huey.
pub static PROFILE: Profile = Profile {
    name: "huey",
    scripts: &["huey_consumer", "huey_consumer.py"],
    words: &["process", "-kprocess", "--worker-type=process"],
    replace: Replacement::Signal {
        retire: Signal::INT,
    },
    signals: Signals {
        // At TERM the consumer ends the tasks of its workers.
        stop: Some(Signal::INT),
        ..Signals::NONE
    },
    ..Profile::OF_TASKS
};
