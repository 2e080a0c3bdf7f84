//! Version 1 of control groups (`cgroup-v1/memory.rst`).

use std::{
    cell::Cell,
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::EpollFlags,
        eventfd::{EfdFlags, EventFd},
    },
};

use super::{
    CgroupError, Charge, Place,
    backend::{Backend, Base, Calls, Memory, Ooms, SLACK, TRIES},
    charge::charge_of,
    files,
    oom::Counts,
};
use crate::{
    supervisor::input::{CapMechanism, Contents},
    units::Bytes,
};

/// Version 1, with a separate hierarchy for the memory controller.
pub(super) struct Version1;

impl Backend for Version1 {
    fn name(&self) -> &'static str {
        "cgroup v1"
    }

    fn mechanism(&self) -> CapMechanism {
        CapMechanism::CgroupV1
    }

    fn limit_files(&self) -> [&'static str; 2] {
        ["cgroup v1, memory.limit_in_bytes", "cgroup v1, a threshold"]
    }

    fn is_mounted(&self, kind: &str, options: &str) -> bool {
        kind == "cgroup" && self.is_listed(options)
    }

    fn is_listed(&self, controllers: &str) -> bool {
        controllers.split(',').any(|name| name == "memory")
    }

    fn has_memory(&self, _: &Place) -> bool {
        true
    }

    fn is_unified(&self) -> bool {
        false
    }

    fn levels(&self) -> usize {
        1
    }

    fn limits(&self, place: &Place) -> Vec<Bytes> {
        // The smallest limit on the path, including groups above the mounted part.
        let path = place.own.join("memory.stat");
        let smallest = files::entry_of(&path, "hierarchical_memory_limit");
        smallest.into_iter().map(Bytes).collect()
    }

    fn charge(&self, dir: &Path) -> Option<Charge> {
        let [limit, usage] = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
        charge_of(dir, [limit, usage, "total_inactive_file"])
    }

    fn kills(&self, dir: &Path) -> Option<u64> {
        files::entry_of(&dir.join("memory.oom_control"), "oom_kill").ok()
    }

    fn make_base(&self, place: &Place, _: i32) -> Result<Base, CgroupError> {
        Ok(Base {
            dir: place.own.clone(),
            divided: None,
        })
    }

    fn prepare(&self, dir: &Path) -> Result<(), CgroupError> {
        make_hierarchical(dir)
    }

    fn set_budget(&self, dir: &Path, budget: Option<Bytes>) -> Result<(), CgroupError> {
        set_limits(dir, budget, None)
    }

    fn held(&self, dir: &Path) -> Option<Bytes> {
        files::sum_of(&dir.join("memory.stat"), ["total_rss", "total_shmem"])
    }

    fn contents(&self, dir: &Path) -> Option<Contents> {
        let text = files::read(&dir.join("memory.stat")).ok()?;
        // Version 1 has this in a separate file.
        let kernel = files::number(&dir.join("memory.kmem.usage_in_bytes"));
        Some(Contents {
            shared: Bytes(files::entry(&text, "total_shmem").unwrap_or(0)),
            kernel: Bytes(kernel.unwrap_or(0)),
            ..Contents::default()
        })
    }

    fn watch_calls(&self, dir: &Path) -> Option<Box<dyn Calls>> {
        let budget = OomCalls::watch(dir).ok()?;
        let above = OomCalls::watch(dir.parent()?).ok()?;
        Some(Box::new(CallsUpward { budget, above }))
    }

    fn nests_calls(&self) -> bool {
        true
    }

    fn open(&self, dir: &Path) -> Result<Box<dyn Memory>, CgroupError> {
        Ok(Box::new(V1::open(dir.to_owned())?))
    }

    fn counts_swap(&self, dir: &Path) -> bool {
        dir.join("memory.memsw.limit_in_bytes").exists()
    }

    fn recover(&self, _: &Path, seen: Counts) -> Counts {
        // RACE: the OOM killer may have been called during the switch. The calls were counted by
        // descriptors that are closed now, so the cause of such an end is `oom` and not `cap`.
        Counts {
            kills: seen.kills,
            ..Counts::default()
        }
    }
}

/// Calls of the OOM killer by our budget and by limits above it.
#[derive(Debug)]
struct CallsUpward {
    budget: OomCalls,
    above: OomCalls,
}

impl Calls for CallsUpward {
    fn counts(&self) -> Result<(u64, u64), CgroupError> {
        Ok((self.budget.count(), self.above.count()))
    }
}

/// The memory of one group.
#[derive(Debug)]
struct V1 {
    dir: PathBuf,
    /// The file of the charge.
    usage: PathBuf,
    /// The eventfd of a threshold above the charge. The kernel signals a crossing in either
    /// direction, so it is closed after the first.
    threshold: Option<EventFd>,
    /// `None` if the kernel has no `cgroup.event_control` (PREEMPT_RT).
    calls: Option<OomCalls>,
}

impl V1 {
    fn open(dir: PathBuf) -> Result<Self, CgroupError> {
        let usage = dir.join("memory.usage_in_bytes");
        // Fails early if there is no such group.
        files::number(&usage)?;
        Ok(Self {
            usage,
            threshold: None,
            calls: OomCalls::watch(&dir).ok(),
            dir,
        })
    }

    /// The calls without an eventfd: how often the limit was hit, if the charge has ever been as
    /// high as the limit. It is likely, but not certain, that this limit called the OOM killer.
    fn calls_by_failcnt(&self) -> Result<u64, CgroupError> {
        let limit = files::limit(&self.dir.join("memory.limit_in_bytes"))?;
        if limit.is_none() || self.peak() < limit {
            return Ok(0);
        }
        files::number(&self.dir.join("memory.failcnt"))
    }
}

impl Memory for V1 {
    fn set_cap(
        &self,
        cap: Option<Bytes>,
        swap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError> {
        if swap == Some(Bytes::ZERO) {
            files::write(&self.dir.join("memory.swappiness"), "0")?;
        }
        set_reachable(&self.dir, cap, swap)
    }

    fn usage(&self) -> Result<Bytes, CgroupError> {
        files::number(&self.usage).map(Bytes)
    }

    fn held(&self) -> Result<Bytes, CgroupError> {
        // `memory.stat` of version 1 does not have the kernel's own memory for the group.
        let (anon, shmem) = self.charged()?;
        Ok(anon.plus(shmem))
    }

    fn charged(&self) -> Result<(Bytes, Bytes), CgroupError> {
        let names = ["total_rss", "total_shmem"];
        files::entries_of(&self.dir.join("memory.stat"), names).map(Into::into)
    }

    fn peak(&self) -> Option<Bytes> {
        let path = self.dir.join("memory.max_usage_in_bytes");
        files::number(&path).ok().map(Bytes)
    }

    fn set_threshold(&mut self, room: Bytes) -> Result<(), CgroupError> {
        // A threshold cannot be moved. Closing the old eventfd removes it.
        self.threshold = None;
        let level = self.usage()?.plus(room);
        let threshold =
            register_eventfd(&self.dir, "memory.usage_in_bytes", &level.get().to_string())?;
        // RACE: growth may cross the level after the charge was read and before the threshold is
        // registered. The kernel treats that as crossed before, and never signals it.
        if self.usage()? >= level {
            let _ = threshold.write(1);
        }
        self.threshold = Some(threshold);
        Ok(())
    }

    fn interest(&self) -> EpollFlags {
        EpollFlags::EPOLLIN
    }

    fn threshold_fd(&self) -> Option<BorrowedFd<'_>> {
        self.threshold.as_ref().map(AsFd::as_fd)
    }

    fn take_threshold(&mut self) -> bool {
        let is_signalled = self
            .threshold
            .as_ref()
            .is_some_and(|threshold| threshold.read().is_ok());
        if !is_signalled {
            return false;
        }
        self.threshold = None;
        // The end of the group signals its eventfds as well.
        self.usage().is_ok()
    }

    fn oom_fd(&self) -> Option<BorrowedFd<'_>> {
        self.calls.as_ref().map(|calls| calls.eventfd.as_fd())
    }

    fn loses_single_processes(&self) -> bool {
        // Version 1 has no counterpart of `memory.oom.group`.
        let limit = files::limit(&self.dir.join("memory.limit_in_bytes"));
        limit.is_ok_and(|limit| limit.is_some())
    }

    fn ooms(&self) -> Result<Ooms, CgroupError> {
        Ok(Ooms {
            kills: files::entry_of(&self.dir.join("memory.oom_control"), "oom_kill")?,
            calls: match &self.calls {
                Some(calls) => calls.count(),
                None => self.calls_by_failcnt()?,
            },
        })
    }
}

/// Counts the calls of the OOM killer by a group's limit or by one above it: the kernel signals the
/// whole tree below the limit before it kills (`mem_cgroup_oom_notify`). It signals no group if the
/// machine itself is out of memory.
#[derive(Debug)]
struct OomCalls {
    eventfd: EventFd,
    /// The sum of all values read so far.
    seen: Cell<u64>,
}

impl OomCalls {
    fn watch(dir: &Path) -> Result<Self, CgroupError> {
        Ok(Self {
            eventfd: register_eventfd(dir, "memory.oom_control", "")?,
            seen: Cell::new(0),
        })
    }

    fn count(&self) -> u64 {
        // An empty eventfd returns EAGAIN.
        let new = self.eventfd.read().unwrap_or(0);
        self.seen.set(self.seen.get().saturating_add(new));
        self.seen.get()
    }
}

/// Like [`set_limits`], but not lower than the memory of the group. For a lower limit, the kernel
/// takes page cache back, and refuses the limit (EBUSY) if that is not enough. Returns the limit in
/// force.
fn set_reachable(
    dir: &Path,
    cap: Option<Bytes>,
    swap: Option<Bytes>,
) -> Result<Option<Bytes>, CgroupError> {
    let mut limit = cap;
    for _ in 0..TRIES {
        match set_limits(dir, limit, swap) {
            Err(error) if error.is_busy() => {}
            result => return result.map(|()| limit),
        }
        // RACE: the group grows while its limit is lowered, so its memory is read again.
        let used = files::number(&dir.join("memory.usage_in_bytes"))?;
        let both = files::number(&dir.join("memory.memsw.usage_in_bytes")).unwrap_or(used);
        limit = limit.max(Some(Bytes(used.max(both)).plus(SLACK)));
    }
    // It has outgrown every attempt. The limit from before, if there is one, is in force.
    match files::limit(&dir.join("memory.limit_in_bytes"))? {
        Some(before) => Ok(Some(before)),
        None => set_limits(dir, cap, swap).map(|()| cap),
    }
}

/// Sets a limit on memory, and a limit on memory and swap together.
///
/// The second must never be below the first, so raising begins with the second and lowering with
/// the first.
fn set_limits(dir: &Path, cap: Option<Bytes>, swap: Option<Bytes>) -> Result<(), CgroupError> {
    let memory = dir.join("memory.limit_in_bytes");
    let both = dir.join("memory.memsw.limit_in_bytes");
    let cap_text = limit_text(cap);
    // Exists only if swap is counted (`swapaccount=1`).
    if !both.exists() {
        return files::write(&memory, &cap_text);
    }
    let together = cap.zip(swap).map(|(cap, swap)| cap.plus(swap));
    let is_raised = match (together, files::limit(&both)?) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wanted), Some(now)) => wanted >= now,
    };
    if is_raised {
        files::write(&both, &limit_text(together))?;
        files::write(&memory, &cap_text)
    } else {
        files::write(&memory, &cap_text)?;
        files::write(&both, &limit_text(together))
    }
}

/// Makes the charges of groups below count here as well. Always so since Linux 5.11; an option
/// before.
fn make_hierarchical(dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("memory.use_hierarchy");
    if path.exists() && files::number(&path)? == 0 {
        files::write(&path, "1")?;
    }
    Ok(())
}

fn limit_text(limit: Option<Bytes>) -> String {
    limit.map_or_else(|| "-1".to_owned(), |limit| limit.get().to_string())
}

/// Registers an eventfd for a file of a group (`cgroup-v1/memory.rst`, "Memory thresholds").
fn register_eventfd(dir: &Path, file: &str, argument: &str) -> Result<EventFd, CgroupError> {
    let path = dir.join(file);
    let watched = File::open(&path).map_err(|error| CgroupError::Read { path, error })?;
    let control = dir.join("cgroup.event_control");
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let eventfd =
        EventFd::from_value_and_flags(0, flags).map_err(|error: Errno| CgroupError::Read {
            path: PathBuf::from("an eventfd"),
            error: error.into(),
        })?;
    let (event, file) = (eventfd.as_fd().as_raw_fd(), watched.as_raw_fd());
    files::write(&control, &format!("{event} {file} {argument}"))?;
    Ok(eventfd)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(root.path().join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn swap_is_limited_together_with_memory() {
        let root = group(&[
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let now = |file| fs::read_to_string(root.path().join(file)).unwrap();
        let set = |cap, swap| set_limits(root.path(), cap, swap).unwrap();
        for (cap, swap, memory, both) in [
            (Some(64), Some(0), "67108864", "67108864"),
            (Some(128), Some(1), "134217728", "135266304"),
            (Some(32), Some(0), "33554432", "33554432"),
            (Some(32), None, "33554432", "-1"),
            (None, Some(0), "-1", "-1"),
        ] {
            set(cap.map(Bytes::mib), swap.map(Bytes::mib));
            assert_eq!(now("memory.limit_in_bytes"), memory);
            assert_eq!(now("memory.memsw.limit_in_bytes"), both);
            // The kernel writes "no limit" in its own way.
            if both == "-1" {
                let path = root.path().join("memory.memsw.limit_in_bytes");
                fs::write(path, "9223372036854771712\n").unwrap();
            }
        }
    }

    #[test]
    fn only_memory_is_limited_if_the_kernel_does_not_count_swap() {
        let root = group(&[("memory.limit_in_bytes", "9223372036854771712\n")]);
        set_limits(root.path(), Some(Bytes::mib(1)), Some(Bytes::ZERO)).unwrap();
        let text = fs::read_to_string(root.path().join("memory.limit_in_bytes")).unwrap();
        assert_eq!(text, "1048576");
    }

    #[test]
    fn without_events_a_peak_at_the_limit_counts_as_a_call() {
        for (peak, calls) in [("67108864\n", 3), ("67000000\n", 0)] {
            let root = group(&[
                ("memory.usage_in_bytes", "0\n"),
                ("memory.limit_in_bytes", "67108864\n"),
                ("memory.max_usage_in_bytes", peak),
                ("memory.failcnt", "3\n"),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
                ),
            ]);
            let memory = V1::open(root.path().to_owned()).unwrap();
            assert_eq!(memory.ooms().unwrap(), Ooms { kills: 1, calls });
        }
    }

    #[test]
    fn hierarchical_charging_is_enabled_where_it_is_optional() {
        let root = group(&[("memory.use_hierarchy", "0\n")]);
        make_hierarchical(root.path()).unwrap();
        let text = fs::read_to_string(root.path().join("memory.use_hierarchy")).unwrap();
        assert_eq!(text, "1");
    }
}
