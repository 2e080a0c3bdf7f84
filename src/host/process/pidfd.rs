//! Processes held by a descriptor: their end is an event, and a signal never reaches a process that
//! reuses the pid.

#![expect(
    unsafe_code,
    reason = "pidfd_open, pidfd_send_signal and its ioctl have no safe form"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::keeper::ended;
use crate::{host::memory::procfs::Proc, supervisor::input::Ended, units::Signal};

/// A process (pidfd_open(2)).
#[derive(Debug)]
pub(in crate::host) struct PidFd {
    pid: i32,
    fd: OwnedFd,
}

/// `struct pidfd_info` of linux/pidfd.h, as of Linux 6.15.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

impl PidFd {
    /// Holds a process. Fails if it is gone.
    pub(in crate::host) fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: takes numbers, returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { pid, fd })
    }

    /// Wraps a descriptor that is already open.
    pub(in crate::host) const fn take_over(pid: i32, fd: OwnedFd) -> Self {
        Self { pid, fd }
    }

    pub(in crate::host) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. ESRCH means that the process has ended.
    pub(in crate::host) fn signal(&self, signal: Signal) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)).
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal.0, none, 0) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// How a process that is not our child has ended, as far as this kernel shows it. Call it when
    /// the descriptor is readable: the status of a zombie is in `/proc/PID/stat` (field 52 of
    /// proc(5)); once its parent has reaped it, `PIDFD_GET_INFO` has it (Linux 6.15).
    pub(in crate::host) fn ended(&self, proc: &Proc) -> Ended {
        if let Some(status) = zombie_status(proc, self.pid) {
            return ended(status);
        }
        self.reaped_status().map_or(Ended::Unseen, ended)
    }

    fn reaped_status(&self) -> Option<i32> {
        let mut info = Info {
            mask: PIDFD_INFO_EXIT,
            ..Info::default()
        };
        // SAFETY: the size in the request is that of the structure; older kernels refuse it.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The status of a zombie. `None` if the process is not a zombie (any more), or if we may not read
/// it.
fn zombie_status(proc: &Proc, pid: i32) -> Option<i32> {
    let text = proc.text(&format!("{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    // `state` is field 3, and 48 fields are between it and field 52.
    fields.nth(48)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_exit_status_of_a_process_that_is_not_our_child_is_read_before_and_after_its_reaping() {
        assert_eq!(size_of::<Info>(), 64);
        // The child of another process, which reaps it only when told to. A shell would not do:
        // some shells reap at any time.
        let script = "import os, sys\n\
                      child = os.fork()\n\
                      if child == 0: os._exit(7)\n\
                      print(child, flush=True)\n\
                      sys.stdin.read()\n\
                      os.wait()\n";
        let mut parent = Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = parent.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let child = PidFd::open(line.trim().parse().unwrap()).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            child.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut poll, 10_000_u16).unwrap();
        assert_eq!(child.ended(&Proc::default()), Ended::Exit(7));
        drop(parent.stdin.take());
        parent.wait().unwrap();
        // Reaped now. Kernels before 6.15 do not show the status, so it is `Unseen`.
        let after = child.ended(&Proc::default());
        assert!(matches!(after, Ended::Exit(7) | Ended::Unseen), "{after:?}");
        assert!(child.signal(Signal::TERM).is_err());
    }
}
