//! The journal of a run: an append-only file from which a run that was stopped can be resumed.
//!
//! A journal has a header and a record for each result. A record is written before the result
//! reaches the output, so that each task with a result in the output has a record, even after
//! SIGKILL or a crash. A resumed run removes an incomplete last line. Nothing is written before
//! [`Journal::begin`]: a run that cannot start leaves the file unchanged.

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
    SeqSet,
    input_hashes::{Difference, InputHashes},
    record::{self, Damage, Record},
    replay::{Replay, Walk},
};

const VERSION: u32 = 2;
/// The first bytes of a journal in all versions of the format.
const OPENING: &[u8] = b"{\"journal\":";
/// Records are synced to disk after this time at the latest.
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Header<'a> {
    journal: u32,
    task: &'a str,
}

/// The part of a header that all versions of the format have.
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

/// Line numbers of the input, each with the hash of the input up to the end of that line.
pub(super) type LineHashes = Vec<(u64, u64)>;

/// An append-only file of results.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    task: String,
    done: Arc<SeqSet>,
    /// The number of tasks in `done` that failed.
    failed: u64,
    input_hashes: InputHashes,
    /// For tasks with several records: where the last one starts.
    last_records: BTreeMap<u64, u64>,
    /// Where the first record starts.
    first_record: u64,
    /// Where the complete records ended when the file was opened.
    end: u64,
    /// An incomplete line follows `end`.
    is_torn: bool,
    /// The thread that reads the input sends the hashes of tasks that have no result yet.
    hash_channel: (Sender<LineHashes>, Receiver<LineHashes>),
    pending_hashes: BTreeMap<u64, u64>,
    /// The time at which the oldest record that is not synced was written.
    unsynced: Option<Instant>,
}

impl Journal {
    /// Creates a journal for the callable `task`, and locks the file until it is dropped.
    ///
    /// # Errors
    /// The file exists and is not empty, another run has locked it, or it cannot be opened.
    pub fn create(path: &Path, task: &str) -> io::Result<Self> {
        let journal = Self::open(path, task)?;
        if journal.end > 0 {
            let message = message_with_path(
                path,
                "already exists. hint: continue it with --resume, or remove it",
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(journal)
    }

    /// Opens a journal to continue it, or creates one. With `retry_failed`, failed tasks count as
    /// not done.
    ///
    /// # Errors
    /// The file is not a journal of `task`, a line is corrupted, another run has locked it, or it
    /// cannot be opened or read.
    pub fn resume(path: &Path, task: &str, retry_failed: bool) -> io::Result<Self> {
        let mut journal = Self::open(path, task)?;
        journal
            .read(retry_failed)
            .map_err(|error| error_with_path(path, &error))?;
        Ok(journal)
    }

    fn open(path: &Path, task: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT;
        let file = private_dir::open_shared(path, flags, 0o666)?;
        // RACE: two runs may start at the same time, so nothing is read before the lock is held.
        match private_dir::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = message_with_path(path, "another run is writing this journal");
                return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
            }
            Err(TryLockError::Error(error)) => return Err(error_with_path(path, &error)),
        }
        let end = file
            .metadata()
            .map_err(|error| error_with_path(path, &error))?
            .len();
        Ok(Self {
            path: path.to_owned(),
            file,
            task: task.to_owned(),
            done: Arc::default(),
            failed: 0,
            input_hashes: InputHashes::default(),
            last_records: BTreeMap::new(),
            first_record: 0,
            end,
            is_torn: false,
            hash_channel: channel(),
            pending_hashes: BTreeMap::new(),
            unsynced: None,
        })
    }

    /// The lines of the input that are not run again.
    pub fn done(&self) -> Arc<SeqSet> {
        Arc::clone(&self.done)
    }

    /// The number of tasks in [`Self::done`] that failed.
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// The open file. The caller checks that it is not also the output.
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
        self.first_record = span.length as u64;
        let (mut seen, mut failed) = (SeqSet::default(), SeqSet::default());
        let mut torn: Option<(u64, u64)> = None;
        let mut number = 1;
        while let Some(span) = walk.next(&mut line)? {
            number += 1;
            if let Some((number, _)) = torn {
                return Err(corrupted(number));
            }
            let record = match record::read(&line) {
                Ok(record) => record,
                Err(Damage::Torn) => {
                    torn = Some((number, span.start));
                    continue;
                }
                Err(Damage::Corrupted) => return Err(corrupted(number)),
            };
            let entry: Entry = serde_json::from_slice(&line).map_err(|_| corrupted(number))?;
            self.input_hashes.insert(record.line, record.input_hash);
            if !seen.insert(record.line) {
                self.last_records.insert(record.line, span.start);
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
            seen.remove_all(&failed);
        } else {
            self.failed = failed.count();
        }
        self.done = Arc::new(seen);
        Ok(())
    }

    /// Checks the header. False: it is incomplete, so there are no records.
    fn read_header(&self, line: &[u8]) -> io::Result<bool> {
        // A file that is not a journal is never truncated.
        if !line.starts_with(&OPENING[..OPENING.len().min(line.len())]) {
            return Err(other_error("it is not a journal"));
        }
        if !line.ends_with(b"\n") {
            return Ok(false);
        }
        if let Ok(Version { journal }) = serde_json::from_slice(line)
            && journal != VERSION
        {
            return Err(other_error(format!(
                "it has journal format {journal}, and this `supervise` uses format {VERSION}. \
                 hint: resume it with the version of `supervise` that created it, or start again \
                 with a new journal"
            )));
        }
        let task = record::unseal(line).ok().and_then(|text| {
            let text = [text, b"}"].concat();
            serde_json::from_slice::<Task>(&text).ok()
        });
        let Some(Task { task }) = task else {
            return Err(other_error("line 1 (the header) is corrupted"));
        };
        if task != self.task {
            let expected = &self.task;
            return Err(other_error(format!(
                "it is the journal of `{task}`, not of `{expected}`"
            )));
        }
        Ok(true)
    }

    /// Prepares the file for records: removes an incomplete line and writes a missing header.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let prepared = self.prepare();
        prepared.map_err(|error| self.with_path(&error))
    }

    fn prepare(&mut self) -> io::Result<()> {
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
        // The sync of the directory makes the file's name durable. Some file systems cannot do
        // that.
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let _ = File::open(directory.unwrap_or(Path::new("."))).and_then(|file| file.sync_all());
        Ok(())
    }

    pub(super) fn input_check(&self) -> InputCheck {
        InputCheck {
            path: self.path.clone(),
            hashes: self.input_hashes.clone(),
            sender: self.hash_channel.0.clone(),
        }
    }

    pub(super) fn replay(&self) -> io::Result<Replay> {
        let file = self
            .file
            .try_clone()
            .map_err(|error| self.with_path(&error))?;
        let walk = Walk::new(file, self.first_record, self.end);
        Ok(Replay::new(walk, self.done(), self.last_records.clone()))
    }

    /// Appends the record of `result`, a JSON object without its closing brace, to `records`.
    pub(super) fn record(
        &mut self,
        records: &mut Vec<u8>,
        line: u64,
        result: &[u8],
    ) -> io::Result<()> {
        let Some(input_hash) = self.take_input_hash(line) else {
            let message =
                format!("internal error: input line {line} has a result but was not read");
            return Err(self.with_path(&other_error(message)));
        };
        let record = Record {
            result,
            line,
            input_hash,
        };
        record::write(records, record)
    }

    fn take_input_hash(&mut self, line: u64) -> Option<u64> {
        // RACE: the reader sends the hash before the task, so it is here before the result.
        while let Ok(hashes) = self.hash_channel.1.try_recv() {
            self.pending_hashes.extend(hashes);
        }
        self.pending_hashes.remove(&line)
    }

    /// Writes complete lines.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file
            .write_all(lines)
            .map_err(|error| self.with_path(&error))?;
        self.unsynced.get_or_insert_with(now);
        match self.sync_in() {
            Some(Duration::ZERO) => self.sync(),
            _ => Ok(()),
        }
    }

    /// The time until [`Self::sync`] is due.
    pub(super) fn sync_in(&self) -> Option<Duration> {
        let since = self.unsynced?;
        Some(SYNC_EVERY.saturating_sub(now().saturating_duration_since(since)))
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced.take().is_some() {
            self.file
                .sync_data()
                .map_err(|error| self.with_path(&error))?;
        }
        Ok(())
    }

    /// Adds the path of the journal to an error.
    pub(super) fn with_path(&self, error: &io::Error) -> io::Error {
        error_with_path(&self.path, error)
    }
}

/// The part of a journal that the reader of the input uses: it compares the input with the input of
/// earlier runs, and sends the hashes for new records.
#[derive(Debug)]
pub(super) struct InputCheck {
    path: PathBuf,
    hashes: InputHashes,
    sender: Sender<LineHashes>,
}

impl InputCheck {
    /// The last line with a result in the journal; 0: no line has one. Lines may have been added to
    /// the input after it.
    pub(super) fn last_line(&self) -> u64 {
        self.hashes.last_line()
    }

    /// Compares the hash of the input up to the end of `line` with the journal.
    pub(super) fn check_line(&self, line: u64, hash: u64) -> io::Result<()> {
        let checked = self.hashes.check(line, hash);
        checked.map_err(|difference| self.refusal(difference))
    }

    /// Checks that an input of `lines` lines is not shorter than that of the journal.
    pub(super) fn check_length(&self, lines: u64) -> io::Result<()> {
        let last_result = self.last_line();
        if lines < last_result {
            return Err(self.refusal(Difference::Shorter { lines, last_result }));
        }
        Ok(())
    }

    fn refusal(&self, difference: Difference) -> io::Error {
        let message = format!("it is the journal of another input: {difference}");
        other_error(message_with_path(&self.path, message))
    }

    /// Sends the journal the hashes that it needs for the records of these lines.
    pub(super) fn send(&self, hashes: LineHashes) {
        // This fails if the journal was closed after an error, which is reported elsewhere.
        let _ = self.sender.send(hashes);
    }
}

fn corrupted(number: u64) -> io::Error {
    other_error(format!(
        "line {number} is corrupted. hint: delete that line; its task then runs again"
    ))
}

fn message_with_path(path: &Path, message: impl Display) -> String {
    format!("{}: {message}", path.display())
}

fn error_with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), message_with_path(path, error))
}

fn other_error(message: impl Into<String>) -> io::Error {
    io::Error::other(message.into())
}

#[expect(
    clippy::disallowed_methods,
    reason = "only decides when the thread of the journal syncs the file"
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
