//! The words between us and the workers of a pool, and between us and an executor: a header and a
//! body, little endian, on a stream.

/// Length, kind, task: what is said to a worker.
pub const TO_WORKER: usize = 13;
/// Length, kind, task, microseconds, peak in KiB: what a worker says.
pub const FROM_WORKER: usize = 21;

/// What is said to a worker.
pub const TASK: u8 = b'T';
/// It may go when it has done what came before.
pub const QUIT: u8 = b'Q';
/// An executor's setup, before anything else.
pub const SETUP: u8 = b'I';

/// What a worker says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It is ready.
    Hello,
    /// What a task returned.
    Result,
    /// What a task raised.
    Raised,
    /// What a task returned cannot be encoded.
    Unserializable,
    /// It cannot start.
    Failed,
    /// A task came after the pool was told to stop, and was not begun.
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

/// A frame that a worker has said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Of which task.
    pub seq: u64,
    /// For how long it ran.
    pub micros: u32,
    /// The most that the worker held.
    pub peak_kib: u32,
    /// The rest.
    pub body: &'a [u8],
}

/// Appends a frame for a worker.
pub fn write(into: &mut Vec<u8>, kind: u8, seq: u64, body: &[u8]) {
    // Bodies are lines of at most 64 MiB, or an executor's, whose length came in four bytes.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_le_bytes());
    into.push(kind);
    into.extend_from_slice(&seq.to_le_bytes());
    into.extend_from_slice(body);
}

/// The first whole frame of `bytes` and its length; `Ok(None)` when it is not whole.
///
/// # Errors
/// This is no frame: somebody else has written into the socket.
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

/// What was read is no frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Garbled;
