//! What `/proc` shows of a process: its memory, its relatives, its command (proc(5)).
//!
//! A test uses a directory with text that a kernel has written.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use crate::units::Signal;

/// Maximum processes read from one tree. A worker has fewer, but a fork bomb has more.
const DESCENDANTS_MAX: usize = 4096;
/// Maximum characters of a command line that is shown.
const COMMAND_MAX: usize = 80;

/// The process file system.
#[derive(Clone, Debug)]
pub struct Proc {
    pub(super) root: PathBuf,
}

/// A file of `/proc` could not be read, written or parsed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {}: {error}", path.display())]
pub struct ProcError {
    verb: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl ProcError {
    /// Whether the process has ended, which is normal.
    pub fn is_gone(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
            || self.error.raw_os_error() == Some(libc::ESRCH)
    }

    pub(in crate::host) fn unexpected(path: &Path, what: &str) -> Self {
        Self {
            verb: "parse",
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
    /// The state: `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// The pid of its parent.
    pub ppid: i32,
    /// The id of its session.
    pub session: i32,
    /// The CPU time that it has used, in user and kernel mode, in ticks of 10 ms.
    pub cpu_ticks: u64,
    /// The number of its threads.
    pub threads: u64,
    /// Its start time, in clock ticks since boot. Together with the pid it identifies the process.
    pub starttime: u64,
    /// The address of its stack: a fork has the address of its parent, an execve(2) draws a new
    /// one. Zero if we may not read it (ptrace(2), "access mode checking").
    pub start_stack: u64,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl Proc {
    /// The process file system mounted at this path.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file that does not belong to one process, such as `self/cgroup`.
    pub fn text(&self, name: &str) -> Result<String, ProcError> {
        read(&self.root.join(name))
    }

    /// Adds the children of a process, of all its threads, to `into`.
    pub fn children(&self, pid: i32, into: &mut Vec<i32>) -> Result<(), ProcError> {
        let path = self.path_of(pid, "task");
        for thread in fs::read_dir(&path).map_err(read_error(&path))? {
            let thread = thread.map_err(read_error(&path))?;
            match read(&thread.path().join("children")) {
                Ok(text) => into.extend(pids(&text)),
                // A thread may end meanwhile.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Its threads; none if it is gone.
    pub fn threads(&self, pid: i32) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(self.path_of(pid, "task")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// All processes that we can see.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// The descendants of a process that have not lost their parent, the nearest first. Processes
    /// that end meanwhile are left out, and so are all after the first 4096.
    pub fn descendants(&self, pid: i32) -> Vec<i32> {
        let mut found = vec![pid];
        let mut next = 0;
        while next < found.len() && found.len() <= DESCENDANTS_MAX {
            let parent = found[next];
            // This fails for a process that has just ended; its children have another parent now.
            let _ = self.children(parent, &mut found);
            next += 1;
        }
        found.remove(0);
        found.truncate(DESCENDANTS_MAX);
        found
    }

    /// Its name, state, relatives, CPU time and start.
    pub fn stat(&self, pid: i32) -> Result<Stat, ProcError> {
        let path = self.path_of(pid, "stat");
        let text = read(&path)?;
        parse_stat(&text).ok_or_else(|| ProcError::unexpected(&path, "not the fields of proc(5)"))
    }

    /// Whether a process has ended or is ending: it is gone, it exits (`PF_EXITING` of
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

    /// Whether a process catches all these signals (`SigCgt` of proc_pid_status(5)).
    pub fn catches(&self, pid: i32, signals: &[Signal]) -> bool {
        let status = self.text(&format!("{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|caught| signals.iter().all(|one| caught >> (one.0 - 1) & 1 == 1))
    }

    /// Its command line; empty for a zombie.
    pub fn cmdline(&self, pid: i32) -> Result<Vec<OsString>, ProcError> {
        let path = self.path_of(pid, "cmdline");
        let bytes = fs::read(&path).map_err(read_error(&path))?;
        let ended = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        let words = ended.split(|&byte| byte == 0);
        Ok(words
            .map(|word| OsString::from_vec(word.to_vec()))
            .collect())
    }

    /// Its command line as one line for people, or its name in brackets if it has none.
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

    /// A variable of the environment that it was executed with.
    pub fn environ(&self, pid: i32, name: &str) -> Result<Option<OsString>, ProcError> {
        let path = self.path_of(pid, "environ");
        let bytes = fs::read(&path).map_err(read_error(&path))?;
        let value = bytes.split(|&byte| byte == 0).find_map(|entry| {
            let rest = entry.strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        });
        Ok(value.map(|value| OsStr::from_bytes(value).to_owned()))
    }

    /// The path of its program.
    pub fn exe(&self, pid: i32) -> Result<PathBuf, ProcError> {
        let path = self.path_of(pid, "exe");
        fs::read_link(&path).map_err(read_error(&path))
    }

    /// Its open files whose name (without the directory) begins with `prefix`: the descriptor and
    /// the inode of each, the lowest descriptor first.
    pub fn files(&self, pid: i32, prefix: &str) -> Result<Vec<(i32, u64)>, ProcError> {
        let mut found = Vec::new();
        for (descriptor, target) in self.descriptors(pid)? {
            let name = target.file_name().unwrap_or_default().as_bytes();
            if name.starts_with(prefix.as_bytes())
                && let Ok(meta) = fs::metadata(self.path_of(pid, &format!("fd/{descriptor}")))
            {
                found.push((descriptor, meta.ino()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The descriptors that it waits for with epoll (proc_pid_fdinfo(5): `tfd`).
    pub fn epoll_targets(&self, pid: i32) -> Result<Vec<i32>, ProcError> {
        let mut found = Vec::new();
        for (descriptor, target) in self.descriptors(pid)? {
            if target.as_os_str() != "anon_inode:[eventpoll]" {
                continue;
            }
            // A descriptor that is closed meanwhile has no targets.
            let info =
                read(&self.path_of(pid, &format!("fdinfo/{descriptor}"))).unwrap_or_default();
            found.extend(info.lines().filter_map(epoll_target));
        }
        Ok(found)
    }

    /// Its open sockets: the descriptor and the inode of each.
    pub fn sockets(&self, pid: i32) -> Result<Vec<(i32, u64)>, ProcError> {
        let open = self.descriptors(pid)?.into_iter();
        let sockets = open.filter_map(|(descriptor, target)| {
            let target = target.to_str()?.strip_prefix("socket:[")?;
            Some((descriptor, target.strip_suffix(']')?.parse().ok()?))
        });
        Ok(sockets.collect())
    }

    /// Its open descriptors, and the target of each. A descriptor that is closed meanwhile is left
    /// out.
    fn descriptors(&self, pid: i32) -> Result<Vec<(i32, PathBuf)>, ProcError> {
        let path = self.path_of(pid, "fd");
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(read_error(&path))? {
            let entry = entry.map_err(read_error(&path))?;
            let number = entry.file_name().to_string_lossy().parse();
            if let (Ok(number), Ok(target)) = (number, fs::read_link(entry.path())) {
                found.push((number, target));
            }
        }
        Ok(found)
    }

    /// Sets the preference of the OOM killer for this process: 1000 is the first victim, -1000 is
    /// exempt.
    pub fn set_oom_score_adj(&self, pid: i32, adjust: i32) -> Result<(), ProcError> {
        let path = self.path_of(pid, "oom_score_adj");
        fs::write(&path, adjust.to_string()).map_err(|error| ProcError {
            verb: "write",
            path,
            error,
        })
    }

    /// The path of a file of a process.
    pub(in crate::host) fn path_of(&self, pid: i32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }
}

pub(in crate::host) fn read(path: &Path) -> Result<String, ProcError> {
    // Names of programs need not be UTF-8.
    let bytes = fs::read(path).map_err(read_error(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(in crate::host) fn read_error(path: &Path) -> impl Fn(io::Error) -> ProcError {
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
    // The name may contain spaces and parentheses, so it ends at the last one.
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

/// The descriptor in a line `tfd: 4 events: 19 …` of an epoll instance.
fn epoll_target(line: &str) -> Option<i32> {
    let rest = line.strip_prefix("tfd:")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
pub(in crate::host) mod tests {
    use super::*;

    const STAT: &str = "11637 (a) b (c) S 11589 11590 3436 0 -1 4194304 118 0 0 0 4 5 0 0 20 0 7 0 \
        194761 3133440 369 18446744073709551615 93882789150720 \
        93882789170601 140729571358992 0 0\n";
    /// A `/proc` with these files.
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
    fn a_name_with_spaces_and_parentheses_is_parsed() {
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
    fn a_cycle_of_processes_is_read_up_to_the_maximum() {
        let (_root, proc) = kernel(&[("7/task/7/children", "7 7 ")]);
        assert_eq!(proc.descendants(7).len(), DESCENDANTS_MAX);
    }

    #[test]
    fn command_and_environment_are_split_at_nul_bytes() {
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
    fn an_error_has_the_path_and_shows_whether_the_process_is_gone() {
        let (_root, proc) = kernel(&[("7/stat", "strange")]);
        let error = proc.stat(7).unwrap_err();
        assert!(!error.is_gone());
        assert!(error.to_string().starts_with("parse /"), "{error}");
        assert!(
            error.to_string().contains("/7/stat: not the fields"),
            "{error}"
        );
        assert!(proc.stat(8).unwrap_err().is_gone());
    }

    #[test]
    fn the_files_of_this_kernel_are_parsed() {
        let proc = Proc::default();
        let stat = proc.stat(us()).unwrap();
        assert!(stat.threads >= 1 && stat.start_stack > 0 && stat.starttime > 0);
        assert_eq!(proc.exe(us()).unwrap(), std::env::current_exe().unwrap());
    }

    #[test]
    fn open_files_are_found_by_a_prefix_of_their_name() {
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
    fn a_process_is_ending_from_its_kill_until_it_is_reaped() {
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
