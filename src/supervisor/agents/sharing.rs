//! Memory that a worker shares with its parent process (gunicorn's `--preload`): when it forbids
//! requests to the agent, and when it explains a kill at the cap.
//!
//! Pages of a fork are shared until one side writes to them. Python writes to the page of an object
//! whenever it takes a reference to the object, and a collection writes to the pages of all
//! objects. So a request to a worker's agent copies the shared pages: 600 MB within a second,
//! beyond the worker's cap. An interpreter that exits does the same while it frees its objects.

use crate::supervisor::{Supervisor, worker::Worker};
use crate::units::{Bytes, Timestamp};

/// A request to the agent may copy shared pages up to this part of the worker's room below its cap.
const PART_OF_ROOM: f64 = 0.5;

/// Why a worker that shares this much and has this much room is not asked. `None`: it may be asked.
fn why_not_asked(shared: Bytes, room: Bytes) -> Option<String> {
    (shared > room.scaled(PART_OF_ROOM)).then(|| {
        format!(
            "it shares {shared} with its parent process and has room for {room} more; inspecting \
             its objects would copy the shared pages"
        )
    })
}

impl Supervisor {
    /// Why a worker is not asked, if it shares so much memory that answering might kill it.
    pub(crate) fn shares_too_much(&self, worker: &Worker) -> Option<String> {
        let mut room = self.room_of(worker);
        if let Some(budget) = self.state.limits.budget.bytes {
            room = room.min(budget.minus(self.total()));
        }
        why_not_asked(worker.memory().shared(), room)
    }

    /// Whether a draining worker reached its cap only because its interpreter was exiting: its
    /// private memory was below the cap, and together with the shared pages it was above. No
    /// request was lost then, because servers end their workers after the last response.
    ///
    /// RACE: a draining worker that keeps growing may reach its cap while it still answers
    /// requests. Its growth and its shared memory distinguish the two cases. It has grown to its
    /// cap if its growth since the last sample was enough for that, or if it shared too little.
    pub(crate) fn reached_cap_by_exiting(&self, now: Timestamp, worker: &Worker) -> bool {
        let leaves = worker.is_leaving() || self.state.service.is_stopping();
        let cap = self.state.limits.cap.bytes;
        let both = worker.memory().private().plus(worker.memory().shared());
        let grown = worker.memory().private_by(now);
        leaves && cap.is_some_and(|cap| grown < cap && both >= cap)
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
