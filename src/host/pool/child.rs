//! One worker of a pool: its socket, its page, what it has said.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
};

use super::CHUNK;
use crate::host::pidfd::PidFd;

/// See the module.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) slot: u32,
    pub(super) process: Option<PidFd>,
    pub(super) socket: UnixStream,
    pub(super) token: Option<u64>,
    pub(super) page: File,
    pub(super) said: Vec<u8>,
    pub(super) unsent: Vec<u8>,
    pub(super) waits: bool,
}

impl Child {
    /// The two words of its page.
    pub(super) fn progress(&self) -> (u64, u64) {
        let mut words = [0; 16];
        // A page that cannot be read blames nobody.
        let _ = self.page.read_exact_at(&mut words, 0);
        let word = |from: usize| {
            let bytes = words.get(from..from + 8).and_then(|it| it.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        (word(0), word(8))
    }

    /// Reads what is there. False at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    self.said
                        .extend_from_slice(buffer.get(..length).unwrap_or(&[]));
                    if length < buffer.len() || self.said.len() > 4 * CHUNK {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}
