//! Memory that a worker shares with the process it was forked from (gunicorn's `--preload`): when
//! it forbids requests to the agent, and when it explains a kill at the cap.
//!
//! Pages of a fork are shared until one side writes to them. Python writes to an object's page
//! whenever a reference to it is taken, and a collection writes to every object's. So a request to
//! a worker's agent copies its shared pages: 600 MB within a second, beyond its cap. An interpreter
//! that exits does the same while it releases its objects.

use super::{Supervisor, worker::Worker};
use crate::units::Bytes;

/// A request to the agent may copy shared pages up to this part of the worker's room.
const PART_OF_ROOM: f64 = 0.5;

/// Why a worker that shares this much and has this much room is not asked; `None`: it may be.
fn why_not_asked(shared: Bytes, room: Bytes) -> Option<String> {
    (shared > room.scaled(PART_OF_ROOM)).then(|| {
        format!(
            "it shares {shared} with the process it was forked from, and has room for {room} more: \
             looking at its objects would copy the shared ones"
        )
    })
}

impl Supervisor {
    /// Why a worker is not asked, if it shares so much memory that answering might kill it.
    pub(super) fn shares_too_much(&self, worker: &Worker) -> Option<String> {
        let mut room = self.room_of(worker);
        if let Some(budget) = self.limits.budget.bytes {
            room = room.min(budget.minus(self.total()));
        }
        why_not_asked(worker.memory.shared(), room)
    }

    /// Whether a worker that reached its cap while it was leaving did so only because its
    /// interpreter exited: its private memory was below the cap, and with the pages it shared it
    /// was above. It had no request left, because servers end their workers after the last answer.
    ///
    /// RACE: a worker that drains and goes on growing may reach its cap while it still answers. The
    /// memory it shared tells the two apart: without much of it, growth has reached the cap.
    pub(super) fn reached_cap_by_exiting(&self, worker: &Worker) -> bool {
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
        assert_eq!(why_not_asked(Bytes::mib(15), Bytes::mib(80)), None);
        assert_eq!(why_not_asked(Bytes::mib(40), Bytes::mib(80)), None);
        assert!(why_not_asked(Bytes::mib(41), Bytes::mib(80)).is_some());
        assert!(why_not_asked(Bytes::mib(1), Bytes::ZERO).is_some());
        assert_eq!(why_not_asked(Bytes::ZERO, Bytes::ZERO), None);
    }
}
