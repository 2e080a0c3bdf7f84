//! Which process of a worker has the agent, and the signals sent to the agent.
//!
//! The agent in a process catches two real-time signals. They would end a process that does not
//! catch them, so each is sent only after a check of `SigCgt` (proc_pid_status(5)).

use std::{collections::BTreeMap, io, os::unix::ffi::OsStrExt as _, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Workers;
use crate::{
    host::{
        context::Context, diagnosis::agent_diagnosis::AgentDiagnosis, held::HeldId,
        kernel_events::Source, memory::procfs::Proc, process::pidfd::PidFd,
    },
    supervisor::input::Resident,
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// glibc keeps the first two real-time signals for its threads (nptl(7)): its SIGRTMIN is 34.
const SIGRTMIN: i32 = 34;
/// Makes the agent read its question.
pub const QUESTION: Signal = Signal(SIGRTMIN + 5);
/// Makes `faulthandler`, in C, write the stack of the main thread, whatever the interpreter does.
pub const STACKS: Signal = Signal(SIGRTMIN + 6);

/// Access to the agents in the workers.
#[derive(Debug)]
pub struct Agents<'host> {
    workers: &'host mut Workers,
    proc: &'host Proc,
}

impl<'host> Agents<'host> {
    pub(in crate::host) const fn new(workers: &'host mut Workers, proc: &'host Proc) -> Self {
        Self { workers, proc }
    }

    /// Whether a Python interpreter runs in a worker, so that an agent is expected.
    pub fn runs_python(&mut self, now: Timestamp, worker: WorkerId) -> bool {
        let Some(tracked) = self.workers.held.get_mut(&worker.into()) else {
            return false;
        };
        let pids = tracked.pids(self.proc, now).to_vec();
        pids.into_iter()
            .any(|pid| AgentDiagnosis::of(self.proc, pid).is_python())
    }

    /// The process of a worker that has the agent; of several, the one with the most memory.
    /// Without an agent, the reason.
    pub fn process(&mut self, now: Timestamp, worker: WorkerId) -> Result<i32, String> {
        let id = HeldId::from(worker);
        let Some(tracked) = self.workers.held.get_mut(&id) else {
            return Err(match self.workers.files.waiting_process(id) {
                Some(_) => format!("{worker} is not watched: too many files are open"),
                None => format!("{worker} has ended"),
            });
        };
        let pids = tracked.pids(self.proc, now).to_vec();
        let largest = |pids: &[i32]| {
            pids.iter()
                .copied()
                .max_by_key(|pid| resident_memory(self.proc, *pid))
        };
        let able: Vec<i32> = pids
            .iter()
            .copied()
            .filter(|pid| catches(self.proc, *pid))
            .collect();
        if let Some(pid) = largest(&able) {
            // Later requests go to the same process as the first, unless another process has become
            // much larger.
            let before = tracked.agent().filter(|before| able.contains(before));
            let far =
                |one| resident_memory(self.proc, one).scaled(1.5) < resident_memory(self.proc, pid);
            let pid = before.filter(|before| !far(*before)).unwrap_or(pid);
            tracked.set_agent(pid);
            return Ok(pid);
        }
        let Some(pid) = largest(&pids) else {
            return Err(format!("{worker} has ended"));
        };
        Err(AgentDiagnosis::of(self.proc, pid).why())
    }

    /// Sends one of the two signals to a process, if it still belongs to this worker and catches
    /// it.
    pub fn signal(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        pid: i32,
        signal: Signal,
    ) -> io::Result<()> {
        // RACE: since its choice, the process may have ended and its pid may have been reused. It
        // is held by a descriptor before the check, so the signal goes to the process that was
        // checked.
        let process = PidFd::open(pid)?;
        let Some(tracked) = self.workers.held.get_mut(&worker.into()) else {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        };
        let its = tracked.pids(self.proc, now).contains(&pid);
        if !its || !catches(self.proc, pid) {
            return Err(io::Error::other("it does not catch the agent's signals"));
        }
        process.signal(signal)
    }

    /// Whether a process has the stacks file open, so that its stacks are written to that file
    /// only.
    pub fn has_open(&self, pid: i32, inode: u64) -> bool {
        let open = self.proc.files(pid, "stacks");
        open.is_ok_and(|open| open.iter().any(|(_, own)| *own == inode))
    }

    /// The worker of each process.
    pub fn workers_by_pid(&mut self, now: Timestamp) -> BTreeMap<i32, WorkerId> {
        let mut workers = BTreeMap::new();
        for (id, tracked) in &mut self.workers.held {
            let Some(worker) = id.worker() else { continue };
            let pids = tracked.pids(self.proc, now);
            workers.extend(pids.iter().map(|pid| (*pid, worker)));
        }
        workers
    }

    /// The resident memory of each worker. `running` has the worker of each process.
    pub fn resident(&self, running: &BTreeMap<i32, WorkerId>) -> BTreeMap<WorkerId, Resident> {
        let mut all = BTreeMap::new();
        for (&pid, &worker) in running {
            let Ok(seen) = self.proc.statm(pid).and_then(|statm| statm.read()) else {
                continue;
            };
            let sum: &mut Resident = all.entry(worker).or_default();
            sum.anon = sum.anon.plus(seen.resident.minus(seen.shared));
            sum.processes += 1;
        }
        all
    }

    /// The private memory of a worker's main process by kind of mapping, as text for people. Empty
    /// if the process is gone.
    pub fn memory_by_mapping(&self, worker: WorkerId) -> Vec<(String, Bytes)> {
        let Some(tracked) = self.workers.held.get(&worker.into()) else {
            return Vec::new();
        };
        let pid = tracked.process.pid();
        let maps = self.proc.text(&format!("{pid}/smaps"));
        maps.map(|maps| mappings(&maps)).unwrap_or_default()
    }
}

/// The directory that agents write their answers to.
#[derive(Debug, Default)]
pub(in crate::host) struct AgentAnswers {
    inotify: Option<Inotify>,
    /// Whether answers have come that were not taken yet.
    has_new: bool,
}

impl AgentAnswers {
    /// Watches a directory for files that are renamed into it.
    pub(in crate::host) fn watch(
        &mut self,
        context: &mut Context,
        directory: &Path,
    ) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(directory, AddWatchFlags::IN_MOVED_TO)?;
        context
            .watches_mut()
            .watch(&inotify, Source::AgentAnswers)?;
        self.inotify = Some(inotify);
        Ok(())
    }

    /// inotify reports that an answer was renamed into its place.
    pub(in crate::host) fn on_event(&mut self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        // The events are not evaluated: the names of the files show which worker has answered.
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {
            self.has_new = true;
        }
    }

    /// Whether answers have come since the last call.
    pub(in crate::host) const fn take(&mut self) -> bool {
        std::mem::replace(&mut self.has_new, false)
    }
}

fn resident_memory(proc: &Proc, pid: i32) -> Bytes {
    let seen = proc.statm(pid).and_then(|statm| statm.read());
    seen.map(|seen| seen.resident).unwrap_or(Bytes::ZERO)
}

/// Whether a process catches both signals: a program that catches one of the two for its own use
/// has no agent.
fn catches(proc: &Proc, pid: i32) -> bool {
    proc.catches(pid, &[QUESTION, STACKS])
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
            kind = mapping_kind(words.nth(4).unwrap_or_default());
        }
    }
    let mut sizes: Vec<_> = kinds.into_iter().map(|(k, n)| (k, Bytes(n))).collect();
    sizes.retain(|(_, bytes)| *bytes > Bytes::ZERO);
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sizes
}

/// The kind of a mapping with this name, as text for people.
fn mapping_kind(name: &str) -> String {
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
    fn only_a_process_that_catches_both_signals_has_an_agent() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("7")).unwrap();
        let proc = Proc::at(root.path());
        let has_agent = |mask: &str| {
            let status = format!("Name:\tpython\nSigCgt:\t{mask}\nCapInh:\t0\n");
            std::fs::write(root.path().join("7/status"), status).unwrap();
            catches(&proc, 7)
        };
        assert!(has_agent("000000c180000000"));
        assert!(!has_agent("0000004000000000"));
        assert!(!has_agent("0000000000000000"));
        assert!(!catches(&proc, 8));
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
