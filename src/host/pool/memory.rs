//! What the slots of a pool hold, and the most that a worker held.
//!
//! The kernel keeps the most that a process had resident, mapped files included. How much of that
//! was files is known when somebody looks: the worker after each task that took long enough, we in
//! between. What child processes hold is in the charge of the slot when we look; of those that
//! have ended the kernel keeps the largest.

use super::child::Child;
use crate::{
    host::{Host, looker::Job, tracked::UNNAMED_WITHIN},
    supervisor::spec::Measure,
    units::{Bytes, Timestamp, WorkerId},
};

/// What is known of the memory that a worker held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// The most that its slot held when it was looked at.
    seen: Bytes,
    /// The most of its own pages that no file backs, when it was looked at.
    anon: Bytes,
    /// The most mapped files that it had resident when it was looked at.
    files: Bytes,
}

/// A worker that had so much more of files than after its tasks has mapped them for a while, and
/// its most was with them.
const MAPPED: Bytes = Bytes::mib(4);

/// What a worker writes into its page after a task.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Resident {
    /// The most that it had resident, files included.
    pub(super) most: Bytes,
    /// The most files that it had resident after a task.
    pub(super) files: Bytes,
    /// The most that one of its child processes had that have ended.
    pub(super) child: Bytes,
    /// What it held before its first task.
    pub(super) base: Bytes,
}

impl Held {
    /// The most that it and its child processes held, without mapped files. `charged` is the most
    /// that its group was ever charged with: a forked child has its parent's pages resident, too.
    fn peak(self, resident: Resident, charged: Option<Bytes>) -> Bytes {
        let own = if self.files > resident.files.plus(MAPPED) {
            self.anon.max(resident.base)
        } else {
            resident.most.minus(self.files.max(resident.files))
        };
        let both = own.plus(resident.child);
        let most = charged.map_or(both, |charged| both.min(resident.base.plus(charged)));
        own.max(most).max(self.seen)
    }
}

impl Host {
    /// What all in a slot hold: the anonymous pages its group is charged with, and of its shared
    /// memory what has no name, as the last exact look has found it.
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
        // Without a charge the pages that the nest and the worker share would count twice.
        self.note_held(slot, charged.map(|_| memory));
        Some(memory)
    }

    /// Notes what a slot holds for the worker that has begun a task there last.
    fn note_held(&mut self, slot: u32, memory: Option<Bytes>) {
        let Some(pool) = &mut self.pool else { return };
        let its = pool.children.values_mut().rev();
        let mut busy = its.filter(|child| child.slot == slot && child.progress()[0] != 0);
        if let Some(child) = busy.next() {
            child.held.seen = child.held.seen.max(memory.unwrap_or_default());
            // RACE: it may have ended, and tells its own figures then.
            let pid = child.process.as_ref().map(crate::host::pidfd::PidFd::pid);
            let now = pid.and_then(|pid| self.proc.anon_and_files(pid).ok());
            let (anon, files) = now.unwrap_or_default();
            child.held.anon = child.held.anon.max(anon);
            child.held.files = child.held.files.max(files);
        }
    }

    /// The most that a worker and its child processes held up to its last task.
    pub fn peak_of_child(&self, worker: WorkerId) -> Option<Bytes> {
        let child = self.pool.as_ref()?.children.get(&worker)?;
        let resident = child.resident();
        let charged = self
            .charged_at_most(child)
            .filter(|_| resident.child > Bytes::ZERO);
        (resident.most > Bytes::ZERO).then(|| child.held.peak(resident, charged))
    }

    /// The same of a worker that has ended with `most` as the most that it, or one of its child
    /// processes, had resident.
    pub(super) fn peak_at_end(&self, worker: WorkerId, most: Option<Bytes>) -> Option<Bytes> {
        let child = self.pool.as_ref()?.children.get(&worker);
        let Some(child) = child else { return most };
        let resident = child.resident();
        let resident = Resident {
            most: resident.most.max(most.unwrap_or_default()),
            ..resident
        };
        let charged = self.charged_at_most(child);
        let peak = child.held.peak(resident, charged);
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

    fn held(seen: u64, files: u64) -> Held {
        Held {
            seen: Bytes::mib(seen),
            anon: Bytes::mib(seen.min(20)),
            files: Bytes::mib(files),
        }
    }

    fn resident(most: u64, files: u64, child: u64) -> Resident {
        Resident {
            most: Bytes::mib(most),
            files: Bytes::mib(files),
            child: Bytes::mib(child),
            base: Bytes::mib(12),
        }
    }

    #[test]
    fn mapped_files_are_left_out_whoever_has_seen_them() {
        let peak = |seen, own| held(20, seen).peak(resident(330, own, 0), None);
        assert_eq!(peak(310, 10), Bytes::mib(20));
        // It has mapped more after it was looked at.
        assert_eq!(peak(200, 10), Bytes::mib(20));
        assert_eq!(peak(10, 310), Bytes::mib(20));
        assert_eq!(peak(10, 10), Bytes::mib(320));
    }

    #[test]
    fn child_processes_count_and_shared_pages_once() {
        // One that has ended, and two that were seen at the same time.
        assert_eq!(held(0, 8).peak(resident(28, 8, 300), None), Bytes::mib(320));
        assert_eq!(
            held(620, 8).peak(resident(28, 8, 300), None),
            Bytes::mib(620)
        );
        // A child that was forked from a worker with 500M: they are charged once.
        let charged = Some(Bytes::mib(530));
        let peak = held(0, 8).peak(resident(508, 8, 515), charged);
        assert_eq!(peak, Bytes::mib(542));
    }
}
