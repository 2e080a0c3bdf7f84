//! One worker of a pool: its socket, its page, what it has said.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
    sync::Arc,
};

use bytes::BytesMut;

use super::memory::{Held, Resident};
use crate::{host::pidfd::PidFd, units::Bytes};

/// One worker is listened to for so many bytes before others are heard.
const AT_ONCE: usize = 16 << 20;

/// From this word of a worker's page on stands what it says of its memory (`peak.py`).
const MEMORY: u64 = 16;

/// What a socket holds after it was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Left {
    Nothing,
    /// It was not read to its end.
    Perhaps,
    /// Nothing more comes.
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
    pub(super) said: BytesMut,
    pub(super) unsent: BytesMut,
    pub(super) waits: bool,
    pub(super) held: Held,
}

impl Child {
    /// The first words of its page: the task that it has begun last, that it has finished last,
    /// and that it has read a part of last.
    pub(super) fn progress(&self) -> [u64; 3] {
        self.words(0)
    }

    /// What its page says of its memory.
    pub(super) fn resident(&self) -> Resident {
        // Whatever a task has written there stays a number of bytes.
        let kib = |word: u64| Bytes(word.min(u64::from(u32::MAX)) * 1024);
        let [most, files, child, base] = self.words(MEMORY).map(kib);
        Resident {
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
            // A page that cannot be read blames nobody.
            let _ = self.page.read_exact_at(&mut bytes, at * 8);
            *word = u64::from_ne_bytes(bytes);
        }
        words
    }

    /// Lets it begin no other task: the fourth word of its page. It looks there before each.
    pub(super) fn halt(&self) {
        // One that does not see it goes on, and is told to go in the end.
        let _ = self.page.write_all_at(&1_u64.to_ne_bytes(), 24);
    }

    /// Reads what is there, but not for ever.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Left {
        let mut read = 0;
        while read < AT_ONCE {
            match self.socket.read(buffer) {
                Ok(0) => return Left::End,
                Ok(length) => {
                    self.said
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
