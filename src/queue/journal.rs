//! What is done, in a file that outlives us: the truth for going on.
//!
//! A header, then a record for each result, written before the result is. Whatever ends us, a
//! task whose result was written is in it; a torn last line is cut off when going on. Nothing is
//! written before [`Journal::begin`], so that a run that cannot start leaves it as it was.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::{File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::private_dir;

use super::{
    Skip,
    marks::{Difference, Marks},
    record::{self, Record, Wrong},
    replay::{Replay, Walk},
};

const VERSION: u32 = 2;
/// Each journal opens like this, of whatever version.
const OPENING: &[u8] = b"{\"journal\":";
/// The disk is asked to keep what was written this often.
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Header<'a> {
    journal: u32,
    task: &'a str,
}

/// What is read of a header: first its version, for it says what else there is.
#[derive(Deserialize)]
struct Version {
    journal: u32,
}

#[derive(Deserialize)]
struct Task {
    task: String,
}

#[derive(Deserialize)]
struct Entry {
    ok: bool,
}

/// Lines of the input that were read, each with the hash of the input up to there.
type Read = Vec<(u64, u64)>;

/// An append-only file of results.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    task: String,
    done: Arc<Skip>,
    /// How many of these failed.
    failed: u64,
    marks: Marks,
    /// Where the last line begins of those that have several.
    last: BTreeMap<u64, u64>,
    /// Of the header and of all, when it was opened.
    first_line: u64,
    end: u64,
    /// There is more, which is not whole.
    is_torn: bool,
    /// Told by whoever reads the input.
    reads: (Sender<Read>, Receiver<Read>),
    read: BTreeMap<u64, u64>,
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
            done: Arc::default(),
            failed: 0,
            marks: Marks::default(),
            last: BTreeMap::new(),
            first_line: 0,
            end,
            is_torn: false,
            reads: channel(),
            read: BTreeMap::new(),
            unsynced: None,
        })
    }

    /// The lines of the input that are done.
    pub fn done(&self) -> Arc<Skip> {
        Arc::clone(&self.done)
    }

    /// How many of these failed.
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// The file, to be compared with others.
    pub const fn file(&self) -> &File {
        &self.file
    }

    fn read(&mut self, retry_failed: bool) -> io::Result<()> {
        let mut walk = Walk::new(self.file.try_clone()?, 0, self.end);
        let mut line = Vec::new();
        let Some(span) = walk.next(&mut line)? else {
            return Ok(());
        };
        if !self.read_header(&line)? {
            (self.end, self.is_torn) = (0, true);
            return Ok(());
        }
        self.first_line = span.length as u64;
        let (mut seen, mut failed) = (Skip::default(), Skip::default());
        let mut torn: Option<(u64, u64)> = None;
        let mut number = 1;
        while let Some(span) = walk.next(&mut line)? {
            number += 1;
            if let Some((number, _)) = torn {
                return Err(corrupted(number));
            }
            let record = match record::read(&line) {
                Ok(record) => record,
                Err(Wrong::Torn) => {
                    torn = Some((number, span.start));
                    continue;
                }
                Err(Wrong::Corrupted) => return Err(corrupted(number)),
            };
            let entry: Entry = serde_json::from_slice(&line).map_err(|_| corrupted(number))?;
            self.marks.insert(record.line, record.mark);
            if !seen.insert(record.line) {
                self.last.insert(record.line, span.start);
            }
            if entry.ok {
                failed.remove(record.line);
            } else {
                failed.insert(record.line);
            }
        }
        if let Some((_, start)) = torn {
            (self.end, self.is_torn) = (start, true);
        }
        if retry_failed {
            seen.take_out(&failed);
        } else {
            self.failed = failed.count();
        }
        self.done = Arc::new(seen);
        Ok(())
    }

    /// False: it is torn, and nothing comes after it.
    fn read_header(&self, line: &[u8]) -> io::Result<bool> {
        // Nothing is ever cut off from a file that is not ours.
        if !line.starts_with(&OPENING[..OPENING.len().min(line.len())]) {
            return Err(other("it is not a journal"));
        }
        if !line.ends_with(b"\n") {
            return Ok(false);
        }
        if let Ok(Version { journal }) = serde_json::from_slice(line)
            && journal != VERSION
        {
            return Err(other(format!(
                "it is a journal of version {journal}, and this `supervise` writes version \
                 {VERSION}. hint: finish it with the `supervise` that began it, or start anew \
                 with another journal"
            )));
        }
        let task = record::unseal(line).ok().and_then(|text| {
            let text = [text, b"}"].concat();
            serde_json::from_slice::<Task>(&text).ok()
        });
        let Some(Task { task: its }) = task else {
            return Err(other("line 1 (its header) is corrupted"));
        };
        if its != self.task {
            let ours = &self.task;
            return Err(other(format!(
                "it is the journal of `{its}`, not of `{ours}`"
            )));
        }
        Ok(true)
    }

    /// Makes it ready to be written: a new one gets its header, a torn line is cut off.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let begun = self.make_ready();
        begun.map_err(|error| self.broken(&error))
    }

    fn make_ready(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.end)?;
        }
        if self.end > 0 {
            return self.file.sync_data();
        }
        let header = Header {
            journal: VERSION,
            task: &self.task,
        };
        let mut line = serde_json::to_vec(&header)?;
        line.pop();
        record::seal(&mut line, 0)?;
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

    pub(super) fn binding(&self) -> Binding {
        Binding {
            path: self.path.clone(),
            marks: self.marks.clone(),
            reads: self.reads.0.clone(),
        }
    }

    pub(super) fn replay(&self) -> io::Result<Replay> {
        let file = self.file.try_clone().map_err(|error| self.broken(&error))?;
        let walk = Walk::new(file, self.first_line, self.end);
        Ok(Replay::new(walk, self.done(), self.last.clone()))
    }

    /// Appends the record of a result, which is given without its closing brace, to `records`.
    pub(super) fn record(
        &mut self,
        records: &mut Vec<u8>,
        line: u64,
        result: &[u8],
    ) -> io::Result<()> {
        let Some(mark) = self.mark_of(line) else {
            let told = format!("line {line} of the input has a result and was not read");
            return Err(self.broken(&other(told)));
        };
        record::write(records, Record { result, line, mark })
    }

    fn mark_of(&mut self, line: u64) -> Option<u64> {
        // A line is told before its task is given, so that it is there before the result is.
        while let Ok(read) = self.reads.1.try_recv() {
            self.read.extend(read);
        }
        self.read.remove(&line)
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

/// Ties a journal to its input, where that is read.
#[derive(Debug)]
pub(super) struct Binding {
    path: PathBuf,
    marks: Marks,
    reads: Sender<Read>,
}

impl Binding {
    /// The last line that [`Self::check`] knows of.
    pub(super) fn last(&self) -> u64 {
        self.marks.last()
    }

    /// A journal that is resumed must be of the input that is read. That may be longer than it
    /// was.
    pub(super) fn check(&self, line: u64, mark: u64) -> io::Result<()> {
        let checked = self.marks.check(line, mark);
        checked.map_err(|difference| self.refusal(difference))
    }

    /// The input has only so many lines.
    pub(super) fn ends_after(&self, lines: u64) -> io::Result<()> {
        if lines < self.last() {
            return Err(self.refusal(Difference::Shorter(lines, self.last())));
        }
        Ok(())
    }

    fn refusal(&self, difference: Difference) -> io::Error {
        let told = format!("it is the journal of another input: {difference}");
        other(named(&self.path, told))
    }

    /// Tells the journal what it needs to know when these lines have their results.
    pub(super) fn tell(&self, read: Read) {
        // Nobody hears it where results are not written any more.
        let _ = self.reads.send(read);
    }
}

fn corrupted(number: u64) -> io::Error {
    other(format!(
        "line {number} is corrupted. hint: without that line its task is done again"
    ))
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

#[cfg(test)]
#[path = "journal_input_tests.rs"]
mod input_tests;
