//! Kills a binary that was asked whether it can take over, with all processes that it has started.
//!
//! The file at our path may be anything by now: a wrapper script, another program, a half-finished
//! upgrade. Its whole process group is killed, and so is every process that has left the group but
//! still has the marker in its environment.

use std::{
    ffi::OsStr, fs::File, io::Read as _, os::unix::ffi::OsStrExt as _, thread, time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::pidfd::PidFd;
use crate::{
    host::{clock, memory::procfs::Proc},
    units,
};

/// Maximum searches: a marked process may start others during a search.
const ROUNDS_MAX: u32 = 64;
/// Consecutive searches that must find no process.
const CLEAN_ROUNDS: u32 = 2;
/// The time between two searches while a process executes a program.
const PAUSE: Duration = Duration::from_millis(1);
/// Maximum bytes of an environment that are searched.
const ENVIRONMENT_BYTES: u64 = 1 << 20;

/// An environment variable that the checked binary passes on to the processes that it starts.
#[derive(Debug)]
pub(super) struct Marker {
    pub(super) name: &'static str,
    pub(super) value: String,
}

impl Marker {
    /// A marker that no other process has.
    pub(super) fn new() -> Self {
        Self {
            name: "_SUPERVISE_ASKED",
            value: format!("{}-{}", std::process::id(), clock::now().as_nanos()),
        }
    }

    /// Sends SIGKILL to the process of the checked binary, to its process group, and to all other
    /// marked processes.
    pub(super) fn kill_all(&self, pid: i32) {
        // RACE: the binary may have been reaped by now. Its pid is not reused while a process of
        // its group lives. Without one, the kernel reuses it only after all other pids.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let mut clean = 0;
        for _ in 0..ROUNDS_MAX {
            let mut any = false;
            let mut executing = false;
            for pid in Proc::default().processes() {
                // Held before the check, because the pid may be reused in between.
                let Ok(process) = PidFd::open(pid) else {
                    continue;
                };
                match self.marks(pid) {
                    Marked::Yes => any |= process.signal(units::Signal::KILL).is_ok(),
                    Marked::Unknown => executing = true,
                    Marked::No => {}
                }
            }
            clean = if any || executing { 0 } else { clean + 1 };
            if clean == CLEAN_ROUNDS {
                return;
            }
            if executing {
                thread::park_timeout(PAUSE);
            }
        }
    }

    /// Whether this process is marked. A process that has ended is not.
    ///
    /// RACE: a process has no environment for a moment while it executes a program. One that the
    /// checked binary has started is our child by then, because its parent has been killed.
    fn marks(&self, pid: i32) -> Marked {
        let Ok(file) = File::open(format!("/proc/{pid}/environ")) else {
            return Marked::No;
        };
        let mut text = Vec::new();
        if file.take(ENVIRONMENT_BYTES).read_to_end(&mut text).is_err() {
            return Marked::No;
        }
        let wanted = format!("{}={}", self.name, self.value);
        let mut variables = text.split(|byte| *byte == 0);
        if variables.any(|variable| OsStr::from_bytes(variable) == wanted.as_str()) {
            Marked::Yes
        } else if text.is_empty() && is_running_child(pid) {
            Marked::Unknown
        } else {
            Marked::No
        }
    }
}

/// Whether a process has the marker in its environment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Marked {
    Yes,
    No,
    /// It executes a program just now.
    Unknown,
}

fn is_running_child(pid: i32) -> bool {
    let own = i32::try_from(std::process::id());
    Proc::default()
        .stat(pid)
        .is_ok_and(|stat| stat.state != 'Z' && own == Ok(stat.ppid))
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
    fn a_process_outside_the_group_or_without_the_marker_is_killed_with_the_checked_binary() {
        // The first process prints its pid after it has left the group.
        let script = "setsid sh -c 'echo $$; sleep 100; true' & \
                      env -i sh -c 'echo $$; sleep 100; true' & wait";
        let marker = Marker::new();
        let mut binary = Command::new("sh")
            .args(["-c", script])
            .env(marker.name, &marker.value)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = binary.stdout.take().unwrap();
        let lines = BufReader::new(output).lines().take(2);
        let open = |line: std::io::Result<String>| PidFd::open(line.unwrap().parse().unwrap());
        let strays: Vec<_> = lines.map(|line| open(line).unwrap()).collect();
        let bystander = Marker::new();
        assert_ne!(bystander.value, marker.value);
        let marks = |marker: &Marker, stray: &PidFd| marker.marks(stray.pid());
        assert!(
            strays
                .iter()
                .all(|stray| marks(&bystander, stray) == Marked::No)
        );
        assert!(
            strays
                .iter()
                .any(|stray| marks(&marker, stray) == Marked::Yes)
        );

        marker.kill_all(binary.id().try_into().unwrap());
        binary.wait().unwrap();
        for stray in &strays {
            let fd = std::os::fd::AsFd::as_fd(stray);
            let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut poll, 10_000_u16).unwrap(), 1);
        }
    }

    #[test]
    fn a_child_process_without_an_environment_may_be_marked() {
        let marker = Marker::new();
        let mut child = Command::new("sleep")
            .arg("100")
            .env_clear()
            .spawn()
            .unwrap();
        let pid = child.id().try_into().unwrap();
        assert_eq!(marker.marks(pid), Marked::Unknown);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(marker.marks(pid), Marked::No);
        // A kernel thread, or a process of another user.
        assert_eq!(marker.marks(2), Marked::No);
    }
}
