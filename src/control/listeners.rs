//! The control socket and the TCP port. They can be closed for a moment, and kept open while this
//! process executes another binary.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    sync::Arc,
};

use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use super::{
    access::AccessRules,
    listener::{ControlError, ControlSocket, listen},
};
use crate::supervisor::spec::ControlSpec;

/// Descriptors that the TCP port leaves free for clients of the control socket.
const RESERVE: u64 = 24;

/// Both listeners. Clients wait in their backlogs until [`super::server::run`].
#[derive(Debug)]
pub struct Listeners {
    socket: ControlSocket,
    port: Option<TcpListener>,
    closed: watch::Receiver<bool>,
    rules: Arc<AccessRules>,
}

/// A client that was accepted.
#[derive(Debug)]
pub(super) enum Connection {
    /// Accepted by the control socket, with full access.
    Unix(UnixStream),
    /// Accepted by the TCP port, read-only.
    Tcp(TcpStream),
}

/// Stops and resumes accepting clients, and has the listeners' descriptors.
#[derive(Debug)]
pub struct Gate {
    closed: watch::Sender<bool>,
    descriptors: Descriptors<RawFd>,
}

/// The descriptors of the listeners. They can be kept across an execve(2).
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Descriptors<T> {
    /// The lock beside the control socket.
    pub lock: T,
    /// The control socket.
    pub socket: T,
    /// The TCP port, if there is one. An upgrade hands it over as `reading`.
    #[serde(rename = "reading")]
    pub port: Option<T>,
}

impl Listeners {
    /// Opens the listeners, within a tokio runtime. `kept` are the descriptors from the previous
    /// binary of this process.
    pub fn open(
        spec: &ControlSpec,
        name: &str,
        kept: Option<Descriptors<OwnedFd>>,
    ) -> Result<(Self, Gate), ControlError> {
        let rules = Arc::new(AccessRules::of(spec)?);
        let (socket, port) = match kept {
            Some(kept) => (
                ControlSocket::take_over(&spec.socket, kept.lock, kept.socket)?,
                kept.port,
            ),
            None => (ControlSocket::open(&spec.socket, name)?, None),
        };
        let port = spec.metrics.map(|address| listen(address, port));
        let port = port.transpose()?;
        let (lock, listener) = socket.descriptors();
        let descriptors = Descriptors {
            lock,
            socket: listener,
            port: port.as_ref().map(|listener| listener.as_raw_fd()),
        };
        let (sender, closed) = watch::channel(false);
        let listeners = Self {
            socket,
            port,
            closed,
            rules,
        };
        let gate = Gate {
            closed: sender,
            descriptors,
        };
        Ok((listeners, gate))
    }

    /// Access control of the TCP port.
    pub(super) fn rules(&self) -> Arc<AccessRules> {
        Arc::clone(&self.rules)
    }

    /// Accepts the next client. The future may be dropped at any moment without losing a client.
    pub(super) async fn accept(&mut self) -> io::Result<Connection> {
        loop {
            let open = !*self.closed.borrow_and_update();
            tokio::select! {
                unix = self.socket.listener.accept(), if open => {
                    return unix.map(|(stream, _)| Connection::Unix(stream));
                }
                tcp = accept(self.port.as_ref()), if open => {
                    return tcp.map(Connection::Tcp);
                }
                Ok(()) = self.closed.changed() => {}
                // The gate was dropped while it was closed.
                else => std::future::pending().await,
            }
        }
    }

    #[cfg(test)]
    pub(super) fn port(&self) -> u16 {
        let port = self.port.as_ref().unwrap();
        port.local_addr().unwrap().port()
    }
}

/// Accepts the next TCP client; never ready without a TCP port.
async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => loop {
            let (stream, _) = listener.accept().await?;
            // The last descriptors are reserved for operators, so this client is disconnected.
            if leaves_reserve(stream.as_raw_fd()) {
                return Ok(stream);
            }
        },
        None => std::future::pending().await,
    }
}

/// Whether enough descriptors are left. The kernel assigns the lowest number that is not in use
/// (open(2)).
fn leaves_reserve(opened: RawFd) -> bool {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let number = u64::try_from(opened).unwrap_or(u64::MAX);
    number.saturating_add(RESERVE.min(limit / 8)) < limit
}

impl Gate {
    /// Accepts no more clients until [`Gate::open`]. New clients wait in the backlogs, and accepted
    /// clients are still answered.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Accepts clients again.
    pub fn open(&self) {
        self.closed.send_replace(false);
    }

    /// The descriptors. They are valid as long as the listeners exist.
    pub fn descriptors(&self) -> Descriptors<RawFd> {
        self.descriptors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_uses_the_descriptor_names_of_earlier_versions() {
        let text = "{\"lock\":3,\"socket\":4,\"reading\":5}";
        let descriptors: Descriptors<RawFd> = serde_json::from_str(text).unwrap();
        assert_eq!(descriptors.port, Some(5));
        assert_eq!(serde_json::to_string(&descriptors).unwrap(), text);
    }
}
