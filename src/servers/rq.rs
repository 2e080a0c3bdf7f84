//! The worker pool of rq 2 and 3. A worker that gets TERM finishes its job and exits, and the pool
//! starts another one within a second (`worker_pool.py`). Without the agent, a worker may lose the
//! job that it has just taken.

use super::profile::{Found, Profile, Replacement, Serves, Signals, Workers};
use crate::units::Signal;

/// The profile of rq.
pub static PROFILE: Profile = Profile {
    name: "rq",
    scripts: &[],
    // `rq worker` is one worker, whose child runs the current job.
    words: &["worker-pool"],
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
