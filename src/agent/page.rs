//! The counters of each worker process, read from the page of counters
//! ([`crate::protocol::agent_page`]).
//!
//! The page is a file on a tmpfs, read with pread(2): a store to a shared mapping is visible to a
//! read at once (mmap(2), MAP_SHARED), and the words of a slot are read whole.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::Path};

use serde::{Deserialize, Serialize};

use super::routes::{Done, RouteCounts};
use crate::{
    protocol::{
        agent_page::{self, LENGTH, SLOT, SLOTS, Slot},
        agent_routes,
    },
    supervisor::{event::Running, input::Counts},
    units::{Timestamp, WorkerId},
};

/// The page.
#[derive(Debug)]
pub(super) struct Page {
    file: File,
    bytes: Vec<u8>,
    /// The worker of each process that has counted, as last seen.
    owners: BTreeMap<i32, WorkerId>,
    /// The counters of processes that have ended before their worker.
    retired: BTreeMap<WorkerId, Counts>,
    routes: RouteCounts,
    /// The request that was in progress in the process whose slot was freed last.
    begun: Option<(WorkerId, Begun)>,
}

/// A request in progress.
#[derive(Clone, Debug)]
struct Begun {
    request: String,
    at: Timestamp,
    in_progress: u64,
}

/// The state for the next binary in an upgrade.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct PageState {
    owners: BTreeMap<i32, WorkerId>,
    retired: BTreeMap<WorkerId, Counts>,
    /// The version of the page's layout. It is not read from the page's header, because workers can
    /// write there.
    #[serde(default)]
    version: u64,
    /// The version of the page's areas for routes. 0: it has none.
    #[serde(default)]
    routes: u64,
}

impl PageState {
    /// Whether the page has a layout that this supervisor reads.
    pub(super) fn is_understood(&self) -> bool {
        agent_page::understand(self.version).is_ok()
    }
}

impl Page {
    pub(super) fn hand_over(&self) -> PageState {
        PageState {
            owners: self.owners.clone(),
            retired: self.retired.clone(),
            version: agent_page::VERSION,
            routes: agent_routes::VERSION,
        }
    }

    /// The page that the previous binary has made, and that the workers have mapped.
    pub(super) fn take_over(file: File, state: PageState) -> Self {
        let mut page = Self {
            routes: RouteCounts::of_page(&file, state.routes),
            file,
            bytes: vec![0; LENGTH],
            owners: state.owners,
            retired: state.retired,
            begun: None,
        };
        // The previous binary has counted the requests until now.
        page.load();
        for (slot, pid) in page.pids() {
            page.routes.read(&page.file, slot, pid);
        }
        page
    }

    /// A page in a file that contains [`agent_page::empty`].
    pub(super) fn create(file: File) -> Self {
        Self {
            routes: RouteCounts::of_page(&file, 0),
            file,
            bytes: agent_page::empty(),
            owners: BTreeMap::new(),
            retired: BTreeMap::new(),
            begun: None,
        }
    }

    /// The counters of each worker. `running` has the worker of each running process. `foreign` is
    /// called for workers whose agent has an unsupported version, with that version.
    pub(super) fn read(
        &mut self,
        running: &BTreeMap<i32, WorkerId>,
        foreign: &mut dyn FnMut(WorkerId, u64),
    ) -> Vec<(WorkerId, Counts)> {
        self.load();
        let mut all: BTreeMap<WorkerId, Counts> = BTreeMap::new();
        for slot in 0..SLOTS {
            let Some((pid, counts)) = self.counts(slot) else {
                continue;
            };
            match (running.get(&pid), counts) {
                (Some(&worker), Ok(counts)) => {
                    self.owners.insert(pid, worker);
                    let sum = all.entry(worker).or_default();
                    *sum = sum_of(*sum, counts);
                }
                (Some(&worker), Err(version)) => foreign(worker, version),
                // No running process of a worker. If it has ended, its counters stay with its
                // worker.
                (None, counts) => {
                    if !Path::new("/proc").join(pid.to_string()).exists() {
                        self.retire(slot, pid, counts.unwrap_or_default());
                    }
                }
            }
        }
        for (worker, sum) in &mut all {
            if let Some(retired) = self.retired.get(worker) {
                *sum = sum_of(*sum, *retired);
            }
        }
        all.into_iter().collect()
    }

    /// The requests of each worker by route since the last call.
    pub(super) fn routes(&mut self, running: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Done)> {
        self.load();
        let mut all: BTreeMap<WorkerId, Done> = BTreeMap::new();
        for (slot, pid) in self.pids() {
            if let Some(&worker) = running.get(&pid) {
                let done = self.routes.read(&self.file, slot, pid);
                all.entry(worker).or_default().extend(done);
            }
        }
        all.into_iter().collect()
    }

    /// The requests by route of a worker that has ended, before [`Self::take_last`].
    pub(super) fn last_routes(&mut self, worker: WorkerId) -> Done {
        self.load();
        let mut last = Vec::new();
        for (slot, pid) in self.pids() {
            if self.owners.get(&pid) == Some(&worker) {
                last.extend(self.routes.read(&self.file, slot, pid));
            }
        }
        last
    }

    /// The slots of processes whose agent is understood.
    fn pids(&self) -> Vec<(usize, i32)> {
        let slots = (0..SLOTS).filter_map(|slot| Some((slot, self.counts(slot)?)));
        slots
            .filter(|(_, (_, counts))| counts.is_ok())
            .map(|(slot, (pid, _))| (slot, pid))
            .collect()
    }

    /// The request in progress of a worker that has ended, before [`Self::take_last`]: the one that
    /// its processes have begun last. `pid` is its own process, which may have ended before the
    /// counters were read for the first time.
    pub(super) fn running(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        pid: Option<i32>,
    ) -> Option<Running> {
        self.load();
        let of_worker = |number: &usize| {
            let slot = self.slot(*number);
            slot.is_some_and(|slot| {
                Some(slot.pid) == pid || self.owners.get(&slot.pid) == Some(&worker)
            })
        };
        let begun = (0..SLOTS).filter(of_worker);
        let begun = begun.filter_map(|number| self.last_begun(number));
        let retired = self.begun.iter().filter(|(of, _)| *of == worker);
        let last = begun
            .chain(retired.map(|(_, begun)| begun.clone()))
            .max_by_key(|begun| begun.at)?;
        Some(Running {
            request: last.request,
            age: now.since(last.at),
            in_progress: last.in_progress,
        })
    }

    /// The last request of the process in a slot, if it is in progress.
    fn last_begun(&self, number: usize) -> Option<Begun> {
        let slot = self.slot(number)?;
        let in_progress = slot.begun.saturating_sub(slot.finished);
        // Old agents do not write the time of a request.
        if in_progress == 0 || slot.begun_ns == 0 {
            return None;
        }
        Some(Begun {
            request: self.routes.last_begun(&self.file, number)?,
            at: Timestamp::from_nanos(slot.begun_ns),
            in_progress,
        })
    }

    /// The last counters of a worker that has ended. Its processes have ended or are ending.
    pub(super) fn take_last(&mut self, worker: WorkerId) -> Option<Counts> {
        self.load();
        let mut last = self.retired.remove(&worker);
        for slot in 0..SLOTS {
            let Some((pid, Ok(counts))) = self.counts(slot) else {
                continue;
            };
            if self.owners.get(&pid) == Some(&worker) {
                last = Some(sum_of(last.unwrap_or_default(), counts));
            }
        }
        self.owners.retain(|_, owner| *owner != worker);
        last
    }

    /// Keeps the counters of a process that has ended for its worker, and frees its slot.
    fn retire(&mut self, slot: usize, pid: i32, counts: Counts) {
        if let Some(worker) = self.owners.remove(&pid) {
            self.begun = self.last_begun(slot).map(|begun| (worker, begun));
            let sum = self.retired.entry(worker).or_default();
            *sum = sum_of(*sum, counts);
        }
        // If this fails, no other process can use the slot.
        let at = agent_page::offset(slot);
        let _ = self.file.write_all_at(&[0; SLOT], at as u64);
    }

    fn load(&mut self) {
        // If the page cannot be read, the counters keep their last values.
        let _ = self.file.read_exact_at(&mut self.bytes, 0);
    }

    /// The sockets that each process has named as those of its server. The process may have ended.
    pub(super) fn listeners(&mut self) -> Vec<(i32, u64)> {
        self.load();
        let mut all = Vec::new();
        for slot in (0..SLOTS).filter_map(|number| self.slot(number)) {
            if agent_page::understand(slot.version).is_err() {
                continue;
            }
            let named = slot.listeners.iter().filter(|inode| **inode > 0);
            all.extend(named.map(|inode| (slot.pid, *inode)));
        }
        all
    }

    /// The version of the agent in a process, if the process has a slot.
    pub(super) fn version_of(&mut self, pid: i32) -> Option<u64> {
        self.load();
        let mut slots = (0..SLOTS).filter_map(|number| self.slot(number));
        slots.find(|slot| slot.pid == pid).map(|slot| slot.version)
    }

    fn slot(&self, number: usize) -> Option<Slot> {
        Slot::read(agent_page::slot(&self.bytes, number))
    }

    /// The process of a slot and its counters; instead of the counters, the version of its agent if
    /// that is unsupported.
    fn counts(&self, number: usize) -> Option<(i32, Result<Counts, u64>)> {
        let slot = self.slot(number)?;
        let counts = Counts {
            done: slot.finished,
            errors: slot.errors,
        };
        let understood = agent_page::understand(slot.version);
        Some((
            slot.pid,
            understood.map(|()| counts).map_err(|_| slot.version),
        ))
    }
}

const fn sum_of(one: Counts, other: Counts) -> Counts {
    Counts {
        done: one.done.saturating_add(other.done),
        errors: one.errors.saturating_add(other.errors),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Above every possible pid (proc(5), pid_max).
    const DEAD: i32 = 1 << 30;

    fn slot(pid: i32, finished: u64, version: u64) -> Slot {
        Slot {
            pid,
            begun: finished,
            finished,
            begun_ns: 0,
            errors: 0,
            version,
            listeners: [0, 7, 0, 0],
        }
    }

    fn put(page: &Page, number: usize, slot: &Slot) {
        let at = agent_page::offset(number);
        page.file.write_all_at(&slot.bytes(), at as u64).unwrap();
    }

    fn write(page: &Page, number: usize, pid: i32, finished: u64) {
        put(page, number, &slot(pid, finished, agent_page::VERSION));
    }

    #[test]
    fn a_process_whose_agent_has_another_version_is_not_counted_and_frees_its_slot_at_its_end() {
        let mut page = Page::create(tempfile::tempfile().unwrap());
        page.file.write_all_at(&agent_page::empty(), 0).unwrap();
        let us = i32::try_from(std::process::id()).unwrap();
        let newer = agent_page::VERSION + 1;
        put(&page, 0, &slot(us, 5, newer));
        put(&page, 1, &slot(DEAD, 7, newer));
        // An agent from before agents wrote their version.
        put(&page, 2, &slot(DEAD + 1, 9, 0));
        let (w1, w2) = (WorkerId::FIRST, WorkerId::FIRST.next());
        let running = BTreeMap::from([(us, w1), (DEAD + 1, w2)]);
        let expected = Counts { done: 9, errors: 0 };
        let mut foreign = Vec::new();
        let read = page.read(&running, &mut |worker, version| {
            foreign.push((worker, version))
        });
        assert_eq!((read, foreign), (vec![(w2, expected)], vec![(w1, newer)]));
        assert_eq!(page.version_of(us), Some(newer));
        assert_eq!(page.version_of(DEAD), None);
        assert_eq!(page.listeners(), [(DEAD + 1, 7)]);
        assert_eq!(page.take_last(w1), None);
    }

    #[test]
    fn the_request_of_a_worker_that_ended_is_the_last_that_it_began_and_did_not_finish() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&agent_page::empty(), 0).unwrap();
        let mut page = Page::create(file.try_clone().unwrap());
        let us = i32::try_from(std::process::id()).unwrap();
        let w1 = WorkerId::FIRST;
        let busy = |pid| Slot {
            begun: 6,
            begun_ns: 7,
            ..slot(pid, 5, agent_page::VERSION)
        };
        let mut begin = |begun, begun_ns| {
            let slot = Slot {
                begun,
                begun_ns,
                ..busy(us)
            };
            put(&page, 2, &slot);
            let _ = page.read(&BTreeMap::from([(us, w1)]), &mut |_, _| {});
            page.running(Timestamp::from_nanos(3_500_000_000), w1, None)
        };
        assert_eq!(begin(7, 1_000_000_000), None, "it has no name");
        let at = agent_routes::offset(2) + agent_routes::LAST_BEGUN;
        file.write_all_at(b"/export", at as u64).unwrap();
        let expected = Running {
            request: "/export".to_owned(),
            age: Duration::from_millis(2500),
            in_progress: 2,
        };
        assert_eq!(begin(7, 1_000_000_000), Some(expected));
        assert_eq!(begin(5, 1_000_000_000), None, "all are finished");
        // A worker that ended before its counters were read.
        put(&page, 3, &busy(DEAD));
        let named = agent_routes::offset(3) + agent_routes::LAST_BEGUN;
        file.write_all_at(b"/first", named as u64).unwrap();
        let running = page.running(Timestamp::from_nanos(9), WorkerId::FIRST.next(), Some(DEAD));
        assert_eq!(
            running.map(|running| running.request),
            Some("/first".to_owned())
        );
    }

    #[test]
    fn any_bytes_in_a_page_are_read_without_an_error() {
        let mut page = Page::create(tempfile::tempfile().unwrap());
        let us = i32::try_from(std::process::id()).unwrap();
        let running = BTreeMap::from([(us, WorkerId::FIRST)]);
        for byte in [0, 1, 0x7F, 0x80, 0xFF] {
            page.file.write_all_at(&vec![byte; LENGTH], 0).unwrap();
            write(&page, 3, us, u64::MAX);
            write(&page, 4, us, u64::MAX);
            let read = page.read(&running, &mut |_, _| {});
            assert_eq!(read[0].1.done, u64::MAX);
            let _ = page.listeners();
        }
    }

    #[test]
    fn requests_by_route_are_counted_from_the_upgrade_on_and_to_the_end_of_a_worker() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&agent_page::empty(), 0).unwrap();
        let page = Page::create(file.try_clone().unwrap());
        let us = i32::try_from(std::process::id()).unwrap();
        let count = |slot: usize, number: u64| {
            let other = agent_routes::offset(slot) + agent_routes::COUNTS - 8;
            file.write_all_at(&number.to_ne_bytes(), other as u64)
                .unwrap();
        };
        write(&page, 0, us, 5);
        write(&page, 1, DEAD, 5);
        count(0, 5);
        count(1, 2);
        let running = BTreeMap::from([(us, WorkerId::FIRST), (DEAD, WorkerId::FIRST.next())]);
        let mut page = Page::take_over(file.try_clone().unwrap(), page.hand_over());
        let _ = page.read(&running, &mut |_, _| {});
        let first = vec![
            (WorkerId::FIRST, Vec::new()),
            (WorkerId::FIRST.next(), Vec::new()),
        ];
        assert_eq!(page.routes(&running), first);
        count(0, 6);
        count(1, 4);
        assert_eq!(
            page.last_routes(WorkerId::FIRST.next()),
            [("other".into(), 2)]
        );
        let _ = page.take_last(WorkerId::FIRST.next());
        assert_eq!(page.last_routes(WorkerId::FIRST.next()), []);
        assert_eq!(
            page.routes(&running)[0],
            (WorkerId::FIRST, vec![("other".into(), 1)])
        );
    }

    #[test]
    fn the_counters_of_a_worker_include_processes_that_have_ended() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&agent_page::empty(), 0).unwrap();
        let mut page = Page::create(file);
        let (w1, w2) = (WorkerId::FIRST, WorkerId::FIRST.next());
        let us = i32::try_from(std::process::id()).unwrap();
        write(&page, 0, us, 5);
        write(&page, 3, DEAD, 7);
        let running = BTreeMap::from([(us, w1), (DEAD, w1)]);
        let done = |page: &mut Page, running: &BTreeMap<i32, WorkerId>| {
            let read = page.read(running, &mut |_, _| panic!("all versions are supported"));
            read.iter().map(|(id, c)| (*id, c.done)).collect::<Vec<_>>()
        };
        assert_eq!(done(&mut page, &running), [(w1, 12)]);
        // One of the two processes has ended: its slot is free, and its counters are kept.
        let running = BTreeMap::from([(us, w1)]);
        assert_eq!(done(&mut page, &running), [(w1, 12)]);
        assert_eq!(done(&mut page, &running), [(w1, 12)]);
        write(&page, 3, DEAD + 1, 1);
        let running = BTreeMap::from([(us, w1), (DEAD + 1, w2)]);
        assert_eq!(done(&mut page, &running), [(w1, 12), (w2, 1)]);
        assert_eq!(page.take_last(w1).unwrap().done, 12);
        assert_eq!(page.take_last(w1), None);
    }
}
