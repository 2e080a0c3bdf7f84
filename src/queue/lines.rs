//! Tasks as lines of JSON, from a pipe or a file.
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

use super::{Given, Journal, Skip, Source, journal::Binding, parse};

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

type Batch = io::Result<Vec<Given>>;

/// Gives the lines of an input.
#[derive(Debug)]
pub struct Lines {
    batches: Receiver<Batch>,
    current: vec::IntoIter<Given>,
    broken: Option<io::Error>,
}

impl Lines {
    /// Reads `input` in a thread. Lines that are done in `journal` are left out, and the journal
    /// is bound to this input: a new one gets its header, a resumed one must be of this input.
    ///
    /// # Errors
    /// There is no thread to be had, or no copy of the journal's descriptor.
    pub fn start<R: Read + Send + 'static>(
        input: R,
        journal: Option<&Journal>,
    ) -> io::Result<Self> {
        let binding = journal.map(Journal::binding).transpose()?;
        let skip = journal.map(Journal::done).unwrap_or_default();
        Self::with(input, skip, binding, LINE_MAX)
    }

    fn with<R: Read + Send + 'static>(
        input: R,
        skip: Arc<Skip>,
        binding: Option<Binding>,
        line_max: usize,
    ) -> io::Result<Self> {
        let (sender, batches) = channel(BATCHES);
        let reader = Reader::new(input, skip, line_max, sender);
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || reader.run(binding))?;
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
    line_max: usize,
    batch: Vec<Given>,
    batch_bytes: usize,
    batches: Sender<Batch>,
}

impl<R: Read> Reader<R> {
    fn new(input: R, skip: Arc<Skip>, line_max: usize, batches: Sender<Batch>) -> Self {
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
            line_max,
            batch: Vec::new(),
            batch_bytes: 0,
            batches,
        }
    }

    fn run(mut self, binding: Option<Binding>) {
        if let Err(Stop::Broken(error)) = self.read_all(binding) {
            // What was read before the error is given before it.
            let _ = self.hand_over();
            let _ = self.batches.blocking_send(Err(error));
        }
    }

    fn read_all(&mut self, binding: Option<Binding>) -> Result<(), Stop> {
        if let Some(binding) = binding {
            self.bind(binding)?;
        }
        loop {
            self.cut()?;
            // The next read may wait for long: nothing is held back for it.
            self.hand_over()?;
            if !self.fill()? {
                break;
            }
        }
        if self.start < self.filled || self.dropping != Dropping::No {
            self.end_line(self.filled)?;
        }
        self.hand_over()
    }

    /// A journal is of one input, known by how that begins.
    fn bind(&mut self, binding: Binding) -> io::Result<()> {
        while self.filled < binding.wants() && self.fill()? {}
        binding.check(&self.buffer[..self.filled])
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
            self.start = self.filled;
        }
        Ok(())
    }

    /// The line at `start` ends here.
    fn end_line(&mut self, end: usize) -> Result<(), Stop> {
        let seq = self.seq;
        self.seq += 1;
        let line = &self.buffer[self.start..end];
        let given = match mem::replace(&mut self.dropping, Dropping::No) {
            Dropping::Done => None,
            Dropping::No if self.skip.contains(seq) => None,
            Dropping::No if line.len() <= self.line_max => parse::given(seq, line),
            Dropping::No | Dropping::TooLong => Some(Given::Bad {
                seq,
                id: None,
                message: format!("longer than {} bytes", self.line_max),
            }),
        };
        if let Some(given) = given {
            self.batch_bytes += match &given {
                Given::Task(task) => task.body.len(),
                Given::Bad { message, .. } => message.len(),
            };
            self.batch.push(given);
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
        self.batch_bytes = 0;
        let batch = mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.batches
            .blocking_send(Ok(batch))
            .map_err(|_| Stop::Unheard)
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
