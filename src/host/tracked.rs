//! One worker as the kernel sees it: its process, its group, its figures.

use std::{io, time::Duration};

use super::{
    cgroup::Group,
    kills::Kill,
    pidfd::PidFd,
    proc_memory::Resident,
    procfs::{Proc, ProcError},
};
use crate::{
    supervisor::{
        action::Priority,
        event::{Exact, Sample},
        spec::Measure,
    },
    units::{Bytes, Signal, Timestamp},
};

/// Without a group, helpers are looked for as often.
const HELPERS: Duration = Duration::from_millis(250);
/// Change of the shared pages after which files and shared memory are read apart again.
const SHARED_STEP: Bytes = Bytes::mib(1);
/// Change of a slot's shared memory after which it is read exactly again.
const UNNAMED_STEP: Bytes = Bytes::mib(8);
/// Maximum error of that reading.
pub(super) const UNNAMED_WITHIN: Bytes = Bytes::mib(1);
/// Such readings take at most one part in this many of the time.
const LOOKS_SHARE: u32 = 50;
/// Growth of a slot's shared memory, as a factor, after which it is read again without a pause.
const GROWN: f64 = 1.25;
/// A thread that is born while priorities are set back inherits the old one: look again.
const PASSES: u32 = 3;

/// A worker.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) process: PidFd,
    pub(super) group: Group,
    /// The keeper tells of its end, with its figures; otherwise its descriptor does.
    pub(super) is_command: bool,
    /// The OOM killer was called for its group, and its victim is not known yet.
    pub(super) kill: Option<Kill>,
    /// Its process that agents' questions go to.
    pub(super) asked: Option<i32>,
    /// Of its shared memory.
    pub(super) unnamed: Unnamed,
    pids: Vec<i32>,
    figures: Vec<Cheap>,
    refreshed: Option<Timestamp>,
}

impl Tracked {
    pub(super) const fn new(process: PidFd, group: Group, is_command: bool) -> Self {
        Self {
            process,
            group,
            is_command,
            kill: None,
            asked: None,
            unnamed: Unnamed::new(),
            pids: Vec::new(),
            figures: Vec::new(),
            refreshed: None,
        }
    }

    /// All its processes, helpers included.
    pub(super) fn pids(&mut self, proc: &Proc, now: Timestamp) -> &[i32] {
        if self.group.holds_processes() {
            self.pids.clear();
            // A group that has ended holds nobody.
            let _ = self.group.pids(&mut self.pids);
            if self.pids.is_empty() {
                self.pids.push(self.process.pid());
            }
        } else if self.refreshed.is_none_or(|at| now.since(at) >= HELPERS) {
            self.refreshed = Some(now);
            self.pids = proc.descendants(self.process.pid());
            self.pids.insert(0, self.process.pid());
        }
        &self.pids
    }

    /// Its processes but the main one, as they were when it was last looked at.
    pub(super) fn children(&self) -> impl Iterator<Item = &i32> {
        let main = self.process.pid();
        self.pids.iter().filter(move |pid| **pid != main)
    }

    /// The cheap figures of all its processes; `None` when they are gone. What its group holds is
    /// read only where it counts.
    pub(super) fn look(&mut self, proc: &Proc, now: Timestamp, measure: Measure) -> Option<Sample> {
        self.pids(proc, now);
        // A child process that is new has no figures yet.
        let pids = &self.pids;
        self.figures.retain(|known| pids.contains(&known.pid));
        for &pid in pids {
            if !self.figures.iter().any(|known| known.pid == pid) {
                self.figures.push(Cheap::new(pid));
            }
        }
        let mut sample = Sample {
            at: now,
            cgroup: self.group.usage(),
            held: match measure {
                Measure::Cgroup => self.group.held(),
                Measure::Private | Measure::Rss | Measure::Pss => None,
            },
            ..Sample::default()
        };
        self.figures.retain_mut(|known| {
            let Ok((seen, shmem)) = known.read(proc) else {
                return false;
            };
            sample.rss = sample.rss.plus(seen.resident);
            sample.anon = sample.anon.plus(seen.resident.minus(seen.shared));
            sample.shmem = sample.shmem.plus(shmem);
            sample.processes += 1;
            true
        });
        // A zombie can still be read, and has nothing.
        (sample.rss > Bytes::ZERO).then_some(sample)
    }

    /// Anonymous pages that its group is charged with, where some of its pages can be charged to
    /// another group: not for a command, which is in its group before its first instruction.
    pub(super) fn charged_anon(&self) -> Option<Bytes> {
        if self.is_command {
            return None;
        }
        self.group.charged().map(|(anon, _)| anon)
    }

    /// SIGKILL for it and all its helpers.
    pub(super) fn kill(&mut self, proc: &Proc, now: Timestamp) -> Result<(), String> {
        if self.group.holds_processes() {
            return self.group.kill().map_err(|error| error.to_string());
        }
        self.refreshed = None;
        let helpers = self.pids(proc, now).to_vec();
        // The worker first, so that it starts no more of them.
        self.process
            .signal(Signal::KILL)
            .or_else(gone_is_fine)
            .map_err(|error| error.to_string())?;
        for pid in helpers {
            // RACE: its number may be another's by now only if it was reaped in between, and
            // orphans of this tree are reaped by the keeper, who tells us after. Held by descriptor
            // and asked again for its parent, the window is closed as far as it can be without a
            // group.
            if let Ok(helper) = PidFd::open(pid) {
                let _ = helper.signal(Signal::KILL);
            }
        }
        Ok(())
    }

    /// Lets it run on what others leave (`SCHED_IDLE`, sched(7)), or as before.
    pub(super) fn prioritize(&mut self, proc: &Proc, now: Timestamp, priority: Priority) {
        for _ in 0..PASSES {
            for pid in self.pids(proc, now).to_vec() {
                for thread in proc.threads(pid) {
                    // A thread that has just ended needs no priority.
                    let _ = set_policy(thread, priority);
                }
            }
        }
    }
}

/// The part of a slot's shared memory that has no name, and so ends with the slot. Only an exact
/// reading finds it.
#[derive(Debug)]
pub(super) struct Unnamed {
    bytes: Bytes,
    /// All its shared memory at that reading.
    of: Bytes,
    asked: Option<Bytes>,
    /// The time before which it is not read again, unless it grows much.
    paused_until: Option<Timestamp>,
}

impl Unnamed {
    const fn new() -> Self {
        Self {
            bytes: Bytes::ZERO,
            of: Bytes::ZERO,
            asked: None,
            paused_until: None,
        }
    }

    /// Whether to ask for an exact reading when all its shared memory is `shmem`. If so, the
    /// request is remembered.
    pub(super) fn wants_reading(&mut self, now: Timestamp, shmem: Bytes) -> bool {
        let is_far = shmem.get().abs_diff(self.of.get()) >= UNNAMED_STEP.get();
        // Memory that a task had only begun to fill at the last reading may soon exceed a limit.
        let is_paused =
            self.paused_until.is_some_and(|until| now < until) && shmem < self.of.scaled(GROWN);
        if !is_far || is_paused || self.asked.is_some() {
            return false;
        }
        self.asked = Some(shmem);
        true
    }

    pub(super) fn on_looked(&mut self, now: Timestamp, seen: Option<Exact>) {
        let Some(shmem) = self.asked.take() else {
            return;
        };
        if let Some(seen) = seen {
            self.bytes = seen.private.minus(seen.anon);
            self.of = shmem;
            self.paused_until = Some(now.later(seen.took * LOOKS_SHARE));
        }
    }

    pub(super) fn part_of(&self, shmem: Bytes) -> Bytes {
        self.bytes.min(shmem)
    }
}

/// The cheap figures of one process, and where they come from.
#[derive(Debug)]
struct Cheap {
    pid: i32,
    /// Resident pages of shared memory, when `shared` was as it is here. They are read again only
    /// when that has changed, because they cost ten times as much as all the others.
    shmem: Bytes,
    shared: Option<Bytes>,
}

impl Cheap {
    const fn new(pid: i32) -> Self {
        Self {
            pid,
            shmem: Bytes::ZERO,
            shared: None,
        }
    }

    /// Its pages, and its resident pages of shared memory.
    ///
    /// `statm` is opened for each look: thousands of workers would hold as many descriptors.
    fn read(&mut self, proc: &Proc) -> Result<(Resident, Bytes), ProcError> {
        let seen = proc.statm(self.pid)?.read()?;
        let is_near = |known: Bytes| known.get().abs_diff(seen.shared.get()) < SHARED_STEP.get();
        if !self.shared.is_some_and(is_near) {
            // Before Linux 4.5 all that is shared might be shared memory.
            self.shmem = proc.shmem(self.pid).unwrap_or(seen.shared);
            self.shared = Some(seen.shared);
        }
        Ok((seen, self.shmem))
    }
}

/// What has ended needs no signal.
pub(super) fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

#[expect(unsafe_code, reason = "sched_setscheduler has no safe form")]
fn set_policy(thread: i32, priority: Priority) -> io::Result<()> {
    let policy = match priority {
        Priority::Low => libc::SCHED_IDLE,
        Priority::Normal => libc::SCHED_OTHER,
    };
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to our own variable.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &raw const none) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_read_again_after_a_pause_or_much_growth() {
        let at = |millis| Timestamp::default().later(Duration::from_millis(millis));
        let mut unnamed = Unnamed::new();
        let mut wants = |millis, mebibytes| {
            let wants = unnamed.wants_reading(at(millis), Bytes::mib(mebibytes));
            if wants {
                let seen = Exact {
                    private: Bytes::mib(mebibytes),
                    took: Duration::from_millis(20),
                    ..Exact::default()
                };
                unnamed.on_looked(at(millis), Some(seen));
            }
            wants
        };
        assert!(wants(0, 40));
        // A reading that took 20 ms is followed by a pause of a second.
        assert!(!wants(500, 48) && !wants(500, 20));
        assert!(wants(500, 100));
        assert!(!wants(1400, 60) && wants(1500, 60));
        // It has not changed much.
        assert!(!wants(9000, 67) && wants(9000, 68));
    }
}
