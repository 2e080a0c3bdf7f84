//! Becoming another binary without ceasing to be this process (execve(2)): children, descriptors,
//! groups and the process id stay, memory and threads do not.
//!
//! The state travels in a memfd, behind the command line; its number is in the environment beside
//! that of the old binary: should the new one find that it cannot go on, it executes the old one
//! again, once.

#![expect(unsafe_code, reason = "descriptors are taken over by their numbers")]

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

use super::asked::Marker;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{SigSet, SigmaskHow, sigprocmask},
    },
    unistd::execve,
};

/// In the environment of a binary that takes over: the state's descriptor and the old binary's.
pub(super) const HANDED: &str = "_SUPERVISE_HANDED";
/// In that of an old one that goes on, why the new one did not.
pub(super) const FAILED: &str = "_SUPERVISE_FAILED";

/// The first argument that makes a binary say whether it could take over: the state is on its
/// standard input, what follows is the command line that it would have.
pub const CHECK: &str = "__take-over";

/// How the answer to [`CHECK`] begins if it could.
pub const CAN: &str = "can ";

/// Reading its configuration and a state takes a binary some 10 ms.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// Its answer is a version or the reason of a refusal: one line, at most a few.
const ANSWER_BYTES: u64 = 16 << 10;

/// What was handed to this process by the binary that it was before.
#[derive(Debug)]
pub struct Inherited {
    handed: File,
    old: File,
    /// We are the old one, and the new one failed like this.
    pub failed: Option<String>,
}

impl Inherited {
    /// `None`: this is the beginning of a process.
    pub fn find() -> Option<Self> {
        let text = env::var(HANDED).ok()?;
        let (state, old) = text.split_once(':')?;
        Some(Self {
            handed: File::from(adopt(state.parse().ok()?)?),
            old: File::from(adopt(old.parse().ok()?)?),
            failed: env::var(FAILED).ok(),
        })
    }

    /// The state, as the old binary wrote it.
    pub fn state(&self) -> io::Result<Vec<u8>> {
        self.read().map(|(_, state)| state)
    }

    /// The command line that the old binary had, and the state.
    fn read(&self) -> io::Result<(Vec<OsString>, Vec<u8>)> {
        let mut file = &self.handed;
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

    /// Executes the old binary again. Returns only if that cannot be done either: it was tried
    /// before, or it is gone.
    pub fn go_back(&self, why: &str) -> io::Error {
        if self.failed.is_some() {
            return io::Error::other("it has just failed itself");
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
        match execute(&binary, words, (&self.handed, &self.old), &[]) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

/// What is executed.
#[derive(Debug)]
pub struct Binary {
    path: PathBuf,
    failed: Option<String>,
}

impl Binary {
    /// What the command line named, as it is there now: a package manager has replaced it.
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
        let none = || io::Error::other(format!("no {} is there any more", named.display()));
        Ok(Self {
            path: path.ok_or_else(none)?,
            failed: None,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks it whether it can take this state over; its version, or why not. Waits for the answer:
    /// to be called in a thread of its own.
    pub fn check(&self, state: &[u8]) -> Result<String, String> {
        let asked = self.ask(state);
        let answer = asked.map_err(|error| format!("run {}: {error}", self.path.display()))?;
        match answer.trim_end().strip_prefix(CAN) {
            Some(version) => Ok(version.to_owned()),
            None if answer.trim().is_empty() => {
                Err(format!("{} cannot take over", self.path.display()))
            }
            None => Err(format!("{}: {}", self.path.display(), answer.trim_end())),
        }
    }

    fn ask(&self, state: &[u8]) -> io::Result<String> {
        let mut input = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(state)?;
        input.rewind()?;
        let (output, answers) = io::pipe()?;
        let marker = Marker::new();
        let child = Command::new(&self.path)
            .arg(CHECK)
            .args(env::args_os().skip(1))
            .env_remove(HANDED)
            .env_remove(FAILED)
            .env(marker.name, &marker.value)
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(answers.try_clone()?))
            .stderr(Stdio::from(answers))
            .spawn()?;
        // Its end is the reaper's to see; what it says is all that counts.
        let (said, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // One byte more than allowed, so that a longer answer is noticed.
            let read = output.take(ANSWER_BYTES + 1).read_to_end(&mut text);
            // Nobody waits any more for what comes too late.
            let _ = said.send(read.map(|_| text));
        });
        let answer = heard.recv_timeout(CHECK_MAX);
        // It has answered by now, or it never will. The processes that it started would otherwise
        // stay our children.
        marker.kill_all(i32::try_from(child.id()).map_err(io::Error::other)?);
        let text = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        if u64::try_from(text.len()).is_ok_and(|length| length > ANSWER_BYTES) {
            let kilobytes = ANSWER_BYTES >> 10;
            let what = format!("its answer is longer than {kilobytes}K: it is not supervise");
            return Err(io::Error::other(what));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Becomes it. `keep` stay open, the others close. Returns only if it could not be executed;
    /// then nothing has changed.
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
    let words: Vec<CString> = words.into_iter().map(text).collect::<Result<_, _>>()?;
    let handed = format!("{}:{}", state.as_raw_fd(), old.as_raw_fd());
    let ours = [OsStr::new(HANDED), OsStr::new(FAILED)];
    let others = env::vars_os().filter(|(name, _)| !ours.contains(&name.as_os_str()));
    let failed = binary.failed.iter();
    let environment: Vec<CString> = others
        .chain([(HANDED.into(), handed.into())])
        .chain(failed.map(|why| (FAILED.into(), why.replace('\0', " ").into())))
        .map(|(name, value)| variable(name, &value))
        .collect::<Result<_, _>>()?;
    let path = text(binary.path.clone().into_os_string())?;
    let own = [state.as_raw_fd(), old.as_raw_fd()];
    let all: Vec<RawFd> = keep.iter().copied().chain(own).collect();
    // RACE: until the new one listens to signals, TERM would end it. They wait.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let kept = all.iter().try_for_each(|fd| close_on_exec(*fd, false));
    let result = kept.and_then(|()| execve(&path, &words, &environment).map_err(io::Error::from));
    all.iter().try_for_each(|fd| close_on_exec(*fd, true))?;
    listen_again()?;
    result
}

/// Signals that came while nobody listened are delivered now.
pub(super) fn listen_again() -> io::Result<()> {
    let none = SigSet::empty();
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
}

/// Takes over a descriptor that was left open for us, by its number.
pub fn adopt(fd: RawFd) -> Option<OwnedFd> {
    close_on_exec(fd, true).ok()?;
    // SAFETY: it is open, and the binary that this process was before kept it open for us alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn close_on_exec(fd: RawFd, close: bool) -> io::Result<()> {
    let flags = if close {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    // SAFETY: only a number that is no descriptor could be wrong, and that is an error of fcntl(2).
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

fn text(words: OsString) -> io::Result<CString> {
    CString::new(words.into_vec()).map_err(io::Error::from)
}

fn variable(mut name: OsString, value: &OsStr) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    text(name)
}
