//! The process between the supervisor and the command, so that no process outlives the supervisor.
//!
//! It is the command's parent, and the subreaper of all processes that the command starts
//! (`PR_SET_CHILD_SUBREAPER`, prctl(2)): a daemonized grandchild that loses its parent becomes the
//! keeper's child. The keeper blocks all signals. The kernel signals it when the supervisor dies
//! (`PR_SET_PDEATHSIG`), and then it kills its children until there are none. If the keeper itself
//! is killed, all of them become the supervisor's children, and the supervisor kills them.
//!
//! It is our own binary, executed again: it has one thread, and inherits no state of the
//! supervisor.

#![expect(
    unsafe_code,
    reason = "wait4 has no safe form, and descriptors are inherited"
)]

mod execute;
mod messages;

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask},
    },
    unistd::{Pid, getppid, setpgid},
};

use crate::host::listen::Placed;
use execute::execute;
pub(in crate::host) use messages::{MESSAGE_LENGTH, Message, Orders, ended};

/// The supervisor's signal to kill all processes of this keeper. The kernel sends TERM.
pub(in crate::host) const KILL_ALL: Signal = Signal::SIGUSR1;

/// The first argument that makes this binary a keeper.
pub const ARGUMENT: &str = "__keep";

/// Runs a keeper. `args` are the arguments after [`ARGUMENT`]; the result is its exit status.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let Some(orders) = Orders::from_args(args) else {
        return 2;
    };
    match keep(&orders) {
        Ok(()) => 0,
        Err(_) => 70,
    }
}

fn keep(orders: &Orders) -> io::Result<()> {
    // First, while nothing else is open.
    let sockets = Placed::move_in(&orders.lent)?;
    // SAFETY: the supervisor opened this descriptor for this process only.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(orders.socket) });
    set_close_on_exec(&socket)?;
    prctl::set_name(c"supervise-keep")?;
    prctl::set_child_subreaper(true)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // Ctrl-Z on the terminal must not stop the keeper.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    if getppid().as_raw() != orders.supervisor {
        // RACE: the supervisor died before it was registered with the kernel as our parent to
        // watch.
        return Ok(());
    }
    // SAFETY: as above.
    let place = (orders.place).map(|place| unsafe { OwnedFd::from_raw_fd(place) });
    if let Some(place) = &place {
        set_close_on_exec(place)?;
    }
    let executed = execute(orders, &sockets, socket.try_clone()?, place);
    // The command has its own copies, and the keeper accepts no connections.
    drop(sockets);
    match executed {
        Ok(pid) => send(&mut socket, Message::Executed { pid }),
        Err(error) => {
            send(
                &mut socket,
                Message::Failed {
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                },
            );
        }
    }
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    wanted.add(Signal::SIGTERM);
    wanted.add(KILL_ALL);
    loop {
        if !reap(&mut socket, libc::WNOHANG) {
            return Ok(());
        }
        match wanted.wait()? {
            KILL_ALL | Signal::SIGTERM => {
                kill_all(&mut socket);
                return Ok(());
            }
            _ => {}
        }
    }
}

fn set_close_on_exec(file: &impl AsFd) -> io::Result<()> {
    let flag = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
    fcntl(file, flag)?;
    Ok(())
}

/// Sends a message. If the supervisor is gone, the keeper continues without it.
fn send(socket: &mut UnixStream, message: Message) {
    let _ = socket.write_all(&message.to_bytes());
}

/// Reaps the children that have ended, and reports each. False if no child is left.
fn reap(socket: &mut UnixStream, how: i32) -> bool {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to our own variables.
        let pid =
            unsafe { libc::wait4(-1, &raw mut status, how | libc::WUNTRACED, &raw mut usage) };
        match pid {
            0 => return true,
            // Ctrl-Z stops a job in the terminal's foreground, but not the keeper. No shell would
            // continue the job then, so the keeper continues it.
            pid if pid > 0 && libc::WIFSTOPPED(status) => {
                if libc::WSTOPSIG(status) == libc::SIGTSTP {
                    let _ = killpg(Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
            -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            -1 => return false,
            pid => {
                send(
                    socket,
                    Message::Reaped {
                        pid,
                        status,
                        peak_kib: usage.ru_maxrss,
                    },
                );
                if how == 0 {
                    return true;
                }
            }
        }
    }
}

/// Kills child after child. The children of a killed process become our children in the same
/// moment, so when no child is left, no process is left.
fn kill_all(socket: &mut UnixStream) {
    loop {
        for pid in children() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if !reap(socket, 0) {
            return;
        }
    }
}

/// Our own children (proc(5), `task/TID/children`).
pub(in crate::host) fn children() -> Vec<i32> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}
