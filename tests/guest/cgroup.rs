//! Reads the kernel's files of control groups.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::machine::read;

/// The group of a process.
pub(crate) fn of(pid: i32) -> PathBuf {
    let line = read(format!("/proc/{pid}/cgroup"));
    let path = line.strip_prefix("0::/").unwrap_or_default();
    Path::new("/sys/fs/cgroup").join(path)
}

/// The pids of the processes in a group and below it.
pub(crate) fn processes(group: &Path) -> Vec<i32> {
    let mut pids = pids(group);
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// The pids of the processes in the group itself.
pub(crate) fn pids(group: &Path) -> Vec<i32> {
    let text = read(group.join("cgroup.procs"));
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The number in a file of the group.
pub(crate) fn number(group: &Path, file: &str) -> Option<u64> {
    read(group.join(file)).parse().ok()
}

/// The number in `KEY NUMBER` or `KEY=NUMBER` anywhere in a file of the group.
pub(crate) fn entry(group: &Path, file: &str, key: &str) -> Option<u64> {
    let text = read(group.join(file));
    let mut words = text.split([' ', '\n', '=']);
    words.find(|word| *word == key)?;
    words.next()?.parse().ok()
}
