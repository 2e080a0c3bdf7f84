//! Fork events without delay, from the kernel's process connector (cn_proc, `linux/cn_proc.h`).
//!
//! It needs CAP_NET_ADMIN in the first network namespace (since Linux 6.6 any process may listen,
//! but not in another namespace). A filter in the kernel passes only forks of the watched masters,
//! so that a busy machine does not wake us. A fork event only triggers a search.

#![expect(unsafe_code, reason = "socket filters and netlink have no safe form")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, send};

/// `CN_IDX_PROC` and `CN_VAL_PROC`.
const CN_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_FORK: u32 = 1;
/// The offsets of `what` and `event_data.fork.parent_tgid` in a message: behind the headers of
/// netlink (16 bytes) and the connector (20), and behind `what`, `cpu`, `timestamp_ns` and
/// `parent_pid`.
const AT_WHAT: u32 = 36;
const AT_PARENT: u32 = 56;
/// Maximum masters in the filter. The slow scan finds the workers of the others.
const MASTERS_MAX: usize = 8;

/// A listening socket.
#[derive(Debug)]
pub(in crate::host) struct Forks {
    socket: OwnedFd,
}

impl Forks {
    /// Opens the socket, without a watched master. Fails if this is not allowed.
    pub(in crate::host) fn listen() -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes numbers, returns a new descriptor or -1. (nix has no connector protocol.)
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_CONNECTOR) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let forks = Self { socket };
        forks.watch(&[])?;
        bind(forks.socket.as_raw_fd(), &NetlinkAddr::new(0, CN_PROC))?;
        let mut message = Vec::new();
        for number in [
            16 + 20 + 4,
            3,
            0,
            0,
            CN_PROC,
            CN_PROC,
            0,
            0,
            4,
            PROC_CN_MCAST_LISTEN,
        ] {
            message.extend_from_slice(&u32::to_ne_bytes(number));
        }
        send(forks.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(forks)
    }

    /// Replaces the set of processes whose forks are reported.
    pub(in crate::host) fn watch(&self, masters: &[i32]) -> io::Result<()> {
        let mut program = filter(masters);
        let length = u16::try_from(program.len()).map_err(io::Error::other)?;
        let filter = libc::sock_fprog {
            len: length,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program during the call.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                u32::try_from(size_of::<libc::sock_fprog>()).unwrap_or(16),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether forks were reported since the last call. Lost messages (ENOBUFS) count as forks.
    pub(in crate::host) fn take(&self) -> bool {
        let mut any = false;
        let mut message = [0; 256];
        loop {
            match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Err(nix::Error::ENOBUFS) | Ok(1..) => any = true,
                Err(nix::Error::EINTR) => {}
                Ok(_) | Err(_) => return any,
            }
        }
    }
}

impl AsFd for Forks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A classic BPF program: keep forks by one of these processes, drop all other messages. Loads are
/// in network byte order, so the constants are swapped.
fn filter(masters: &[i32]) -> Vec<libc::sock_filter> {
    let code = |class: u32| u16::try_from(class).unwrap_or(0);
    let load = |at| libc::sock_filter {
        code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS),
        jt: 0,
        jf: 0,
        k: at,
    };
    let equal = |k: u32, jt, jf| libc::sock_filter {
        code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        jt,
        jf,
        k: k.to_be(),
    };
    let give = |k| libc::sock_filter {
        code: code(libc::BPF_RET | libc::BPF_K),
        jt: 0,
        jf: 0,
        k,
    };
    let masters = masters.get(..MASTERS_MAX).unwrap_or(masters);
    let count = u8::try_from(masters.len()).unwrap_or(0);
    let mut program = vec![
        load(AT_WHAT),
        equal(PROC_EVENT_FORK, 0, count.saturating_add(1)),
        load(AT_PARENT),
    ];
    for (index, master) in (0_u8..).zip(masters) {
        // Jumps to `keep`, over the tests that follow and `drop`.
        program.push(equal(
            u32::try_from(*master).unwrap_or(0),
            count.saturating_sub(index),
            0,
        ));
    }
    program.extend([give(0), give(u32::MAX)]);
    program
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a shell that forks, watched or not, and returns whether its forks were reported.
    fn is_reported(watch: bool) -> Option<bool> {
        let forks = match Forks::listen() {
            Ok(forks) => forks,
            Err(error) => {
                eprintln!("NOT RUN: needs CAP_NET_ADMIN and the process connector: {error}");
                return None;
            }
        };
        let mut shell = Command::new("sh")
            .args(["-c", "read go; (:); (:)"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        forks
            .watch(if watch {
                std::slice::from_ref(&pid)
            } else {
                &[1]
            })
            .unwrap();
        forks.take();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        Some(forks.take())
    }

    #[test]
    fn only_forks_of_watched_processes_are_reported() {
        assert_ne!(is_reported(true), Some(false));
        assert_ne!(is_reported(false), Some(true));
    }
}
