//! The processes of one worker, with their sizes.

use super::Workers;
use crate::{
    host::{context::Context, held::HeldId},
    supervisor::{event::ProcessSize, input::Input},
    units::{Timestamp, WorkerId},
};

/// Maximum processes in a list.
const LISTED_MAX: usize = 5;

impl Workers {
    /// Reports the largest processes of a worker.
    pub(in crate::host) fn list_processes(
        &mut self,
        context: &mut Context,
        now: Timestamp,
        worker: WorkerId,
    ) {
        let Some(tracked) = self.held.get_mut(&HeldId::from(worker)) else {
            return;
        };
        let proc = context.proc();
        let pids = tracked.pids(proc, now).iter();
        let mut sizes: Vec<_> = pids
            .filter_map(|&pid| {
                let seen = proc.statm(pid).and_then(|statm| statm.read()).ok()?;
                Some((seen.resident.minus(seen.shared), pid))
            })
            .collect();
        sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
        sizes.truncate(LISTED_MAX);
        let named = |(memory, pid)| ProcessSize {
            pid,
            command: proc.command(pid),
            memory,
        };
        let largest = sizes.into_iter().map(named).collect();
        context.tell(Input::ProcessesListed(worker, largest));
    }
}
