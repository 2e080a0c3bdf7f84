//! The frames between us and the workers of a pool, and between us and an executor: a header and a
//! body, little endian, on a stream.

/// The header of a frame to a worker: length, kind, task.
pub const TO_WORKER: usize = 13;
/// The header of a frame from a worker: length, kind, task, microseconds, peak in KiB.
pub const FROM_WORKER: usize = 21;

/// A task for a worker.
pub const TASK: u8 = b'T';
/// The worker exits when it has done the tasks before this frame.
pub const QUIT: u8 = b'Q';
/// An executor's setup, before any task.
pub const SETUP: u8 = b'I';

/// The kind of a frame from a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The worker is ready.
    Hello,
    /// The return value of a task.
    Result,
    /// The exception that a task raised.
    Raised,
    /// The return value of a task cannot be encoded.
    Unserializable,
    /// The worker cannot start.
    Failed,
    /// The worker has not begun a task, because the pool stops.
    NotBegun,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'H' => Self::Hello,
            b'K' => Self::Result,
            b'E' => Self::Raised,
            b'U' => Self::Unserializable,
            b'F' => Self::Failed,
            b'N' => Self::NotBegun,
            _ => return None,
        })
    }
}

/// A frame from a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// The kind.
    pub kind: Kind,
    /// The task.
    pub seq: u64,
    /// The running time of the task.
    pub micros: u32,
    /// The peak memory of the worker.
    pub peak_kib: u32,
    /// The body.
    pub body: &'a [u8],
}

/// Appends a frame for a worker.
pub fn write(into: &mut Vec<u8>, kind: u8, seq: u64, body: &[u8]) {
    // A body is a line of at most 64 MiB, or came from an executor with a length in four bytes.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_le_bytes());
    into.push(kind);
    into.extend_from_slice(&seq.to_le_bytes());
    into.extend_from_slice(body);
}

/// The first frame of `bytes` and its length; `Ok(None)`: the frame is not complete.
///
/// # Errors
/// This is not a frame: the code of a task has written into the socket.
pub fn read(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Garbled> {
    let Some((head, rest)) = bytes.split_at_checked(FROM_WORKER) else {
        return Ok(None);
    };
    let number = |from: usize| {
        let bytes = head.get(from..from + 4).and_then(|it| it.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let kind = head.get(4).copied().and_then(Kind::of).ok_or(Garbled)?;
    let length = usize::try_from(number(0)).map_err(|_| Garbled)?;
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let seq = head.get(5..13).and_then(|it| it.try_into().ok());
    let frame = Frame {
        kind,
        seq: u64::from_le_bytes(seq.unwrap_or_default()),
        micros: number(13),
        peak_kib: number(17),
        body,
    };
    Ok(Some((frame, FROM_WORKER + length)))
}

/// The bytes are not a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Garbled;
