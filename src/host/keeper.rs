//! The process between the supervisor and the command, so that nothing outlives us.
//!
//! It is the command's parent and the subreaper of all that the command starts
//! (`PR_SET_CHILD_SUBREAPER`, prctl(2)): a daemonized grandchild that loses its parent becomes the
//! keeper's child. It dies of nothing but its own end, is told by the kernel when the supervisor
//! dies (`PR_SET_PDEATHSIG`), and then kills its children until there are none. Should the keeper
//! itself be killed, all of them become the supervisor's children, which does the same.
//!
//! It is our own binary executed again: one thread, no inheritance of a supervisor's state.

#![expect(unsafe_code, reason = "wait4, clone3 and pre_exec have no safe form")]

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask},
    },
    unistd::{Pid, User, getpid, getppid, initgroups, setgid, setpgid, setuid, tcsetpgrp},
};

use super::{
    cgroup::{Found, remove_stale},
    listeners::{Passing, Placed},
    procfs::Proc,
};

const CLEAN_UPS: u32 = 20;
const CLEAN_UP_PAUSE: Duration = Duration::from_millis(50);

/// By this the supervisor asks for the end of all that is kept. TERM comes from the kernel.
pub(super) const END_ALL: Signal = Signal::SIGUSR1;

/// The first argument that makes this binary a keeper.
pub const WORD: &str = "__keep";

/// What the keeper tells the supervisor. On the wire: four native 64-bit numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Word {
    /// The command's process is there and waits for one byte before it executes.
    Waiting { pid: i32 },
    /// It executes.
    Executed { pid: i32 },
    /// It could not be executed.
    Failed { errno: i32 },
    /// A child of the keeper ended; `status` as wait(2) gives it, its peak in KiB.
    Reaped {
        pid: i32,
        status: i32,
        peak_kib: i64,
    },
}

/// The length of a word.
pub(super) const WORD_LENGTH: usize = 32;

impl Word {
    fn to_bytes(self) -> [u8; WORD_LENGTH] {
        let numbers: [i64; 4] = match self {
            Self::Waiting { pid } => [1, i64::from(pid), 0, 0],
            Self::Executed { pid } => [2, i64::from(pid), 0, 0],
            Self::Failed { errno } => [3, i64::from(errno), 0, 0],
            Self::Reaped {
                pid,
                status,
                peak_kib,
            } => [4, i64::from(pid), i64::from(status), peak_kib],
        };
        let mut bytes = [0; WORD_LENGTH];
        for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// `None` for what no keeper says.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers = [0_i64; 4];
        for (number, slot) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = i64::from_ne_bytes(slot.try_into().ok()?);
        }
        let small = |index: usize| i32::try_from(*numbers.get(index)?).ok();
        match numbers[0] {
            1 => Some(Self::Waiting { pid: small(1)? }),
            2 => Some(Self::Executed { pid: small(1)? }),
            3 => Some(Self::Failed { errno: small(1)? }),
            4 => Some(Self::Reaped {
                pid: small(1)?,
                status: small(2)?,
                peak_kib: numbers[3],
            }),
            _ => None,
        }
    }
}

/// How a wait(2) status reads.
pub(super) fn ended(status: i32) -> crate::supervisor::event::Ended {
    use crate::{supervisor::event::Ended, units::Signal};
    let status = ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, Some(signal)) => Ended::Signal(Signal(signal)),
        (None, None) => Ended::Unseen,
    }
}

/// What a keeper is told on its command line, after [`WORD`].
#[derive(Debug)]
pub(super) struct Orders {
    /// Its end of the socket.
    pub(super) socket: RawFd,
    /// The supervisor.
    pub(super) parent: i32,
    /// Puts the command into the terminal's foreground: it is a job that may read from it.
    pub(super) foreground: bool,
    /// The sockets that are passed on to the command, in their order.
    pub(super) lent: Vec<RawFd>,
    /// The version 2 group that the command is born in, if there is one.
    pub(super) place: Option<RawFd>,
    /// The service's name, for its groups.
    pub(super) name: OsString,
    /// Whose the command is; empty for ours.
    pub(super) user: OsString,
    /// What is executed.
    pub(super) program: OsString,
    /// Its command line.
    pub(super) argv: Vec<OsString>,
}

impl Orders {
    pub(super) fn into_args(self) -> Vec<OsString> {
        let mut args = vec![
            WORD.into(),
            self.socket.to_string().into(),
            self.parent.to_string().into(),
            if self.foreground {
                "foreground"
            } else {
                "background"
            }
            .into(),
            joined(&self.lent).into(),
            joined(self.place.as_slice()).into(),
            self.name,
            self.user,
            self.program,
        ];
        args.extend(self.argv);
        args
    }

    fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let number = |word: OsString| word.to_str()?.parse().ok();
        Some(Self {
            socket: number(args.next()?)?,
            parent: number(args.next()?)?,
            foreground: args.next()? == "foreground",
            lent: (args.next()?.to_str()?.split_terminator(','))
                .map(|word| word.parse().ok())
                .collect::<Option<_>>()?,
            place: match args.next()?.to_str()? {
                "" => None,
                word => Some(word.parse().ok()?),
            },
            name: args.next()?,
            user: args.next()?,
            program: args.next()?,
            argv: args.collect(),
        })
    }
}

fn joined(numbers: &[RawFd]) -> String {
    let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    words.join(",")
}

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
            END_ALL => {
                kill_all(&mut socket);
                return Ok(());
            }
            Signal::SIGTERM => {
                kill_all(&mut socket);
                if is_orphaned(orders) {
                    clean_up(orders);
                }
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

/// Starts the command; it waits for the supervisor's go before it executes. Blocks until then.
fn execute(
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
    let mut passing = sockets.passing(&orders.program, &orders.argv);
    let prepare = move || {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Ours is inherited, and it blocks all.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
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
pub(super) fn take_terminal() {
    // SAFETY: SIG_IGN and SIG_DFL are not handlers.
    let old = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // Without a terminal there is nothing to take.
    let _ = tcsetpgrp(io::stdin(), nix::unistd::getpgrp());
    // SAFETY: as above; `old` is what was there.
    unsafe { libc::signal(libc::SIGTTOU, old) };
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

/// Whether the supervisor is gone.
///
/// RACE: the kernel's word comes when the thread that started us ends (`PR_SET_PDEATHSIG`), and
/// until the last thread of a killed supervisor has ended, too, it is still our parent.
fn is_orphaned(orders: &Orders) -> bool {
    (0..CLEAN_UPS).any(|_| {
        let is_gone = getppid().as_raw() != orders.parent;
        if !is_gone {
            std::thread::park_timeout(CLEAN_UP_PAUSE);
        }
        is_gone
    })
}

/// The supervisor is gone, and so is all that lived in its groups: they are removed for it.
fn clean_up(orders: &Orders) {
    let proc = Proc::default();
    let (Ok(found), Some(name)) = (Found::discover(&proc), orders.name.to_str()) else {
        return;
    };
    for _ in 0..CLEAN_UPS {
        // The last process of a group may still be on its way out.
        if remove_stale(&found, &proc, name, orders.parent).is_empty() {
            return;
        }
        std::thread::park_timeout(CLEAN_UP_PAUSE);
    }
}

/// Our own children (proc(5), `task/TID/children`).
pub(super) fn children() -> Vec<i32> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_they_are_said() {
        for word in [
            Word::Waiting { pid: 7 },
            Word::Executed { pid: 8 },
            Word::Failed { errno: 2 },
            Word::Reaped {
                pid: 9,
                status: 256,
                peak_kib: 1 << 40,
            },
        ] {
            assert_eq!(Word::from_bytes(&word.to_bytes()), Some(word));
        }
        assert_eq!(Word::from_bytes(&[9; WORD_LENGTH]), None);
    }

    #[test]
    fn every_wait_status_is_understood() {
        use crate::{supervisor::event::Ended, units::Signal};
        for code in 0..=255 {
            assert_eq!(ended(code << 8), Ended::Exit(code));
        }
        for signal in 1..=31 {
            assert_eq!(ended(signal), Ended::Signal(Signal(signal)));
        }
    }
}
