//! The memory of the slots of a pool, and the peak memory of a worker.
//!
//! The kernel keeps the peak of a process's resident memory, which includes mapped files. The part
//! of mapped files must be sampled: by the worker after its tasks, and by the supervisor in
//! between. The memory of child processes is part of the charge of the slot, which the supervisor
//! samples too. For child processes that have ended, the kernel keeps the largest peak.

use super::{PoolContext, PoolHost, child::Child};
use crate::{
    host::{memory::procfs::Proc, process::pidfd::PidFd, workers::Workers},
    units::{Bytes, Timestamp, WorkerId},
};

/// The highest figures of a worker in the supervisor's samples.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    /// The memory of its slot.
    slot: Bytes,
    /// Its own resident anonymous pages.
    anon: Bytes,
    /// Its own resident pages of files.
    files: Bytes,
}

/// If the supervisor's samples show this much more mapped files than the worker's own samples, the
/// worker has mapped files only during a task, and its peak included them.
const MAPPED: Bytes = Bytes::mib(4);

/// The figures that a worker writes into its page after a task.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Reported {
    /// Its highest resident memory, including files.
    pub(super) most: Bytes,
    /// Its most resident pages of files, after a task.
    pub(super) files: Bytes,
    /// The highest resident memory of a child process that has ended.
    pub(super) child: Bytes,
    /// Its memory before its first task.
    pub(super) base: Bytes,
}

impl Observed {
    /// The peak memory of a worker and its child processes, without mapped files. `charged` is the
    /// peak charge of its group. It bounds the sum, in which pages that a forked child shares with
    /// its parent count twice.
    fn peak(self, reported: Reported, charged: Option<Bytes>) -> Bytes {
        let own = if self.files > reported.files.plus(MAPPED) {
            self.anon.max(reported.base)
        } else {
            reported.most.minus(self.files.max(reported.files))
        };
        let both = own.plus(reported.child);
        let most = charged.map_or(both, |charged| both.min(reported.base.plus(charged)));
        own.max(most).max(self.slot)
    }
}

impl PoolHost {
    /// The memory of all processes in a slot: the anonymous pages in the charge of its cgroup, and
    /// its unnamed shared memory in the last exact sample.
    pub(super) fn slot_memory(
        &mut self,
        with: &mut PoolContext<'_>,
        now: Timestamp,
        slot: u32,
    ) -> Option<Bytes> {
        let server = self.fork_server_of(slot)?;
        let proc = with.context.proc();
        let memory = with.workers.memory_of_group(proc, now, server)?;
        // Without a charge, the pages that the fork server and the worker share would count twice.
        self.observe_child(proc, slot, memory.is_charge.then_some(memory.bytes));
        Some(memory.bytes)
    }

    /// Updates the figures of the worker that is running in a slot. It is the newest one that has
    /// begun a task.
    fn observe_child(&mut self, proc: &Proc, slot: u32, memory: Option<Bytes>) {
        let newest_first = self.children.values_mut().rev();
        let mut busy =
            newest_first.filter(|child| child.slot == slot && child.progress().begun != 0);
        if let Some(child) = busy.next() {
            // RACE: the worker may have ended. Then its fork server reports its peak.
            let pid = child.process.as_ref().map(PidFd::pid);
            let now = pid.and_then(|pid| proc.anon_and_files(pid).ok());
            let (anon, files) = now.unwrap_or_default();
            let observed = &mut child.observed;
            observed.slot = observed.slot.max(memory.unwrap_or_default());
            observed.anon = observed.anon.max(anon);
            observed.files = observed.files.max(files);
        }
    }

    /// The peak memory of a worker and its child processes up to its last task.
    pub(super) fn peak_so_far(&self, workers: &Workers, worker: WorkerId) -> Option<Bytes> {
        let child = self.children.get(&worker)?;
        let reported = child.reported();
        let charged = self
            .charged_at_most(workers, child)
            .filter(|_| reported.child > Bytes::ZERO);
        (reported.most > Bytes::ZERO).then(|| child.observed.peak(reported, charged))
    }

    /// The same for a worker that has ended. `most` is the highest resident memory of it or of one
    /// of its child processes.
    pub(super) fn peak_at_end(
        &self,
        workers: &Workers,
        worker: WorkerId,
        most: Option<Bytes>,
    ) -> Option<Bytes> {
        let Some(child) = self.children.get(&worker) else {
            return most;
        };
        let mut reported = child.reported();
        reported.most = reported.most.max(most.unwrap_or_default());
        let charged = self.charged_at_most(workers, child);
        let peak = child.observed.peak(reported, charged);
        (peak > Bytes::ZERO).then_some(peak)
    }

    fn charged_at_most(&self, workers: &Workers, child: &Child) -> Option<Bytes> {
        workers.peak(self.fork_server_of(child.slot)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(slot: u64, files: u64) -> Observed {
        Observed {
            slot: Bytes::mib(slot),
            anon: Bytes::mib(20),
            files: Bytes::mib(files),
        }
    }

    fn reported(most: u64, files: u64, child: u64) -> Reported {
        Reported {
            most: Bytes::mib(most),
            files: Bytes::mib(files),
            child: Bytes::mib(child),
            base: Bytes::mib(12),
        }
    }

    #[test]
    fn mapped_files_are_not_part_of_a_peak() {
        let peak = |ours, own| observed(0, ours).peak(reported(330, own, 0), None);
        assert_eq!(peak(310, 10), Bytes::mib(20));
        // The worker has mapped more files after the last sample of the supervisor.
        assert_eq!(peak(200, 10), Bytes::mib(20));
        assert_eq!(peak(10, 310), Bytes::mib(20));
        assert_eq!(peak(10, 10), Bytes::mib(320));
        assert_eq!(peak(13, 10), Bytes::mib(317));
        // The sampled memory is a lower bound.
        let peak = observed(25, 310).peak(reported(330, 10, 0), None);
        assert_eq!(peak, Bytes::mib(25));
    }

    #[test]
    fn child_processes_are_part_of_a_peak_and_shared_pages_count_once() {
        // One child process that has ended, and two that were alive in the same sample.
        let peak = |slot| observed(slot, 8).peak(reported(28, 8, 300), None);
        assert_eq!(peak(0), Bytes::mib(320));
        assert_eq!(peak(620), Bytes::mib(620));
        // A child process that shares 500M with the worker that has forked it.
        let charged = Some(Bytes::mib(530));
        let peak = observed(0, 8).peak(reported(508, 8, 515), charged);
        assert_eq!(peak, Bytes::mib(542));
    }
}
