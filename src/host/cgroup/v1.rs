//! A group's memory in the words of version 1 (`cgroup-v1/memory.rst`).

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

use super::{CgroupError, Memory, Ooms, SLACK, TRIES, files};
use crate::units::Bytes;

/// The memory of one group.
#[derive(Debug)]
pub(super) struct V1 {
    dir: PathBuf,
    usage: PathBuf,
    /// The eventfd of a threshold above the charge. The kernel signals a crossing in either
    /// direction, so it is closed with the first.
    wire: Option<EventFd>,
    /// `None` where the kernel has no `cgroup.event_control` (PREEMPT_RT).
    calls: Option<Calls>,
}

impl V1 {
    pub(super) fn open(dir: PathBuf) -> Result<Self, CgroupError> {
        let usage = dir.join("memory.usage_in_bytes");
        // Fails early if there is no such group.
        files::number(&usage)?;
        Ok(Self {
            usage,
            wire: None,
            calls: Calls::watch(&dir).ok(),
            dir,
        })
    }

    /// Without an eventfd: the limit was hit, and the charge was once as high as it. That it was
    /// this limit which called the OOM killer is then likely and not certain.
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
        // What the kernel itself holds for the group is not in `memory.stat` of version 1.
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

    fn arm(&mut self, room: Bytes) -> Result<(), CgroupError> {
        // A threshold cannot be moved: the old eventfd is closed, which removes it.
        self.wire = None;
        let threshold = self.usage()?.plus(room);
        let wire = watch(
            &self.dir,
            "memory.usage_in_bytes",
            &threshold.get().to_string(),
        )?;
        // The growth that loses the race: it crosses between the look at the charge and the
        // registration, which then counts as crossed before and is never signalled.
        if self.usage()? >= threshold {
            let _ = wire.write(1);
        }
        self.wire = Some(wire);
        Ok(())
    }

    fn interest(&self) -> EpollFlags {
        EpollFlags::EPOLLIN
    }

    fn wire_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(AsFd::as_fd)
    }

    fn take_wire(&mut self) -> bool {
        let is_signalled = self.wire.as_ref().is_some_and(|wire| wire.read().is_ok());
        if !is_signalled {
            return false;
        }
        self.wire = None;
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

/// Counts how often the OOM killer was called because of a group's limit or one above it: the
/// kernel signals the whole tree below the limit before it kills (`mem_cgroup_oom_notify`). A
/// full machine signals nobody.
#[derive(Debug)]
pub(super) struct Calls {
    eventfd: EventFd,
    /// What was read from it so far.
    seen: Cell<u64>,
}

impl Calls {
    pub(super) fn watch(dir: &Path) -> Result<Self, CgroupError> {
        Ok(Self {
            eventfd: watch(dir, "memory.oom_control", "")?,
            seen: Cell::new(0),
        })
    }

    pub(super) fn count(&self) -> u64 {
        // Empty is an error of its own (EAGAIN).
        let new = self.eventfd.read().unwrap_or(0);
        self.seen.set(self.seen.get().saturating_add(new));
        self.seen.get()
    }
}

/// As [`set_limits`], but not lower than what the group holds: the kernel gives page cache back for
/// a lower limit, and refuses it (EBUSY) if that is not enough. Says which limit is in force.
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
        // RACE: it grows while its limit is lowered; what it holds is then read once more.
        let used = files::number(&dir.join("memory.usage_in_bytes"))?;
        let both = files::number(&dir.join("memory.memsw.usage_in_bytes")).unwrap_or(used);
        limit = limit.max(Some(Bytes(used.max(both)).plus(SLACK)));
    }
    // It outgrows every try. The limit from before, if there is one, is in force.
    match files::limit(&dir.join("memory.limit_in_bytes"))? {
        Some(before) => Ok(Some(before)),
        None => set_limits(dir, cap, swap).map(|()| cap),
    }
}

/// Sets a limit on memory, and on memory and swap together.
///
/// The second is never below the first, so what is raised is raised from the top and what is
/// lowered from the bottom.
pub(super) fn set_limits(
    dir: &Path,
    cap: Option<Bytes>,
    swap: Option<Bytes>,
) -> Result<(), CgroupError> {
    let memory = dir.join("memory.limit_in_bytes");
    let both = dir.join("memory.memsw.limit_in_bytes");
    let cap_text = text(cap);
    // Only there where swap is counted (`swapaccount=1`).
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
        files::write(&both, &text(together))?;
        files::write(&memory, &cap_text)
    } else {
        files::write(&memory, &cap_text)?;
        files::write(&both, &text(together))
    }
}

/// Charges of groups below count here as well. The only way since Linux 5.11; before it, a choice.
pub(super) fn make_hierarchical(dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("memory.use_hierarchy");
    if path.exists() && files::number(&path)? == 0 {
        files::write(&path, "1")?;
    }
    Ok(())
}

fn text(limit: Option<Bytes>) -> String {
    limit.map_or_else(|| "-1".to_owned(), |limit| limit.get().to_string())
}

/// Registers an eventfd for a file of a group (`cgroup-v1/memory.rst`, "Memory thresholds").
fn watch(dir: &Path, file: &str, argument: &str) -> Result<EventFd, CgroupError> {
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
            // The kernel says "none" in its own way.
            if both == "-1" {
                let path = root.path().join("memory.memsw.limit_in_bytes");
                fs::write(path, "9223372036854771712\n").unwrap();
            }
        }
    }

    #[test]
    fn a_kernel_that_does_not_count_swap_holds_the_memory_alone() {
        let root = group(&[("memory.limit_in_bytes", "9223372036854771712\n")]);
        set_limits(root.path(), Some(Bytes::mib(1)), Some(Bytes::ZERO)).unwrap();
        let text = fs::read_to_string(root.path().join("memory.limit_in_bytes")).unwrap();
        assert_eq!(text, "1048576");
    }

    #[test]
    fn without_events_a_call_is_a_charge_as_high_as_the_limit() {
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
    fn hierarchy_is_switched_on_where_it_is_a_choice() {
        let root = group(&[("memory.use_hierarchy", "0\n")]);
        make_hierarchical(root.path()).unwrap();
        let text = fs::read_to_string(root.path().join("memory.use_hierarchy")).unwrap();
        assert_eq!(text, "1");
    }
}
