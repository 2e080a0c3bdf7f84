//! How far a worker of a pool has come with its next task when it ends.

use supervise::supervisor::pool::event::Seq;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    Begun,
    /// The worker has received the task, wholly or in part.
    Received,
    /// The worker has received nothing of it, or has not written so.
    Unreported,
}

pub(crate) const MOMENTS: [Moment; 3] = [Moment::Begun, Moment::Received, Moment::Unreported];

impl Moment {
    /// The task that the worker has begun, and the one that it has received.
    pub(crate) const fn of(self, next: Option<Seq>) -> (Option<Seq>, Option<Seq>) {
        match self {
            Self::Begun => (next, None),
            Self::Received => (None, next),
            Self::Unreported => (None, None),
        }
    }
}
