//! Which workers are replaced, why, and when. The same rules hold for all kinds of workers.

pub(crate) mod candidates;
pub(crate) mod end_loop;
pub(crate) mod in_vain;
pub(crate) mod limits;
pub(crate) mod plan;
pub(crate) mod restart;
mod rollout;
mod shared_ceiling;
pub(crate) mod surge;
pub(crate) mod suspension;
