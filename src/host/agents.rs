//! Which process of a worker can be asked, and the signals that ask it.
//!
//! The agent in a process catches two real-time signals. A process that does not catch them would
//! die of them, so each is sent only after a look at `SigCgt` (proc_pid_status(5)).

use std::{collections::BTreeMap, io, os::unix::ffi::OsStrExt as _, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Host, absent::Absence, hear::Source, pidfd::PidFd, procfs::Proc};
use crate::units::{Bytes, Signal, Timestamp, WorkerId};

/// glibc keeps the first two real-time signals for its threads (nptl(7)): its SIGRTMIN is 34.
const SIGRTMIN: i32 = 34;
/// Asks the agent to read its question.
pub const QUESTION: Signal = Signal(SIGRTMIN + 5);
/// Makes `faulthandler` write the main stack, in C, whatever the interpreter does.
pub const STACKS: Signal = Signal(SIGRTMIN + 6);

impl Host {
    /// A Python interpreter runs in a worker: the agent should be there.
    pub fn runs_python(&mut self, now: Timestamp, worker: WorkerId) -> bool {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return false;
        };
        let pids = tracked.pids(&self.proc, now).to_vec();
        pids.into_iter()
            .any(|pid| Absence::of(&self.proc, pid).is_python())
    }

    /// The process of a worker that has the agent; of several the one with the most memory. If
    /// there is none, why.
    pub fn agent_process(&mut self, now: Timestamp, worker: WorkerId) -> Result<i32, String> {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return Err(format!("{worker} has ended"));
        };
        let pids = tracked.pids(&self.proc, now).to_vec();
        let fattest = |pids: &[i32]| {
            pids.iter()
                .copied()
                .max_by_key(|pid| resident(&self.proc, *pid))
        };
        let able: Vec<i32> = pids
            .iter()
            .copied()
            .filter(|pid| catches(&self.proc, *pid))
            .collect();
        if let Some(pid) = fattest(&able) {
            // What was asked before goes on with the same process, unless another one is clearly
            // the one that grows.
            let before = tracked.asked.filter(|before| able.contains(before));
            let far = |one| resident(&self.proc, one).scaled(1.5) < resident(&self.proc, pid);
            let pid = before.filter(|before| !far(*before)).unwrap_or(pid);
            tracked.asked = Some(pid);
            return Ok(pid);
        }
        let Some(pid) = fattest(&pids) else {
            return Err(format!("{worker} has ended"));
        };
        Err(Absence::of(&self.proc, pid).why())
    }

    /// Sends one of the two signals to a process of a worker, if it still is one and catches it.
    pub fn signal_agent(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        pid: i32,
        signal: Signal,
    ) -> io::Result<()> {
        // RACE: between the choice of a process and this signal it may have ended and its number
        // may be another's. Held by descriptor first, looked at after, it can only be the one that
        // was looked at.
        let process = PidFd::open(pid)?;
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        };
        let its = tracked.pids(&self.proc, now).contains(&pid);
        if !its || !catches(&self.proc, pid) {
            return Err(io::Error::other("it does not catch the agent's signals"));
        }
        process.signal(signal)
    }

    /// A process has the file of stacks open: what it would write goes there and nowhere else.
    pub fn has_open(&self, pid: i32, inode: u64) -> bool {
        let open = self.proc.files(pid, "stacks");
        open.is_ok_and(|open| open.iter().any(|(_, own)| *own == inode))
    }

    /// Hears of what is renamed into a directory from now on: answers of agents.
    pub fn listen_at(&mut self, directory: &Path) -> io::Result<()> {
        let post = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        post.add_watch(directory, AddWatchFlags::IN_MOVED_TO)?;
        self.watch(&post, Source::Post)?;
        self.post = Some(post);
        Ok(())
    }

    pub(super) fn on_post(&mut self) {
        let Some(post) = &self.post else { return };
        // Whose answers they are is seen by their files.
        while post.read_events().is_ok_and(|events| !events.is_empty()) {
            self.has_post = true;
        }
    }

    /// Answers have come since this was asked last.
    pub const fn take_post(&mut self) -> bool {
        std::mem::replace(&mut self.has_post, false)
    }

    /// Whose each process is.
    pub fn owners(&mut self, now: Timestamp) -> BTreeMap<i32, WorkerId> {
        let mut owners = BTreeMap::new();
        for (&worker, tracked) in &mut self.workers {
            let pids = tracked.pids(&self.proc, now);
            owners.extend(pids.iter().map(|pid| (*pid, worker)));
        }
        owners
    }

    /// What a worker's main process looks like from outside, in lines for people; empty when it is
    /// gone.
    pub fn outside(&self, worker: WorkerId) -> Vec<(String, Bytes)> {
        let Some(tracked) = self.workers.get(&worker) else {
            return Vec::new();
        };
        let pid = tracked.process.pid();
        let maps = self.proc.text(&format!("{pid}/smaps"));
        maps.map(|maps| mappings(&maps)).unwrap_or_default()
    }
}

fn resident(proc: &Proc, pid: i32) -> Bytes {
    let seen = proc.statm(pid).and_then(|statm| statm.read());
    seen.map(|seen| seen.resident).unwrap_or(Bytes::ZERO)
}

fn catches(proc: &Proc, pid: i32) -> bool {
    let status = proc.text(&format!("{pid}/status"));
    status.is_ok_and(|status| catches_both(&status))
}

/// Both bits of `SigCgt`: a program that uses one of the two for something of its own is no agent.
fn catches_both(status: &str) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = |signal: Signal| 1u64 << (signal.0 - 1);
    let both = bit(QUESTION) | bit(STACKS);
    caught.is_some_and(|caught| caught & both == both)
}

/// Private memory by kind of mapping (proc_pid_smaps(5)), the largest first.
fn mappings(smaps: &str) -> Vec<(String, Bytes)> {
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let mut kind = String::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(field) = first.strip_suffix(':') {
            if matches!(field, "Private_Dirty" | "Private_Clean" | "Swap") {
                let kib: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                *kinds.entry(kind.clone()).or_default() += kib * 1024;
            }
        } else {
            // RANGE PERMISSIONS OFFSET DEVICE INODE [NAME]
            kind = kind_of(words.nth(4).unwrap_or_default());
        }
    }
    let mut sizes: Vec<_> = kinds.into_iter().map(|(k, n)| (k, Bytes(n))).collect();
    sizes.retain(|(_, bytes)| *bytes > Bytes::ZERO);
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sizes
}

fn kind_of(name: &str) -> String {
    match name {
        "" => "anonymous mappings".to_owned(),
        "[heap]" => "the C heap".to_owned(),
        "[stack]" => "the main stack".to_owned(),
        special if special.starts_with('[') => special.to_owned(),
        file => {
            let file = std::ffi::OsStr::from_bytes(file.as_bytes());
            let name = Path::new(file).file_name().unwrap_or(file);
            format!("file {}", name.to_string_lossy())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_catches_both_signals_is_asked() {
        let status = |mask: &str| format!("Name:\tpython\nSigCgt:\t{mask}\nCapInh:\t0\n");
        assert!(catches_both(&status("000000c180000000")));
        assert!(!catches_both(&status("0000004000000000")));
        assert!(!catches_both(&status("0000000000000000")));
        assert!(!catches_both("Name:\tpython\n"));
    }

    #[test]
    fn private_memory_is_summed_by_kind() {
        let smaps = "\
55d0c8e00000-55d0c9000000 rw-p 00000000 00:00 0                          [heap]
Size:               2048 kB
Private_Clean:         0 kB
Private_Dirty:      1000 kB
Swap:                 24 kB
7f1c00000000-7f1c00400000 rw-p 00000000 00:00 0
Private_Dirty:      4096 kB
7f1c10000000-7f1c10400000 r--p 00000000 08:01 77    /usr/lib/libc.so.6
Private_Clean:         8 kB
";
        let expected = [
            ("anonymous mappings", 4096),
            ("the C heap", 1024),
            ("file libc.so.6", 8),
        ];
        let expected = expected.map(|(kind, kib)| (kind.to_owned(), Bytes(kib * 1024)));
        assert_eq!(mappings(smaps), expected);
    }
}
