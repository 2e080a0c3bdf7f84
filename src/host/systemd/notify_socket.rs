//! The socket for the command's readiness message (sd_notify(3)).

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

/// See the module.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds the path, and replaces an old socket there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the command has sent `READY=1` since the last call.
    pub(super) fn take_ready(&self) -> bool {
        let mut message = [0; 4096];
        let mut ready = false;
        while let Ok(length) = self.socket.recv(&mut message) {
            ready |= message[..length]
                .split(|&byte| byte == b'\n')
                .any(|line| line == b"READY=1");
        }
        ready
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_the_line_ready_1_does_not_mean_ready() {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::open(&folder.path().join("notify")).unwrap();
        let command = UnixDatagram::unbound().unwrap();
        command
            .send_to(b"STATUS=READY=1 soon", socket.path())
            .unwrap();
        assert!(!socket.take_ready());
        command
            .send_to(b"STATUS=up\nREADY=1", socket.path())
            .unwrap();
        assert!(socket.take_ready());
        assert!(!socket.take_ready());
    }
}
