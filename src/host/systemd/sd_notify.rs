//! Messages to the service manager (sd_notify(3)).

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use crate::{escape, supervisor::action::Notice};

/// The connection to our service manager, if there is one.
#[derive(Debug)]
pub(super) struct SdNotify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl SdNotify {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`, which the command does not inherit.
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
        // Without `WATCHDOG_PID`, `WATCHDOG_USEC` is for the process that reads it
        // (sd_watchdog_enabled(3)).
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

    /// Whether there is a service manager.
    pub(super) const fn has_manager(&self) -> bool {
        self.socket.is_some()
    }

    /// Half of the service manager's time limit for watchdog messages (sd_watchdog_enabled(3)).
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|wait| wait / 2)
    }

    /// Sends a notice. A manager that does not listen is not an error.
    pub(super) fn send_notice(&self, notice: &Notice, monotonic_usec: u64) {
        self.send(&match notice {
            Notice::Ready => "READY=1".to_owned(),
            Notice::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={monotonic_usec}"),
            Notice::Stopping => "STOPPING=1".to_owned(),
            Notice::Status(text) => format!("STATUS={}", escape::line(&text.replace('\n', " "))),
            Notice::Extend(by) => format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()),
        });
    }

    /// Sends a watchdog message: our loop runs.
    pub(super) fn send_watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_becomes_the_variables_of_sd_notify() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manager");
        let manager_end = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_pathname(&path).unwrap();
        let socket = Some((UnixDatagram::unbound().unwrap(), address));
        let sd_notify = SdNotify {
            socket,
            watchdog: None,
        };
        sd_notify.send_notice(&Notice::Status("two\nlines".to_owned()), 0);
        sd_notify.send_notice(&Notice::Reloading, 7);
        sd_notify.send_notice(&Notice::Extend(Duration::from_secs(2)), 0);
        let mut received = Vec::new();
        for _ in 0..3 {
            let mut message = [0; 256];
            let length = manager_end.recv(&mut message).unwrap();
            received.push(String::from_utf8_lossy(&message[..length]).into_owned());
        }
        assert_eq!(
            received,
            [
                "STATUS=two lines",
                "RELOADING=1\nMONOTONIC_USEC=7",
                "EXTEND_TIMEOUT_USEC=2000000"
            ]
        );
    }
}
