//! Files in memory: the largest files in the tmpfs mounts that we can see.
//!
//! Such a file is charged to the group of the process that wrote it, and remains when that process
//! ends. The kernel does not show which file is charged to which group.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use super::procfs::Proc;
use crate::{
    supervisor::input::{Contents, TmpfsFile},
    units::Bytes,
};

/// Maximum files that are reported by name.
const FILES_MAX: usize = 3;
/// Maximum entries and depth of a search, because a tmpfs may hold millions of files.
const ENTRIES_MAX: usize = 5000;
const DEPTH_MAX: usize = 6;
/// Smaller files are not reported.
const SIZE_MIN: Bytes = Bytes::mib(1);

/// Adds the largest files that were written since `since` to the contents of the budget. Older
/// files are charged to other groups.
pub(in crate::host) fn name_files(contents: &mut Contents, since: i64) {
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    let mut search = Search::new(since);
    for mount in tmpfs_mounts(&mounts) {
        if let Ok(root) = fs::symlink_metadata(&mount) {
            search.walk(&mount, root.dev(), DEPTH_MAX);
        }
    }
    let mut files = search.files;
    files.sort_by_key(|file| Reverse(file.size));
    let more = files.split_off(files.len().min(FILES_MAX));
    contents.more_files = u64::try_from(more.len()).unwrap_or(u64::MAX);
    contents.more_size = more
        .iter()
        .fold(Bytes::ZERO, |sum, file| sum.plus(file.size));
    contents.files = files;
}

/// The start time of this process, in Unix seconds. An upgrade does not change it.
pub(in crate::host) fn process_start(proc: &Proc) -> i64 {
    // User space always sees clock ticks as hundredths of a second.
    const TICKS: u64 = 100;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let ticks = proc.stat(own).map_or(0, |stat| stat.starttime);
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = text.lines().find_map(|line| line.strip_prefix("btime "));
    let boot: u64 = boot.and_then(|number| number.parse().ok()).unwrap_or(0);
    i64::try_from(boot.saturating_add(ticks / TICKS)).unwrap_or(0)
}

/// The mount points of `mounts` (proc_mounts(5)) that have a tmpfs, each once.
fn tmpfs_mounts(mounts: &[u8]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for line in mounts.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(place), Some(b"tmpfs")) = (words.nth(1), words.next()) else {
            continue;
        };
        let place = PathBuf::from(std::ffi::OsString::from_vec(unescaped(place)));
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Decodes `\040`, `\011`, `\012` and `\134`, which stand for a blank, a tab, a line feed and a
/// backslash.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    plain
}

/// One search through all mounts.
#[derive(Debug)]
struct Search {
    /// Files that were written before this time, in Unix seconds, do not count.
    since: i64,
    /// How many more entries may be read.
    entries_left: usize,
    /// Device and inode, because one tmpfs may be mounted at two places.
    seen: BTreeSet<(u64, u64)>,
    files: Vec<TmpfsFile>,
}

impl Search {
    const fn new(since: i64) -> Self {
        Self {
            since,
            entries_left: ENTRIES_MAX,
            seen: BTreeSet::new(),
            files: Vec::new(),
        }
    }

    /// Searches a directory. It does not follow links or enter other mounts.
    fn walk(&mut self, dir: &Path, device: u64, depth: usize) {
        let Some(deeper) = depth.checked_sub(1) else {
            return;
        };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Some(fewer) = self.entries_left.checked_sub(1) else {
                return;
            };
            self.entries_left = fewer;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                self.walk(&entry.path(), device, deeper);
            } else if meta.is_file() && meta.ctime() >= self.since {
                let size = Bytes(meta.blocks().saturating_mul(512));
                if size >= SIZE_MIN && self.seen.insert((device, meta.ino())) {
                    let path = shown(&entry.path());
                    self.files.push(TmpfsFile { path, size });
                }
            }
        }
    }
}

/// A path without control characters, which other users may have put into file names.
fn shown(path: &Path) -> String {
    let text = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(120).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_now_is_newer_than_this_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = fs::symlink_metadata(file.path()).unwrap().ctime();
        let age = written - process_start(&Proc::default());
        assert!((0..3600).contains(&age), "{age}");
    }

    #[test]
    fn a_mount_point_with_a_blank_is_decoded() {
        let mounts = b"tmpfs /dev/shm tmpfs rw,nosuid 0 0\n/dev/vda / ext4 rw 0 0\n\
                       tmpfs /tmp/a\\040b tmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n";
        let places: Vec<_> = tmpfs_mounts(mounts);
        assert_eq!(places, [Path::new("/dev/shm"), Path::new("/tmp/a b")]);
    }

    #[test]
    fn the_largest_files_are_named_and_the_others_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mib) in [("a", 2), ("b", 5), ("c", 3), ("d", 1), ("e\n", 4)] {
            fs::write(dir.path().join(name), vec![1; mib << 20]).unwrap();
        }
        fs::write(dir.path().join("small"), [1; 100]).unwrap();
        let device = fs::symlink_metadata(dir.path()).unwrap().dev();
        let look = |since, entries_left| {
            let mut search = Search {
                entries_left,
                ..Search::new(since)
            };
            search.walk(dir.path(), device, DEPTH_MAX);
            // Searches the same files again.
            search.walk(dir.path(), device, DEPTH_MAX);
            search.files.sort_by_key(|file| Reverse(file.size));
            search.files
        };
        let files = look(0, ENTRIES_MAX);
        let names: Vec<_> = files
            .iter()
            .map(|file| file.path.rsplit_once('/').unwrap().1)
            .collect();
        assert_eq!(names, ["b", "e?", "c", "a", "d"]);
        assert!(look(0, 2).len() <= 2);
        assert!(look(i64::MAX, ENTRIES_MAX).is_empty());
    }
}
