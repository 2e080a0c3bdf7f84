//! The page of counters: each process with an agent writes its own slot, and the supervisor reads
//! all slots without interrupting a process.
//!
//! A page consists of a header and [`SLOTS`] slots. Each has 16 words of 64 bits. That is two cache
//! lines, so that processes do not share one. The header:
//!
//! | word | what |
//! |---|---|
//! | 0 | `SUP1`, read as a number |
//! | 1 | the number of slots |
//! | 2 | the length of a slot in bytes |
//! | 3 | written by agents: the number of consecutive workers that could not boot |
//! | 4 | [`VERSION`] of the supervisor that created the page; 0 for old supervisors |
//! | 5 | the version of [`super::agent_routes`], which follows the slots; 0: the page ends there |
//!
//! A slot; the supervisor reads the words in bold:
//!
//! | word | what |
//! |---|---|
//! | **0** | the pid, written last when a slot is claimed; 0: free |
//! | **1**, **2**, 3 | requests **begun**, **finished**, ignored |
//! | **4**, 5 | time of the last **begin** and finish, in nanoseconds of the monotonic clock |
//! | 6 | 1: the process is finishing its requests |
//! | **7** | number of exceptions that the agent has swallowed |
//! | **8** | lower half: flags; upper half: the [`VERSION`] of the agent, 0 for old agents |
//! | 9 | time at which the application was loaded, in nanoseconds |
//! | 10 | number of connections that were closed after an answer with `Connection: close` |
//! | 11 | the gunicorn master for which this worker serves |
//! | **12 to 15** | inodes of the sockets from which its server accepts; 0: none |

use std::ops::RangeInclusive;

use super::{WORD, word};

/// The version of the protocol between agents and the supervisor.
pub const VERSION: u64 = 1;

/// Versions that this supervisor understands. Old agents do not write a version, so it is 0. Their
/// protocol is the same as version 1.
pub const UNDERSTOOD: RangeInclusive<u64> = 0..=VERSION;

/// Maximum number of processes that count at the same time. Further processes do not count.
pub const SLOTS: usize = 512;
/// The length of a slot, and of the header.
pub const SLOT: usize = 16 * WORD;
/// The length of the header and the slots.
pub const LENGTH: usize = SLOT * (1 + SLOTS);

const MAGIC: u64 = 0x3150_5553;

const PID: usize = 0;
const BEGUN: usize = 1;
const FINISHED: usize = 2;
const BEGUN_NS: usize = 4;
const ERRORS: usize = 7;
const FLAGS: usize = 8;
const LISTENERS: usize = 12;
const VERSION_SHIFT: u32 = 32;

/// The content of a slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slot {
    /// The process.
    pub pid: i32,
    /// The number of requests or tasks that were begun.
    pub begun: u64,
    /// The number of finished requests or tasks.
    pub finished: u64,
    /// When the last one was begun, in nanoseconds of the monotonic clock.
    pub begun_ns: u64,
    /// The number of exceptions that the agent has swallowed.
    pub errors: u64,
    /// The version of the agent.
    pub version: u64,
    /// The inodes of the sockets from which the server of the process accepts; 0: none.
    pub listeners: [u64; 4],
}

impl Slot {
    /// Reads a slot; `None`: it is free, or its pid is not valid.
    #[must_use]
    pub fn read(slot: &[u8]) -> Option<Self> {
        let pid = i32::try_from(word(slot, PID)).ok().filter(|pid| *pid > 0)?;
        Some(Self {
            pid,
            begun: word(slot, BEGUN),
            finished: word(slot, FINISHED),
            begun_ns: word(slot, BEGUN_NS),
            errors: word(slot, ERRORS),
            version: word(slot, FLAGS) >> VERSION_SHIFT,
            listeners: [0, 1, 2, 3].map(|at| word(slot, LISTENERS + at)),
        })
    }

    /// The bytes that a process writes into its slot.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> [u8; SLOT] {
        let mut words = [0; SLOT / WORD];
        words[PID] = u64::try_from(self.pid).unwrap_or_default();
        words[BEGUN] = self.begun;
        words[FINISHED] = self.finished;
        words[BEGUN_NS] = self.begun_ns;
        words[ERRORS] = self.errors;
        words[FLAGS] = self.version << VERSION_SHIFT;
        words[LISTENERS..].copy_from_slice(&self.listeners);
        let mut bytes = [0; SLOT];
        for (at, word) in words.into_iter().enumerate() {
            bytes[at * WORD..][..WORD].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The bytes of slot `number` in a page; none if the page is too short.
#[must_use]
pub fn slot(page: &[u8], number: usize) -> &[u8] {
    let at = offset(number);
    page.get(at..at + SLOT).unwrap_or_default()
}

/// The offset of slot `number` in a page.
#[must_use]
pub const fn offset(number: usize) -> usize {
    SLOT * (1 + number)
}

/// A page without counters.
#[must_use]
pub fn empty() -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    let header = [MAGIC, SLOTS as u64, SLOT as u64, 0, VERSION];
    for (at, word) in header.into_iter().enumerate() {
        bytes[at * WORD..][..WORD].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Checks whether this supervisor understands agents of a version.
///
/// # Errors
/// It does not. The error is the reason, as a sentence.
pub fn understand(version: u64) -> Result<(), String> {
    understand_within(version, &UNDERSTOOD)
}

fn understand_within(version: u64, understood: &RangeInclusive<u64>) -> Result<(), String> {
    if understood.contains(&version) {
        return Ok(());
    }
    let (age, ours) = (version.cmp(understood.end()), understood.end());
    let age = if age.is_gt() { "a newer" } else { "an older" };
    Err(format!(
        "its agent speaks {age} protocol than this version of supervise: {version}, not {ours}"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_free_slot_or_a_slot_with_a_valid_pid(
            bytes in prop::collection::vec(any::<u8>(), 0..2 * SLOT),
            pid in any::<u64>(),
        ) {
            let mut bytes = bytes;
            let _ = Slot::read(&bytes);
            if let Some(word) = bytes.get_mut(..WORD) {
                word.copy_from_slice(&pid.to_ne_bytes());
            }
            let read = Slot::read(&bytes);
            prop_assert!(read.is_none_or(|slot| slot.pid > 0));
            prop_assert!(slot(&bytes, 0).is_empty() || bytes.len() >= 2 * SLOT);
        }
    }

    #[test]
    fn the_error_of_an_unknown_version_tells_whether_it_is_older_or_newer() {
        assert_eq!(understand(0), Ok(()));
        assert_eq!(understand(VERSION), Ok(()));
        let newer = understand(VERSION + 1).unwrap_err();
        assert!(newer.contains("speaks a newer protocol"), "{newer}");
        let older = understand_within(2, &(3..=4)).unwrap_err();
        assert!(older.contains("speaks an older protocol"), "{older}");
    }
}
