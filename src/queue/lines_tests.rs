//! Tests of the tasks that are read from an input, and of the time at which they are given.

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

fn described(given: &[Given]) -> Vec<(u64, String)> {
    let one = |given: &Given| match given {
        Given::Task(task) => (task.seq, String::from_utf8_lossy(&task.body).into_owned()),
        Given::Bad { seq, message, .. } => (*seq, format!("BAD {message}")),
    };
    given.iter().map(one).collect()
}

impl<T: AsRef<[u8]>> Input for Cursor<T> {
    fn rewind(&mut self) -> io::Result<bool> {
        self.set_position(0);
        Ok(true)
    }
}

impl Input for io::PipeReader {}
impl Input for Counted {}
impl Input for Broken {}
impl Input for Pieces {}

fn with<R: Input + Send + 'static>(input: R, done: Arc<SeqSet>, line_max: usize) -> Lines {
    let (sender, batches) = channel(BATCHES);
    let mut reader = Reader::new(input, Format::Json, done, sender);
    reader.line_max = line_max;
    Lines::with(reader, batches).unwrap()
}

fn read(text: impl Into<Vec<u8>>, done: &[u64], line_max: usize) -> Vec<(u64, String)> {
    let mut seqs = SeqSet::default();
    done.iter().for_each(|seq| assert!(seqs.insert(*seq)));
    let input = Cursor::new(text.into());
    described(&all(with(input, Arc::new(seqs), line_max)))
}

fn pairs(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected
        .iter()
        .map(|(seq, text)| (*seq, (*text).to_owned()))
        .collect()
}

#[test]
fn each_task_has_the_number_of_its_line() {
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
fn finished_lines_are_not_parsed() {
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
fn a_line_over_the_limit_is_bad_and_the_next_line_is_read() {
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
fn a_line_over_the_limit_is_not_kept_in_memory() {
    let input = io::repeat(b'9').take(64 << 20).chain(Cursor::new(b"\n1\n"));
    let (sender, mut batches) = channel(BATCHES);
    let mut reader = Reader::new(input, Format::Json, Arc::default(), sender);
    reader.line_max = BUFFER;
    loop {
        assert!(reader.take_lines().is_ok());
        let held = reader.buffer.capacity();
        assert!(held <= 2 * BUFFER, "{held}");
        if !reader.fill().unwrap() {
            break;
        }
    }
    assert!(reader.finish_batch().is_ok());
    let first = batches.try_recv().unwrap().unwrap();
    assert!(matches!(first[0], Given::Bad { seq: 1, .. }), "{first:?}");
}

#[test]
fn a_line_of_a_slow_pipe_is_given_at_once() {
    let (input, mut output) = pipe().unwrap();
    let mut lines = Lines::start(input, Format::Json, None).unwrap();
    for seq in 1..4 {
        write!(output, "{seq}\n{seq}").unwrap();
        let (given, is_more) = next(&mut lines, 10).unwrap();
        assert_eq!((given.len(), is_more, given[0].seq()), (1, true, seq));
    }
    drop(output);
    assert_eq!(described(&all(lines)), pairs(&[(4, "3")]));
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
fn the_reader_of_an_endless_input_reads_only_a_few_batches_ahead() {
    let count = Arc::new(AtomicUsize::new(0));
    let mut lines = Lines::start(Counted(Arc::clone(&count)), Format::Json, None).unwrap();
    let mut taken = 0;
    while taken < 1_000_000 {
        taken += next(&mut lines, 1000).unwrap().0.len();
    }
    // The reader stops when the channel is full.
    while lines.batches.len() < lines.batches.max_capacity() {
        thread::yield_now();
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
fn tasks_before_a_read_error_are_given_before_the_error() {
    let mut lines = Lines::start(Broken(false), Format::Json, None).unwrap();
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
    fn the_tasks_do_not_depend_on_where_reads_end(
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
        let lines = with(Pieces(pieces), Arc::default(), line_max);
        let once = read(text, &[], line_max);
        prop_assert_eq!(described(&all(lines)), once);
    }
}
