//! The memory of the slots of a pool, and the peak memory of a worker.
//!
//! The kernel keeps the peak of a process's resident memory, which includes mapped files. How much
//! of it was files must be sampled: by the worker after its tasks, and by us in between. The memory
//! of child processes is part of the charge of the slot, which we sample too. Of those that have
//! ended, the kernel keeps the largest peak.

use super::child::Child;
use crate::{
    host::{Host, looker::Job, pidfd::PidFd, tracked::UNNAMED_WITHIN},
    supervisor::spec::Measure,
    units::{Bytes, Timestamp, WorkerId},
};

/// The highest figures of a worker in our samples.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    /// The memory of its slot.
    slot: Bytes,
    /// Its own resident anonymous pages.
    anon: Bytes,
    /// Its own resident pages of files.
    files: Bytes,
}

/// If our samples show this much more of files than those of the worker, it has mapped files during
/// a task only, and its peak included them.
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

impl Host {
    /// The memory of all processes in a slot: the anonymous pages that its group is charged with,
    /// and the part of its shared memory that has no name, as last read exactly.
    pub fn slot_memory(&mut self, now: Timestamp, slot: u32) -> Option<Bytes> {
        let worker = self.nest_of(slot)?;
        let tracked = self.workers.get_mut(&worker)?;
        let charged = tracked.group.charged();
        let (anon, shmem) = match charged {
            Some(charged) => charged,
            None => {
                let sample = tracked.look(&self.proc, now, Measure::Private)?;
                (sample.anon, sample.shmem)
            }
        };
        if tracked.unnamed.wants_reading(now, shmem) {
            let pids = tracked.pids(&self.proc, now).to_vec();
            self.looker.ask(Job {
                worker,
                pids,
                within: UNNAMED_WITHIN,
                charged: None,
            });
        }
        let memory = anon.plus(tracked.unnamed.part_of(shmem));
        // Without a charge, the pages that the nest and the worker share would count twice.
        self.observe_child(slot, charged.map(|_| memory));
        Some(memory)
    }

    /// Updates the figures of the worker that is running in a slot: the newest one that has begun a
    /// task.
    fn observe_child(&mut self, slot: u32, memory: Option<Bytes>) {
        let Some(pool) = &mut self.pool else { return };
        let its = pool.children.values_mut().rev();
        let mut busy = its.filter(|child| child.slot == slot && child.progress()[0] != 0);
        if let Some(child) = busy.next() {
            // RACE: it may have ended. Then its nest reports its peak.
            let pid = child.process.as_ref().map(PidFd::pid);
            let now = pid.and_then(|pid| self.proc.anon_and_files(pid).ok());
            let (anon, files) = now.unwrap_or_default();
            let observed = &mut child.observed;
            observed.slot = observed.slot.max(memory.unwrap_or_default());
            observed.anon = observed.anon.max(anon);
            observed.files = observed.files.max(files);
        }
    }

    /// The peak memory of a worker and its child processes up to its last task.
    pub fn peak_of_child(&self, worker: WorkerId) -> Option<Bytes> {
        let child = self.pool.as_ref()?.children.get(&worker)?;
        let reported = child.reported();
        let charged = self
            .charged_at_most(child)
            .filter(|_| reported.child > Bytes::ZERO);
        (reported.most > Bytes::ZERO).then(|| child.observed.peak(reported, charged))
    }

    /// The same for a worker that has ended. `most` is the highest resident memory of it or of one
    /// of its child processes.
    pub(super) fn peak_at_end(&self, worker: WorkerId, most: Option<Bytes>) -> Option<Bytes> {
        let child = self.pool.as_ref()?.children.get(&worker);
        let Some(child) = child else { return most };
        let mut reported = child.reported();
        reported.most = reported.most.max(most.unwrap_or_default());
        let charged = self.charged_at_most(child);
        let peak = child.observed.peak(reported, charged);
        (peak > Bytes::ZERO).then_some(peak)
    }

    fn charged_at_most(&self, child: &Child) -> Option<Bytes> {
        let nest = self.nest_of(child.slot)?;
        self.workers.get(&nest)?.group.peak()
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
    fn mapped_files_are_no_part_of_a_peak() {
        let peak = |ours, own| observed(0, ours).peak(reported(330, own, 0), None);
        assert_eq!(peak(310, 10), Bytes::mib(20));
        // It has mapped more after our last sample.
        assert_eq!(peak(200, 10), Bytes::mib(20));
        assert_eq!(peak(10, 310), Bytes::mib(20));
        assert_eq!(peak(10, 10), Bytes::mib(320));
        assert_eq!(peak(13, 10), Bytes::mib(317));
        // What it was seen to hold is a lower bound.
        let peak = observed(25, 310).peak(reported(330, 10, 0), None);
        assert_eq!(peak, Bytes::mib(25));
    }

    #[test]
    fn child_processes_are_part_of_a_peak_and_shared_pages_count_once() {
        // One that has ended, and two in the same sample.
        let peak = |slot| observed(slot, 8).peak(reported(28, 8, 300), None);
        assert_eq!(peak(0), Bytes::mib(320));
        assert_eq!(peak(620), Bytes::mib(620));
        // A child that shares 500M with the worker that has forked it.
        let charged = Some(Bytes::mib(530));
        let peak = observed(0, 8).peak(reported(508, 8, 515), charged);
        assert_eq!(peak, Bytes::mib(542));
    }
}
