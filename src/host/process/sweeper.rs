//! The process that removes our control groups if we are killed while no keeper runs: before the
//! first keeper starts, or while the command waits for its next start.
//!
//! It is our own binary, executed again before the first group is made. It reads a pipe whose other
//! end only we hold, across an upgrade too: the end of file means that we have ended. Then it kills
//! the processes in the groups, removes the groups, and exits.

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

use super::{exec, pidfd::PidFd};
use crate::host::{
    cgroup::{Found, remove_stale},
    memory::procfs::Proc,
};

/// The first argument that makes this binary a sweeper.
pub const ARGUMENT: &str = "__sweep";

/// Attempts to remove a group. Its last process may take seconds to free gigabytes.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// Time limit for its end, in milliseconds.
const END_MAX: u16 = 1000;

/// The sweeper, as seen by the supervisor.
#[derive(Debug)]
pub(in crate::host) struct Sweeper {
    pid: i32,
    /// Its other end reads the end of file when we are gone.
    pipe: OwnedFd,
}

/// The state that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::host) struct SweeperState {
    pid: i32,
    pipe: RawFd,
}

impl SweeperState {
    /// The descriptor that stays open.
    pub(super) const fn pipe(&self) -> RawFd {
        self.pipe
    }
}

impl Sweeper {
    /// Starts a sweeper for the groups of `service`.
    pub(in crate::host) fn start(service: &str) -> io::Result<Self> {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg0("supervise-sweeper")
            .args([ARGUMENT, service, &std::process::id().to_string()])
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

    pub(in crate::host) fn hand_over(&self) -> SweeperState {
        SweeperState {
            pid: self.pid,
            pipe: self.pipe.as_raw_fd(),
        }
    }

    /// A sweeper that the previous binary of this process started.
    pub(in crate::host) fn take_over(state: &SweeperState) -> Option<Self> {
        Some(Self {
            pid: state.pid,
            pipe: exec::adopt(state.pipe)?,
        })
    }

    /// Kills it, and waits for its end.
    pub(super) fn end(self) {
        // It is not reaped yet, so its pid is not reused.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        // Waits, so that no process of ours outlives us. In a frozen group it cannot exit, so the
        // wait has a limit.
        if let Ok(process) = PidFd::open(self.pid) {
            let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ended, END_MAX);
        }
    }

    /// Its pid. It is our child, and the reaper waits for it.
    pub(in crate::host) const fn pid(&self) -> i32 {
        self.pid
    }
}

/// Runs a sweeper, and returns its exit status: 2 for wrong arguments, 70 (`EX_SOFTWARE`,
/// sysexits.h) for an error. After [`ARGUMENT`], `args` has the name of the service whose groups to
/// remove, and the pid of the supervisor.
pub fn main(mut args: impl Iterator<Item = OsString>) -> u8 {
    let service = args.next().and_then(|word| word.into_string().ok());
    let supervisor = args.next().and_then(|word| word.to_str()?.parse().ok());
    let (Some(service), Some(supervisor)) = (service, supervisor) else {
        return 2;
    };
    match sweep(&service, supervisor) {
        Ok(()) => 0,
        Err(_) => 70,
    }
}

fn sweep(service: &str, supervisor: i32) -> io::Result<()> {
    prctl::set_name(c"supervise-sweep")?;
    // A signal to the whole process tree must not end the sweeper before the supervisor.
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
        if getppid().as_raw() != supervisor {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    let proc = Proc::default();
    let found = Found::discover(&proc).map_err(io::Error::other)?;
    for _ in 0..TRIES {
        if remove_stale(&found, &proc, service, supervisor).is_empty() {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    Ok(())
}
