//! What a worker shares with the process it was forked from (gunicorn's `--preload`), and what
//! comes of it.
//!
//! Pages of a fork are shared until one side writes to them. Python writes to an object's page
//! whenever a reference to it is taken, and a collection writes to every object's. So a question
//! to a worker makes its shared pages its own: 600 MB within a second, beyond its cap. An
//! interpreter that ends does the same as it lets go of its objects.

use super::{Supervisor, worker::Worker};
use crate::units::Bytes;

/// A question may make up to this part of the room its worker has its own.
const PART_OF_ROOM: f64 = 0.5;

/// Why a worker is left alone that shares this much and has this much room, if it is.
fn left_alone(shared: Bytes, room: Bytes) -> Option<String> {
    (shared > room.scaled(PART_OF_ROOM)).then(|| {
        format!(
            "it shares {shared} with the process it was forked from, and has room for {room} more: \
             looking at its objects would copy the shared ones"
        )
    })
}

impl Supervisor {
    /// Why a worker is not asked anything, if it shares so much that answering might kill it.
    pub(super) fn shares_too_much(&self, worker: &Worker) -> Option<String> {
        let mut room = self.room_of(worker);
        if let Some(budget) = self.limits.budget.bytes {
            room = room.min(budget.minus(self.total()));
        }
        left_alone(worker.memory.shared(), room)
    }

    /// Whether a worker that met its cap on its way out did so by ending: with the pages it shared
    /// it was beyond its cap before it began to end. It had nothing to do any more, for servers
    /// end their workers after the last answer.
    ///
    /// RACE: a worker that drains may be ended at its cap while it still answers, if it goes on
    /// growing. It is told apart by what it shared: without that, the cap was met by growth.
    pub(super) fn ended_by_ending(&self, worker: &Worker) -> bool {
        let leaves = worker.is_leaving() || self.service.is_stopping();
        let cap = self.limits.cap.bytes;
        let private = worker.memory.private();
        let both = private.plus(worker.memory.shared());
        leaves && cap.is_some_and(|cap| private < cap && both >= cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_asked_while_its_shared_pages_fit_into_its_room() {
        assert_eq!(left_alone(Bytes::mib(15), Bytes::mib(80)), None);
        assert_eq!(left_alone(Bytes::mib(40), Bytes::mib(80)), None);
        assert!(left_alone(Bytes::mib(41), Bytes::mib(80)).is_some());
        assert!(left_alone(Bytes::mib(1), Bytes::ZERO).is_some());
        assert_eq!(left_alone(Bytes::ZERO, Bytes::ZERO), None);
    }
}
