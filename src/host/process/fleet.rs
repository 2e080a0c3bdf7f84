//! The parent of the copies of a fleet (`--copies 4`).
//!
//! To the supervisor it is a server like gunicorn, whose children are the workers: TTIN starts one
//! copy more, TTOU stops the oldest one, TERM stops all. So a copy is replaced like the worker of
//! any server, and a new one serves first. The parent starts another copy when one has ended, and
//! never ends because copies fail.
//!
//! A single program that gets listening sockets has such a parent, too, so that another copy of it
//! can be started before it is stopped. That parent ends like the last copy has ended, so to its
//! own parent it looks like the program itself.
//!
//! It is our own binary, executed as the command. It has one thread.

#![expect(
    unsafe_code,
    reason = "pre_exec has no safe form, and those of waitpid and kill lack real-time signals"
)]

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    os::{
        fd::{AsFd, RawFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{self, SigSet, SigmaskHow, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::keeper::ended;
use crate::{
    host::{clock, listen::Passing},
    servers::fleet::{ONE_FEWER, TITLE},
    supervisor::{input::Ended, spec::Spec},
    units::{Signal, Timestamp},
};

/// The first argument that makes this binary the parent of a fleet.
pub const ARGUMENT: &str = "__fleet";
/// A copy that fails at a lower age was started in vain.
const LASTS: Duration = Duration::from_secs(10);
/// The pause after the first copy that was started in vain. It doubles each time ...
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// The first descriptor of the sockets (sd_listen_fds(3)).
const FIRST_FD: RawFd = 3;

/// The command line that starts the parent, instead of the command itself.
pub(in crate::host) fn command_line(spec: &Spec) -> (PathBuf, Vec<OsString>) {
    let (copies, ends) = match (spec.copies, spec.overlap) {
        (Some(copies), _) => (copies, 0),
        (None, true) => (1, 1),
        (None, false) => return (spec.command.program.clone(), spec.command.argv.clone()),
    };
    let stop = spec.stop.signal.0.to_string();
    let numbers = [copies.to_string(), ends.to_string(), stop];
    let mut argv = vec![OsString::from(TITLE), OsString::from(ARGUMENT)];
    argv.extend(numbers.map(OsString::from));
    argv.push(spec.command.program.clone().into_os_string());
    argv.extend(spec.command.argv.iter().cloned());
    // The running binary, even if its path is another binary now.
    (PathBuf::from("/proc/self/exe"), argv)
}

/// Runs the parent. `args` are the arguments after [`ARGUMENT`]; the result is its exit status.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let Some(orders) = Orders::from_args(args) else {
        return 2;
    };
    match run(&orders) {
        Ok(Ended::Exit(status)) => u8::try_from(status).unwrap_or(70),
        Ok(Ended::Signal(signal)) => die_of(signal),
        Ok(Ended::Unseen) | Err(_) => 70,
    }
}

/// Ends this process by a signal, like the last copy. Without a core file: the copy may have one.
fn die_of(signal: Signal) -> u8 {
    let _ = prctl::set_dumpable(false);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // SAFETY: this changes no memory of ours. Rust's runtime has changed some of the actions.
    unsafe {
        libc::signal(signal.0, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal.0);
    }
    70
}

struct Orders {
    copies: usize,
    /// The parent ends when its last copy has ended by itself.
    ends: bool,
    stop: Signal,
    program: OsString,
    argv: Vec<OsString>,
}

impl Orders {
    fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || args.next()?.into_string().ok()?.parse::<i32>().ok();
        let (copies, ends, stop) = (number()?, number()?, number()?);
        Some(Self {
            copies: usize::try_from(copies).ok()?,
            ends: ends != 0,
            stop: Signal(stop),
            program: args.next()?,
            argv: args.collect(),
        })
    }
}

/// Runs until all copies have ended. Returns how this process ends.
fn run(orders: &Orders) -> io::Result<Ended> {
    prctl::set_name(c"supervise-fleet")?;
    let handled = handled(orders.stop);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled), None)?;
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut fleet = Fleet::new(orders.copies, orders.ends);
    loop {
        let now = clock::now();
        while fleet.wants_one(now) {
            match start(orders) {
                Ok(pid) => fleet.on_start(pid, now),
                // The program is gone, or no process can be forked at the moment.
                Err(error) => {
                    if fleet.on_failed_start(now) {
                        let program = orders.program.display();
                        let _ = writeln!(io::stderr(), "supervise: execute {program}: {error}");
                        return Ok(Ended::Exit(status_of(&error)));
                    }
                }
            }
        }
        for pid in fleet.take_excess() {
            send(pid, orders.stop);
        }
        if let Some(ended) = fleet.over() {
            return Ok(ended);
        }
        wait(&signals, fleet.next_start(now))?;
        while let Some(signal) = signals.read_signal()? {
            if let Ok(signal) = i32::try_from(signal.ssi_signo) {
                on_signal(&mut fleet, Signal(signal), orders.stop);
            }
        }
        reap(&mut fleet, orders.stop);
    }
}

/// The signals that are read.
fn handled(stop: Signal) -> SigSet {
    let mut handled = SigSet::empty();
    for signal in [
        signal::SIGCHLD,
        signal::SIGTERM,
        signal::SIGINT,
        signal::SIGQUIT,
        signal::SIGHUP,
        signal::SIGUSR1,
        signal::SIGUSR2,
        signal::SIGWINCH,
        signal::SIGPWR,
        signal::SIGTTIN,
        signal::SIGTTOU,
    ] {
        handled.add(signal);
    }
    // `stop.signal` may be any signal. A real-time signal has no name here, and ends the parent.
    if let Ok(stop) = signal::Signal::try_from(stop.0) {
        handled.add(stop);
    }
    handled
}

fn on_signal(fleet: &mut Fleet, signal: Signal, stop: Signal) {
    match signal {
        Signal::TERM | Signal::INT => fleet.stop(),
        _ if signal == stop => fleet.stop(),
        Signal::QUIT => {
            fleet.stop();
            for pid in fleet.pids() {
                send(pid, Signal::KILL);
            }
        }
        Signal::TTIN => fleet.scale(true),
        Signal::TTOU => fleet.scale(false),
        ONE_FEWER => fleet.expect_end(),
        Signal::CHLD => {}
        _ => {
            for pid in fleet.pids() {
                send(pid, signal);
            }
        }
    }
}

/// The exit status for a program that cannot be executed, as in a shell.
fn status_of(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(libc::ENOENT) => 127,
        Some(libc::EACCES | libc::ENOEXEC) => 126,
        _ => 125,
    }
}

/// Waits for a signal, or until the next start is due.
fn wait(signals: &SignalFd, next: Option<Duration>) -> io::Result<()> {
    let timeout = next.map_or(PollTimeout::NONE, |next| {
        // Rounded up, so that the start is due then.
        let next = next.saturating_add(Duration::from_millis(1));
        PollTimeout::try_from(next).unwrap_or(PollTimeout::MAX)
    });
    let mut polled = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn reap(fleet: &mut Fleet, stop: Signal) {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to our own variable.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return;
        }
        let ended = ended(status);
        // Some servers end by the signal that has stopped them.
        let well = matches!(ended, Ended::Exit(0))
            || matches!(ended, Ended::Signal(signal) if signal == stop);
        fleet.on_end(pid, (ended, well), clock::now());
    }
}

fn send(pid: i32, signal: Signal) {
    // SAFETY: this changes no memory of ours. The process is our child and not reaped yet.
    unsafe { libc::kill(pid, signal.0) };
}

/// Starts a copy, with the sockets if there are any.
fn start(orders: &Orders) -> io::Result<i32> {
    let count = env::var("LISTEN_FDS").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    let sockets = (FIRST_FD..FIRST_FD.saturating_add(count)).collect();
    let mut passing = Passing::of(&orders.program, &orders.argv, sockets);
    let mut command = Command::new(&orders.program);
    let run = move || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        passing.execute()
    };
    // SAFETY: this process has one thread, so the code between fork and exec may do anything.
    unsafe { command.pre_exec(run) };
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Which copies run, and when the next one is started.
#[derive(Debug)]
struct Fleet {
    wanted: usize,
    /// Oldest first.
    copies: Vec<Copy>,
    /// Copies that the supervisor stops itself, and that are not replaced.
    leaving: usize,
    is_stopping: bool,
    /// Ends when the last copy has ended by itself.
    ends: bool,
    /// How the last copy has ended by itself.
    ended: Option<Ended>,
    pause: Duration,
    next: Option<Timestamp>,
}

#[derive(Debug)]
struct Copy {
    pid: i32,
    since: Timestamp,
    is_told: bool,
}

impl Fleet {
    const fn new(wanted: usize, ends: bool) -> Self {
        Self {
            wanted,
            copies: Vec::new(),
            leaving: 0,
            is_stopping: false,
            ends,
            ended: None,
            pause: Duration::ZERO,
            next: None,
        }
    }

    fn wants_one(&self, now: Timestamp) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        self.is_missing_one() && due
    }

    /// The time until the next start, if a copy is missing.
    fn next_start(&self, now: Timestamp) -> Option<Duration> {
        let next = self.next.filter(|_| self.is_missing_one())?;
        Some(next.since(now))
    }

    const fn is_missing_one(&self) -> bool {
        let ends = self.is_stopping || self.ended.is_some();
        !ends && self.copies.len() < self.wanted
    }

    /// How the parent ends, if it has nothing more to do.
    fn over(&self) -> Option<Ended> {
        let stopped = self.is_stopping.then_some(Ended::Exit(0));
        let over = self.copies.is_empty();
        stopped.filter(|_| over).or(self.ended)
    }

    fn pids(&self) -> impl Iterator<Item = i32> {
        self.copies.iter().map(|copy| copy.pid)
    }

    const fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn scale(&mut self, more: bool) {
        self.wanted = if more {
            self.wanted.saturating_add(1)
        } else {
            self.wanted.saturating_sub(1).max(1)
        };
    }

    /// The supervisor stops a copy, and wants one fewer.
    fn expect_end(&mut self) {
        if self.wanted > 1 {
            self.wanted -= 1;
            self.leaving += 1;
        }
    }

    /// The copies that are too many and were not told to stop yet, the oldest first.
    fn take_excess(&mut self) -> Vec<i32> {
        let stays = if self.is_stopping {
            0
        } else {
            self.wanted.saturating_add(self.leaving)
        };
        let excess = self.copies.len().saturating_sub(stays);
        let mut told = Vec::new();
        for copy in self.copies.iter_mut().take(excess) {
            if !copy.is_told {
                copy.is_told = true;
                told.push(copy.pid);
            }
        }
        told
    }

    fn on_start(&mut self, pid: i32, now: Timestamp) {
        self.copies.push(Copy {
            pid,
            since: now,
            is_told: false,
        });
    }

    /// A copy has ended; `well`: it was stopped, or has exited with status 0.
    fn on_end(&mut self, pid: i32, (ended, well): (Ended, bool), now: Timestamp) {
        let Some(at) = self.copies.iter().position(|copy| copy.pid == pid) else {
            return;
        };
        let copy = self.copies.remove(at);
        if !copy.is_told {
            self.leaving = self.leaving.saturating_sub(1);
        }
        // The others were started before it.
        let was_newest = at == self.copies.len();
        if self.ends && self.copies.is_empty() && !copy.is_told && !self.is_stopping {
            self.ended = Some(ended);
        }
        let in_vain = now.since(copy.since) < LASTS && !copy.is_told;
        match (in_vain, well) {
            (true, false) => self.on_failure(now),
            // The supervisor has stopped the copy that it had started last, which was not ready; or
            // the program ends at once.
            (true, true) if was_newest && !self.copies.is_empty() => self.on_failure(now),
            // The supervisor may have stopped it, or it has nothing to do.
            (true, true) => {
                self.pause = Duration::ZERO;
                self.next = Some(now.later(PAUSE_MIN));
            }
            (false, _) => {
                self.pause = Duration::ZERO;
                self.next = None;
            }
        }
    }

    /// A copy could not be started. Returns true if the parent ends for this reason.
    fn on_failed_start(&mut self, now: Timestamp) -> bool {
        self.on_failure(now);
        self.ends && self.copies.is_empty()
    }

    fn on_failure(&mut self, now: Timestamp) {
        self.pause = self.pause.saturating_mul(2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.next = Some(now.later(self.pause));
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
