//! The parent of the copies of a fleet (`--copies 4`).
//!
//! To the supervisor it is a server like gunicorn, whose children are the workers: TTIN starts one
//! copy more, TTOU stops the oldest one, TERM stops all. So a copy is replaced like the worker of
//! any server, and a new one serves first. The parent starts another copy when one has ended, and
//! never ends because copies fail.
//!
//! It is our own binary, executed as the command. It has one thread.

#![expect(
    unsafe_code,
    reason = "pre_exec has no safe form, and those of waitpid and kill lack real-time signals"
)]

use std::{
    env,
    ffi::OsString,
    io,
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
    servers::fleet::TITLE,
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
    let Some(copies) = spec.copies else {
        return (spec.command.program.clone(), spec.command.argv.clone());
    };
    let numbers = [copies.to_string(), spec.stop.signal.0.to_string()];
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
        Ok(()) => 0,
        Err(_) => 70,
    }
}

struct Orders {
    copies: usize,
    stop: Signal,
    program: OsString,
    argv: Vec<OsString>,
}

impl Orders {
    fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || args.next()?.into_string().ok()?.parse::<i32>().ok();
        let (copies, stop) = (number()?, number()?);
        Some(Self {
            copies: usize::try_from(copies).ok()?,
            stop: Signal(stop),
            program: args.next()?,
            argv: args.collect(),
        })
    }
}

fn run(orders: &Orders) -> io::Result<()> {
    prctl::set_name(c"supervise-fleet")?;
    let mut handled = SigSet::empty();
    for signal in [
        signal::SIGCHLD,
        signal::SIGTERM,
        signal::SIGINT,
        signal::SIGQUIT,
        signal::SIGHUP,
        signal::SIGTTIN,
        signal::SIGTTOU,
    ] {
        handled.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled), None)?;
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut fleet = Fleet::new(orders.copies);
    loop {
        let now = clock::now();
        while fleet.wants_one(now) {
            match start(orders) {
                Ok(pid) => fleet.on_start(pid, now),
                // The program is gone, or no process can be forked at the moment.
                Err(_) => fleet.on_failure(now),
            }
        }
        for pid in fleet.take_excess() {
            send(pid, orders.stop);
        }
        if fleet.is_over() {
            return Ok(());
        }
        wait(&signals, fleet.next_start(now))?;
        while let Some(signal) = signals.read_signal()? {
            match i32::try_from(signal.ssi_signo).map(Signal) {
                Ok(Signal::TERM | Signal::INT) => fleet.stop(),
                Ok(Signal::QUIT) => {
                    fleet.stop();
                    for pid in fleet.pids() {
                        send(pid, Signal::KILL);
                    }
                }
                Ok(Signal::TTIN) => fleet.scale(true),
                Ok(Signal::TTOU) => fleet.scale(false),
                _ => {}
            }
        }
        reap(&mut fleet, orders.stop);
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
        // Some servers end by the signal that has stopped them.
        let well = matches!(ended(status), Ended::Exit(0))
            || matches!(ended(status), Ended::Signal(signal) if signal == stop);
        fleet.on_end(pid, well, clock::now());
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
    is_stopping: bool,
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
    const fn new(wanted: usize) -> Self {
        Self {
            wanted,
            copies: Vec::new(),
            is_stopping: false,
            pause: Duration::ZERO,
            next: None,
        }
    }

    fn wants_one(&self, now: Timestamp) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        !self.is_stopping && self.copies.len() < self.wanted && due
    }

    /// The time until the next start, if a copy is missing.
    fn next_start(&self, now: Timestamp) -> Option<Duration> {
        let missing = !self.is_stopping && self.copies.len() < self.wanted;
        let next = self.next.filter(|_| missing)?;
        Some(next.since(now))
    }

    fn is_over(&self) -> bool {
        self.is_stopping && self.copies.is_empty()
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

    /// The copies that are too many and were not told to stop yet, the oldest first.
    fn take_excess(&mut self) -> Vec<i32> {
        let stays = if self.is_stopping { 0 } else { self.wanted };
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
    fn on_end(&mut self, pid: i32, well: bool, now: Timestamp) {
        let Some(at) = self.copies.iter().position(|copy| copy.pid == pid) else {
            return;
        };
        let copy = self.copies.remove(at);
        let in_vain = now.since(copy.since) < LASTS && !copy.is_told;
        match (in_vain, well) {
            (true, false) => self.on_failure(now),
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

    fn on_failure(&mut self, now: Timestamp) {
        self.pause = self.pause.saturating_mul(2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.next = Some(now.later(self.pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet of two copies, 1 and 2, and the time of their start.
    fn fleet() -> (Fleet, Timestamp) {
        let (mut fleet, now) = (Fleet::new(2), Timestamp::default());
        for pid in 1..=2 {
            assert!(fleet.wants_one(now));
            fleet.on_start(pid, now);
        }
        assert!(!fleet.wants_one(now));
        (fleet, now)
    }

    #[test]
    fn one_copy_more_is_started_and_then_the_oldest_is_stopped() {
        let (mut fleet, now) = fleet();
        fleet.scale(true);
        assert!(fleet.wants_one(now));
        fleet.on_start(3, now);
        fleet.scale(false);
        assert_eq!(fleet.take_excess(), [1]);
        assert!(fleet.take_excess().is_empty(), "it is told once");
        fleet.on_end(1, false, now);
        assert!(!fleet.wants_one(now));
    }

    #[test]
    fn a_copy_that_fails_soon_is_started_again_after_a_pause_that_grows() {
        let (mut fleet, now) = fleet();
        let mut pauses = Vec::new();
        let mut at = now;
        for pid in 2..10 {
            fleet.on_end(pid, false, at);
            let pause = fleet.next_start(at).expect("a start is due later");
            pauses.push(pause);
            assert!(!fleet.wants_one(at));
            at = at.later(pause);
            assert!(fleet.wants_one(at));
            fleet.on_start(pid + 1, at);
        }
        assert_eq!(pauses[..2], [PAUSE_MIN, PAUSE_MIN * 2]);
        assert_eq!(pauses.last(), Some(&PAUSE_MAX));
        let much_later = at.later(LASTS);
        fleet.on_end(10, false, much_later);
        assert!(fleet.wants_one(much_later), "it has run for long");
    }

    #[test]
    fn a_copy_that_exits_well_is_replaced_soon_and_the_pause_does_not_grow() {
        let (mut fleet, mut now) = fleet();
        for pid in 1..5 {
            fleet.on_end(pid, true, now);
            assert_eq!(
                fleet.next_start(now),
                Some(PAUSE_MIN),
                "there is no busy loop"
            );
            now = now.later(PAUSE_MIN);
            fleet.on_start(pid + 2, now);
        }
        let much_later = now.later(LASTS);
        fleet.on_end(5, true, much_later);
        assert!(fleet.wants_one(much_later));
    }

    #[test]
    fn a_fleet_that_stops_tells_every_copy_and_is_over_when_the_last_has_ended() {
        let (mut fleet, now) = fleet();
        fleet.stop();
        assert_eq!(fleet.take_excess(), [1, 2]);
        fleet.on_end(1, true, now);
        assert!(!fleet.is_over() && !fleet.wants_one(now));
        fleet.on_end(2, true, now);
        assert!(fleet.is_over());
    }
}
