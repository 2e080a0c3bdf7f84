//! Replacing the running binary within the same process (execve(2)): children, descriptors, groups
//! and the pid stay; memory and threads do not.
//!
//! A memfd carries the command line, followed by the state. The environment has its number, and
//! that of the old binary's file: if the new binary cannot continue, it executes the old one again,
//! once.

#![expect(unsafe_code, reason = "descriptors are handed over as numbers")]

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use super::check_marker::Marker;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{SigSet, SigmaskHow, sigprocmask},
    },
    unistd::execve,
};

/// Environment variable of a binary that takes over: the descriptors of the state and of the old
/// binary.
pub(in crate::host) const HANDOVER: &str = "_SUPERVISE_HANDED";
/// Environment variable of an old binary that continues: why the new one could not.
pub(in crate::host) const FAILED: &str = "_SUPERVISE_FAILED";

/// The first argument that makes a binary report whether it could take over. The state is on its
/// standard input; the other arguments are the command line that it would have.
pub const CHECK: &str = "__take-over";

/// The start of a positive answer to [`CHECK`].
pub const CAN: &str = "can ";

/// Time limit of the check. Reading its configuration and a state takes a binary some 10 ms.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// Maximum length of the answer, which is a version or the reason of a refusal: one line, or a few.
const ANSWER_BYTES: u64 = 16 << 10;

/// What the previous binary of this process handed over.
#[derive(Debug)]
pub struct Inherited {
    state: File,
    /// The file of the old binary.
    old: File,
    /// Why the new binary failed, if this is the old one again.
    pub failed: Option<String>,
}

impl Inherited {
    /// Finds it. `None`: this process has just started, without a previous binary.
    pub fn find() -> Option<Self> {
        let text = env::var(HANDOVER).ok()?;
        let (state, old) = text.split_once(':')?;
        Some(Self {
            state: File::from(adopt(state.parse().ok()?)?),
            old: File::from(adopt(old.parse().ok()?)?),
            failed: env::var(FAILED).ok(),
        })
    }

    /// The state, as the old binary wrote it.
    pub fn state(&self) -> io::Result<Vec<u8>> {
        self.read().map(|(_, state)| state)
    }

    /// The command line of the old binary, and the state.
    fn read(&self) -> io::Result<(Vec<OsString>, Vec<u8>)> {
        let mut file = &self.state;
        file.rewind()?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut words = Vec::new();
        file.take(u64::from_le_bytes(length))
            .read_to_end(&mut words)?;
        let mut state = Vec::new();
        file.read_to_end(&mut state)?;
        let words = words.split_inclusive(|byte| *byte == 0);
        let words = words.map(|word| OsString::from_vec(word[..word.len() - 1].to_vec()));
        Ok((words.collect(), state))
    }

    /// Executes the old binary again. Returns only on failure: it was tried before, or the old
    /// binary is gone.
    pub fn go_back(&self, why: &str) -> io::Error {
        if self.failed.is_some() {
            return io::Error::other("the old binary has just failed, too");
        }
        let words = match self.read() {
            Ok((words, _)) => words,
            Err(error) => return error,
        };
        let old = PathBuf::from(format!("/proc/self/fd/{}", self.old.as_raw_fd()));
        let binary = Binary {
            path: old,
            failed: Some(why.to_owned()),
        };
        match execute(&binary, words, (&self.state, &self.old), &[]) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

/// A binary to execute.
#[derive(Debug)]
pub struct Binary {
    path: PathBuf,
    /// Why the new binary failed, if this is the old one.
    failed: Option<String>,
}

impl Binary {
    /// The file that the command line named, as it is now, after a package manager has replaced it.
    pub fn installed() -> io::Result<Self> {
        let named = env::args_os().next().unwrap_or_default();
        let path = if named.as_bytes().contains(&b'/') {
            Some(PathBuf::from(&named))
        } else {
            let path = env::var_os("PATH").unwrap_or_default();
            let mut all = env::split_paths(&path).map(|folder| folder.join(&named));
            all.find(|path| path.is_file())
        };
        let path = path.filter(|path| path.is_file());
        let none = || io::Error::other(format!("{} does not exist any more", named.display()));
        Ok(Self {
            path: path.ok_or_else(none)?,
            failed: None,
        })
    }

    /// The path of its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the binary whether it can take over this state. Returns its version, or the reason of a
    /// refusal. This blocks until the answer arrives, so call it on a thread of its own.
    pub fn check(&self, state: &[u8]) -> Result<String, String> {
        let result = self.run_check(state);
        let answer = result.map_err(|error| format!("run {}: {error}", self.path.display()))?;
        match answer.trim_end().strip_prefix(CAN) {
            Some(version) => Ok(version.to_owned()),
            None if answer.trim().is_empty() => {
                Err(format!("{} cannot take over", self.path.display()))
            }
            None => Err(format!("{}: {}", self.path.display(), answer.trim_end())),
        }
    }

    fn run_check(&self, state: &[u8]) -> io::Result<String> {
        let mut input = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(state)?;
        input.rewind()?;
        let (output, answers) = io::pipe()?;
        let marker = Marker::new();
        let child = Command::new(&self.path)
            .arg(CHECK)
            .args(env::args_os().skip(1))
            .env_remove(HANDOVER)
            .env_remove(FAILED)
            .env(marker.name, &marker.value)
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(answers.try_clone()?))
            .stderr(Stdio::from(answers))
            .spawn()?;
        // The reaper handles its end; only its answer counts here.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // One byte more than allowed, so that a longer answer is detected.
            let read = output.take(ANSWER_BYTES + 1).read_to_end(&mut text);
            // This fails if the time limit has passed.
            let _ = sender.send(read.map(|_| text));
        });
        let answer = receiver.recv_timeout(CHECK_MAX);
        // The answer has come, or the time is up. The processes that the binary has started would
        // otherwise stay our children.
        marker.kill_all(i32::try_from(child.id()).map_err(io::Error::other)?);
        let text = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        if u64::try_from(text.len()).is_ok_and(|length| length > ANSWER_BYTES) {
            let kilobytes = ANSWER_BYTES >> 10;
            let what = format!("its answer is longer than {kilobytes}K, so it is not supervise");
            return Err(io::Error::other(what));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Replaces the running binary. The descriptors in `keep` stay open, all others close. Returns
    /// only if the new binary could not be executed; then nothing has changed.
    pub fn execute(&self, state: &[u8], keep: &[RawFd]) -> io::Result<Infallible> {
        let words: Vec<OsString> = env::args_os().collect();
        let mut line = Vec::new();
        for word in &words {
            line.extend_from_slice(word.as_bytes());
            line.push(0);
        }
        let mut file = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
        let length = u64::try_from(line.len()).map_err(io::Error::other)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&line)?;
        file.write_all(state)?;
        let old = File::open("/proc/self/exe")?;
        execute(self, words, (&file, &old), keep)
    }
}

fn execute(
    binary: &Binary,
    words: Vec<OsString>,
    (state, old): (&File, &File),
    keep: &[RawFd],
) -> io::Result<Infallible> {
    let words: Vec<CString> = words.into_iter().map(c_string).collect::<Result<_, _>>()?;
    let numbers = format!("{}:{}", state.as_raw_fd(), old.as_raw_fd());
    let ours = [OsStr::new(HANDOVER), OsStr::new(FAILED)];
    let others = env::vars_os().filter(|(name, _)| !ours.contains(&name.as_os_str()));
    let failed = binary.failed.iter();
    let environment: Vec<CString> = others
        .chain([(HANDOVER.into(), numbers.into())])
        .chain(failed.map(|why| (FAILED.into(), why.replace('\0', " ").into())))
        .map(|(name, value)| environment_string(name, &value))
        .collect::<Result<_, _>>()?;
    let path = c_string(binary.path.clone().into_os_string())?;
    let own = [state.as_raw_fd(), old.as_raw_fd()];
    let all: Vec<RawFd> = keep.iter().copied().chain(own).collect();
    // RACE: TERM would end the new binary before it handles signals. Blocked signals stay pending.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let kept = all.iter().try_for_each(|fd| close_on_exec(*fd, false));
    let result = kept.and_then(|()| execve(&path, &words, &environment).map_err(io::Error::from));
    all.iter().try_for_each(|fd| close_on_exec(*fd, true))?;
    unblock_signals()?;
    result
}

/// Unblocks all signals. Those that came meanwhile are delivered now.
pub(in crate::host) fn unblock_signals() -> io::Result<()> {
    let none = SigSet::empty();
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
}

/// Takes a descriptor that was left open for us, by its number.
pub fn adopt(fd: RawFd) -> Option<OwnedFd> {
    close_on_exec(fd, true).ok()?;
    // SAFETY: it is open, and the binary that this process was before kept it open for us alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Like [`adopt`], for a descriptor that is required.
pub(in crate::host) fn adopt_kept(fd: RawFd, what: &str) -> io::Result<OwnedFd> {
    adopt(fd).ok_or_else(|| io::Error::other(format!("{what} was not left open")))
}

fn close_on_exec(fd: RawFd, close: bool) -> io::Result<()> {
    let flags = if close {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    // SAFETY: a number without an open descriptor is the only risk, and fcntl(2) returns an error
    // for it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

fn c_string(words: OsString) -> io::Result<CString> {
    CString::new(words.into_vec()).map_err(io::Error::from)
}

fn environment_string(mut name: OsString, value: &OsStr) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    c_string(name)
}
