//! Frames on a stream: a header and a body, little-endian. They are exchanged between the
//! supervisor and the workers of a pool, and between the client of an executor and its pool.
//!
//! | to a worker, or from a client | to a client, or from a worker |
//! |---|---|
//! | 0: length of the body, 4 bytes | 0: length of the body, 4 bytes |
//! | 4: kind, 1 byte | 4: kind, 1 byte |
//! | 5: task, 8 bytes | 5: task, 8 bytes |
//! | | 13: running time in microseconds, 4 bytes |
//! | | 17: peak memory in KiB, 4 bytes |

/// The version of the protocol between the processes of a pool and its client.
pub const VERSION: u64 = 1;

/// The length of a header to a worker, or from a client.
pub const ORDER_HEAD: usize = 13;
/// The length of a header from a worker, or to a client.
pub const REPLY_HEAD: usize = 21;

/// The kind of a frame to a worker, or from a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OrderKind {
    /// A task.
    Task,
    /// There are no more tasks. A worker exits when it has done the tasks before this frame.
    Quit,
    /// The first frame of an executor: the initializer. The field of the task is the version.
    Setup,
    /// To a worker: make a memory report between two tasks. The field of the task is the number of
    /// the report, and the body a [`super::question::Question`].
    Report,
}

impl OrderKind {
    /// The byte in the header.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Task => b'T',
            Self::Quit => b'Q',
            Self::Setup => b'I',
            Self::Report => b'R',
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'T' => Self::Task,
            b'Q' => Self::Quit,
            b'I' => Self::Setup,
            b'R' => Self::Report,
            _ => return None,
        })
    }
}

/// The kind of a frame from a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FromWorker {
    /// The worker is ready. The field of the task is the version.
    Hello,
    /// The return value of a task.
    Result,
    /// The exception that a task raised.
    Raised,
    /// The return value of a task cannot be encoded.
    Unserializable,
    /// The worker cannot start.
    Failed,
    /// The worker has not started a task, because the pool stops.
    NotBegun,
    /// The answer to [`OrderKind::Report`]: the field of the task is the number of the report, and
    /// the body a [`super::question::Answer`].
    Reported,
}

impl FromWorker {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'H' => Self::Hello,
            b'K' => Self::Result,
            b'E' => Self::Raised,
            b'U' => Self::Unserializable,
            b'F' => Self::Failed,
            b'N' => Self::NotBegun,
            b'R' => Self::Reported,
            _ => return None,
        })
    }
}

impl From<FromWorker> for u8 {
    fn from(kind: FromWorker) -> Self {
        match kind {
            FromWorker::Hello => b'H',
            FromWorker::Result => b'K',
            FromWorker::Raised => b'E',
            FromWorker::Unserializable => b'U',
            FromWorker::Failed => b'F',
            FromWorker::NotBegun => b'N',
            FromWorker::Reported => b'R',
        }
    }
}

/// The kind of a frame to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ToClient {
    /// The return value of a task.
    Result,
    /// The exception that a task raised.
    Raised,
    /// The return value of a task cannot be encoded.
    Unserializable,
    /// The worker exited during the task ([`super::document::Lost`]).
    Lost,
    /// The field of the task is the number of tasks that the client may have sent without an
    /// answer.
    Credit,
    /// No worker can start. This is the last frame.
    Broken,
}

impl From<ToClient> for u8 {
    fn from(kind: ToClient) -> Self {
        match kind {
            ToClient::Result => b'K',
            ToClient::Raised => b'E',
            ToClient::Unserializable => b'U',
            ToClient::Lost => b'D',
            ToClient::Credit => b'W',
            ToClient::Broken => b'X',
        }
    }
}

/// A frame to a worker, or from a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Order<'a> {
    /// The kind.
    pub kind: OrderKind,
    /// The task.
    pub seq: u64,
    /// The body.
    pub body: &'a [u8],
}

/// A frame from a worker, or to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reply<'a, Kind = FromWorker> {
    /// [`FromWorker`] or [`ToClient`].
    pub kind: Kind,
    /// The task.
    pub seq: u64,
    /// The running time of the task, at most the largest number that fits.
    pub micros: u32,
    /// The peak memory of the worker.
    pub peak_kib: u32,
    /// The body.
    pub body: &'a [u8],
}

/// The bytes are not a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

/// A frame and its length, including the header; `None`: the frame is incomplete.
pub type Read<T> = Result<Option<(T, usize)>, Malformed>;

impl<'a> Order<'a> {
    /// The header.
    #[must_use]
    pub fn head(&self) -> [u8; ORDER_HEAD] {
        head(self.kind.byte(), self.seq, self.body)
    }

    /// Appends the frame.
    pub fn write(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.head());
        into.extend_from_slice(self.body);
    }

    /// Reads the first frame of `bytes`.
    ///
    /// # Errors
    /// This is not a frame.
    pub fn read(bytes: &'a [u8]) -> Read<Self> {
        let Some((head, rest)) = bytes.split_first_chunk::<ORDER_HEAD>() else {
            return Ok(None);
        };
        let (kind, seq, length) = Self::read_head(head)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        Ok(Some((Self { kind, seq, body }, ORDER_HEAD + length)))
    }

    /// Reads a header: the kind, the task, and the length of the body.
    ///
    /// # Errors
    /// This is not the header of a frame.
    pub fn read_head(head: &[u8; ORDER_HEAD]) -> Result<(OrderKind, u64, usize), Malformed> {
        let (length, byte, seq) = read_head(head);
        let kind = OrderKind::of(byte).ok_or(Malformed)?;
        Ok((kind, seq, length))
    }
}

impl<Kind: Copy + Into<u8>> Reply<'_, Kind> {
    /// The header.
    #[must_use]
    pub fn head(&self) -> [u8; REPLY_HEAD] {
        let mut bytes = [0; REPLY_HEAD];
        let common: [u8; ORDER_HEAD] = head(self.kind.into(), self.seq, self.body);
        bytes[..ORDER_HEAD].copy_from_slice(&common);
        bytes[MICROS..MICROS + 4].copy_from_slice(&self.micros.to_le_bytes());
        bytes[PEAK..PEAK + 4].copy_from_slice(&self.peak_kib.to_le_bytes());
        bytes
    }
}

impl<'a> Reply<'a> {
    /// Reads the first frame of a worker in `bytes`.
    ///
    /// # Errors
    /// This is not a frame of a worker. The code of a task may have written to the socket.
    pub fn read(bytes: &'a [u8]) -> Read<Self> {
        let Some((head, rest)) = bytes.split_first_chunk::<REPLY_HEAD>() else {
            return Ok(None);
        };
        let (length, byte, seq) = read_head(head);
        let kind = FromWorker::of(byte).ok_or(Malformed)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let reply = Self {
            kind,
            seq,
            micros: number(head, MICROS),
            peak_kib: number(head, PEAK),
            body,
        };
        Ok(Some((reply, REPLY_HEAD + length)))
    }
}

/// Checks the version in the first frame of the other side.
///
/// # Errors
/// The version differs. The error contains a hint.
pub fn check_version(version: u64) -> Result<(), String> {
    if version == VERSION {
        return Ok(());
    }
    Err(format!(
        "the Python package speaks protocol {version}, and this `supervise` protocol {VERSION}. \
         hint: install the same version of the package and of the binary"
    ))
}

const KIND: usize = 4;
const SEQ: usize = 5;
const MICROS: usize = 13;
const PEAK: usize = 17;

fn head(kind: u8, seq: u64, body: &[u8]) -> [u8; ORDER_HEAD] {
    // A body is a line of at most 64 MiB, or has arrived in a frame.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = [0; ORDER_HEAD];
    bytes[..KIND].copy_from_slice(&length.to_le_bytes());
    bytes[KIND] = kind;
    bytes[SEQ..].copy_from_slice(&seq.to_le_bytes());
    bytes
}

/// The length of the body, the kind, and the task.
fn read_head(head: &[u8]) -> (usize, u8, u64) {
    let length = usize::try_from(number(head, 0)).unwrap_or(usize::MAX);
    let kind = head.get(KIND).copied().unwrap_or_default();
    let seq = head.get(SEQ..MICROS).and_then(|it| it.try_into().ok());
    let seq = u64::from_le_bytes(seq.unwrap_or_default());
    (length, kind, seq)
}

fn number(head: &[u8], at: usize) -> u32 {
    let bytes = head.get(at..at + 4).and_then(|it| it.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_an_incomplete_one_or_malformed(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            kind in prop::sample::select(&b"TQIRHKEUFNDWX?"[..]),
            length in 0_u8..64,
        ) {
            for has_kind in [false, true] {
                if has_kind && let Some(head) = bytes.get_mut(..=KIND) {
                    head.copy_from_slice(&[length, 0, 0, 0, kind]);
                }
                if let Ok(Some((order, length))) = Order::read(&bytes) {
                    let mut again = Vec::new();
                    order.write(&mut again);
                    prop_assert_eq!(&again[..], &bytes[..length]);
                }
                if let Ok(Some((reply, length))) = Reply::read(&bytes) {
                    let again = [&reply.head()[..], reply.body].concat();
                    prop_assert_eq!(&again[..], &bytes[..length]);
                }
            }
        }
    }

    #[test]
    fn a_kind_of_the_other_side_is_malformed() {
        let frame = |kind: u8| {
            let mut bytes = [0; REPLY_HEAD];
            bytes[KIND] = kind;
            bytes
        };
        for kind in *b"DWXT\0" {
            assert_eq!(Reply::read(&frame(kind)), Err(Malformed));
        }
        for kind in *b"HK\0" {
            assert_eq!(Order::read(&frame(kind)), Err(Malformed));
        }
    }
}
