//! The process between the supervisor and the command, so that nothing outlives us.
//!
//! It is the command's parent and the subreaper of all that the command starts
//! (`PR_SET_CHILD_SUBREAPER`, prctl(2)): a daemonized grandchild that loses its parent becomes the
//! keeper's child. It dies of nothing but its own end, is told by the kernel when the supervisor
//! dies (`PR_SET_PDEATHSIG`), and then kills its children until there are none. Should the keeper
//! itself be killed, all of them become the supervisor's children, which does the same.
//!
//! It is our own binary executed again: one thread, no inheritance of a supervisor's state.

#![expect(
    unsafe_code,
    reason = "wait4 has no safe form, and descriptors are inherited"
)]

mod birth;
mod words;

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

use super::listeners::Placed;
use birth::execute;
pub(super) use words::{Orders, WORD_LENGTH, Word, ended};

/// By this the supervisor asks for the end of all that is kept. TERM comes from the kernel.
pub(super) const END_ALL: Signal = Signal::SIGUSR1;

/// The first argument that makes this binary a keeper.
pub const WORD: &str = "__keep";

/// The whole life of a keeper. `args` is what follows [`WORD`]; the result is its exit status.
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
    // First of all, while nothing else is open.
    let sockets = Placed::move_in(&orders.lent)?;
    // SAFETY: the supervisor opened this descriptor for us alone.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(orders.socket) });
    never_inherited(&socket)?;
    prctl::set_name(c"supervise-keep")?;
    prctl::set_child_subreaper(true)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // Ctrl-Z on the terminal is not for us.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    if getppid().as_raw() != orders.parent {
        // RACE: the supervisor died before the kernel knew that we want to hear of it.
        return Ok(());
    }
    // SAFETY: as above.
    let place = (orders.place).map(|place| unsafe { OwnedFd::from_raw_fd(place) });
    if let Some(place) = &place {
        never_inherited(place)?;
    }
    let executed = execute(orders, &sockets, socket.try_clone()?, place);
    // The command has its own by now, and we never answer there.
    drop(sockets);
    match executed {
        Ok(pid) => say(&mut socket, Word::Executed { pid }),
        Err(error) => {
            say(
                &mut socket,
                Word::Failed {
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                },
            );
        }
    }
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    wanted.add(Signal::SIGTERM);
    wanted.add(END_ALL);
    loop {
        if !reap(&mut socket, libc::WNOHANG) {
            return Ok(());
        }
        match wanted.wait()? {
            END_ALL | Signal::SIGTERM => {
                kill_all(&mut socket);
                return Ok(());
            }
            _ => {}
        }
    }
}

fn never_inherited(file: &impl AsFd) -> io::Result<()> {
    let flag = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
    fcntl(file, flag)?;
    Ok(())
}

/// A supervisor that is gone hears nothing, and that is no reason to stop keeping.
fn say(socket: &mut UnixStream, word: Word) {
    let _ = socket.write_all(&word.to_bytes());
}

/// Buries children that have ended, and tells. False when there is none left at all.
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
            // Ctrl-Z stops a job in the terminal's foreground, and us it does not: the terminal
            // would be nobody's. So the job goes on.
            pid if pid > 0 && libc::WIFSTOPPED(status) => {
                if libc::WSTOPSIG(status) == libc::SIGTSTP {
                    let _ = killpg(Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
            -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            -1 => return false,
            pid => {
                say(
                    socket,
                    Word::Reaped {
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

/// Kills child after child. What a killed one leaves behind becomes our child in the same moment,
/// so that the end of the list is the end of all.
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
pub(super) fn children() -> Vec<i32> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}
