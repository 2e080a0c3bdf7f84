//! What `/proc` says of a process: its memory, its kin, its command (proc(5)).
//!
//! A test gives it a directory with the kernel's own text in it.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// A tree of processes is cut off here: no worker has so many, but a fork bomb has.
const DESCENDANTS_MAX: usize = 4096;
/// Maximum letters of a command line that is shown.
const COMMAND_MAX: usize = 80;

/// The process file system.
#[derive(Clone, Debug)]
pub struct Proc {
    pub(super) root: PathBuf,
}

/// A file of `/proc` could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {}: {error}", path.display())]
pub struct ProcError {
    verb: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl ProcError {
    /// The process is not there any more, which is normal.
    pub fn is_gone(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
            || self.error.raw_os_error() == Some(libc::ESRCH)
    }

    pub(super) fn strange(path: &Path, what: &str) -> Self {
        Self {
            verb: "understand",
            path: path.to_owned(),
            error: io::Error::new(io::ErrorKind::InvalidData, what),
        }
    }
}

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stat {
    /// The name of the executable, cut to 15 bytes.
    pub comm: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Its parent.
    pub ppid: i32,
    /// Its session.
    pub session: i32,
    /// The CPU time that it has used, in user and kernel mode, in ticks of 10 ms.
    pub cpu_ticks: u64,
    /// How many threads it has.
    pub threads: u64,
    /// When it was forked, in clock ticks since boot. With the pid it is an identity.
    pub starttime: u64,
    /// Where its stack begins: a fork shares it with its parent, an execve(2) draws a new one.
    /// Zero where we may not look (ptrace(2), "access mode checking").
    pub start_stack: u64,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl Proc {
    /// The one that is mounted there.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file that is not of one process, `self/cgroup` for one.
    pub fn text(&self, name: &str) -> Result<String, ProcError> {
        read(&self.root.join(name))
    }

    /// The children of a process, of all its threads. They are added to `into`.
    pub fn children(&self, pid: i32, into: &mut Vec<i32>) -> Result<(), ProcError> {
        let path = self.of(pid, "task");
        for thread in fs::read_dir(&path).map_err(reading(&path))? {
            let thread = thread.map_err(reading(&path))?;
            match read(&thread.path().join("children")) {
                Ok(text) => into.extend(pids(&text)),
                // Threads come and go while we read.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Its threads; none when it is gone.
    pub fn threads(&self, pid: i32) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(self.of(pid, "task")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// All processes that can be seen.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// All that descends from a process and has not lost its parent, nearest first. Those that go
    /// while we look are left out, and so is whatever is beyond the first 4096.
    pub fn descendants(&self, pid: i32) -> Vec<i32> {
        let mut found = vec![pid];
        let mut next = 0;
        while next < found.len() && found.len() <= DESCENDANTS_MAX {
            let parent = found[next];
            // An error means that it has just gone, and its children are somebody else's.
            let _ = self.children(parent, &mut found);
            next += 1;
        }
        found.remove(0);
        found.truncate(DESCENDANTS_MAX);
        found
    }

    /// Who it is and how it does.
    pub fn stat(&self, pid: i32) -> Result<Stat, ProcError> {
        let path = self.of(pid, "stat");
        let text = read(&path)?;
        parse_stat(&text).ok_or_else(|| ProcError::strange(&path, "not the fields of proc(5)"))
    }

    /// Whether a process has ended or is about to: it is gone, it exits (`PF_EXITING` of
    /// linux/sched.h in field 9 of its `stat`), or a SIGKILL is pending. Its exit can take seconds.
    pub fn is_ending(&self, pid: i32) -> bool {
        const EXITING: u32 = 0x4;
        const KILL: u64 = 1 << (libc::SIGKILL - 1);
        let Ok(stat) = self.text(&format!("{pid}/stat")) else {
            return true;
        };
        let flags = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(6)?.parse().ok());
        let status = self.text(&format!("{pid}/status")).unwrap_or_default();
        let mut pending = status.lines().filter_map(|line| {
            let (name, mask) = line.split_once(":\t")?;
            let is_pending = matches!(name, "SigPnd" | "ShdPnd");
            is_pending.then(|| u64::from_str_radix(mask, 16).ok())?
        });
        flags.is_some_and(|flags: u32| flags & EXITING != 0) || pending.any(|mask| mask & KILL != 0)
    }

    /// Its command line; empty for a zombie.
    pub fn cmdline(&self, pid: i32) -> Result<Vec<OsString>, ProcError> {
        let path = self.of(pid, "cmdline");
        let bytes = fs::read(&path).map_err(reading(&path))?;
        let ended = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        let words = ended.split(|&byte| byte == 0);
        Ok(words
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect())
    }

    /// Its command line in one line for people, or its name in brackets where it has none.
    pub fn command(&self, pid: i32) -> String {
        let words = self.cmdline(pid).unwrap_or_default();
        let line: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let line: String = line
            .join(" ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        if line.is_empty() {
            let name = self.stat(pid).map(|stat| stat.comm).unwrap_or_default();
            return format!("[{name}]");
        }
        match line.char_indices().nth(COMMAND_MAX) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }

    /// A variable of the environment it was executed with.
    pub fn environ(&self, pid: i32, name: &str) -> Result<Option<OsString>, ProcError> {
        let path = self.of(pid, "environ");
        let bytes = fs::read(&path).map_err(reading(&path))?;
        let value = bytes.split(|&byte| byte == 0).find_map(|entry| {
            let rest = entry.strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        });
        Ok(value.map(|value| OsStr::from_bytes(value).to_owned()))
    }

    /// What it executes.
    pub fn exe(&self, pid: i32) -> Result<PathBuf, ProcError> {
        let path = self.of(pid, "exe");
        fs::read_link(&path).map_err(reading(&path))
    }

    /// Its open files whose name (without the folder) begins with `prefix`, by descriptor, lowest
    /// first, with the inode of each.
    pub fn files(&self, pid: i32, prefix: &str) -> Result<Vec<(i32, u64)>, ProcError> {
        let path = self.of(pid, "fd");
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(reading(&path))? {
            let entry = entry.map_err(reading(&path))?;
            let number = entry.file_name().to_string_lossy().parse();
            // A file that is closed while we look is left out.
            let (Ok(number), Ok(target)) = (number, fs::read_link(entry.path())) else {
                continue;
            };
            let name = target.file_name().unwrap_or_default().as_bytes();
            if name.starts_with(prefix.as_bytes())
                && let Ok(meta) = fs::metadata(entry.path())
            {
                found.push((number, meta.ino()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Its open sockets: the descriptor and the inode of each.
    pub fn sockets(&self, pid: i32) -> Result<Vec<(i32, u64)>, ProcError> {
        let path = self.of(pid, "fd");
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(reading(&path))? {
            let entry = entry.map_err(reading(&path))?;
            let number = entry.file_name().to_string_lossy().parse();
            // One that is closed while we look is left out.
            let (Ok(number), Ok(target)) = (number, fs::read_link(entry.path())) else {
                continue;
            };
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            found.extend(inode.map(|inode| (number, inode)));
        }
        Ok(found)
    }

    /// Whom the OOM killer prefers: -1000 is never, 1000 is first.
    pub fn set_oom_score_adj(&self, pid: i32, adjust: i32) -> Result<(), ProcError> {
        let path = self.of(pid, "oom_score_adj");
        fs::write(&path, adjust.to_string()).map_err(|error| ProcError {
            verb: "write",
            path,
            error,
        })
    }

    /// A file of a process.
    pub(super) fn of(&self, pid: i32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }
}

pub(super) fn read(path: &Path) -> Result<String, ProcError> {
    // Names of programs need not be UTF-8.
    let bytes = fs::read(path).map_err(reading(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn reading(path: &Path) -> impl Fn(io::Error) -> ProcError {
    |error| ProcError {
        verb: "read",
        path: path.to_owned(),
        error,
    }
}

fn pids(text: &str) -> impl Iterator<Item = i32> {
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold spaces and parentheses itself, so its end is the last one.
    let (before, after) = text.rsplit_once(") ")?;
    let (_, comm) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    // Fields are numbered from 1 in proc(5); the state is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        comm: comm.to_owned(),
        state: field(3)?.chars().next()?,
        ppid: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        cpu_ticks: [14, 15].into_iter().try_fold(0, |sum, number| {
            Some(sum + field(number)?.parse::<u64>().ok()?)
        })?,
        threads: field(20)?.parse().ok()?,
        starttime: field(22)?.parse().ok()?,
        start_stack: field(28)?.parse().ok()?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const STAT: &str = "11637 (a) b (c) S 11589 11590 3436 0 -1 4194304 118 0 0 0 4 5 0 0 20 0 7 0 \
        194761 3133440 369 18446744073709551615 93882789150720 \
        93882789170601 140729571358992 0 0\n";
    /// A `/proc` that holds these files.
    pub(in crate::host) fn kernel(files: &[(&str, &str)]) -> (tempfile::TempDir, Proc) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let proc = Proc::at(root.path());
        (root, proc)
    }

    pub(in crate::host) fn us() -> i32 {
        std::process::id().try_into().unwrap()
    }

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        let (_root, proc) = kernel(&[("7/stat", STAT)]);
        let expected = Stat {
            comm: "a) b (c".to_owned(),
            state: 'S',
            ppid: 11589,
            session: 3436,
            cpu_ticks: 9,
            threads: 7,
            starttime: 194_761,
            start_stack: 140_729_571_358_992,
        };
        assert_eq!(proc.stat(7).unwrap(), expected);
    }

    #[test]
    fn descendants_come_from_all_threads_nearest_first() {
        let (_root, proc) = kernel(&[
            ("7/task/7/children", "8 9 "),
            ("7/task/10/children", "11 "),
            ("8/task/8/children", ""),
            ("9/task/9/children", "12 "),
            ("12/task/12/children", "13 "),
        ]);
        let mut found = proc.descendants(7);
        assert_eq!(found.split_off(3), [12, 13]);
        found.sort_unstable();
        assert_eq!(found, [8, 9, 11]);
    }

    #[test]
    fn a_tree_without_end_is_cut_off() {
        let (_root, proc) = kernel(&[("7/task/7/children", "7 7 ")]);
        assert_eq!(proc.descendants(7).len(), DESCENDANTS_MAX);
    }

    #[test]
    fn command_and_environment_are_split_at_their_ends() {
        let (_root, proc) = kernel(&[
            ("7/cmdline", "python\0-c\0\0"),
            ("7/environ", "HOMER=1\0HOME=/root\0EMPTY=\0"),
            ("8/cmdline", ""),
        ]);
        assert_eq!(proc.cmdline(7).unwrap(), ["python", "-c", ""]);
        assert!(proc.cmdline(8).unwrap().is_empty());
        let variable = |name| proc.environ(7, name).unwrap();
        assert_eq!(variable("HOME"), Some("/root".into()));
        assert_eq!(variable("EMPTY"), Some("".into()));
        assert_eq!(variable("HOM"), None);
    }

    #[test]
    fn an_error_names_its_file_and_a_process_that_is_gone_is_known() {
        let (_root, proc) = kernel(&[("7/stat", "strange")]);
        let error = proc.stat(7).unwrap_err();
        assert!(!error.is_gone());
        assert!(error.to_string().starts_with("understand /"), "{error}");
        assert!(
            error.to_string().contains("/7/stat: not the fields"),
            "{error}"
        );
        assert!(proc.stat(8).unwrap_err().is_gone());
    }

    #[test]
    fn this_kernel_is_understood() {
        let proc = Proc::default();
        let stat = proc.stat(us()).unwrap();
        assert!(stat.threads >= 1 && stat.start_stack > 0 && stat.starttime > 0);
        assert_eq!(proc.exe(us()).unwrap(), std::env::current_exe().unwrap());
    }

    #[test]
    fn open_files_are_found_by_the_beginning_of_their_name() {
        let file = tempfile::Builder::new()
            .prefix("wsome-")
            .tempfile()
            .unwrap();
        let inode = file.as_file().metadata().unwrap().ino();
        let (kept, path) = file.into_parts();
        path.close().unwrap();
        let found = Proc::default().files(us(), "wsome-").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, inode);
        drop(kept);
        assert!(Proc::default().files(us(), "wsome-").unwrap().is_empty());
    }

    #[test]
    fn an_end_that_takes_its_time_is_seen() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let proc = Proc::default();
        assert!(!proc.is_ending(us()) && !proc.is_ending(pid));
        drop(child.stdin.take());
        // It has ended, and is not reaped.
        let zombie = || proc.stat(pid).is_ok_and(|stat| stat.state == 'Z');
        while !zombie() {
            std::thread::yield_now();
        }
        assert!(proc.is_ending(pid));
        child.wait().unwrap();
        assert!(proc.is_ending(pid));
        let (_root, proc) = kernel(&[
            ("7/stat", "7 (a b) R 1 1 1 0 -1 4194304 1 1\n"),
            (
                "7/status",
                "Name:\ta\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n",
            ),
            ("8/stat", "8 (a b) R 1 1 1 0 -1 4194308 1 1\n"),
            ("9/stat", "9 (a b) R 1 1 1 0 -1 4194304 1 1\n"),
            (
                "9/status",
                "Name:\ta\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000000000\n",
            ),
        ]);
        assert!(proc.is_ending(7) && proc.is_ending(8) && !proc.is_ending(9));
    }
}
