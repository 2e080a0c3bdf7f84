//! A group as a set of processes: who is in it, is anybody, and the end of all of them at once.
//!
//! Needs no controller: a version 2 hierarchy mounted without any is enough.

use std::path::{Path, PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{CgroupError, files};

/// So often the processes of a version 1 group are listed and killed. A list without a new process
/// ends it; a program that forks as fast as we kill gets no further than this.
const ROUNDS_MAX: u32 = 256;

/// A version 2 group.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) dir: PathBuf,
    procs: PathBuf,
}

impl Tree {
    pub(super) fn open(dir: PathBuf) -> Result<Self, CgroupError> {
        let procs = dir.join("cgroup.procs");
        // Fails early if there is no such group.
        files::read(&procs)?;
        Ok(Self { dir, procs })
    }

    pub(super) fn pids(&self, into: &mut Vec<i32>) -> Result<(), CgroupError> {
        into.extend(files::pids(&files::read(&self.procs)?));
        Ok(())
    }
}

/// SIGKILL for everybody in a group and below it.
///
/// `cgroup.kill` (Linux 5.14) is atomic: a fork cannot slip through. Without it, all that are
/// listed are killed until a list names nobody new: who was killed cannot fork any more. The race
/// that stays is a pid that ends and is used again between being listed and being killed.
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
            // It may have ended by itself, which is as well.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.push(pid);
        }
    }
    Ok(())
}

/// Nobody lives in a group or below it. One that is not there is empty.
pub(super) fn is_empty(dir: &Path) -> bool {
    if let Ok(populated) = files::entry_of(&dir.join("cgroup.events"), "populated") {
        return populated == 0;
    }
    let procs = files::read(&dir.join("cgroup.procs")).unwrap_or_default();
    procs.trim().is_empty() && files::below(dir).iter().all(|below| is_empty(below))
}

/// Removes a group and all below it, deepest first, and adds to `left` what could not be removed.
pub(super) fn remove_all(dir: &Path, left: &mut Vec<PathBuf>) {
    for below in files::below(dir) {
        remove_all(&below, left);
    }
    if files::remove(dir).is_err() {
        left.push(dir.to_owned());
    }
}
