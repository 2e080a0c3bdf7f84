//! One worker of a pool: its socket, its page, what it has said.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
    sync::Arc,
};

use bytes::BytesMut;

use crate::host::pidfd::PidFd;

/// One worker is listened to for so many bytes before others are heard.
const AT_ONCE: usize = 16 << 20;

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
}

impl Child {
    /// The first words of its page: the task that it has begun last, that it has finished last,
    /// and that it has read a part of last.
    pub(super) fn progress(&self) -> [u64; 3] {
        let mut words = [0; 24];
        // A page that cannot be read blames nobody.
        let _ = self.page.read_exact_at(&mut words, 0);
        let word = |from: usize| {
            let bytes = words.get(from..from + 8).and_then(|it| it.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        [word(0), word(8), word(16)]
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
