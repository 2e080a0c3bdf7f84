//! The process that removes our control groups if we are killed while there is no keeper to do so:
//! before the first keeper runs, or while the command waits for its next start.
//!
//! It is our own binary executed again, started before the first group is made. It holds one end of
//! a pipe whose other end only we hold, across an upgrade too: at the end of file we have ended.
//! Then it kills what still runs in the groups, removes them, and exits.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
    },
    unistd::{Pid, getppid},
};
use serde::{Deserialize, Serialize};

use super::{
    Host,
    cgroup::{Found, remove_stale},
    exec,
    pidfd::PidFd,
    procfs::Proc,
};

/// The first argument that makes this binary a sweeper.
pub const WORD: &str = "__sweep";

/// Tries to remove a group, whose last process may take seconds to free gigabytes.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// In milliseconds.
const END_MAX: u16 = 1000;

/// The sweeper, seen from the supervisor.
#[derive(Debug)]
pub(super) struct Sweeper {
    pid: i32,
    /// Its other end reads the end of file when we are gone.
    pipe: OwnedFd,
}

/// What a successor needs to know of it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct HandedSweeper {
    pid: i32,
    pub(super) pipe: RawFd,
}

impl Sweeper {
    /// Starts one for the groups of the service `name`.
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg0("supervise-sweeper")
            .args([WORD, name, &std::process::id().to_string()])
            .stdin(Stdio::from(reader))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self {
            pid: i32::try_from(child.id()).map_err(io::Error::other)?,
            pipe: writer.into(),
        })
    }

    pub(super) fn hand_over(&self) -> HandedSweeper {
        HandedSweeper {
            pid: self.pid,
            pipe: self.pipe.as_raw_fd(),
        }
    }

    /// One that was started by the binary that this process was before.
    pub(super) fn take_over(handed: &HandedSweeper) -> Option<Self> {
        Some(Self {
            pid: handed.pid,
            pipe: exec::adopt(handed.pipe)?,
        })
    }

    /// Our child, which the reaper waits for.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }
}

impl Host {
    /// Removes our groups. To be called when no process that we started is left.
    pub fn leave(&mut self) {
        self.gone.clear();
        self.workers.clear();
        self.groups.remove_all();
        if let Some(sweeper) = self.sweeper.take() {
            // Not reaped yet, so its number is its own.
            let _ = kill(Pid::from_raw(sweeper.pid), Signal::SIGKILL);
            // No process of ours outlives us. In a frozen group it cannot exit: wait only so long.
            if let Ok(process) = PidFd::open(sweeper.pid) {
                let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut ended, END_MAX);
            }
        }
    }

    /// Replaces a sweeper that was killed.
    pub(super) fn on_sweeper_gone(&mut self) {
        // Without one, groups may stay when we are killed, until the next start of this service.
        self.sweeper = Sweeper::start(&self.spec.name).ok();
    }
}

/// The whole life of a sweeper. `args` is what follows [`WORD`]; the result is its exit status.
pub fn main(mut args: impl Iterator<Item = OsString>) -> u8 {
    let name = args.next().and_then(|word| word.into_string().ok());
    let parent = args.next().and_then(|word| word.to_str()?.parse().ok());
    let (Some(name), Some(parent)) = (name, parent) else {
        return 2;
    };
    match sweep(&name, parent) {
        Ok(()) => 0,
        Err(_) => 70,
    }
}

fn sweep(name: &str, parent: i32) -> io::Result<()> {
    prctl::set_name(c"supervise-sweep")?;
    // A signal to the whole process tree must not end the sweeper before its parent.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let mut pipe = io::stdin();
    loop {
        match pipe.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // RACE: the end of file may come before the last descriptor of the supervisor is closed, and
    // one of them locks its groups. All are closed when it is no longer our parent.
    for _ in 0..TRIES {
        if getppid().as_raw() != parent {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    let proc = Proc::default();
    let found = Found::discover(&proc).map_err(io::Error::other)?;
    for _ in 0..TRIES {
        if remove_stale(&found, &proc, name, parent).is_empty() {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    Ok(())
}
