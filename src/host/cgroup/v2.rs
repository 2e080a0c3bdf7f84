//! A group's memory in the words of version 2 (`cgroup-v2.rst`, "Memory Interface Files").

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::sys::epoll::EpollFlags;

use super::{CgroupError, Memory, Ooms, SLACK, files, files::Kept};
use crate::units::Bytes;

/// The memory of one group.
#[derive(Debug)]
pub(super) struct V2 {
    dir: PathBuf,
    usage: PathBuf,
    /// Each open file has its own mark of what it has seen, so the wire and the OOM killer have one
    /// each.
    events: Kept,
    wire: Option<Wire>,
}

/// `memory.high` above the charge. Passing it throttles the whole group more and more, so it is
/// lifted as soon as it is passed: a worker that drains must not be slowed down.
#[derive(Debug)]
struct Wire {
    events: Kept,
    /// How often it had been passed when it was set.
    passed: u64,
}

impl V2 {
    pub(super) fn open(dir: PathBuf) -> Result<Self, CgroupError> {
        let events = Kept::open(dir.join("memory.events"))?;
        // The first look clears the mark.
        events.text()?;
        Ok(Self {
            usage: dir.join("memory.current"),
            events,
            wire: None,
            dir,
        })
    }

    /// What is left of the charge when all page cache is given back, and a little room.
    fn least_limit(&self) -> Bytes {
        let names = ["inactive_file", "active_file", "slab_reclaimable"];
        let held = self.usage().and_then(|usage| {
            let cache = files::entries_of(&self.dir.join("memory.stat"), names)?;
            Ok(cache.into_iter().fold(usage, Bytes::minus))
        });
        match held {
            Ok(held) if held > SLACK => held.plus(SLACK),
            Ok(_) | Err(_) => Bytes::ZERO,
        }
    }

    fn lift(&self) -> Result<(), CgroupError> {
        files::write(&self.dir.join("memory.high"), "max")
    }
}

impl Memory for V2 {
    fn set_cap(
        &self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError> {
        let dir = &self.dir;
        // Swap first: a cap below the charge must not push into swap what may not be there. The
        // file is missing where the kernel counts no swap.
        let swap = cap.and(swap);
        files::write_if_there(&dir.join("memory.swap.max"), &text(swap))?;
        // All of a worker or nothing: half of it is of no use. Since Linux 4.19.
        let together = if cap.is_some() { "1" } else { "0" };
        files::write_if_there(&dir.join("memory.oom.group"), together)?;
        // A limit below what cannot be taken back would not be refused: the kernel would end the
        // group at once, though it has not grown.
        let limit = cap.map(|cap| cap.max(self.least_limit()));
        files::write(&dir.join("memory.max"), &text(limit))?;
        Ok(limit)
    }

    fn usage(&self) -> Result<Bytes, CgroupError> {
        files::number(&self.usage).map(Bytes)
    }

    fn held(&self) -> Result<Bytes, CgroupError> {
        let names = [
            "anon",
            "shmem",
            "kernel_stack",
            "pagetables",
            "sec_pagetables",
            "percpu",
            "sock",
            "vmalloc",
            "slab_unreclaimable",
        ];
        let held = files::entries_of(&self.dir.join("memory.stat"), names)?;
        Ok(held.into_iter().fold(Bytes::ZERO, Bytes::plus))
    }

    fn charged(&self) -> Result<(Bytes, Bytes), CgroupError> {
        let names = ["anon", "shmem"];
        files::entries_of(&self.dir.join("memory.stat"), names).map(Into::into)
    }

    fn peak(&self) -> Option<Bytes> {
        // Since Linux 5.19.
        files::number(&self.dir.join("memory.peak")).ok().map(Bytes)
    }

    fn arm(&mut self, room: Bytes) -> Result<(), CgroupError> {
        self.wire = None;
        let events = Kept::open(self.dir.join("memory.events"))?;
        let passed = files::entry(&events.text()?, "high").unwrap_or(0);
        let high = self.usage()?.plus(room);
        files::write(&self.dir.join("memory.high"), &text(Some(high)))?;
        self.wire = Some(Wire { events, passed });
        Ok(())
    }

    fn interest(&self) -> EpollFlags {
        EpollFlags::EPOLLPRI
    }

    fn wire_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(|wire| wire.events.file().as_fd())
    }

    fn take_wire(&mut self) -> bool {
        // Other counters in the file wake us as well. An error is the end of the group.
        let is_passed = self.wire.as_ref().is_some_and(|wire| {
            let text = wire.events.text().unwrap_or_default();
            files::entry(&text, "high").is_some_and(|high| high > wire.passed)
        });
        if is_passed {
            self.wire = None;
            // Fails only if the group has ended meanwhile, and then nobody is slowed down.
            let _ = self.lift();
        }
        is_passed
    }

    fn oom_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.file().as_fd())
    }

    fn loses_single_processes(&self) -> bool {
        let is_capped = files::limit(&self.dir.join("memory.max")).is_ok_and(|cap| cap.is_some());
        // Before Linux 4.19 it is not there.
        is_capped && !files::number(&self.dir.join("memory.oom.group")).is_ok_and(|on| on == 1)
    }

    fn ooms(&self) -> Result<Ooms, CgroupError> {
        let text = self.events.text()?;
        let count = |key| files::entry(&text, key).unwrap_or(0);
        // The end of a whole group counts the process that was picked twice: by itself, and with
        // all others (`oom_kill_process`). Since Linux 5.17 it says how often that was.
        let kills = count("oom_kill").saturating_sub(count("oom_group_kill"));
        let calls = calls(&self.dir)?;
        Ok(Ooms { kills, calls })
    }
}

/// How often the OOM killer was called because of this group's own limit. `memory.events` also
/// counts for the groups below and serves where `memory.events.local` (Linux 5.2) is missing: a
/// worker's own limit is asked for before the budget's.
pub(super) fn calls(dir: &Path) -> Result<u64, CgroupError> {
    let local = dir.join("memory.events.local");
    if local.exists() {
        files::entry_of(&local, "oom")
    } else {
        files::entry_of(&dir.join("memory.events"), "oom")
    }
}

pub(super) fn text(limit: Option<Bytes>) -> String {
    limit.map_or_else(|| "max".to_owned(), |limit| limit.get().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const EVENTS: &str = "low 0\nhigh 7\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n";
    const STAT: &str = "anon 37748736\nfile 2101248\nshmem 4096\nanon_thp 0\npagetables 1048576\n\
                        inactive_file 1048576\nactive_file 1048576\nslab_reclaimable 0\n";
    const LOCAL: &str = "low 0\nhigh 7\nmax 3\noom 0\noom_kill 2\noom_group_kill 1\n";

    fn group() -> (tempfile::TempDir, V2) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.current", "41943040\n"),
            ("memory.peak", "50331648\n"),
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
            ("memory.swap.max", "max\n"),
            ("memory.oom.group", "0\n"),
            ("memory.stat", STAT),
            ("memory.events", EVENTS),
            ("memory.events.local", LOCAL),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let memory = V2::open(root.path().to_owned()).unwrap();
        (root, memory)
    }

    #[test]
    fn a_cap_takes_swap_and_ends_the_group_as_a_whole() {
        let (root, memory) = group();
        let now = |file| fs::read_to_string(root.path().join(file)).unwrap();
        let cap = Some(Bytes::mib(64));
        memory.set_cap(cap, Some(Bytes::ZERO)).unwrap();
        assert_eq!(now("memory.max"), "67108864");
        assert_eq!(now("memory.swap.max"), "0");
        assert_eq!(now("memory.oom.group"), "1");
        memory.set_cap(cap, None).unwrap();
        assert_eq!(now("memory.swap.max"), "max");
        memory.set_cap(None, Some(Bytes::ZERO)).unwrap();
        assert_eq!(now("memory.max"), "max");
        assert_eq!(now("memory.swap.max"), "max");
        assert_eq!(now("memory.oom.group"), "0");
    }

    #[test]
    fn a_limit_is_never_below_what_cannot_be_taken_back() {
        let (root, memory) = group();
        let set = |mib| memory.set_cap(Some(Bytes::mib(mib)), None).unwrap();
        assert_eq!(set(30), Some(Bytes::mib(39)));
        let max = fs::read_to_string(root.path().join("memory.max")).unwrap();
        assert_eq!(max, (39 << 20).to_string());
        assert_eq!(set(39), Some(Bytes::mib(39)));
        assert_eq!(set(64), Some(Bytes::mib(64)));
        // What holds next to nothing gets what was wished for.
        fs::write(root.path().join("memory.current"), "2621440\n").unwrap();
        assert_eq!(set(1), Some(Bytes::mib(1)));
    }

    #[test]
    fn figures_are_read_by_their_names() {
        let (_root, memory) = group();
        assert_eq!(memory.usage().unwrap(), Bytes::mib(40));
        let shmem = Bytes(4096);
        assert_eq!(memory.charged().unwrap(), (Bytes::mib(36), shmem));
        assert_eq!(memory.held().unwrap(), Bytes::mib(37).plus(shmem));
        assert_eq!(memory.peak(), Some(Bytes::mib(48)));
        assert_eq!(memory.ooms().unwrap(), Ooms { kills: 1, calls: 0 });
    }

    #[test]
    fn a_kernel_without_local_events_counts_with_those_below() {
        let (root, memory) = group();
        fs::remove_file(root.path().join("memory.events.local")).unwrap();
        assert_eq!(memory.ooms().unwrap(), Ooms { kills: 1, calls: 1 });
    }

    #[test]
    fn a_whole_group_of_three_is_three_kills_and_not_four() {
        let (root, memory) = group();
        let events = EVENTS.replace("oom_kill 2", "oom_kill 4");
        fs::write(root.path().join("memory.events"), &events).unwrap();
        assert_eq!(memory.ooms().unwrap().kills, 3);
        let before_5_17 = events.replace("oom_group_kill 1\n", "");
        fs::write(root.path().join("memory.events"), before_5_17).unwrap();
        assert_eq!(memory.ooms().unwrap().kills, 4);
    }

    #[test]
    fn the_wire_is_lifted_as_soon_as_it_is_passed() {
        let (root, mut memory) = group();
        let now = || fs::read_to_string(root.path().join("memory.high")).unwrap();
        memory.arm(Bytes::mib(20)).unwrap();
        assert_eq!(now(), "62914560");
        assert!(memory.wire_fd().is_some());

        let others = EVENTS.replace("max 3", "max 4");
        fs::write(root.path().join("memory.events"), others).unwrap();
        assert!(!memory.take_wire());
        assert_eq!(now(), "62914560");

        let passed = EVENTS.replace("high 7", "high 8");
        fs::write(root.path().join("memory.events"), passed).unwrap();
        assert!(memory.take_wire());
        assert_eq!(now(), "max");
        assert!(!memory.take_wire());
        assert!(memory.wire_fd().is_none());
    }
}
