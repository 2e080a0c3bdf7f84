//! Tasks as lines, from a pipe or a file.
//!
//! A thread reads, for a file cannot be polled and a slow disk must not hold up the loop. It is
//! at most a few batches ahead, so that the input may be larger than memory.

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
    Given, Journal, Skip, Source,
    journal::Binding,
    parse,
    record::{START, hash},
};

/// Of bytes read at once.
const BUFFER: usize = 256 << 10;
/// A longer line is no task.
const LINE_MAX: usize = 64 << 20;
/// Of tasks handed over at once.
const BATCH: usize = 256;
/// Of their bytes.
const BATCH_BYTES: usize = 256 << 10;
/// How many of these wait.
const BATCHES: usize = 4;
/// While an input is compared with a journal, no more bytes of tasks are kept.
pub(super) const KEPT_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// What a task is beside its bytes.
const OVERHEAD: usize = 128;

/// What a line is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// JSON: a task with its name, or a value.
    Json,
    /// Text: a task is a string.
    Plain,
}

/// What tasks are read from.
pub trait Input: Read {
    /// Goes back to where it began. False: that cannot be done, as with a pipe.
    ///
    /// # Errors
    /// It can be done, and was not.
    fn rewind(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

type Batch = io::Result<Vec<Given>>;

/// Gives the lines of an input.
#[derive(Debug)]
pub struct Lines {
    batches: Receiver<Batch>,
    current: vec::IntoIter<Given>,
    broken: Option<io::Error>,
}

impl Lines {
    /// Reads `input` in a thread. Lines that are done in `journal` are left out. Before that, and
    /// here, the input is read up to the last line that has a result in `journal`, which must be of
    /// this input.
    ///
    /// # Errors
    /// The journal is of another input, or the input cannot be read; or there is no thread to be
    /// had.
    pub fn start<R: Input + Send + 'static>(
        input: R,
        format: Format,
        journal: Option<&Journal>,
    ) -> io::Result<Self> {
        let (sender, batches) = channel(BATCHES);
        let skip = journal.map(Journal::done).unwrap_or_default();
        let mut reader = Reader::new(input, format, skip, sender);
        reader.binding = journal.map(Journal::binding);
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
                // What was given before is told first.
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

/// Why the reader stops.
enum Stop {
    /// Nobody listens any more.
    Unheard,
    Broken(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Why the line that is being read is not kept.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Dropping {
    No,
    Done,
    TooLong,
}

struct Reader<R> {
    input: R,
    is_at_end: bool,
    /// What of it is there: `start..filled`, of which there is no end of a line before `scanned`.
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    filled: usize,
    /// The line at `start`.
    seq: u64,
    dropping: Dropping,
    skip: Arc<Skip>,
    format: Format,
    line_max: usize,
    batch: Vec<Given>,
    batch_bytes: usize,
    batches: Sender<Batch>,
    binding: Option<Binding>,
    /// Of all that was read before `start`, if there is a journal.
    hash: u64,
    /// The hashes at the lines of `batch`.
    read: Vec<(u64, u64)>,
    kept: Kept,
}

/// Tasks that were read while the input was compared with the journal.
#[derive(Debug)]
enum Kept {
    Tasks(Vec<Vec<Given>>, usize),
    /// They were too much: the input is read again.
    TooMuch,
    /// Nothing is kept any more.
    Over,
}

impl<R: Read> Reader<R> {
    fn new(input: R, format: Format, skip: Arc<Skip>, batches: Sender<Batch>) -> Self {
        Self {
            input,
            is_at_end: false,
            buffer: vec![0; BUFFER],
            start: 0,
            scanned: 0,
            filled: 0,
            seq: 1,
            dropping: Dropping::No,
            skip,
            format,
            line_max: LINE_MAX,
            batch: Vec::new(),
            batch_bytes: 0,
            batches,
            binding: None,
            hash: START,
            read: Vec::new(),
            kept: Kept::Over,
        }
    }

    fn run(mut self) {
        if let Err(Stop::Broken(error)) = self.read_all() {
            // What was read before the error is given before it.
            let _ = self.hand_over();
            let _ = self.batches.blocking_send(Err(error));
        }
    }

    fn read_all(&mut self) -> Result<(), Stop> {
        if let Kept::Tasks(kept, _) = mem::replace(&mut self.kept, Kept::Over) {
            for batch in kept {
                self.send(batch)?;
            }
        }
        loop {
            self.cut()?;
            // The next read may wait for long: nothing is held back for it.
            self.hand_over()?;
            if !self.fill()? {
                break;
            }
        }
        self.end_rest()?;
        self.hand_over()
    }

    /// The last line need not have an end.
    fn end_rest(&mut self) -> Result<(), Stop> {
        if self.start < self.filled || self.dropping != Dropping::No {
            self.end_line(self.filled)?;
            self.start = self.filled;
            self.scanned = self.filled;
        }
        Ok(())
    }

    /// Reads once. False: this is the end.
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
                    let told = format!("read tasks: {error}");
                    return Err(io::Error::new(error.kind(), told));
                }
            }
        }
        Ok(false)
    }

    /// Takes all lines that are there as a whole.
    fn cut(&mut self) -> Result<(), Stop> {
        while let Some(length) = memchr(b'\n', &self.buffer[self.scanned..self.filled]) {
            let end = self.scanned + length;
            self.end_line(end)?;
            self.start = end + 1;
            self.scanned = self.start;
        }
        self.scanned = self.filled;
        let held = self.filled - self.start;
        if self.dropping == Dropping::No && held > 0 {
            if self.skip.contains(self.seq) {
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

    /// What is before `start` was hashed before.
    fn hash_to(&mut self, end: usize) {
        if self.binding.is_some() {
            self.hash = hash(self.hash, &self.buffer[self.start..end]);
        }
    }

    /// The line at `start` ends here.
    fn end_line(&mut self, end: usize) -> Result<(), Stop> {
        let seq = self.seq;
        self.seq += 1;
        self.hash_to(end);
        if let Some(binding) = &self.binding {
            self.hash = hash(self.hash, b"\n");
            binding.check(seq, self.hash)?;
        }
        let line = &self.buffer[self.start..end];
        let given = match mem::replace(&mut self.dropping, Dropping::No) {
            Dropping::Done => None,
            Dropping::No if self.skip.contains(seq) => None,
            Dropping::No if line.len() <= self.line_max => match self.format {
                Format::Json => parse::given(seq, line),
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
            if self.binding.is_some() {
                self.read.push((seq, self.hash));
            }
        }
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.hand_over()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Stop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let bytes = mem::take(&mut self.batch_bytes);
        let batch = mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        // Before the tasks, so that the journal knows them when their results come.
        let read = mem::take(&mut self.read);
        match &mut self.kept {
            Kept::Over => {
                self.tell(read);
                self.send(batch)
            }
            Kept::TooMuch => Ok(()),
            Kept::Tasks(_, kept) if *kept + bytes > KEPT_MAX => {
                self.kept = Kept::TooMuch;
                Ok(())
            }
            Kept::Tasks(tasks, kept) => {
                *kept += bytes;
                tasks.push(batch);
                self.tell(read);
                Ok(())
            }
        }
    }

    fn tell(&self, read: Vec<(u64, u64)>) {
        if let Some(binding) = &self.binding {
            binding.tell(read);
        }
    }

    fn send(&self, batch: Vec<Given>) -> Result<(), Stop> {
        let sent = self.batches.blocking_send(Ok(batch));
        sent.map_err(|_| Stop::Unheard)
    }
}

impl<R: Input> Reader<R> {
    /// Reads up to the last line that has a result in the journal. Nothing is begun before it is
    /// known that all of it is the input of then.
    fn compare(&mut self) -> io::Result<()> {
        let Some(last) = self.binding.as_ref().map(Binding::last) else {
            return Ok(());
        };
        if last == 0 {
            return Ok(());
        }
        self.kept = Kept::Tasks(Vec::new(), 0);
        match self.read_to(last) {
            // Nobody listens yet, and nobody has to.
            Ok(()) | Err(Stop::Unheard) => {}
            Err(Stop::Broken(error)) => return Err(error),
        }
        if let Some(binding) = &self.binding {
            binding.ends_after(self.seq - 1)?;
        }
        if matches!(self.kept, Kept::TooMuch) {
            self.begin_again()?;
        }
        Ok(())
    }

    fn read_to(&mut self, last: u64) -> Result<(), Stop> {
        self.cut()?;
        while self.seq <= last {
            if !self.fill()? {
                return self.end_rest().and_then(|()| self.hand_over());
            }
            self.cut()?;
        }
        self.hand_over()
    }

    fn begin_again(&mut self) -> io::Result<()> {
        if !self.input.rewind()? {
            return Err(io::Error::other(format!(
                "of the lines before the last that is done, more than {} MB are to be done, and \
                 this input cannot be read twice. hint: give it as a file: --input FILE",
                KEPT_MAX >> 20
            )));
        }
        self.is_at_end = false;
        (self.start, self.scanned, self.filled, self.seq) = (0, 0, 0, 1);
        (self.dropping, self.hash, self.kept) = (Dropping::No, START, Kept::Over);
        (self.batch, self.batch_bytes, self.read) = (Vec::new(), 0, Vec::new());
        Ok(())
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
