//! One worker as the kernel shows it: its process, its group, its memory.

use std::{io, time::Duration};

use super::kills::Kill;
use crate::{
    host::{
        cgroup::Group,
        memory::{
            proc_memory::Resident,
            procfs::{Proc, ProcError},
        },
        process::pidfd::PidFd,
    },
    supervisor::{
        action::Priority,
        input::{Exact, Sample},
        spec::Measure,
    },
    units::{Bytes, Signal, Timestamp},
};

/// Interval of the search for child processes, if the worker has no group.
const CHILDREN_INTERVAL: Duration = Duration::from_millis(250);
/// Change of the shared pages after which shared memory is read again, apart from mapped files.
const SHARED_STEP: Bytes = Bytes::mib(1);
/// Change of a slot's shared memory after which it is read exactly again.
const UNNAMED_STEP: Bytes = Bytes::mib(8);
/// Maximum error of an exact reading of shared memory.
pub(super) const UNNAMED_WITHIN: Bytes = Bytes::mib(1);
/// After an exact reading of shared memory, the pause is this many times as long as the reading
/// took.
const PAUSE_PER_READING: u32 = 50;
/// Growth of a slot's shared memory, as a factor, after which it is read again without a pause.
const GROWTH_WITHOUT_PAUSE: f64 = 1.25;
/// Passes over all threads. A thread that is created during a pass may inherit the old priority.
const PASSES: u32 = 3;

/// A worker that we hold.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) process: PidFd,
    pub(super) group: Group,
    /// The keeper reports its end, with its memory; otherwise its descriptor does.
    pub(super) is_command: bool,
    /// The OOM killer was called for its group, and the victim is not known yet.
    oom_kill: Option<Kill>,
    /// The process that the last request to its agent went to.
    agent: Option<i32>,
    unnamed: Unnamed,
    /// All its processes, as of the last call of [`Tracked::pids`].
    pids: Vec<i32>,
    /// The page counts of each of its processes.
    page_counts: Vec<PageCounts>,
    /// Without a group: when its child processes were last searched for.
    searched_at: Option<Timestamp>,
}

impl Tracked {
    pub(super) const fn new(process: PidFd, group: Group, is_command: bool) -> Self {
        Self {
            process,
            group,
            is_command,
            oom_kill: None,
            agent: None,
            unnamed: Unnamed::new(),
            pids: Vec::new(),
            page_counts: Vec::new(),
            searched_at: None,
        }
    }

    /// The OOM killer was called for its group.
    pub(super) fn note_oom(&mut self, kill: Kill) {
        self.oom_kill.get_or_insert(kill);
    }

    /// The call of the OOM killer whose victim is not known yet.
    pub(super) const fn oom_kill(&self) -> Option<Kill> {
        self.oom_kill
    }

    /// Replaces that call: `None` when its victim is known.
    pub(super) const fn set_oom_kill(&mut self, kill: Option<Kill>) {
        self.oom_kill = kill;
    }

    /// The process that the last request to its agent went to.
    pub(super) const fn agent(&self) -> Option<i32> {
        self.agent
    }

    pub(super) const fn set_agent(&mut self, pid: i32) {
        self.agent = Some(pid);
    }

    /// Takes the result of an exact reading of its memory. `None`: its processes were gone.
    pub(super) fn on_reading(&mut self, now: Timestamp, seen: Option<Exact>) {
        self.unnamed.on_reading(now, seen);
    }

    /// The unnamed part of its shared memory, which is `shmem` in total, and whether to request an
    /// exact reading.
    pub(super) fn unnamed_shmem(&mut self, now: Timestamp, shmem: Bytes) -> (Bytes, bool) {
        let wants_reading = self.unnamed.wants_reading(now, shmem);
        (self.unnamed.part_of(shmem), wants_reading)
    }

    /// All its processes, including child processes.
    pub(super) fn pids(&mut self, proc: &Proc, now: Timestamp) -> &[i32] {
        if self.group.holds_processes() {
            self.pids.clear();
            // This fails if the group was removed.
            let _ = self.group.pids(&mut self.pids);
            if self.pids.is_empty() {
                self.pids.push(self.process.pid());
            }
        } else if self
            .searched_at
            .is_none_or(|at| now.since(at) >= CHILDREN_INTERVAL)
        {
            self.searched_at = Some(now);
            self.pids = proc.descendants(self.process.pid());
            self.pids.insert(0, self.process.pid());
        }
        &self.pids
    }

    /// Its processes except the main one, as of the last call of [`Tracked::pids`].
    pub(super) fn children(&self) -> impl Iterator<Item = &i32> {
        let main = self.process.pid();
        self.pids.iter().filter(move |pid| **pid != main)
    }

    /// A cheap sample of all its processes; `None` if they are gone. `held` is read only if the
    /// measure needs it.
    pub(super) fn sample(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        measure: Measure,
    ) -> Option<Sample> {
        self.pids(proc, now);
        // A new child process has no page counts yet.
        let pids = &self.pids;
        self.page_counts.retain(|known| pids.contains(&known.pid));
        for &pid in pids {
            if !self.page_counts.iter().any(|known| known.pid == pid) {
                self.page_counts.push(PageCounts::new(pid));
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
        self.page_counts.retain_mut(|known| {
            let Ok((seen, shmem)) = known.read(proc) else {
                return false;
            };
            sample.rss = sample.rss.plus(seen.resident);
            sample.anon = sample.anon.plus(seen.resident.minus(seen.shared));
            sample.shmem = sample.shmem.plus(shmem);
            sample.processes += 1;
            true
        });
        // A zombie can still be read, and has no memory.
        (sample.rss > Bytes::ZERO).then_some(sample)
    }

    /// The anonymous pages charged to its group, if some of its pages can be charged to another
    /// group. A command is in its group from its first instruction, so all its pages are charged
    /// there.
    pub(super) fn charged_anon(&self) -> Option<Bytes> {
        if self.is_command {
            return None;
        }
        self.group.charged().map(|(anon, _)| anon)
    }

    /// Sends SIGKILL to all its processes.
    pub(super) fn kill(&mut self, proc: &Proc, now: Timestamp) -> Result<(), String> {
        if self.group.holds_processes() {
            return self.group.kill().map_err(|error| error.to_string());
        }
        self.searched_at = None;
        let helpers = self.pids(proc, now).to_vec();
        // The worker first, so that it starts no more child processes.
        self.process
            .signal(Signal::KILL)
            .or_else(gone_is_fine)
            .map_err(|error| error.to_string())?;
        for pid in helpers {
            // RACE: the pid of a child process may belong to another process by now, but only if
            // the child was reaped in between. The keeper reaps the orphans of this tree, and
            // reports them afterwards. Without a group, a descriptor makes this window as small as
            // it can be.
            if let Ok(helper) = PidFd::open(pid) {
                let _ = helper.signal(Signal::KILL);
            }
        }
        Ok(())
    }

    /// Gives it idle priority (`SCHED_IDLE`, sched(7)), or its normal priority.
    pub(super) fn prioritize(&mut self, proc: &Proc, now: Timestamp, priority: Priority) {
        for _ in 0..PASSES {
            for pid in self.pids(proc, now).to_vec() {
                for thread in proc.threads(pid) {
                    // This fails for a thread that has just ended.
                    let _ = set_policy(thread, priority);
                }
            }
        }
    }
}

/// The part of a slot's shared memory that has no name, and so is freed when the slot ends. Only an
/// exact reading finds it.
#[derive(Debug)]
struct Unnamed {
    bytes: Bytes,
    /// The total shared memory when that reading was requested.
    total: Bytes,
    /// The total shared memory when a reading was requested whose result has not come yet.
    requested_at: Option<Bytes>,
    /// Until this time, it is read again only if it grows much.
    paused_until: Option<Timestamp>,
}

impl Unnamed {
    const fn new() -> Self {
        Self {
            bytes: Bytes::ZERO,
            total: Bytes::ZERO,
            requested_at: None,
            paused_until: None,
        }
    }

    /// Whether to request an exact reading, with `shmem` as the total shared memory. If so, the
    /// request is remembered.
    fn wants_reading(&mut self, now: Timestamp, shmem: Bytes) -> bool {
        let is_far = shmem.get().abs_diff(self.total.get()) >= UNNAMED_STEP.get();
        // Memory that a task had only begun to fill at the last reading may soon exceed a limit.
        let is_paused = self.paused_until.is_some_and(|until| now < until)
            && shmem < self.total.scaled(GROWTH_WITHOUT_PAUSE);
        if !is_far || is_paused || self.requested_at.is_some() {
            return false;
        }
        self.requested_at = Some(shmem);
        true
    }

    /// Takes the result of the requested reading. `None`: its processes were gone, and there is no
    /// pause.
    fn on_reading(&mut self, now: Timestamp, seen: Option<Exact>) {
        let Some(shmem) = self.requested_at.take() else {
            return;
        };
        if let Some(seen) = seen {
            self.bytes = seen.private.minus(seen.anon);
            self.total = shmem;
            self.paused_until = Some(now.later(seen.took * PAUSE_PER_READING));
        }
    }

    fn part_of(&self, shmem: Bytes) -> Bytes {
        self.bytes.min(shmem)
    }
}

/// The page counts of one process, which are cheap to read.
#[derive(Debug)]
struct PageCounts {
    pid: i32,
    /// Resident pages of shared memory, as of the last reading. They are read again only when the
    /// shared pages have changed, because this costs ten times as much as the rest.
    shmem: Bytes,
    /// The shared pages at that reading, including files. `None`: there was none yet.
    shared: Option<Bytes>,
}

impl PageCounts {
    const fn new(pid: i32) -> Self {
        Self {
            pid,
            shmem: Bytes::ZERO,
            shared: None,
        }
    }

    /// Its resident pages, and its resident pages of shared memory.
    ///
    /// `statm` is opened for each reading. Kept open, it would take a descriptor for each of
    /// thousands of workers.
    fn read(&mut self, proc: &Proc) -> Result<(Resident, Bytes), ProcError> {
        let seen = proc.statm(self.pid)?.read()?;
        let is_near = |known: Bytes| known.get().abs_diff(seen.shared.get()) < SHARED_STEP.get();
        if !self.shared.is_some_and(is_near) {
            // Before Linux 4.5, all shared pages count as shared memory.
            self.shmem = proc.shmem(self.pid).unwrap_or(seen.shared);
            self.shared = Some(seen.shared);
        }
        Ok((seen, self.shmem))
    }
}

/// A process that has ended needs no signal.
pub(in crate::host) fn gone_is_fine(error: io::Error) -> io::Result<()> {
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
    fn shared_memory_is_read_again_after_a_pause_or_after_much_growth() {
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
                unnamed.on_reading(at(millis), Some(seen));
            }
            wants
        };
        assert!(wants(0, 40));
        // A reading that took 20 ms is followed by a pause of a second.
        assert!(!wants(500, 48) && !wants(500, 20));
        assert!(wants(500, 100));
        assert!(!wants(1400, 60) && wants(1500, 60));
        // It has not changed by enough.
        assert!(!wants(9000, 67) && wants(9000, 68));
    }
}
