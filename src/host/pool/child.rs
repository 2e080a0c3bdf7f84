//! One worker of a pool: its socket, and the page of memory that it shares with the supervisor.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
    sync::Arc,
};

use bytes::BytesMut;

use super::memory::{Observed, Reported};
use crate::{
    host::process::pidfd::PidFd,
    protocol::pool_page::{self, Peak, Progress},
    units::Bytes,
};

/// Maximum bytes that are read from one worker before others are read.
const READ_MAX: usize = 16 << 20;

/// What is left in a socket or pipe after a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Left {
    Nothing,
    /// The read stopped early, so there may be more.
    Perhaps,
    /// All other ends are closed.
    End,
}

/// One worker of a pool.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) slot: u32,
    pub(super) process: Option<PidFd>,
    pub(super) socket: UnixStream,
    pub(super) token: Option<u64>,
    pub(super) page: Arc<File>,
    pub(super) received: BytesMut,
    pub(super) unsent: BytesMut,
    /// The socket is watched until it has room for `unsent`.
    pub(super) waits: bool,
    pub(super) observed: Observed,
}

impl Child {
    /// The tasks that it has begun, finished and received last.
    pub(super) fn progress(&self) -> Progress {
        Progress::read(&self.part_of_page(pool_page::BEGUN))
    }

    /// The memory figures in its page.
    pub(super) fn reported(&self) -> Reported {
        let peak = Peak::read(&self.part_of_page(pool_page::PEAK));
        let bytes = |kib| Bytes(kib * 1024);
        Reported {
            most: bytes(peak.most),
            files: bytes(peak.files),
            child: bytes(peak.child),
            base: bytes(peak.base),
        }
    }

    fn part_of_page<const LENGTH: usize>(&self, from: u64) -> [u8; LENGTH] {
        let mut part = [0; LENGTH];
        // If the page cannot be read, the words are 0, which name no task.
        let _ = self.page.read_exact_at(&mut part, from);
        part
    }

    /// Prevents it from beginning another task. It checks this before each task.
    pub(super) fn halt(&self) {
        // If this fails, the worker runs all its tasks and then exits.
        let _ = self
            .page
            .write_all_at(&pool_page::bytes(1), pool_page::HALT);
    }

    /// Takes the bytes that were received.
    pub(super) fn take_received(&mut self) -> BytesMut {
        std::mem::take(&mut self.received)
    }

    /// Puts back the bytes of an incomplete frame.
    pub(super) fn return_received(&mut self, rest: BytesMut) {
        self.received = rest;
    }

    /// Reads what has arrived, up to about `READ_MAX` bytes.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Left {
        let mut read = 0;
        while read < READ_MAX {
            match self.socket.read(buffer) {
                Ok(0) => return Left::End,
                Ok(length) => {
                    self.received
                        .extend_from_slice(buffer.get(..length).unwrap_or(&[]));
                    read += length;
                    if length < buffer.len() {
                        return Left::Nothing;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Left::Nothing,
                Err(_) => return Left::End,
            }
        }
        Left::Perhaps
    }
}
