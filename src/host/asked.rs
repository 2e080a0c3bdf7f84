//! Kills a binary that was asked whether it can take over, with all processes that it started.
//!
//! The file at our path may be anything by now: a wrapper script, another program, half of an
//! upgrade. Its whole process group is killed, and so is every process that left the group but
//! still has the marker in its environment.

use std::{ffi::OsStr, fs::File, io::Read as _, os::unix::ffi::OsStrExt as _};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{clock, pidfd::PidFd, procfs::Proc};
use crate::units;

/// Maximum searches: a marked process may start others during a search.
const ROUNDS_MAX: u32 = 64;
/// Searches in a row that find no process.
const CLEAN_ROUNDS: u32 = 2;
/// Maximum bytes of an environment that are searched.
const ENVIRONMENT_BYTES: u64 = 1 << 20;

/// An environment variable that the asked binary passes on to the processes that it starts.
#[derive(Debug)]
pub(super) struct Marker {
    pub(super) name: &'static str,
    pub(super) value: String,
}

impl Marker {
    /// One that no other process has.
    pub(super) fn new() -> Self {
        Self {
            name: "_SUPERVISE_ASKED",
            value: format!("{}-{}", std::process::id(), clock::now().as_nanos()),
        }
    }

    /// SIGKILL for the asked binary, for its process group and for all others that are marked.
    pub(super) fn kill_all(&self, asked: i32) {
        // RACE: the binary may have been reaped by now. Its number is not reused while a process of
        // its group lives; without one, it is reused only after all other numbers.
        let _ = killpg(Pid::from_raw(asked), Signal::SIGKILL);
        let mut clean = 0;
        for _ in 0..ROUNDS_MAX {
            let mut any = false;
            for pid in Proc::default().processes() {
                // Held before the check, because a number may be reused in between.
                if let Ok(process) = PidFd::open(pid)
                    && self.is_on(pid)
                {
                    any |= process.signal(units::Signal::KILL).is_ok();
                }
            }
            // RACE: a process has no environment for a moment while it executes a program.
            clean = if any { 0 } else { clean + 1 };
            if clean == CLEAN_ROUNDS {
                return;
            }
        }
    }

    /// A process that has ended has no environment any more, and counts as not marked.
    fn is_on(&self, pid: i32) -> bool {
        let Ok(file) = File::open(format!("/proc/{pid}/environ")) else {
            return false;
        };
        let mut text = Vec::new();
        if file.take(ENVIRONMENT_BYTES).read_to_end(&mut text).is_err() {
            return false;
        }
        let wanted = format!("{}={}", self.name, self.value);
        text.split(|byte| *byte == 0)
            .any(|variable| OsStr::from_bytes(variable) == wanted.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_process_that_left_the_group_or_has_no_mark_ends_with_the_asked_binary() {
        // The first says its number after it has left the group.
        let script = "setsid sh -c 'echo $$; sleep 100; true' & \
                      env -i sh -c 'echo $$; sleep 100; true' & wait";
        let marker = Marker::new();
        let mut asked = Command::new("sh")
            .args(["-c", script])
            .env(marker.name, &marker.value)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = asked.stdout.take().unwrap();
        let lines = BufReader::new(output).lines().take(2);
        let open = |line: std::io::Result<String>| PidFd::open(line.unwrap().parse().unwrap());
        let strays: Vec<_> = lines.map(|line| open(line).unwrap()).collect();
        let bystander = Marker::new();
        assert_ne!(bystander.value, marker.value);
        assert!(strays.iter().all(|stray| !bystander.is_on(stray.pid())));
        assert!(strays.iter().any(|stray| marker.is_on(stray.pid())));

        marker.kill_all(asked.id().try_into().unwrap());
        asked.wait().unwrap();
        for stray in &strays {
            let fd = std::os::fd::AsFd::as_fd(stray);
            let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut poll, 10_000_u16).unwrap(), 1);
        }
    }
}
