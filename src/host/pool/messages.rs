//! Messages with descriptors, and inherited descriptors.

#![expect(unsafe_code, reason = "descriptors from other processes are adopted")]

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send},
};

use super::MESSAGE_MAX;

/// Takes ownership of an inherited descriptor.
pub(in crate::host) fn adopt_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: this only reads the flags of the descriptor.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if open < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, it was inherited for this purpose, and nothing else here owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(owned)
}

pub(super) fn send_message(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    let sent = send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL);
    sent.map(drop).map_err(io::Error::from)
}

/// Receives one message and its descriptors. An empty message is the end.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 3]);
    let length = buffer.len().min(MESSAGE_MAX);
    let mut parts = [IoSliceMut::new(
        buffer.get_mut(..length).unwrap_or_default(),
    )];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just opened them for this process, and nothing else owns them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = message.bytes;
    Ok((buffer.get(..length).unwrap_or_default().to_vec(), fds))
}
