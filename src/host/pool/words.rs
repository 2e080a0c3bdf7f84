//! Datagrams with descriptors beside them, and descriptors that were inherited.

#![expect(
    unsafe_code,
    reason = "descriptors that come from elsewhere are adopted"
)]

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send},
};

use super::WORD_MAX;

/// Takes a descriptor that was inherited.
pub(in crate::host) fn adopt_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is only looked at.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if open < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was left open for us alone; nothing of ours has opened it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(owned)
}

pub(super) fn say(socket: &OwnedFd, word: &str) -> io::Result<()> {
    let sent = send(socket.as_raw_fd(), word.as_bytes(), MsgFlags::MSG_NOSIGNAL);
    sent.map(drop).map_err(io::Error::from)
}

/// One datagram, and the descriptors beside it. Empty at the end.
pub(super) fn hear(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 3]);
    let length = buffer.len().min(WORD_MAX);
    let mut parts = [IoSliceMut::new(
        buffer.get_mut(..length).unwrap_or_default(),
    )];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just opened them for us, and nobody else knows of them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = message.bytes;
    Ok((buffer.get(..length).unwrap_or_default().to_vec(), fds))
}
