//! Reads /proc about other processes (proc(5)).

use std::{fs, path::PathBuf};

/// The page size of all kernels that these tests run on.
const PAGE: u64 = 4096;

/// The processes with `tag` in their environment, without zombies. A process inherits its
/// environment through every fork, session and double fork, so no descendant is missed.
pub(crate) fn tagged(tag: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let environ = fs::read(format!("/proc/{pid}/environ"));
            // Whole variables: the tag of service 1 is the start of that of service 10.
            environ.is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|it| it == tag.as_bytes())
            })
        })
        .collect()
}

/// The control groups that a supervisor with this pid has made.
pub(crate) fn groups_of(pid: u32) -> Vec<PathBuf> {
    let suffix = format!(".{pid}");
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        // A group may be removed while it is listed.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("supervise-") && name.ends_with(&suffix) {
                found.push(entry.path());
            } else {
                open.push(entry.path());
            }
        }
    }
    found
}

/// The children of all threads of `pid`.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    tasks(pid)
        .iter()
        .filter_map(|task| fs::read_to_string(task.join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// The command line, with spaces between its words. Empty for zombies and ended processes.
pub(crate) fn command_line(pid: i32) -> String {
    fs::read(format!("/proc/{pid}/cmdline")).map_or_else(
        |_| String::new(),
        |bytes| {
            String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .replace('\0', " ")
        },
    )
}

/// Whether the process exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(state_of(&stat), 'Z' | 'X'))
}

pub(crate) fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}

/// Resident bytes, and the part of them that no file backs. Takes about 7 µs.
pub(crate) fn resident(pid: i32) -> Option<(u64, u64)> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm.split(' ').skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    (resident > 0).then(|| (resident * PAGE, resident.saturating_sub(shared) * PAGE))
}

/// Private bytes without those of files, and the proportional share. Takes about 20 µs a megabyte,
/// and holds the target's mmap lock meanwhile.
pub(crate) fn exact(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let sum = |wanted: &[&str]| -> u64 {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| wanted.contains(key))
            .filter_map(|(_, value)| value.split_whitespace().next()?.parse::<u64>().ok())
            .sum::<u64>()
            * 1024
    };
    let pages = sum(&["Private_Clean", "Private_Dirty"]).min(sum(&["Pss_Anon", "Pss_Shmem"]));
    let private = pages + sum(&["Private_Hugetlb"]);
    Some((private, sum(&["Pss"]))).filter(|(private, _)| *private > 0)
}

/// Whether it runs Python.
pub(crate) fn is_python(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
        exe.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("python"))
    })
}

/// The CPU time of all threads of `pid`, in nanoseconds.
pub(crate) fn cpu_nanos(pid: i32) -> u64 {
    tasks(pid)
        .iter()
        .filter_map(|task| fs::read_to_string(task.join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn tasks(pid: i32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).map_or_else(
        |_| Vec::new(),
        |entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        },
    )
}

fn state_of(stat: &str) -> char {
    stat.rsplit_once(')')
        .and_then(|(_, after)| after.trim_start().chars().next())
        .unwrap_or('X')
}
