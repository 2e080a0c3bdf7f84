//! Sending to the workers' sockets.

use std::io::{self, Write as _};

use bytes::Buf as _;
use nix::sys::epoll::EpollFlags;

use super::PoolHost;
use crate::{host::context::Context, units::WorkerId};

impl PoolHost {
    /// Sends to a worker now, or later when its socket has room.
    pub(super) fn send(&mut self, context: &Context, worker: WorkerId, bytes: &[u8]) {
        if let Some(child) = self.children.get_mut(&worker) {
            child.unsent.extend_from_slice(bytes);
        }
        self.push(context, worker);
    }

    /// Writes as much of the unsent bytes as the worker's socket accepts.
    pub(super) fn push(&mut self, context: &Context, worker: WorkerId) {
        let Some(child) = self.children.get_mut(&worker) else {
            return;
        };
        while !child.unsent.is_empty() {
            match child.socket.write(&child.unsent) {
                Ok(length) => child.unsent.advance(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The socket is full, or the worker has ended, which is reported separately.
                Err(_) => break,
            }
        }
        let waits = !child.unsent.is_empty();
        if waits != child.waits
            && let Some(token) = child.token
        {
            child.waits = waits;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, waits);
            context.watches().modify(&child.socket, token, flags);
        }
    }
}
