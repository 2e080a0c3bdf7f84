//! The page of memory that a pool's worker shares with the supervisor. It consists of 64-bit words
//! and outlives the worker.
//!
//! | word | written by | what |
//! |---|---|---|
//! | 0, 1, 2 | worker | the last task that it has started, finished, and partly received |
//! | 3 | supervisor | not 0: the worker must not start another task |
//! | 4 | supervisor | not 0: the supervisor is reading the worker's output |
//! | 16 to 19 | worker | figures of its memory, in KiB ([`Peak`]) |

use super::{WORD, word};

/// The offset of the first word: the task that was started last.
pub const BEGUN: u64 = 0;
/// The length of the words 0, 1 and 2.
pub const PROGRESS_LENGTH: usize = 3 * WORD;
/// The offset of the word that prevents the worker from starting another task.
pub const HALT: u64 = 3 * WORD as u64;
/// The offset of the word that is set while the supervisor reads the worker's output.
pub const READING: u64 = 4 * WORD as u64;
/// The offset of the memory figures.
pub const PEAK: u64 = 16 * WORD as u64;
/// The length of the memory figures.
pub const PEAK_LENGTH: usize = 4 * WORD;

/// The last tasks of a worker; 0 is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// The task that the worker has started last.
    pub begun: u64,
    /// The task that the worker has finished last.
    pub finished: u64,
    /// The task of which the worker has received a part.
    pub receiving: u64,
}

impl Progress {
    /// Reads the first three words.
    #[must_use]
    pub fn read(page: &[u8; PROGRESS_LENGTH]) -> Self {
        Self {
            begun: word(page, 0),
            finished: word(page, 1),
            receiving: word(page, 2),
        }
    }
}

/// The memory of a worker, as measured by the worker, in KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Peak {
    /// The peak resident memory, including mapped files.
    pub most: u64,
    /// The maximum of resident file pages, measured after tasks.
    pub files: u64,
    /// The peak resident memory of a child process that has exited.
    pub child: u64,
    /// The memory before the first task.
    pub base: u64,
}

impl Peak {
    /// Reads the words from [`PEAK`] on. Each result is at most 2^32 - 1, so that sums do not
    /// overflow.
    #[must_use]
    pub fn read(words: &[u8; PEAK_LENGTH]) -> Self {
        let kib = |number| word(words, number).min(u64::from(u32::MAX));
        Self {
            most: kib(0),
            files: kib(1),
            child: kib(2),
            base: kib(3),
        }
    }
}

/// The bytes of a word.
#[must_use]
pub fn bytes(word: u64) -> [u8; WORD] {
    word.to_ne_bytes()
}

/// The value of a word.
#[must_use]
pub fn value(bytes: [u8; WORD]) -> u64 {
    u64::from_ne_bytes(bytes)
}
