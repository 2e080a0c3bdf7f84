//! Starts the command: in its group, if the kernel supports that, and executed when the supervisor
//! allows it.

#![expect(unsafe_code, reason = "clone3 and pre_exec have no safe form")]

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
};

use nix::{
    sys::{
        prctl,
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    },
    unistd::{Pid, User, getpid, getppid, initgroups, setgid, setpgid, setuid, tcsetpgrp},
};

use super::messages::{Message, Orders};
use crate::host::listen::{Passing, Placed};

/// Starts the command, which waits for the supervisor's permission before it executes. Blocks until
/// then.
pub(super) fn execute(
    orders: &Orders,
    sockets: &Placed,
    mut socket: UnixStream,
    place: Option<OwnedFd>,
) -> io::Result<i32> {
    let mut argv = orders.argv.iter();
    let mut command = Command::new(&orders.program);
    command
        .arg0(argv.next().unwrap_or(&orders.program))
        .args(argv);
    let user = match orders.user.to_str() {
        None | Some("") => None,
        Some(name) => Some(User::from_name(name)?.ok_or(io::ErrorKind::NotFound)?),
    };
    let (keeper, foreground) = (getpid(), orders.foreground);
    let open_files = orders.open_files;
    let mut passing = sockets.passing(&orders.program, &orders.argv);
    let prepare = move || {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Ours is inherited, and it blocks all signals.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        // SAFETY: SIG_DFL is not a handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
        // Before the wait, because configured limits are set during the wait. Our raised limit is
        // not passed on: many descriptors break a program that uses select(2).
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let soft = open_files.unwrap_or(RLIM_INFINITY).min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        if foreground {
            take_terminal();
        }
        let pid = getpid().as_raw();
        socket.write_all(&Message::Waiting { pid }.to_bytes())?;
        // Now it is in its group and has its limits. End of file: the supervisor is gone.
        socket.read_exact(&mut [0])?;
        if let Some(user) = &user {
            initgroups(&std::ffi::CString::new(user.name.as_str())?, user.gid)?;
            setgid(user.gid)?;
            setuid(user.uid)?;
        }
        // After setuid, which clears it (prctl(2)).
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != keeper {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        passing.as_mut().map_or(Ok(()), Passing::execute)
    };
    // SAFETY: this process has one thread, so the code between fork and exec may do anything.
    unsafe { command.pre_exec(prepare) };
    if let Some(place) = place
        && let Some(started) = fork_into_group(&place, &mut command)
    {
        return started;
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Forks into a group of version 2 and executes there, so that no page of the command is charged to
/// another group (clone(2), `CLONE_INTO_CGROUP`, Linux 5.7). `None`: this kernel or this group does
/// not allow it, and the supervisor moves the process into the group before it executes.
///
/// RACE: Linux 6.18 compares how often our group and that group were killed, and takes a difference
/// for a kill during the fork. A process that is created in a group which was ever killed (by
/// `cgroup.kill`) dies before its first instruction.
/// `cgroup.kill`) dies before its first instruction.
fn fork_into_group(place: &OwnedFd, command: &mut Command) -> Option<io::Result<i32>> {
    /// From linux/sched.h.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    /// Sent by the child as its first action, to show that it runs.
    const STARTED: u8 = 1;
    let (mut reader, mut writer) = io::pipe().ok()?;
    // SAFETY: all fields are plain numbers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = u64::try_from(libc::SIGCHLD).ok()?;
    args.cgroup = u64::try_from(place.as_raw_fd()).ok()?;
    // SAFETY: without CLONE_VM this is a fork(2), and we have one thread, so the child may do
    // anything.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    let pid = i32::try_from(pid).ok()?;
    if pid < 0 {
        return None;
    }
    if pid == 0 {
        let _ = writer.write_all(&[STARTED]);
        let error = command.exec();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = writer.write_all(&errno.to_ne_bytes());
        // SAFETY: the copy of the keeper must not run any of the keeper's exit code.
        unsafe { libc::_exit(127) };
    }
    drop(writer);
    let reap = || {
        let none = std::ptr::null_mut();
        // SAFETY: null pointers mean that no result is stored.
        unsafe { libc::wait4(pid, none, 0, std::ptr::null_mut()) };
    };
    if reader.read_exact(&mut [0]).is_err() {
        reap();
        return None;
    }
    let mut errno = [0; 4];
    // An execve(2) that succeeds closes the pipe.
    Some(match reader.read_exact(&mut errno) {
        Err(_) => Ok(pid),
        Ok(()) => {
            reap();
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    })
}

/// Makes our process group the foreground group of the terminal, if standard input is a terminal.
/// TTOU would stop a background group that does this, unless it ignores the signal (tcsetpgrp(3)).
fn take_terminal() {
    // SAFETY: SIG_IGN and SIG_DFL are not handlers.
    let old = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // This fails without a terminal.
    let _ = tcsetpgrp(io::stdin(), nix::unistd::getpgrp());
    // SAFETY: as above; `old` is the previous action.
    unsafe { libc::signal(libc::SIGTTOU, old) };
}
