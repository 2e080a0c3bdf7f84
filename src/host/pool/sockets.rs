//! The workers' sockets: sending, and taking what was received.

use std::io::{self, Write as _};

use bytes::{Buf as _, BytesMut};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::child::Child;
use crate::{host::Host, units::WorkerId};

impl Host {
    /// Sends to a worker, now or when its socket has room.
    pub fn send_child(&mut self, worker: WorkerId, bytes: &[u8]) {
        if let Some(child) = self.child_mut(worker) {
            child.unsent.extend_from_slice(bytes);
        }
        self.push(worker);
    }

    pub(super) fn push(&mut self, worker: WorkerId) {
        let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        else {
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
            let mut event = EpollEvent::new(flags, token);
            let _ = self.epoll.modify(&child.socket, &mut event);
        }
    }

    /// Takes the bytes that were received from a worker.
    pub fn take_said(&mut self, worker: WorkerId) -> BytesMut {
        self.child_mut(worker)
            .map(|child| std::mem::take(&mut child.received))
            .unwrap_or_default()
    }

    /// Puts back the bytes of an incomplete frame.
    pub fn return_said(&mut self, worker: WorkerId, rest: BytesMut) {
        if let Some(child) = self.child_mut(worker) {
            child.received = rest;
        }
    }

    fn child_mut(&mut self, worker: WorkerId) -> Option<&mut Child> {
        self.pool.as_mut()?.children.get_mut(&worker)
    }
}
