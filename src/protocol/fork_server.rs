//! Messages between the supervisor and the fork server of a slot: datagrams of fixed length,
//! little-endian. A pool may fork a worker for each task.
//!
//! To a fork server: the number that identifies the new worker in these messages, 8 bytes. From a
//! fork server:
//!
//! | offset | what |
//! |---|---|
//! | 0 | kind, 1 byte: `F` forked, `R` refused, `E` ended |
//! | 1 | number of the worker, 8 bytes |
//! | 9 | `F`: pid; `R`: errno of fork(2); `E`: status of wait(2); 4 bytes, signed |
//! | 13 | `E`: peak resident memory in KiB, 8 bytes; otherwise 0 |
//! | 21 | `F`: secret of the marks in the output, 16 bytes; otherwise 0 |
//!
//! `F` comes with three descriptors: the worker's socket, page and output.

use super::mark::Secret;

const NUMBER: usize = 1;
const VALUE: usize = 9;
const PEAK: usize = 13;
const SECRET: usize = 21;
/// The length of a message from a fork server.
const LENGTH: usize = 37;

/// The request to fork a worker.
#[must_use]
pub const fn fork(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

/// A message from a fork server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// The number of the worker.
    pub number: u64,
    /// The content.
    pub news: News,
}

/// The content of a message from a fork server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// The worker was forked.
    Forked {
        /// The process id.
        pid: i32,
        /// The secret of the marks in the output.
        secret: Secret,
    },
    /// The worker could not be forked.
    Refused {
        /// The errno of fork(2).
        errno: i32,
    },
    /// The worker has exited.
    Ended {
        /// The status of wait(2).
        status: i32,
        /// The peak resident memory (getrusage(2)).
        peak_kib: u64,
    },
}

impl Message {
    /// Reads a message; `None`: it is malformed.
    #[must_use]
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = datagram.try_into().ok()?;
        let value = i32::from_le_bytes(part(bytes, VALUE)?);
        let news = match bytes[0] {
            b'F' => News::Forked {
                pid: value,
                secret: part(bytes, SECRET)?,
            },
            b'R' => News::Refused { errno: value },
            b'E' => News::Ended {
                status: value,
                peak_kib: u64::from_le_bytes(part(bytes, PEAK)?),
            },
            _ => return None,
        };
        let number = u64::from_le_bytes(part(bytes, NUMBER)?);
        Some(Self { number, news })
    }

    /// The bytes that a fork server sends.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (kind, value, peak, secret) = match self.news {
            News::Forked { pid, secret } => (b'F', pid, 0, secret),
            News::Refused { errno } => (b'R', errno, 0, [0; 16]),
            News::Ended { status, peak_kib } => (b'E', status, peak_kib, [0; 16]),
        };
        [
            &[kind][..],
            &self.number.to_le_bytes(),
            &value.to_le_bytes(),
            &peak.to_le_bytes(),
            &secret,
        ]
        .concat()
    }
}

fn part<const PART: usize>(bytes: &[u8; LENGTH], at: usize) -> Option<[u8; PART]> {
    bytes.get(at..at + PART)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_datagram_is_a_message_or_malformed(
            bytes in prop::collection::vec(any::<u8>(), LENGTH - 1..=LENGTH + 1),
            kind in prop::sample::select(&b"FREH"[..]),
        ) {
            let mut bytes = bytes;
            prop_assert!(Message::read(&bytes).is_none() || bytes.len() == LENGTH);
            bytes[0] = kind;
            let message = Message::read(&bytes);
            prop_assert_eq!(message.is_some(), bytes.len() == LENGTH && kind != b'H');
            // Fields that a kind does not use are ignored.
            let again = message.map(|message| Message::read(&message.bytes()));
            prop_assert_eq!(again, message.map(Some));
        }
    }
}
