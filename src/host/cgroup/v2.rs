//! Version 2 of control groups (`cgroup-v2.rst`, "Memory Interface Files").

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::sys::epoll::EpollFlags;

use super::{
    CgroupError, Charge, Place,
    backend::{Backend, Base, Calls, Memory, Ooms, SLACK},
    charge::charge_of,
    divide::{beside, divide, limits_of},
    files,
    files::OpenFile,
    oom::Counts,
};
use crate::{
    supervisor::input::{CapMechanism, Contents},
    units::Bytes,
};

/// Version 2, with one hierarchy for all controllers.
pub(super) struct Version2;

impl Backend for Version2 {
    fn name(&self) -> &'static str {
        "cgroup v2"
    }

    fn mechanism(&self) -> CapMechanism {
        CapMechanism::CgroupV2
    }

    fn limit_files(&self) -> [&'static str; 2] {
        ["cgroup v2, memory.max", "cgroup v2, memory.high"]
    }

    fn is_mounted(&self, kind: &str, _: &str) -> bool {
        kind == "cgroup2"
    }

    fn is_listed(&self, controllers: &str) -> bool {
        controllers.is_empty()
    }

    fn has_memory(&self, place: &Place) -> bool {
        let controls = |dir: &Path| files::has_word(&dir.join("cgroup.controllers"), "memory");
        place.path().any(controls)
    }

    fn is_unified(&self) -> bool {
        true
    }

    fn levels(&self) -> usize {
        // The groups may be beside a group above, and ours may be a leaf of it.
        usize::MAX
    }

    fn limits(&self, place: &Place) -> Vec<Bytes> {
        place.path().flat_map(limits_of).collect()
    }

    fn charge(&self, dir: &Path) -> Option<Charge> {
        charge_of(dir, ["memory.max", "memory.current", "inactive_file"])
    }

    fn kills(&self, dir: &Path) -> Option<u64> {
        files::entry_of(&dir.join("memory.events"), "oom_kill").ok()
    }

    fn make_base(&self, place: &Place, pid: i32) -> Result<Base, CgroupError> {
        match divide(&place.own, pid) {
            Ok(divided) => Ok(Base {
                dir: place.own.clone(),
                divided,
            }),
            Err(error) => Ok(Base {
                dir: beside(place).ok_or(error)?,
                divided: None,
            }),
        }
    }

    fn prepare(&self, dir: &Path) -> Result<(), CgroupError> {
        files::write(&dir.join("cgroup.subtree_control"), "+memory")
    }

    fn set_budget(&self, dir: &Path, budget: Option<Bytes>) -> Result<(), CgroupError> {
        files::write(&dir.join("memory.max"), &limit_text(budget))
    }

    fn held(&self, dir: &Path) -> Option<Bytes> {
        files::sum_of(&dir.join("memory.stat"), ["anon", "shmem"])
    }

    fn contents(&self, dir: &Path) -> Option<Contents> {
        let text = files::read(&dir.join("memory.stat")).ok()?;
        let entry = |name| files::entry(&text, name).unwrap_or(0);
        // Linux 5.18 and later have the sum.
        let kernel = entry("kernel").max(
            entry("pagetables")
                .saturating_add(entry("kernel_stack"))
                .saturating_add(entry("slab_unreclaimable")),
        );
        Some(Contents {
            shared: Bytes(entry("shmem")),
            kernel: Bytes(kernel),
            ..Contents::default()
        })
    }

    fn watch_calls(&self, dir: &Path) -> Option<Box<dyn Calls>> {
        Some(Box::new(CallsOf(dir.to_owned())))
    }

    fn nests_calls(&self) -> bool {
        false
    }

    fn open(&self, dir: &Path) -> Result<Box<dyn Memory>, CgroupError> {
        Ok(Box::new(V2::open(dir.to_owned())?))
    }

    fn counts_swap(&self, dir: &Path) -> bool {
        dir.join("memory.swap.max").exists()
    }

    fn recover(&self, dir: &Path, seen: Counts) -> Counts {
        let _ = files::write(&dir.join("memory.high"), "max");
        // All counts are in files.
        seen
    }
}

/// Calls of the OOM killer by our budget. Version 2 does not show us the calls by limits above it.
#[derive(Debug)]
struct CallsOf(PathBuf);

impl Calls for CallsOf {
    fn counts(&self) -> Result<(u64, u64), CgroupError> {
        Ok((calls(&self.0)?, 0))
    }
}

/// The memory of one group.
#[derive(Debug)]
struct V2 {
    dir: PathBuf,
    /// The file of the charge.
    usage: PathBuf,
    /// Each open file keeps its own mark of what was read, so the threshold and the OOM killer need
    /// one each.
    events: OpenFile,
    threshold: Option<Threshold>,
}

/// `memory.high` above the charge. Exceeding it throttles the whole group more and more, so it is
/// removed as soon as it is exceeded: a draining worker must not be slowed down.
#[derive(Debug)]
struct Threshold {
    events: OpenFile,
    /// How often it had been exceeded when it was set.
    passed: u64,
}

impl V2 {
    fn open(dir: PathBuf) -> Result<Self, CgroupError> {
        let events = OpenFile::open(dir.join("memory.events"))?;
        // The first read clears the mark.
        events.text()?;
        Ok(Self {
            usage: dir.join("memory.current"),
            events,
            threshold: None,
            dir,
        })
    }

    /// The charge without all page cache, plus some slack. Zero if that is very little.
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

    fn remove_threshold(&self) -> Result<(), CgroupError> {
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
        // Swap first: a cap below the charge must not push memory into swap that the cap does not
        // allow. The file is missing if the kernel does not count swap.
        let swap = cap.and(swap);
        files::write_if_there(&dir.join("memory.swap.max"), &limit_text(swap))?;
        // All processes of a worker are killed together, since a part of a worker is of no use.
        // Since Linux 4.19.
        let together = if cap.is_some() { "1" } else { "0" };
        files::write_if_there(&dir.join("memory.oom.group"), together)?;
        // The kernel accepts a limit below the memory that it cannot take back, and would kill the
        // group at once, although it has not grown.
        let limit = cap.map(|cap| cap.max(self.least_limit()));
        files::write(&dir.join("memory.max"), &limit_text(limit))?;
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

    fn set_threshold(&mut self, room: Bytes) -> Result<(), CgroupError> {
        self.threshold = None;
        let events = OpenFile::open(self.dir.join("memory.events"))?;
        let passed = files::entry(&events.text()?, "high").unwrap_or(0);
        let high = self.usage()?.plus(room);
        files::write(&self.dir.join("memory.high"), &limit_text(Some(high)))?;
        self.threshold = Some(Threshold { events, passed });
        Ok(())
    }

    fn interest(&self) -> EpollFlags {
        EpollFlags::EPOLLPRI
    }

    fn threshold_fd(&self) -> Option<BorrowedFd<'_>> {
        self.threshold
            .as_ref()
            .map(|threshold| threshold.events.file().as_fd())
    }

    fn take_threshold(&mut self) -> bool {
        // Other counters in the file wake us as well. An error means that the group has ended.
        let is_passed = self.threshold.as_ref().is_some_and(|threshold| {
            let text = threshold.events.text().unwrap_or_default();
            files::entry(&text, "high").is_some_and(|high| high > threshold.passed)
        });
        if is_passed {
            self.threshold = None;
            // This fails only if the group has ended, and then no process is slowed down.
            let _ = self.remove_threshold();
        }
        is_passed
    }

    fn oom_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.file().as_fd())
    }

    fn loses_single_processes(&self) -> bool {
        let is_capped = files::limit(&self.dir.join("memory.max")).is_ok_and(|cap| cap.is_some());
        // The file does not exist before Linux 4.19.
        is_capped && !files::number(&self.dir.join("memory.oom.group")).is_ok_and(|on| on == 1)
    }

    fn ooms(&self) -> Result<Ooms, CgroupError> {
        let text = self.events.text()?;
        let count = |key| files::entry(&text, key).unwrap_or(0);
        // A kill of a whole group counts the chosen process twice: by itself, and with all others
        // (`oom_kill_process`). Since Linux 5.17 the kernel counts these kills separately.
        let kills = count("oom_kill").saturating_sub(count("oom_group_kill"));
        let calls = calls(&self.dir)?;
        Ok(Ooms { kills, calls })
    }
}

/// How often this group's own limit called the OOM killer. Without `memory.events.local` (Linux
/// 5.2), this uses `memory.events`, which also counts the groups below. That is sufficient, because
/// a worker's own limit is checked before the budget's.
fn calls(dir: &Path) -> Result<u64, CgroupError> {
    let local = dir.join("memory.events.local");
    if local.exists() {
        files::entry_of(&local, "oom")
    } else {
        files::entry_of(&dir.join("memory.events"), "oom")
    }
}

fn limit_text(limit: Option<Bytes>) -> String {
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
    fn a_cap_limits_swap_and_kills_the_group_as_a_whole() {
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
    fn a_limit_is_never_below_the_memory_that_cannot_be_reclaimed() {
        let (root, memory) = group();
        let set = |mib| memory.set_cap(Some(Bytes::mib(mib)), None).unwrap();
        assert_eq!(set(30), Some(Bytes::mib(39)));
        let max = fs::read_to_string(root.path().join("memory.max")).unwrap();
        assert_eq!(max, (39 << 20).to_string());
        assert_eq!(set(39), Some(Bytes::mib(39)));
        assert_eq!(set(64), Some(Bytes::mib(64)));
        // A group that holds very little gets the limit that was requested.
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
    fn a_kernel_without_local_events_counts_the_groups_below_as_well() {
        let (root, memory) = group();
        fs::remove_file(root.path().join("memory.events.local")).unwrap();
        assert_eq!(memory.ooms().unwrap(), Ooms { kills: 1, calls: 1 });
    }

    #[test]
    fn a_kill_of_a_whole_group_of_three_counts_three_kills() {
        let (root, memory) = group();
        let events = EVENTS.replace("oom_kill 2", "oom_kill 4");
        fs::write(root.path().join("memory.events"), &events).unwrap();
        assert_eq!(memory.ooms().unwrap().kills, 3);
        let before_5_17 = events.replace("oom_group_kill 1\n", "");
        fs::write(root.path().join("memory.events"), before_5_17).unwrap();
        assert_eq!(memory.ooms().unwrap().kills, 4);
    }

    #[test]
    fn a_threshold_is_removed_as_soon_as_it_is_crossed() {
        let (root, mut memory) = group();
        let now = || fs::read_to_string(root.path().join("memory.high")).unwrap();
        memory.set_threshold(Bytes::mib(20)).unwrap();
        assert_eq!(now(), "62914560");
        assert!(memory.threshold_fd().is_some());

        let others = EVENTS.replace("max 3", "max 4");
        fs::write(root.path().join("memory.events"), others).unwrap();
        assert!(!memory.take_threshold());
        assert_eq!(now(), "62914560");

        let passed = EVENTS.replace("high 7", "high 8");
        fs::write(root.path().join("memory.events"), passed).unwrap();
        assert!(memory.take_threshold());
        assert_eq!(now(), "max");
        assert!(!memory.take_threshold());
        assert!(memory.threshold_fd().is_none());
    }
}
