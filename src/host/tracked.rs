//! One worker as the kernel sees it: its process, its group, its figures.

use std::{io, time::Duration};

use super::{cgroup::Group, pidfd::PidFd, proc_memory::Statm, procfs::Proc};
use crate::{
    supervisor::{action::Priority, event::Sample},
    units::{Bytes, Signal, Timestamp},
};

/// Without a group, helpers are looked for as often.
const HELPERS: Duration = Duration::from_millis(250);
/// A thread that is born while priorities are set back inherits the old one: look again.
const PASSES: u32 = 3;

/// A worker.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) process: PidFd,
    pub(super) group: Group,
    /// The keeper tells of its end, with its figures; otherwise its descriptor does.
    pub(super) is_command: bool,
    /// The OOM killer was about in its group since then; nobody has asked yet whom it ended.
    pub(super) oom_since: Option<Timestamp>,
    /// Its process that agents' questions go to.
    pub(super) asked: Option<i32>,
    pids: Vec<i32>,
    statms: Vec<(i32, Statm)>,
    refreshed: Option<Timestamp>,
}

impl Tracked {
    pub(super) const fn new(process: PidFd, group: Group, is_command: bool) -> Self {
        Self {
            process,
            group,
            is_command,
            oom_since: None,
            asked: None,
            pids: Vec::new(),
            statms: Vec::new(),
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

    /// The cheap figures of all its processes; `None` when they are gone.
    pub(super) fn look(&mut self, proc: &Proc, now: Timestamp) -> Option<Sample> {
        self.pids(proc, now);
        let pids = &self.pids;
        self.statms.retain(|(pid, _)| pids.contains(pid));
        for &pid in pids {
            if !self.statms.iter().any(|(known, _)| *known == pid)
                && let Ok(statm) = proc.statm(pid)
            {
                self.statms.push((pid, statm));
            }
        }
        let mut sample = Sample {
            at: now,
            cgroup: self.group.usage(),
            ..Sample::default()
        };
        self.statms.retain(|(_, statm)| {
            let Ok(seen) = statm.read() else { return false };
            sample.rss = sample.rss.plus(seen.resident);
            sample.anon = sample.anon.plus(seen.resident.minus(seen.shared));
            sample.processes += 1;
            true
        });
        // A zombie can still be read, and has nothing.
        (sample.rss > Bytes::ZERO).then_some(sample)
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
