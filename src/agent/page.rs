//! The shared page: what each process of the workers has counted. The processes write their own
//! slots, we read all of them, without a call into anybody.
//!
//! Read with pread(2) of a tmpfs file: a store to a shared mapping is seen by read at once
//! (mmap(2), MAP_SHARED), and a slot's words are whole.

use std::{collections::BTreeMap, fs::File, ops::Range, os::unix::fs::FileExt as _, path::Path};

use serde::{Deserialize, Serialize};

use crate::{supervisor::event::Counts, units::WorkerId};

/// `SUP1`, read as a number.
const MAGIC: u64 = 0x3150_5553;
/// So many processes can count at the same time; those who come later do not.
const SLOTS: usize = 512;
/// A slot, and the header before the first: two cache lines, so that no two processes share one.
const SLOT: usize = 128;
const WORDS: usize = SLOT / 8;

/// What stands where in a slot.
const PID: usize = 0;
const DONE: usize = 2;
const ERRORS: usize = 7;
/// The inodes of the sockets that its server accepts from; unused words are zero.
const LISTENERS: Range<usize> = 12..16;

/// The page.
#[derive(Debug)]
pub(super) struct Page {
    file: File,
    bytes: Vec<u8>,
    /// Whose each process that counted was when last seen.
    owners: BTreeMap<i32, WorkerId>,
    /// What processes of a worker had counted that have ended before it.
    retired: BTreeMap<WorkerId, Counts>,
}

/// What is known of the page's slots beside what stands in them.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Handed {
    owners: BTreeMap<i32, WorkerId>,
    retired: BTreeMap<WorkerId, Counts>,
}

impl Page {
    pub(super) fn hand_over(&self) -> Handed {
        Handed {
            owners: self.owners.clone(),
            retired: self.retired.clone(),
        }
    }

    /// The page that a predecessor made and that the workers hold.
    pub(super) fn take_over(file: File, handed: Handed) -> Self {
        Self {
            file,
            bytes: vec![0; SLOT * (1 + SLOTS)],
            owners: handed.owners,
            retired: handed.retired,
        }
    }

    /// A page in a file that holds [`empty`].
    pub(super) fn create(file: File) -> Self {
        Self {
            file,
            bytes: empty(),
            owners: BTreeMap::new(),
            retired: BTreeMap::new(),
        }
    }

    /// What each worker has counted by now; `owners` says whose each live process is.
    pub(super) fn read(&mut self, owners: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Counts)> {
        self.load();
        let mut all: BTreeMap<WorkerId, Counts> = BTreeMap::new();
        for slot in 0..SLOTS {
            let Some((pid, counts)) = self.slot(slot) else {
                continue;
            };
            if let Some(&worker) = owners.get(&pid) {
                self.owners.insert(pid, worker);
                let sum = all.entry(worker).or_default();
                *sum = together(*sum, counts);
            } else if !Path::new("/proc").join(pid.to_string()).exists() {
                self.retire(slot, pid, counts);
            }
        }
        for (worker, sum) in &mut all {
            if let Some(retired) = self.retired.get(worker) {
                *sum = together(*sum, *retired);
            }
        }
        all.into_iter().collect()
    }

    /// The last figures of a worker that has ended. Its processes are gone, or soon will be.
    pub(super) fn bury(&mut self, worker: WorkerId) -> Option<Counts> {
        self.load();
        let mut last = self.retired.remove(&worker);
        for slot in 0..SLOTS {
            let Some((pid, counts)) = self.slot(slot) else {
                continue;
            };
            if self.owners.get(&pid) == Some(&worker) {
                last = Some(together(last.unwrap_or_default(), counts));
            }
        }
        self.owners.retain(|_, owner| *owner != worker);
        last
    }

    /// A process that has ended leaves its slot to others, and its figures to its worker.
    fn retire(&mut self, slot: usize, pid: i32, counts: Counts) {
        if let Some(worker) = self.owners.remove(&pid) {
            let sum = self.retired.entry(worker).or_default();
            *sum = together(*sum, counts);
        }
        // One that cannot be freed is one that nobody else gets.
        let at = SLOT * (1 + slot);
        let _ = self.file.write_all_at(&[0; SLOT], at as u64);
    }

    fn load(&mut self) {
        // A page that cannot be read says what it said before.
        let _ = self.file.read_exact_at(&mut self.bytes, 0);
    }

    /// The sockets that each process has named as its server's. It may be gone.
    pub(super) fn listeners(&mut self) -> Vec<(i32, u64)> {
        self.load();
        let mut all = Vec::new();
        for (pid, words) in (0..SLOTS).filter_map(|slot| self.words(slot)) {
            let named = words[LISTENERS].iter().filter(|inode| **inode > 0);
            all.extend(named.map(|inode| (pid, *inode)));
        }
        all
    }

    /// What stands in a slot, and which process has written it.
    fn words(&self, slot: usize) -> Option<(i32, [u64; WORDS])> {
        let at = SLOT * (1 + slot);
        let mut words = [0; WORDS];
        for (word, bytes) in words
            .iter_mut()
            .zip(self.bytes[at..at + SLOT].chunks_exact(8))
        {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        let pid = i32::try_from(words[PID]).ok().filter(|pid| *pid > 0)?;
        Some((pid, words))
    }

    fn slot(&self, slot: usize) -> Option<(i32, Counts)> {
        let (pid, words) = self.words(slot)?;
        let counts = Counts {
            done: words[DONE],
            errors: words[ERRORS],
        };
        Some((pid, counts))
    }
}

/// The content of a page without counts.
pub(super) fn empty() -> Vec<u8> {
    let mut bytes = vec![0; SLOT * (1 + SLOTS)];
    for (at, word) in [MAGIC, SLOTS as u64, SLOT as u64].into_iter().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

const fn together(one: Counts, other: Counts) -> Counts {
    Counts {
        done: one.done.saturating_add(other.done),
        errors: one.errors.saturating_add(other.errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above every pid there can be (proc(5), pid_max).
    const DEAD: i32 = 1 << 30;

    fn write(page: &Page, slot: usize, pid: i32, done: u64) {
        let mut words = [0u64; WORDS];
        (words[PID], words[DONE]) = (u64::try_from(pid).unwrap(), done);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let at = SLOT * (1 + slot);
        page.file.write_all_at(&bytes, at as u64).unwrap();
    }

    #[test]
    fn a_worker_has_what_all_its_processes_counted_the_dead_ones_too() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&empty(), 0).unwrap();
        let mut page = Page::create(file);
        let (w1, w2) = (WorkerId::FIRST, WorkerId::FIRST.next());
        let us = i32::try_from(std::process::id()).unwrap();
        write(&page, 0, us, 5);
        write(&page, 3, DEAD, 7);
        let owners = BTreeMap::from([(us, w1), (DEAD, w1)]);
        let done = |page: &mut Page, owners: &BTreeMap<i32, WorkerId>| {
            let read = page.read(owners);
            read.iter().map(|(id, c)| (*id, c.done)).collect::<Vec<_>>()
        };
        assert_eq!(done(&mut page, &owners), [(w1, 12)]);
        // One of the two has ended: its slot is free, its figures stay.
        let owners = BTreeMap::from([(us, w1)]);
        assert_eq!(done(&mut page, &owners), [(w1, 12)]);
        assert_eq!(done(&mut page, &owners), [(w1, 12)]);
        write(&page, 3, DEAD + 1, 1);
        let owners = BTreeMap::from([(us, w1), (DEAD + 1, w2)]);
        assert_eq!(done(&mut page, &owners), [(w1, 12), (w2, 1)]);
        assert_eq!(page.bury(w1).unwrap().done, 12);
        assert_eq!(page.bury(w1), None);
    }
}
