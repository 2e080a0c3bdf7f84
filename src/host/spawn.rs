//! Starting the command: the keeper, and the moment before the command executes in which it gets
//! its group and its limits.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::Command,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    exec::{FAILED, HANDED},
    keeper::{END_ALL, Orders, WORD_LENGTH, Word},
    listeners::{self, Listeners},
    users,
};
use crate::supervisor::spec::CommandSpec;

/// For our service manager's eyes or our own, not for the command's.
const NOT_INHERITED: [&str; 5] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    HANDED,
    FAILED,
];

/// A keeper that was started, seen from the supervisor.
#[derive(Debug)]
pub(super) struct Keeper {
    pid: i32,
    socket: UnixStream,
    /// What of the next word has come.
    buffer: Vec<u8>,
}

impl Keeper {
    /// Starts a keeper. `notify` is where the command says that it is ready, if it is to say it;
    /// `place` is the group that it is to be born in.
    pub(super) fn start(
        command: &CommandSpec,
        (foreground, notify, place): (bool, Option<&Path>, Option<OwnedFd>),
        open_files: Option<u64>,
        listeners: &Listeners,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // These are not closed by an exec. Nothing else forks between here and their end below.
        let theirs = listeners.above(theirs.as_fd())?;
        let lent = listeners.lend()?;
        let place = place.map(|place| listeners.above(place.as_fd()));
        let place = place.transpose()?;
        let orders = Orders {
            socket: theirs.as_raw_fd(),
            parent: i32::try_from(std::process::id()).map_err(io::Error::other)?,
            foreground,
            lent: lent.iter().map(AsRawFd::as_raw_fd).collect(),
            place: place.as_ref().map(AsRawFd::as_raw_fd),
            open_files,
            user: command.user.clone().map(OsString::from).unwrap_or_default(),
            program: command.program.clone().into_os_string(),
            argv: command.argv.clone(),
        };
        // The binary that runs, even if another one has taken its name.
        let mut keeper = Command::new("/proc/self/exe");
        keeper
            .arg0("supervise-keeper")
            .args(orders.into_args())
            .envs(
                command
                    .user
                    .iter()
                    .flat_map(|user| users::environment(user)),
            )
            .envs(&command.env);
        for name in NOT_INHERITED.iter().chain(&listeners::VARIABLES) {
            keeper.env_remove(name);
        }
        if !lent.is_empty() {
            keeper.envs(listeners.environment(&command.argv));
        }
        if let Some(notify) = notify {
            keeper.env("NOTIFY_SOCKET", notify);
        }
        if let Some(directory) = &command.directory {
            keeper.current_dir(directory);
        }
        let child = keeper.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self {
            pid,
            socket: ours,
            buffer: Vec::new(),
        })
    }

    /// One that was started by the binary that this process was before.
    pub(super) fn take_over(pid: i32, socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            pid,
            socket,
            buffer: Vec::new(),
        })
    }

    /// Our child, which the reaper waits for.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells the keeper to kill all its processes and exit.
    pub(super) fn end_all(&self) -> io::Result<()> {
        // Not reaped yet, so its number is not reused. A stopped keeper is continued.
        let pid = Pid::from_raw(self.pid);
        kill(pid, END_ALL)?;
        kill(pid, Signal::SIGCONT).map_err(io::Error::from)
    }

    /// Kills the keeper alone; its processes become our children.
    pub(super) fn kill(&self) {
        // If it has ended already, its exit is about to be seen.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// The waiting command may execute.
    pub(super) fn go(&mut self) -> io::Result<()> {
        self.socket.write_all(&[1])
    }

    /// What it has said since the last time.
    pub(super) fn words(&mut self) -> Vec<Word> {
        let mut chunk = [0; WORD_LENGTH * 16];
        // End of file and errors both mean that it says no more; the reaper tells of its end.
        while let Ok(length @ 1..) = self.socket.read(&mut chunk) {
            self.buffer.extend_from_slice(&chunk[..length]);
        }
        let whole = self.buffer.len() / WORD_LENGTH * WORD_LENGTH;
        let bytes: Vec<u8> = self.buffer.drain(..whole).collect();
        bytes
            .chunks_exact(WORD_LENGTH)
            .filter_map(Word::from_bytes)
            .collect()
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
