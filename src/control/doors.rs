//! Both doors: opened, shut for a moment, and kept open while this process becomes another binary.

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
    access::Access,
    door::{ControlError, Door, listen},
};
use crate::supervisor::spec::ControlSpec;

/// Descriptors that stay free for clients of the Unix socket.
const OPERATORS: u64 = 24;

/// The doors. Whoever comes waits until [`super::server::run`].
#[derive(Debug)]
pub struct Doors {
    whole: Door,
    reading: Option<TcpListener>,
    shut: watch::Receiver<bool>,
    access: Arc<Access>,
}

/// One who comes.
#[derive(Debug)]
pub(super) enum Guest {
    /// By the Unix socket: everything can be asked for.
    Whole(UnixStream),
    /// By TCP: nothing is changed.
    Reading(TcpStream),
}

/// Shuts the doors and opens them again, and knows what they are made of.
#[derive(Debug)]
pub struct Keys {
    shut: watch::Sender<bool>,
    made_of: Descriptors<RawFd>,
}

/// What the doors are made of. It can be kept across an execve(2).
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Descriptors<T> {
    /// Of the lock beside the socket.
    pub lock: T,
    /// Listens at the socket.
    pub socket: T,
    /// Listens at the port of the reading half, where there is one.
    pub reading: Option<T>,
}

impl Doors {
    /// Opens the doors, within a tokio runtime. `kept` is what the binary that this process was
    /// before has left.
    pub fn open(
        spec: &ControlSpec,
        name: &str,
        kept: Option<Descriptors<OwnedFd>>,
    ) -> Result<(Self, Keys), ControlError> {
        let access = Arc::new(Access::of(spec)?);
        let (whole, reading) = match kept {
            Some(kept) => (
                Door::take_over(&spec.socket, kept.lock, kept.socket)?,
                kept.reading,
            ),
            None => (Door::open(&spec.socket, name)?, None),
        };
        let reading = spec.metrics.map(|address| listen(address, reading));
        let reading = reading.transpose()?;
        let (lock, socket) = whole.descriptors();
        let made_of = Descriptors {
            lock,
            socket,
            reading: reading.as_ref().map(|listener| listener.as_raw_fd()),
        };
        let (sender, shut) = watch::channel(false);
        let doors = Self {
            whole,
            reading,
            shut,
            access,
        };
        let keys = Keys {
            shut: sender,
            made_of,
        };
        Ok((doors, keys))
    }

    /// Access control of the TCP port.
    pub(super) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// The next who comes. May be dropped at any moment: nobody is lost.
    pub(super) async fn guest(&mut self) -> io::Result<Guest> {
        loop {
            let open = !*self.shut.borrow_and_update();
            tokio::select! {
                whole = self.whole.listener.accept(), if open => {
                    return whole.map(|(stream, _)| Guest::Whole(stream));
                }
                reading = accept(self.reading.as_ref()), if open => {
                    return reading.map(Guest::Reading);
                }
                Ok(()) = self.shut.changed() => {}
                // Whoever had the keys is gone, and left the doors shut.
                else => std::future::pending().await,
            }
        }
    }

    #[cfg(test)]
    pub(super) fn port(&self) -> u16 {
        let reading = self.reading.as_ref().unwrap();
        reading.local_addr().unwrap().port()
    }
}

/// Never, where there is no such door.
async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => loop {
            let (stream, _) = listener.accept().await?;
            // The last descriptors are the operator's: this client is disconnected.
            if leaves_some(stream.as_raw_fd()) {
                return Ok(stream);
            }
        },
        None => std::future::pending().await,
    }
}

/// The kernel gives the lowest number that is not in use (open(2)).
fn leaves_some(opened: RawFd) -> bool {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let number = u64::try_from(opened).unwrap_or(u64::MAX);
    number.saturating_add(OPERATORS.min(limit / 8)) < limit
}

impl Keys {
    /// While the doors are shut, whoever comes waits; whoever is inside is still answered.
    pub fn shut(&self, shut: bool) {
        self.shut.send_replace(shut);
    }

    /// It stays open for as long as the doors are there.
    pub fn made_of(&self) -> Descriptors<RawFd> {
        self.made_of
    }
}
