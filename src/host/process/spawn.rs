//! Starting the command: the keeper, and the moment before the command executes, in which it gets
//! its group and its limits.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    exec::{FAILED, HANDOVER},
    keeper::{KILL_ALL, MESSAGE_LENGTH, Message, Orders},
    users,
};
use crate::{
    host::listen::{Listeners, VARIABLES},
    supervisor::spec::CommandSpec,
};

/// Variables for our service manager or for us, which the command does not get.
const NOT_INHERITED: [&str; 5] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    HANDOVER,
    FAILED,
];

/// A started keeper, as seen by the supervisor.
#[derive(Debug)]
pub(in crate::host) struct Keeper {
    pid: i32,
    socket: UnixStream,
    /// The part of the next message that has arrived.
    buffer: Vec<u8>,
}

impl Keeper {
    /// Starts a keeper, which executes this program with this command line. `notify` is the socket
    /// for the command's readiness message, if one is expected. `place` is the group that the
    /// command is created in.
    pub(in crate::host) fn start(
        command: &CommandSpec,
        (program, argv): (PathBuf, Vec<OsString>),
        (foreground, notify, place): (bool, Option<&Path>, Option<OwnedFd>),
        open_files: Option<u64>,
        listeners: &Listeners,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // These descriptors stay open across exec. Nothing else forks before they are closed below.
        let theirs = listeners.copy_above(theirs.as_fd())?;
        let lent = listeners.lend()?;
        let place = place.map(|place| listeners.copy_above(place.as_fd()));
        let place = place.transpose()?;
        let orders = Orders {
            socket: theirs.as_raw_fd(),
            supervisor: i32::try_from(std::process::id()).map_err(io::Error::other)?,
            foreground,
            lent: lent.iter().map(AsRawFd::as_raw_fd).collect(),
            place: place.as_ref().map(AsRawFd::as_raw_fd),
            open_files,
            user: command.user.clone().map(OsString::from).unwrap_or_default(),
            program: program.into_os_string(),
            argv,
        };
        // The running binary, even if its path is another binary now.
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
        for name in NOT_INHERITED.iter().chain(&VARIABLES) {
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

    /// A keeper that the previous binary of this process started.
    pub(in crate::host) fn take_over(pid: i32, socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            pid,
            socket,
            buffer: Vec::new(),
        })
    }

    /// Its pid. It is our child, and the reaper waits for it.
    pub(in crate::host) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells the keeper to kill all its processes and exit.
    pub(in crate::host) fn kill_all(&self) -> io::Result<()> {
        // It is not reaped yet, so its pid is not reused. A stopped keeper is continued.
        let pid = Pid::from_raw(self.pid);
        kill(pid, KILL_ALL)?;
        kill(pid, Signal::SIGCONT).map_err(io::Error::from)
    }

    /// Kills the keeper alone. Its processes become our children.
    pub(in crate::host) fn kill(&self) {
        // If it has ended already, the reaper is about to report it.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// Lets the waiting command execute.
    pub(in crate::host) fn release(&mut self) -> io::Result<()> {
        self.socket.write_all(&[1])
    }

    /// The messages since the last call.
    pub(in crate::host) fn messages(&mut self) -> Vec<Message> {
        let mut chunk = [0; MESSAGE_LENGTH * 16];
        // Both end of file and errors mean that no more messages come; the reaper reports its end.
        while let Ok(length @ 1..) = self.socket.read(&mut chunk) {
            self.buffer.extend_from_slice(&chunk[..length]);
        }
        let whole = self.buffer.len() / MESSAGE_LENGTH * MESSAGE_LENGTH;
        let bytes: Vec<u8> = self.buffer.drain(..whole).collect();
        bytes
            .chunks_exact(MESSAGE_LENGTH)
            .filter_map(Message::from_bytes)
            .collect()
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
