//! Marks in the output of a pool's worker. A mark stands at the end of a task's output.
//!
//! A mark consists of a secret of 16 bytes, which differs for each worker, and the number of the
//! task, 8 bytes, little-endian. Output cannot contain it by chance.

use memchr::memmem;

/// The first bytes of each mark of a worker.
pub type Secret = [u8; 16];

/// The length of the number of the task.
const NUMBER: usize = 8;

/// A mark, and the bytes around it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found<'a> {
    /// The output before the mark.
    pub before: &'a [u8],
    /// The task that has ended.
    pub task: u64,
    /// The output after the mark.
    pub after: &'a [u8],
}

/// The first complete mark in `bytes`.
#[must_use]
pub fn find<'a>(bytes: &'a [u8], secret: &Secret) -> Option<Found<'a>> {
    let at = memmem::find(bytes, secret)?;
    let (before, mark) = bytes.split_at_checked(at)?;
    let (number, after) = mark.get(secret.len()..)?.split_first_chunk::<NUMBER>()?;
    Some(Found {
        before,
        task: u64::from_le_bytes(*number),
        after,
    })
}

/// The mark at the end of a task's output.
#[cfg(test)]
pub(crate) fn of(secret: Secret, task: u64) -> Vec<u8> {
    [&secret[..], &task.to_le_bytes()].concat()
}
