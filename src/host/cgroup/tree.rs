//! A group as a set of processes: whether it is empty, and how to kill all its processes.
//!
//! This needs no controller: a version 2 hierarchy mounted without any is enough.

use std::path::{Path, PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{CgroupError, files};

/// Maximum rounds of listing and killing the processes of a version 1 group. Normally a list
/// without a new process ends the loop; a program that forks as fast as we kill reaches this limit.
const ROUNDS_MAX: u32 = 256;

/// Sends SIGKILL to all processes in a group and below it.
///
/// `cgroup.kill` (Linux 5.14) is atomic: no fork can escape it. Without it, all listed processes
/// are killed until a list has no new process, because a killed process cannot fork any more. One
/// race remains: a pid may end and be reused after it was listed and before it is killed.
pub(super) fn kill_all(dir: &Path) -> Result<(), CgroupError> {
    let switch = dir.join("cgroup.kill");
    if switch.exists() {
        return files::write(&switch, "1");
    }
    for below in files::below(dir) {
        kill_all(&below)?;
    }
    let mut killed: Vec<i32> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let text = files::read(&dir.join("cgroup.procs"))?;
        let new: Vec<i32> = files::pids(&text)
            .filter(|pid| !killed.contains(pid))
            .collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.push(pid);
        }
    }
    Ok(())
}

/// Whether no process is in a group or below it. A group that does not exist is empty.
pub(super) fn is_empty(dir: &Path) -> bool {
    if let Ok(populated) = files::entry_of(&dir.join("cgroup.events"), "populated") {
        return populated == 0;
    }
    let procs = files::read(&dir.join("cgroup.procs")).unwrap_or_default();
    procs.trim().is_empty() && files::below(dir).iter().all(|below| is_empty(below))
}

/// Removes a group and all groups below it, the deepest first, and adds those that remain to
/// `left`.
pub(super) fn remove_all(dir: &Path, left: &mut Vec<PathBuf>) {
    for below in files::below(dir) {
        remove_all(&below, left);
    }
    if files::remove(dir).is_err() {
        left.push(dir.to_owned());
    }
}
