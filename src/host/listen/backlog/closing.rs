//! One listening socket, closed to new connections and opened again.
//!
//! A TCP socket is bound to an interface that does not exist (`SO_BINDTOIFINDEX`, unprivileged
//! since Linux 5.7), so that the kernel refuses new connections, as if there were no listener.
//! Connections and handshakes that exist are not affected. A Unix socket is closed to new clients
//! by the mode of its file (unix(7)). Sockets of other processes are copied (pidfd_getfd(2), Linux
//! 5.6).

#![expect(
    unsafe_code,
    reason = "pidfd_getfd and SO_BINDTOIFINDEX have no safe form"
)]

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    },
    path::PathBuf,
};

use nix::sys::{
    socket::{UnixAddr, getsockname, getsockopt, sockopt},
    stat::fstat,
};

use crate::host::{memory::procfs::Proc, process::pidfd::PidFd};

/// An index that no interface has.
const NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// The file of a Unix socket, with a mode that refuses new clients. Its old mode is restored at the
/// end, because a server that starts again may copy the mode that it finds, as uvicorn does.
#[derive(Debug)]
pub(in crate::host) struct Closed {
    /// Opened with `O_PATH`, because its path may be another file later.
    file: File,
    /// The mode to restore.
    mode: Option<u32>,
}

impl Closed {
    /// Does not restore the old mode.
    pub(super) fn keep_closed(mut self) -> Self {
        self.mode = None;
        self
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        // fchmod(2) fails for an O_PATH descriptor; chmod(2) of its name in /proc works (open(2)).
        let name = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        std::fs::set_permissions(name, Permissions::from_mode(mode))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // This fails if the file belongs to another user now. The mode is up to that user then.
        let _ = self.mode.map(|mode| self.set_mode(mode));
    }
}

/// Closes the file of a Unix socket to other users. `None`: its address has no file.
pub(super) fn close_file(proc: &Proc, pid: i32, socket: &OwnedFd) -> io::Result<Option<Closed>> {
    let Some(path) = file_of(proc, pid, socket) else {
        return Ok(None);
    };
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_socket() {
        return Err(io::Error::other("its path is another file now"));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    let mode = Some(mode);
    let closed = Closed { file, mode };
    closed.set_mode(0)?;
    Ok(Some(closed))
}

/// The file of a Unix socket, as its server sees it.
fn file_of(proc: &Proc, pid: i32, socket: &OwnedFd) -> Option<PathBuf> {
    let address = getsockname::<UnixAddr>(socket.as_raw_fd()).ok()?;
    // A relative path began at a directory that is no longer known.
    let path = address.path()?.strip_prefix("/").ok()?;
    Some(proc.path_of(pid, "root").join(path))
}

/// Copies a socket of another process to a descriptor of ours.
pub(super) fn copy_socket(pid: i32, number: i32, inode: u64) -> io::Result<Option<OwnedFd>> {
    let process = PidFd::open(pid)?;
    // SAFETY: takes numbers, returns a new descriptor or -1.
    let copy = unsafe {
        libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_fd().as_raw_fd(),
            number,
            0,
        )
    };
    let copy = i32::try_from(copy).map_err(io::Error::other)?;
    if copy < 0 {
        let error = io::Error::last_os_error();
        // RACE: the socket was closed meanwhile, or its process has ended.
        let gone = matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH));
        return if gone {
            Ok(None)
        } else {
            Err(io::Error::other(format!("pidfd_getfd: {error}")))
        };
    }
    // SAFETY: the kernel has just given it to us.
    let socket = unsafe { OwnedFd::from_raw_fd(copy) };
    // RACE: the number may belong to another file by now.
    let same = fstat(&socket).is_ok_and(|found| found.st_ino == inode);
    Ok(same.then_some(socket))
}

/// Binds a listener to an interface that does not exist, so that it gets no new connection.
pub(super) fn refuse_new_connections(socket: &OwnedFd) -> io::Result<()> {
    bind_to(socket, NO_INTERFACE)
}

fn bind_to(socket: &impl AsRawFd, interface: libc::c_int) -> io::Result<()> {
    set_option(socket, libc::SO_BINDTOIFINDEX, interface)
        .map_err(|error| io::Error::other(format!("SO_BINDTOIFINDEX: {error}")))
}

/// Opens all listening sockets of this process to new connections.
pub(in crate::host) fn reopen_all(proc: &Proc) -> io::Result<()> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    for (number, _) in proc.sockets(own).map_err(io::Error::other)? {
        // SAFETY: it was open a moment ago. If another thread has closed it, the kernel returns an
        // error; if the number is another socket by now, it is treated like any other.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        reopen(&socket)?;
    }
    Ok(())
}

/// Removes what blocks new connections on a listening socket: a socket filter, or the binding to an
/// interface that does not exist. Both outlive the process that set them, such as one that was
/// killed during a stop.
fn reopen(socket: &(impl AsRawFd + AsFd)) -> io::Result<()> {
    if !getsockopt(socket, sockopt::AcceptConn).unwrap_or(false) {
        return Ok(());
    }
    if let Err(error) = set_option(socket, libc::SO_DETACH_FILTER, 0)
        && error.raw_os_error() != Some(libc::ENOENT)
    {
        return Err(io::Error::other(format!("SO_DETACH_FILTER: {error}")));
    }
    if bound_to(socket) == Some(NO_INTERFACE) {
        bind_to(socket, 0)?;
    }
    Ok(())
}

/// The interface that a socket is bound to; 0 for all.
fn bound_to(socket: &impl AsRawFd) -> Option<libc::c_int> {
    let mut interface: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&interface)).ok()?;
    // SAFETY: both live until the call returns, and the length is that of the number.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw mut interface).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(interface)
}

fn set_option(socket: &impl AsRawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the number lives until the call returns; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    /// Attaches a classic filter of one instruction: drop the packet.
    fn attach_drop_filter(socket: &TcpListener) {
        let drop = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: (&raw const drop).cast_mut(),
        };
        let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap();
        // SAFETY: the program lives until the call returns; the kernel copies it.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                length,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn a_socket_that_was_left_closed_is_opened_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        attach_drop_filter(&listener);
        assert!(connect().is_err());
        reopen(&listener).unwrap();
        assert!(connect().is_ok());
        refuse_new_connections(&listener.try_clone().unwrap().into()).unwrap();
        assert!(connect().is_err());
        reopen(&listener).unwrap();
        assert!(connect().is_ok());
    }

    #[test]
    fn a_socket_that_does_not_listen_is_not_changed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        bind_to(&stream, NO_INTERFACE).unwrap();
        reopen(&stream).unwrap();
        assert_eq!(bound_to(&stream), Some(NO_INTERFACE));
    }
}
