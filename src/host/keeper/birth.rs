//! The command's birth: in its group where the kernel can do that, and executed once the supervisor
//! says so.

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

use super::words::{Orders, Word};
use crate::host::listeners::{Passing, Placed};

/// Starts the command; it waits for the supervisor's go before it executes. Blocks until then.
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
        // Ours is inherited, and it blocks all.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        // SAFETY: SIG_DFL is not a handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
        // Before it waits, because configured limits are set during the wait. Our raised limit is
        // not passed on: a program that uses select(2) breaks on many descriptors.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let soft = open_files.unwrap_or(RLIM_INFINITY).min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        if foreground {
            take_terminal();
        }
        let pid = getpid().as_raw();
        socket.write_all(&Word::Waiting { pid }.to_bytes())?;
        // By now it is in its group, with its limits. End of file: the supervisor is gone.
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
    // SAFETY: between fork and exec of a process with one thread everything is allowed.
    unsafe { command.pre_exec(prepare) };
    if let Some(place) = place
        && let Some(born) = born_in(&place, &mut command)
    {
        return born;
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Forks into a group of version 2, and executes there: not a page of the command is charged to
/// another group (clone(2), `CLONE_INTO_CGROUP`, Linux 5.7). `None`: this kernel does not, or the
/// group does not let us; then it is moved there before it executes.
///
/// RACE: Linux 6.18 compares how often our group and that one were killed, and takes a difference
/// for a kill that came while we forked: what is born into a group that was ever killed (by
/// `cgroup.kill`) dies before its first instruction.
fn born_in(place: &OwnedFd, command: &mut Command) -> Option<io::Result<i32>> {
    /// linux/sched.h
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    /// Its first instruction.
    const BORN: u8 = 1;
    let (mut heard, mut tells) = io::pipe().ok()?;
    // SAFETY: all of it is plain numbers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = u64::try_from(libc::SIGCHLD).ok()?;
    args.cgroup = u64::try_from(place.as_raw_fd()).ok()?;
    // SAFETY: without CLONE_VM it is a fork(2), and we have one thread: the child may do anything.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    let pid = i32::try_from(pid).ok()?;
    if pid < 0 {
        return None;
    }
    if pid == 0 {
        let _ = tells.write_all(&[BORN]);
        let error = command.exec();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = tells.write_all(&errno.to_ne_bytes());
        // SAFETY: nothing of the keeper's is to be done by its copy.
        unsafe { libc::_exit(127) };
    }
    drop(tells);
    let bury = || {
        let none = std::ptr::null_mut();
        // SAFETY: nothing is wanted but its burial.
        unsafe { libc::wait4(pid, none, 0, std::ptr::null_mut()) };
    };
    if heard.read_exact(&mut [0]).is_err() {
        bury();
        return None;
    }
    let mut errno = [0; 4];
    // It is closed by an execve(2) that worked.
    Some(match heard.read_exact(&mut errno) {
        Err(_) => Ok(pid),
        Ok(()) => {
            bury();
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    })
}

/// Makes our process group the terminal's foreground one, if standard input is a terminal.
/// A background group that does this is stopped by TTOU unless it ignores it (tcsetpgrp(3)).
fn take_terminal() {
    // SAFETY: SIG_IGN and SIG_DFL are not handlers.
    let old = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // Without a terminal there is nothing to take.
    let _ = tcsetpgrp(io::stdin(), nix::unistd::getpgrp());
    // SAFETY: as above; `old` is what was there.
    unsafe { libc::signal(libc::SIGTTOU, old) };
}
