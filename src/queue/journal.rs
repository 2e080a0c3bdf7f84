//! What is done, in a file that outlives us: the truth for going on.
//!
//! A header, then a line for each result, written before the result is. Whatever ends us, a
//! task whose result was written is in it; a torn last line is cut off when going on.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::{File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::private_dir;

use super::{
    Skip,
    replay::{Replay, Span, Walk, split},
};

/// What is known of an input is how it begins.
const KNOWN: usize = 64 << 10;
const VERSION: u32 = 1;
/// The disk is asked to keep what was written this often.
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Header {
    journal: u32,
    task: String,
    input: Beginning,
}

/// How an input begins.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Beginning {
    bytes: usize,
    hash: String,
}

impl Beginning {
    fn of(text: &[u8]) -> Self {
        Self {
            bytes: text.len(),
            hash: format!("{:016x}", fnv1a(text)),
        }
    }
}

fn fnv1a(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[derive(Deserialize)]
struct Entry {
    ok: bool,
    line: u64,
}

/// An append-only file of results.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    task: String,
    header: Option<Header>,
    done: Arc<Skip>,
    /// Where the last line begins of those that have several.
    last: BTreeMap<u64, u64>,
    /// Of the header and of all, when it was opened.
    first_line: u64,
    end: u64,
    /// Since when there is something that the disk was not asked to keep.
    unsynced: Option<Instant>,
}

impl Journal {
    /// A new one, for the callable `task`. It holds the lock of the file as long as it is there.
    ///
    /// # Errors
    /// There is one already, or another run has it, or it cannot be written.
    pub fn create(path: &Path, task: &str) -> io::Result<Self> {
        let journal = Self::open(path, task)?;
        if journal.end > 0 {
            let told = named(path, "is there already: use --resume, or remove it");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, told));
        }
        Ok(journal)
    }

    /// Goes on with one; there need not be one yet. With `retry_failed`, what failed is not done.
    ///
    /// # Errors
    /// It is no journal of `task`, a line in its middle is broken, another run has it, or it
    /// cannot be read or written.
    pub fn resume(path: &Path, task: &str, retry_failed: bool) -> io::Result<Self> {
        let mut journal = Self::open(path, task)?;
        journal
            .read(retry_failed)
            .map_err(|error| at(path, &error))?;
        Ok(journal)
    }

    fn open(path: &Path, task: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT;
        let file = private_dir::open_shared(path, flags, 0o666)?;
        // RACE: two runs start at once. Whatever is in the file is looked at under the lock only.
        match private_dir::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let told = named(path, "another run is writing this journal");
                return Err(io::Error::new(io::ErrorKind::WouldBlock, told));
            }
            Err(TryLockError::Error(error)) => return Err(at(path, &error)),
        }
        let end = file.metadata().map_err(|error| at(path, &error))?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            task: task.to_owned(),
            header: None,
            done: Arc::default(),
            last: BTreeMap::new(),
            first_line: 0,
            end,
            unsynced: None,
        })
    }

    /// The lines of the input that are done.
    pub fn done(&self) -> Arc<Skip> {
        Arc::clone(&self.done)
    }

    fn read(&mut self, retry_failed: bool) -> io::Result<()> {
        let mut walk = Walk::new(self.file.try_clone()?, 0, self.end);
        let mut line = Vec::new();
        let Some(span) = walk.next(&mut line)? else {
            return Ok(());
        };
        if !self.read_header(&line)? {
            return self.cut_off(0);
        }
        self.first_line = span.length as u64;
        let (mut seen, mut failed) = (Skip::default(), Skip::default());
        let mut bad: Option<(u64, Span)> = None;
        let mut number = 1;
        while let Some(span) = walk.next(&mut line)? {
            number += 1;
            if let Some((number, _)) = bad {
                return Err(other(format!(
                    "line {number} is broken, and it is not the last"
                )));
            }
            let Some(entry) = entry(&line) else {
                bad = Some((number, span));
                continue;
            };
            if !seen.insert(entry.line) {
                self.last.insert(entry.line, span.start);
            }
            if entry.ok {
                failed.remove(entry.line);
            } else {
                failed.insert(entry.line);
            }
        }
        if let Some((_, span)) = bad {
            self.cut_off(span.start)?;
        }
        if retry_failed {
            seen.take_out(&failed);
        }
        self.done = Arc::new(seen);
        Ok(())
    }

    /// False: it is torn, and nothing comes after it.
    fn read_header(&mut self, line: &[u8]) -> io::Result<bool> {
        // Nothing is ever cut off from a file that is not ours.
        const OPENING: &[u8] = b"{\"journal\":";
        if !line.starts_with(&OPENING[..OPENING.len().min(line.len())]) {
            return Err(other("it is not a journal"));
        }
        if !line.ends_with(b"\n") {
            return Ok(false);
        }
        let header: Header = serde_json::from_slice(line)
            .map_err(|error| other(format!("its header is broken: {error}")))?;
        if header.journal != VERSION {
            let version = header.journal;
            return Err(other(format!(
                "a journal of version {version}, not {VERSION}"
            )));
        }
        if header.task != self.task {
            let (its, ours) = (&header.task, &self.task);
            return Err(other(format!(
                "it is the journal of `{its}`, not of `{ours}`"
            )));
        }
        self.header = Some(header);
        Ok(true)
    }

    fn cut_off(&mut self, end: u64) -> io::Result<()> {
        self.file.set_len(end)?;
        self.end = end;
        self.file.sync_data()
    }

    pub(super) fn binding(&self) -> io::Result<Binding> {
        Ok(Binding {
            path: self.path.clone(),
            file: self.file.try_clone()?,
            task: self.task.clone(),
            header: self.header.clone(),
        })
    }

    pub(super) fn replay(&self) -> io::Result<Replay> {
        let file = self.file.try_clone().map_err(|error| self.broken(&error))?;
        let walk = Walk::new(file, self.first_line, self.end);
        Ok(Replay::new(walk, self.done(), self.last.clone()))
    }

    /// Writes whole lines.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file
            .write_all(lines)
            .map_err(|error| self.broken(&error))?;
        self.unsynced.get_or_insert_with(now);
        match self.sync_in() {
            Some(Duration::ZERO) => self.sync(),
            _ => Ok(()),
        }
    }

    /// When the disk is to be asked next.
    pub(super) fn sync_in(&self) -> Option<Duration> {
        let since = self.unsynced?;
        Some(SYNC_EVERY.saturating_sub(now().saturating_duration_since(since)))
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced.take().is_some() {
            self.file.sync_data().map_err(|error| self.broken(&error))?;
        }
        Ok(())
    }

    pub(super) fn broken(&self, error: &io::Error) -> io::Error {
        at(&self.path, error)
    }
}

/// Ties a journal to its input, from the thread that reads that.
#[derive(Debug)]
pub(super) struct Binding {
    path: PathBuf,
    file: File,
    task: String,
    header: Option<Header>,
}

impl Binding {
    /// How much of the input [`Self::check`] must see, if there is so much.
    pub(super) fn wants(&self) -> usize {
        self.header.as_ref().map_or(1, |header| header.input.bytes)
    }

    /// A new journal gets its header, before there is any task and so any result. One that is
    /// resumed must be of an input that begins like this one; that may be longer than it was.
    pub(super) fn check(mut self, text: &[u8]) -> io::Result<()> {
        let Some(header) = &self.header else {
            return self.begin(text).map_err(|error| at(&self.path, &error));
        };
        let text = &text[..text.len().min(header.input.bytes)];
        if Beginning::of(text) != header.input {
            return Err(other(named(
                &self.path,
                "it is the journal of another input",
            )));
        }
        Ok(())
    }

    fn begin(&mut self, text: &[u8]) -> io::Result<()> {
        let header = Header {
            journal: VERSION,
            task: self.task.clone(),
            input: Beginning::of(&text[..text.len().min(KNOWN)]),
        };
        let mut line = serde_json::to_vec(&header)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        // Its name is kept as well; where a directory cannot be synced, that is its own affair.
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let _ = File::open(directory.unwrap_or(Path::new("."))).and_then(|file| file.sync_all());
        Ok(())
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let (_, seq) = split(line)?;
    let entry: Entry = serde_json::from_slice(line).ok()?;
    (entry.line == seq).then_some(entry)
}

fn named(path: &Path, told: impl Display) -> String {
    format!("{}: {told}", path.display())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), named(path, error))
}

fn other(told: impl Into<String>) -> io::Error {
    io::Error::other(told.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, and nothing is decided by it but when a disk is asked"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
