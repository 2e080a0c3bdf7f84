//! The state of a worker's next task when the worker ends.

use supervise::supervisor::pool::input::Seq;

#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    Begun,
    /// The worker has received the task, wholly or in part.
    Received,
    /// The worker has received nothing of it, or has not recorded it.
    Unreported,
}

pub(super) const MOMENTS: [Moment; 3] = [Moment::Begun, Moment::Received, Moment::Unreported];

impl Moment {
    /// The task that the worker has begun, and the one that it has received.
    pub(super) const fn of(self, next: Option<Seq>) -> (Option<Seq>, Option<Seq>) {
        match self {
            Self::Begun => (next, None),
            Self::Received => (None, next),
            Self::Unreported => (None, None),
        }
    }
}
