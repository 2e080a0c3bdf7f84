//! The worker pool of rq 2 and 3. A worker that gets TERM finishes its job and exits, and the pool
//! starts another one within a second (`worker_pool.py`). Without the agent, a worker may lose the
//! job that it has just taken.

use super::profile::Profile;

/// The profile of rq.
pub static PROFILE: Profile = Profile {
    name: "rq",
    // `rq worker` is one worker, whose child runs the current job.
    words: &["worker-pool"],
    ..Profile::OF_TASKS
};
