//! A binary that is asked whether it could take over, and the end of all that it has started.
//!
//! What stands at our path now may be anything: a wrapper script, another program, half of an
//! upgrade. It is ended with its whole process group, and with every process that has left that
//! group but still has the variable in its environment by which it is known.

use std::{ffi::OsStr, fs::File, io::Read as _, os::unix::ffi::OsStrExt as _};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{clock, pidfd::PidFd};
use crate::units;

/// A process that starts others while it is looked for is looked for again, but not for ever.
const ROUNDS_MAX: u32 = 64;
/// Of a longer environment only the beginning is searched.
const ENVIRONMENT_BYTES: u64 = 1 << 20;

/// In the environment of the asked binary and of whatever it starts.
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
        // RACE: the binary may have been reaped by now. Its number stays taken for as long as a
        // process of its group lives; without one it could only be another's if all numbers were
        // used up since.
        let _ = killpg(Pid::from_raw(asked), Signal::SIGKILL);
        for _ in 0..ROUNDS_MAX {
            let mut any = false;
            for pid in all_pids() {
                // Held before it is looked at: a number may be given to another process in between.
                if let Ok(process) = PidFd::open(pid)
                    && self.is_on(pid)
                {
                    any |= process.signal(units::Signal::KILL).is_ok();
                }
            }
            if !any {
                return;
            }
        }
    }

    /// A process that has ended has no environment any more.
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

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
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
    fn a_process_that_left_the_group_of_the_asked_binary_ends_as_well() {
        let marker = Marker::new();
        let mut asked = Command::new("sh")
            .args(["-c", "setsid sleep 100 & echo $!; sleep 100"])
            .env(marker.name, &marker.value)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = asked.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let stray = PidFd::open(line.trim().parse().unwrap()).unwrap();
        let bystander = Marker::new();
        assert_ne!(bystander.value, marker.value);
        assert!(!bystander.is_on(stray.pid()));

        marker.kill_all(asked.id().try_into().unwrap());
        asked.wait().unwrap();
        let mut poll = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&stray),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(nix::poll::poll(&mut poll, 10_000_u16).unwrap(), 1);
    }
}
