//! How far a worker of a pool has come with a task when it ends.

use supervise::supervisor::pool::event::Seq;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    Begun,
    /// It has read a part of it.
    Receiving,
    /// It has read nothing of it, or could not say that it has.
    Silent,
}

pub(crate) const MOMENTS: [Moment; 3] = [Moment::Begun, Moment::Receiving, Moment::Silent];

impl Moment {
    /// The task that it has begun last and the one that it receives, if it is at `next`.
    pub(crate) const fn of(self, next: Option<Seq>) -> (Option<Seq>, Option<Seq>) {
        match self {
            Self::Begun => (next, None),
            Self::Receiving => (None, next),
            Self::Silent => (None, None),
        }
    }
}
