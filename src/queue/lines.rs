//! Reads tasks from the lines of a pipe or a file.
//!
//! A thread reads the input, because a file cannot be polled and a slow disk must not block the
//! event loop. It reads at most a few batches ahead, so the input may be larger than memory.

use std::{
    io::{self, Read},
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
    thread, vec,
};

use memchr::memchr;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    Given, Journal, SeqSet, Source,
    journal::{InputCheck, LineHashes},
    parse,
    record::{HASH_START, hash},
};

/// Maximum bytes of one read.
const BUFFER: usize = 256 << 10;
/// Maximum bytes of a line. A longer line is not a task.
const LINE_MAX: usize = 64 << 20;
/// Maximum tasks in a batch.
const BATCH: usize = 256;
/// A batch is complete when its tasks have this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Maximum batches that are read ahead.
const BATCHES: usize = 4;
/// Maximum bytes of tasks kept in memory while the input is compared with a journal.
pub(super) const KEPT_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// The memory of a task in addition to its bytes.
const OVERHEAD: usize = 128;

/// How a line is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// As JSON: an object with `args` and an `id`, or any value.
    Json,
    /// As text: the task is a string.
    Plain,
}

/// A file or a pipe with tasks.
pub trait Input: Read {
    /// Moves back to the position where reading began. False: the input, for example a pipe, does
    /// not support this.
    ///
    /// # Errors
    /// The input supports this, but it failed.
    fn rewind(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

type Batch = io::Result<Vec<Given>>;

/// Gives the lines of an input.
#[derive(Debug)]
pub struct Lines {
    batches: Receiver<Batch>,
    /// The tasks of the last batch that were not returned yet.
    current: vec::IntoIter<Given>,
    /// The error to return next: the tasks before it were returned.
    broken: Option<io::Error>,
}

impl Lines {
    /// Reads `input` in a thread, without the lines that are done in `journal`. Before it starts
    /// the thread, it compares the input with the journal, up to the last line with a result.
    ///
    /// # Errors
    /// The journal belongs to another input, the input cannot be read, or no thread can be started.
    pub fn start<R: Input + Send + 'static>(
        input: R,
        format: Format,
        journal: Option<&Journal>,
    ) -> io::Result<Self> {
        let (sender, batches) = channel(BATCHES);
        let done = journal.map(Journal::done).unwrap_or_default();
        let mut reader = Reader::new(input, format, done, sender);
        reader.input_check = journal.map(Journal::input_check);
        Self::with(reader, batches)
    }

    fn with<R: Input + Send + 'static>(
        mut reader: Reader<R>,
        batches: Receiver<Batch>,
    ) -> io::Result<Self> {
        reader.compare()?;
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || reader.run())?;
        Ok(Self {
            batches,
            current: Vec::new().into_iter(),
            broken: None,
        })
    }
}

impl Source for Lines {
    fn poll_tasks(
        &mut self,
        cx: &mut Context<'_>,
        at_most: usize,
        into: &mut Vec<Given>,
    ) -> Poll<io::Result<bool>> {
        let mut left = at_most;
        while left > 0 {
            let before = into.len();
            into.extend(self.current.by_ref().take(left));
            left -= into.len() - before;
            if left == 0 {
                break;
            }
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err(error));
            }
            let batch = match self.batches.poll_recv(cx) {
                Poll::Pending if left < at_most => break,
                other => ready!(other),
            };
            match batch {
                Some(Ok(batch)) => self.current = batch.into_iter(),
                // The tasks read before the error are returned first.
                Some(Err(error)) if left < at_most => {
                    self.broken = Some(error);
                    break;
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }
}

/// Why the reader stops before the end of the input.
enum Stop {
    /// The receiver of the tasks was dropped.
    Closed,
    Broken(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Whether the rest of the current line is dropped, and why.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Dropping {
    No,
    Done,
    TooLong,
}

struct Reader<R> {
    input: R,
    is_at_end: bool,
    /// `start..filled` was read but not split into lines. There is no end of line before `scanned`.
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    filled: usize,
    /// The number of the line at `start`.
    seq: u64,
    dropping: Dropping,
    done: Arc<SeqSet>,
    format: Format,
    line_max: usize,
    batch: Vec<Given>,
    batch_bytes: usize,
    batches: Sender<Batch>,
    input_check: Option<InputCheck>,
    /// With a journal: the hash of the input before `start`.
    hash: u64,
    /// With a journal: the hashes for the lines of `batch`.
    hashes: LineHashes,
    comparison: Comparison,
}

/// What happens to the tasks that are read while the input is compared with the journal.
#[derive(Debug)]
enum Comparison {
    /// They are kept, in batches.
    Keeping {
        batches: Vec<Vec<Given>>,
        bytes: usize,
    },
    /// They were too large and were dropped. The input must be read again.
    Overflowed,
    /// The comparison is over: tasks are sent as they are read.
    Finished,
}

impl<R: Read> Reader<R> {
    fn new(input: R, format: Format, done: Arc<SeqSet>, batches: Sender<Batch>) -> Self {
        Self {
            input,
            is_at_end: false,
            buffer: vec![0; BUFFER],
            start: 0,
            scanned: 0,
            filled: 0,
            seq: 1,
            dropping: Dropping::No,
            done,
            format,
            line_max: LINE_MAX,
            batch: Vec::new(),
            batch_bytes: 0,
            batches,
            input_check: None,
            hash: HASH_START,
            hashes: Vec::new(),
            comparison: Comparison::Finished,
        }
    }

    fn run(mut self) {
        if let Err(Stop::Broken(error)) = self.read_all() {
            // The tasks read before the error are sent before it.
            let _ = self.finish_batch();
            let _ = self.batches.blocking_send(Err(error));
        }
    }

    /// Sends the kept batches, and then reads and sends the rest of the input.
    fn read_all(&mut self) -> Result<(), Stop> {
        let comparison = mem::replace(&mut self.comparison, Comparison::Finished);
        if let Comparison::Keeping { batches, .. } = comparison {
            for batch in batches {
                self.send(batch)?;
            }
        }
        loop {
            self.take_lines()?;
            // The next read may block for a long time, so an incomplete batch is sent before it.
            self.finish_batch()?;
            if !self.fill()? {
                break;
            }
        }
        self.take_last_line()?;
        self.finish_batch()
    }

    /// Takes the last line if it has no end of line.
    fn take_last_line(&mut self) -> Result<(), Stop> {
        if self.start < self.filled || self.dropping != Dropping::No {
            self.take_line(self.filled)?;
            self.start = self.filled;
            self.scanned = self.filled;
        }
        Ok(())
    }

    /// Reads once. False: the input has ended.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.filled == self.buffer.len() {
            let most = self.line_max.saturating_add(BUFFER);
            let larger = (self.filled * 2).clamp(self.filled + 1, most.max(self.filled + 1));
            self.buffer.resize(larger, 0);
        } else if self.buffer.len() > BUFFER && self.filled < BUFFER {
            self.buffer.truncate(BUFFER);
            self.buffer.shrink_to_fit();
        }
        while !self.is_at_end {
            match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => self.is_at_end = true,
                Ok(count) => {
                    self.filled += count;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let message = format!("read tasks: {error}");
                    return Err(io::Error::new(error.kind(), message));
                }
            }
        }
        Ok(false)
    }

    /// Takes all complete lines from the buffer.
    fn take_lines(&mut self) -> Result<(), Stop> {
        while let Some(length) = memchr(b'\n', &self.buffer[self.scanned..self.filled]) {
            let end = self.scanned + length;
            self.take_line(end)?;
            self.start = end + 1;
            self.scanned = self.start;
        }
        self.scanned = self.filled;
        let held = self.filled - self.start;
        if self.dropping == Dropping::No && held > 0 {
            if self.done.contains(self.seq) {
                self.dropping = Dropping::Done;
            } else if held > self.line_max {
                self.dropping = Dropping::TooLong;
            }
        }
        if self.dropping != Dropping::No {
            self.hash_to(self.filled);
            self.start = self.filled;
        }
        Ok(())
    }

    /// Continues the hash from `start` to `end`.
    fn hash_to(&mut self, end: usize) {
        if self.input_check.is_some() {
            self.hash = hash(self.hash, &self.buffer[self.start..end]);
        }
    }

    /// Adds the task of the line from `start` to `end` to the batch.
    fn take_line(&mut self, end: usize) -> Result<(), Stop> {
        let seq = self.seq;
        self.seq += 1;
        self.hash_to(end);
        if let Some(check) = &self.input_check {
            self.hash = hash(self.hash, b"\n");
            check.check_line(seq, self.hash)?;
        }
        let line = &self.buffer[self.start..end];
        let given = match mem::replace(&mut self.dropping, Dropping::No) {
            Dropping::Done => None,
            Dropping::No if self.done.contains(seq) => None,
            Dropping::No if line.len() <= self.line_max => match self.format {
                Format::Json => parse::json_line(seq, line),
                Format::Plain => parse::plain_line(seq, line),
            },
            Dropping::No | Dropping::TooLong => Some(Given::Bad {
                seq,
                id: None,
                message: format!("longer than {} bytes", self.line_max),
                is_text: false,
            }),
        };
        if let Some(given) = given {
            self.batch_bytes += match &given {
                Given::Task(task) => task.body.len(),
                Given::Bad { message, .. } => message.len(),
            };
            self.batch_bytes += OVERHEAD;
            self.batch.push(given);
            if self.input_check.is_some() {
                self.hashes.push((seq, self.hash));
            }
        }
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.finish_batch()?;
        }
        Ok(())
    }

    /// Sends the batch; during the comparison, keeps it instead.
    fn finish_batch(&mut self) -> Result<(), Stop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let bytes = mem::take(&mut self.batch_bytes);
        let batch = mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let hashes = mem::take(&mut self.hashes);
        match &mut self.comparison {
            Comparison::Finished => {
                // RACE: the hashes are sent first, because the journal needs them for the results.
                self.send_hashes(hashes);
                self.send(batch)
            }
            Comparison::Overflowed => Ok(()),
            Comparison::Keeping { bytes: kept, .. } if *kept + bytes > KEPT_MAX => {
                self.comparison = Comparison::Overflowed;
                Ok(())
            }
            Comparison::Keeping {
                batches,
                bytes: kept,
            } => {
                *kept += bytes;
                batches.push(batch);
                self.send_hashes(hashes);
                Ok(())
            }
        }
    }

    fn send_hashes(&self, hashes: LineHashes) {
        if let Some(check) = &self.input_check {
            check.send(hashes);
        }
    }

    fn send(&self, batch: Vec<Given>) -> Result<(), Stop> {
        let sent = self.batches.blocking_send(Ok(batch));
        sent.map_err(|_| Stop::Closed)
    }
}

impl<R: Input> Reader<R> {
    /// Reads up to the last line that has a result in the journal, and compares the input up to
    /// there. No task is sent before that.
    fn compare(&mut self) -> io::Result<()> {
        let last_line = self.input_check.as_ref().map_or(0, InputCheck::last_line);
        if last_line == 0 {
            return Ok(());
        }
        self.comparison = Comparison::Keeping {
            batches: Vec::new(),
            bytes: 0,
        };
        match self.read_to_line(last_line) {
            // Nothing is sent during the comparison, so it cannot end with `Closed`.
            Ok(()) | Err(Stop::Closed) => {}
            Err(Stop::Broken(error)) => return Err(error),
        }
        if let Some(check) = &self.input_check {
            check.check_length(self.seq - 1)?;
        }
        if matches!(self.comparison, Comparison::Overflowed) {
            self.start_again()?;
        }
        Ok(())
    }

    /// Reads up to the end of this line.
    fn read_to_line(&mut self, last_line: u64) -> Result<(), Stop> {
        self.take_lines()?;
        while self.seq <= last_line {
            if !self.fill()? {
                return self.take_last_line().and_then(|()| self.finish_batch());
            }
            self.take_lines()?;
        }
        self.finish_batch()
    }

    /// Moves back to the start of the input: the kept tasks were dropped.
    fn start_again(&mut self) -> io::Result<()> {
        if !self.input.rewind()? {
            return Err(io::Error::other(format!(
                "more than {} MB of unfinished tasks come before the last finished task, and \
                 this input cannot be read twice. hint: pass the input as a file: --input FILE",
                KEPT_MAX >> 20
            )));
        }
        self.is_at_end = false;
        (self.start, self.scanned, self.filled, self.seq) = (0, 0, 0, 1);
        (self.dropping, self.hash) = (Dropping::No, HASH_START);
        self.comparison = Comparison::Finished;
        (self.batch, self.batch_bytes, self.hashes) = (Vec::new(), 0, Vec::new());
        Ok(())
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
