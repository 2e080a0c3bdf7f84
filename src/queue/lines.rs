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
mod tests {
    use std::{
        io::{Cursor, Write as _, pipe},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::{super::tests::wait, *};

    fn next(lines: &mut Lines, at_most: usize) -> io::Result<(Vec<Given>, bool)> {
        let mut into = Vec::new();
        let is_more = wait(|cx| lines.poll_tasks(cx, at_most, &mut into))?;
        Ok((into, is_more))
    }

    fn all(mut lines: Lines) -> Vec<Given> {
        let mut given = Vec::new();
        loop {
            let (more, is_more) = next(&mut lines, 100).unwrap();
            given.extend(more);
            if !is_more {
                assert_eq!(next(&mut lines, 1).unwrap(), (vec![], false), "and again");
                return given;
            }
        }
    }

    fn told(given: &[Given]) -> Vec<(u64, String)> {
        let one = |given: &Given| match given {
            Given::Task(task) => (task.seq, String::from_utf8_lossy(&task.body).into_owned()),
            Given::Bad { seq, message, .. } => (*seq, format!("BAD {message}")),
        };
        given.iter().map(one).collect()
    }

    fn read(text: impl Into<Vec<u8>>, done: &[u64], line_max: usize) -> Vec<(u64, String)> {
        let mut skip = Skip::default();
        done.iter().for_each(|seq| assert!(skip.insert(*seq)));
        let input = Cursor::new(text.into());
        told(&all(
            Lines::with(input, Arc::new(skip), None, line_max).unwrap()
        ))
    }

    fn pairs(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected
            .iter()
            .map(|(seq, text)| (*seq, (*text).to_owned()))
            .collect()
    }

    #[test]
    fn each_line_is_given_by_its_number() {
        let given = read("1\n\n \r\n{\"args\":2}\r\nx\n\"end\"", &[], LINE_MAX);
        let bad = "BAD not JSON: expected value, column 1";
        assert_eq!(
            given,
            pairs(&[(1, "1"), (4, "2"), (5, bad), (6, "\"end\"")])
        );
        assert_eq!(read("", &[], LINE_MAX), []);
        assert_eq!(read("\n\n", &[], LINE_MAX), []);
    }

    #[test]
    fn done_lines_are_not_even_parsed() {
        let given = read("1\nbad\n3\nbad", &[2, 4], LINE_MAX);
        assert_eq!(given, pairs(&[(1, "1"), (3, "3")]));
        let long = format!(
            "\"{}\"\n2\n\"{}\"",
            "x".repeat(BUFFER * 3),
            "y".repeat(BUFFER * 3)
        );
        assert_eq!(read(long, &[1, 3], LINE_MAX), pairs(&[(2, "2")]));
    }

    #[test]
    fn a_giant_line_is_bad_and_the_next_is_not() {
        for length in [101, BUFFER - 1, BUFFER, BUFFER + 1, BUFFER * 5] {
            let text = format!("1\n{}\n2\n{}", "9".repeat(length), "8".repeat(length));
            let bad = "BAD longer than 100 bytes";
            let expected = pairs(&[(1, "1"), (2, bad), (3, "2"), (4, bad)]);
            assert_eq!(read(text, &[], 100), expected, "{length}");
        }
        let fits = "9".repeat(BUFFER * 3);
        assert_eq!(
            read(format!("{fits}\n1"), &[], BUFFER * 3),
            pairs(&[(1, &fits), (2, "1")])
        );
    }

    #[test]
    fn a_giant_line_is_not_held() {
        let input = io::repeat(b'9').take(64 << 20).chain(Cursor::new(b"\n1\n"));
        let (sender, mut batches) = channel(BATCHES);
        let mut reader = Reader::new(input, Arc::default(), BUFFER, sender);
        assert!(reader.read_all(None).is_ok());
        assert!(
            reader.buffer.capacity() <= 2 * BUFFER,
            "{}",
            reader.buffer.capacity()
        );
        let first = batches.try_recv().unwrap().unwrap();
        assert!(matches!(first[0], Given::Bad { seq: 1, .. }), "{first:?}");
    }

    #[test]
    fn a_pipe_that_trickles_is_not_held_back() {
        let (input, mut output) = pipe().unwrap();
        let mut lines = Lines::start(input, None).unwrap();
        for seq in 1..4 {
            write!(output, "{seq}\n{seq}").unwrap();
            let (given, is_more) = next(&mut lines, 10).unwrap();
            assert_eq!((given.len(), is_more, given[0].seq()), (1, true, seq));
        }
        drop(output);
        assert_eq!(told(&all(lines)), pairs(&[(4, "3")]));
    }

    struct Counted(Arc<AtomicUsize>);

    impl Read for Counted {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            into.fill(b'\n');
            let pairs = into.len() / 2;
            (0..pairs).for_each(|at| into[at * 2] = b'1');
            self.0.fetch_add(pairs, Ordering::SeqCst);
            Ok(pairs * 2)
        }
    }

    #[test]
    fn it_is_not_far_ahead_of_an_endless_input() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut lines = Lines::start(Counted(Arc::clone(&count)), None).unwrap();
        let mut taken = 0;
        while taken < 1_000_000 {
            taken += next(&mut lines, 1000).unwrap().0.len();
        }
        let ahead = count.load(Ordering::SeqCst) - taken;
        assert!(ahead <= BUFFER + BATCH * (BATCHES + 2), "{ahead}");
        assert_eq!(next(&mut lines, 0).unwrap(), (vec![], true));
    }

    struct Broken(bool);

    impl Read for Broken {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if mem::replace(&mut self.0, true) {
                return Err(io::Error::other("it broke"));
            }
            into[..4].copy_from_slice(b"1\n2\n");
            Ok(4)
        }
    }

    #[test]
    fn what_came_before_an_error_is_given_before_it() {
        let mut lines = Lines::start(Broken(false), None).unwrap();
        let mut count = 0;
        let error = loop {
            match next(&mut lines, 10) {
                Ok((given, true)) => count += given.len(),
                Ok((_, false)) => panic!("it ended"),
                Err(error) => break error,
            }
        };
        assert_eq!(
            (count, error.to_string().as_str()),
            (2, "read tasks: it broke")
        );
    }

    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.pop().unwrap_or_default();
            into[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_reads_end(
            text in "[0-9\n]{0,60}",
            sizes in prop::collection::vec(1_usize..9, 60),
            line_max in 1_usize..9,
        ) {
            let mut rest = text.as_bytes();
            let mut pieces = Vec::new();
            for size in sizes {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                if !piece.is_empty() {
                    pieces.push(piece.to_vec());
                }
                rest = after;
            }
            pieces.reverse();
            let lines = Lines::with(Pieces(pieces), Arc::default(), None, line_max).unwrap();
            let once = read(text, &[], line_max);
            prop_assert_eq!(told(&all(lines)), once);
        }
    }
}
