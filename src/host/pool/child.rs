//! One worker of a pool: its socket, and the page of memory that it shares with us.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
    sync::Arc,
};

use bytes::BytesMut;

use super::memory::{Observed, Reported};
use crate::{host::pidfd::PidFd, units::Bytes};

/// Bytes that are read from one worker before others are read.
const READ_MAX: usize = 16 << 20;

/// The byte of a worker's page that stops it from beginning another task (`worker.py`).
const HALT: u64 = 3 * 8;
/// The first word of a worker's page with figures of its memory (`peak.py`).
const MEMORY: u64 = 16;

/// What is left in a socket or pipe after a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Left {
    Nothing,
    /// The read stopped before it was empty.
    Perhaps,
    /// All other ends are closed.
    End,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) slot: u32,
    pub(super) process: Option<PidFd>,
    pub(super) socket: UnixStream,
    pub(super) token: Option<u64>,
    pub(super) page: Arc<File>,
    pub(super) received: BytesMut,
    pub(super) unsent: BytesMut,
    /// We wait until the socket has room for `unsent`.
    pub(super) waits: bool,
    pub(super) observed: Observed,
}

impl Child {
    /// The first words of its page: the tasks that it has begun, finished and received last.
    pub(super) fn progress(&self) -> [u64; 3] {
        self.words(0)
    }

    /// The figures of its memory in its page.
    pub(super) fn reported(&self) -> Reported {
        // The code of a task may have written anything there: no number may overflow.
        let kib = |word: u64| Bytes(word.min(u64::from(u32::MAX)) * 1024);
        let [most, files, child, base] = self.words(MEMORY).map(kib);
        Reported {
            most,
            files,
            child,
            base,
        }
    }

    fn words<const COUNT: usize>(&self, from: u64) -> [u64; COUNT] {
        let mut words = [0; COUNT];
        for (word, at) in words.iter_mut().zip(from..) {
            let mut bytes = [0; 8];
            // If the page cannot be read, the words are 0, which name no task.
            let _ = self.page.read_exact_at(&mut bytes, at * 8);
            *word = u64::from_ne_bytes(bytes);
        }
        words
    }

    /// Stops it from beginning another task. It checks this before each one.
    pub(super) fn halt(&self) {
        // If this fails, it runs all its tasks, and exits then.
        let _ = self.page.write_all_at(&1_u64.to_ne_bytes(), HALT);
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
