//! The worker of taskiq 0.13. Its process manager starts another process within a second of the
//! exit of one. A process that gets TERM finishes its tasks (`cli/worker/process_manager.py`).

use super::profile::Profile;

/// The profile of taskiq.
pub static PROFILE: Profile = Profile {
    name: "taskiq",
    // `taskiq scheduler` has no workers.
    words: &["worker"],
    ..Profile::OF_TASKS
};
