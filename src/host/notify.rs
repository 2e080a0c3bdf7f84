//! Talking with the service manager (sd_notify(3)), and hearing what the command tells us the same
//! way.

use std::{
    env, fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{escape, supervisor::action::Notice};

/// Our service manager, if there is one.
#[derive(Debug)]
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`, which the command does not inherit.
    pub(super) fn find() -> Self {
        let path = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = path.and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            let bytes = path.into_vec();
            let address = match bytes.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(&bytes)),
            };
            Some((socket, address.ok()?))
        });
        // Without `WATCHDOG_PID` it is for whoever reads it (sd_watchdog_enabled(3)).
        let for_us =
            env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let usec = env::var("WATCHDOG_USEC")
            .ok()
            .filter(|_| for_us && socket.is_some());
        let watchdog = usec
            .and_then(|usec| usec.parse().ok())
            .map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// There is one.
    pub(super) const fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Half of what the service manager waits for our sign of life (sd_watchdog_enabled(3)).
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|wait| wait / 2)
    }

    /// Tells it. A manager that does not listen is no reason to fail.
    pub(super) fn tell(&self, notice: &Notice, monotonic_usec: u64) {
        self.send(&match notice {
            Notice::Ready => "READY=1".to_owned(),
            Notice::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}"),
            Notice::Stopping => "STOPPING=1".to_owned(),
            Notice::Status(text) => format!("STATUS={}", escape::line(&text.replace('\n', " "))),
            Notice::Extend(by) => format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()),
        });
    }

    /// We are alive, and our loop turns.
    pub(super) fn pat(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// Where the command says `READY=1`.
#[derive(Debug)]
pub(super) struct Ear {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Ear {
    /// Listens at a path that did not exist or was ours.
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

    /// Whether it has said so since the last time.
    pub(super) fn heard_ready(&self) -> bool {
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

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ready_is_heard_as_ready() {
        let folder = tempfile::tempdir().unwrap();
        let ear = Ear::open(&folder.path().join("notify")).unwrap();
        let mouth = UnixDatagram::unbound().unwrap();
        mouth.send_to(b"STATUS=READY=1 soon", ear.path()).unwrap();
        assert!(!ear.heard_ready());
        mouth.send_to(b"STATUS=up\nREADY=1", ear.path()).unwrap();
        assert!(ear.heard_ready());
        assert!(!ear.heard_ready());
    }

    #[test]
    fn the_manager_is_told_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manager");
        let manager_end = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_pathname(&path).unwrap();
        let socket = Some((UnixDatagram::unbound().unwrap(), address));
        let manager = Manager {
            socket,
            watchdog: None,
        };
        manager.tell(&Notice::Status("two\nlines".to_owned()), 0);
        manager.tell(&Notice::Reloading, 7);
        manager.tell(&Notice::Extend(Duration::from_secs(2)), 0);
        let mut heard = Vec::new();
        for _ in 0..3 {
            let mut message = [0; 256];
            let length = manager_end.recv(&mut message).unwrap();
            heard.push(String::from_utf8_lossy(&message[..length]).into_owned());
        }
        assert_eq!(
            heard,
            [
                "STATUS=two lines",
                "RELOADING=1\nMONOTONIC_USEC=7",
                "EXTEND_TIMEOUT_USEC=2000000"
            ]
        );
    }
}
