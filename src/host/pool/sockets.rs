//! The workers' sockets: what is sent to them, and what they have said.

use std::io::{self, Write as _};

use bytes::{Buf as _, BytesMut};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::{host::Host, units::WorkerId};

impl Host {
    /// Sends to a worker, at once or when it can take it.
    pub fn send_child(&mut self, worker: WorkerId, bytes: &[u8]) {
        if let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        {
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
                // One that has ended takes nothing more, and its end is on its way.
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

    /// What a worker has said and nobody has taken.
    pub fn take_said(&mut self, worker: WorkerId) -> BytesMut {
        let child = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker));
        child
            .map(|it| std::mem::take(&mut it.said))
            .unwrap_or_default()
    }

    /// Gives back what was not yet whole.
    pub fn return_said(&mut self, worker: WorkerId, rest: BytesMut) {
        if let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        {
            child.said = rest;
        }
    }
}
