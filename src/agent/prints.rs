//! What a worker prints, cut into lines, each with the task that has printed it.
//!
//! `prints.py` writes marks into the stream: a secret and the number of the task that has ended.
//! All that a worker prints is hostile: a task that has found the secret in its memory can print in
//! the name of another task of its pool, and no more than that.

use memchr::{memchr, memmem};

/// What marks begin with: 16 bytes, different for each worker.
pub type Secret = [u8; 16];

/// A longer line is passed on in pieces of this length.
pub const LINE_MAX: usize = 64 << 10;
/// More is not held back in wait of a mark.
const HELD_MAX: usize = 256 << 10;
/// The task's number, little endian.
const NUMBER: usize = 8;

/// Where lines go: the task, and the line without its end.
pub type Lines<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// One worker's stream.
#[derive(Debug)]
pub struct Stream {
    secret: Secret,
    /// It is not known yet which task has printed it.
    held: Vec<u8>,
    /// A line without its end.
    line: Vec<u8>,
    /// The task that has printed `line`.
    task: u64,
}

impl Stream {
    /// Nothing was printed yet. Task 0 is the time before the first task.
    pub const fn new(secret: Secret) -> Self {
        Self {
            secret,
            held: Vec::new(),
            line: Vec::new(),
            task: 0,
        }
    }

    /// Takes in what was read. What follows the last mark is of the task `begun` if that
    /// `is_settled`: then all was read that there is, and no mark of that task may follow. Else a
    /// mark is still to come, and its start may have come.
    pub fn feed(&mut self, bytes: &[u8], begun: u64, is_settled: bool, lines: Lines<'_>) {
        let mut before = std::mem::take(&mut self.held);
        let mut rest = if before.is_empty() {
            bytes
        } else {
            before.extend_from_slice(bytes);
            before.as_slice()
        };
        while let Some(at) = memmem::find(rest, &self.secret) {
            let (printed, mark) = rest.split_at(at);
            let number = mark.get(self.secret.len()..self.secret.len() + NUMBER);
            let Some(number) = number.and_then(|it| it.try_into().ok()) else {
                break;
            };
            self.put(u64::from_le_bytes(number), printed, lines);
            self.end_line(lines);
            rest = mark.get(self.secret.len() + NUMBER..).unwrap_or_default();
        }
        if is_settled || rest.len() > HELD_MAX {
            self.put(begun, rest, lines);
        } else {
            self.held = rest.to_vec();
        }
    }

    /// Whether the task has printed a line that has no end yet.
    pub const fn has_line_of(&self, task: u64) -> bool {
        self.task == task && !self.line.is_empty() && self.held.is_empty()
    }

    /// A task has ended, and all that it has printed was read: its line that has no end is one.
    pub fn end_task(&mut self, task: u64, lines: Lines<'_>) {
        if self.has_line_of(task) {
            self.end_line(lines);
        }
    }

    /// The worker has ended in the task `begun`, or nothing more comes: what is held is passed on.
    pub fn end(&mut self, begun: u64, lines: Lines<'_>) {
        let held = std::mem::take(&mut self.held);
        self.put(begun, &held, lines);
        self.end_line(lines);
    }

    /// The task that has printed last.
    pub const fn last(&self) -> u64 {
        self.task
    }

    fn put(&mut self, task: u64, mut bytes: &[u8], lines: Lines<'_>) {
        if bytes.is_empty() {
            return;
        }
        if task != self.task {
            self.end_line(lines);
            self.task = task;
        }
        while let Some(at) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(at);
            bytes = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.whole(line, lines);
            } else {
                self.add(line, lines);
                // Its end was printed, also if all before it was passed on in pieces.
                self.end_line(lines);
            }
        }
        self.add(bytes, lines);
    }

    /// A line that is known to its end.
    fn whole(&mut self, line: &[u8], lines: Lines<'_>) {
        if line.len() <= LINE_MAX {
            lines(self.task, line);
        } else {
            self.add(line, lines);
            self.end_line(lines);
        }
    }

    /// A part of a line.
    fn add(&mut self, mut bytes: &[u8], lines: Lines<'_>) {
        while self.line.len() + bytes.len() > LINE_MAX {
            let (now, rest) = bytes.split_at(LINE_MAX.saturating_sub(self.line.len()));
            self.line.extend_from_slice(now);
            bytes = rest;
            let cut = whole_letters(&self.line);
            let start = self.line.split_off(cut);
            self.end_line(lines);
            self.line = start;
        }
        self.line.extend_from_slice(bytes);
    }

    fn end_line(&mut self, lines: Lines<'_>) {
        if !self.line.is_empty() {
            lines(self.task, &self.line);
            self.line.clear();
        }
    }
}

/// The length of `bytes` without the start of a letter of UTF-8 at their end.
fn whole_letters(bytes: &[u8]) -> usize {
    let is_start = |byte: &u8| byte & 0xC0 != 0x80;
    let back = bytes.iter().rev().take(4).position(is_start).unwrap_or(0);
    let last = bytes.len() - 1 - back;
    match str::from_utf8(bytes.get(last..).unwrap_or_default()) {
        Err(error) if error.error_len().is_none() && last > 0 => last,
        Ok(_) | Err(_) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = *b"0123456789abcdef";

    fn mark(task: u64) -> Vec<u8> {
        [&SECRET[..], &task.to_le_bytes()].concat()
    }

    fn stream() -> Stream {
        Stream::new(SECRET)
    }

    /// What comes of pieces: bytes, the task that is under way, and whether that is settled.
    fn fed(stream: &mut Stream, pieces: &[(&[u8], u64, bool)]) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        for (bytes, begun, is_settled) in pieces {
            stream.feed(bytes, *begun, *is_settled, &mut |task, line| {
                said.push((task, String::from_utf8(line.to_vec()).unwrap()));
            });
        }
        said
    }

    fn ended(stream: &mut Stream, begun: u64) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        stream.end(begun, &mut |task, line| {
            said.push((task, String::from_utf8(line.to_vec()).unwrap()));
        });
        said
    }

    fn lines(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        let own = |(task, line): &(u64, &str)| (*task, (*line).to_owned());
        expected.iter().map(own).collect()
    }

    #[test]
    fn each_line_is_of_the_task_whose_mark_follows_however_the_stream_is_cut() {
        let all = [
            &b"one\ntwo"[..],
            &mark(3),
            &mark(4),
            "\nfünf\n".as_bytes(),
            &mark(5),
            b"six\n0",
        ]
        .concat();
        let expected = [(3, "one"), (3, "two"), (5, ""), (5, "fünf"), (6, "six")];
        for first in 0..=all.len() {
            for second in first..=all.len() {
                let mut stream = stream();
                let pieces = [
                    (&all[..first], 2, false),
                    (&all[first..second], 5, false),
                    (&all[second..], 6, true),
                ];
                let said = fed(&mut stream, &pieces);
                assert_eq!(said, lines(&expected), "cut at {first} and {second}");
                // Nothing waits for what may look like the start of a mark: marks come whole.
                let rest = fed(&mut stream, &[(b"seven\n", 7, true)]);
                assert_eq!(rest, lines(&[(6, "0"), (7, "seven")]));
            }
        }
    }

    #[test]
    fn a_line_is_passed_on_while_its_task_runs() {
        let mut stream = stream();
        let said = fed(&mut stream, &[(b"step 1\nst", 7, true)]);
        assert_eq!(said, lines(&[(7, "step 1")]));
        let rest = [b"ep 2", &mark(7)[..]].concat();
        let said = fed(&mut stream, &[(&rest, 8, true)]);
        assert_eq!(said, lines(&[(7, "step 2")]));
    }

    #[test]
    fn what_is_not_settled_waits_for_its_mark() {
        let mut stream = stream();
        assert_eq!(fed(&mut stream, &[(b"x\n", 2, false)]), lines(&[]));
        let said = fed(&mut stream, &[(&mark(1), 2, true)]);
        assert_eq!(said, lines(&[(1, "x")]));
        // Its task was the last one that began, as it turns out.
        assert_eq!(fed(&mut stream, &[(b"y\n", 3, false)]), lines(&[]));
        assert_eq!(fed(&mut stream, &[(b"", 3, true)]), lines(&[(3, "y")]));
        // A worker whose page changes without marks is not waited for.
        let said = fed(&mut stream, &[(&vec![b'\n'; HELD_MAX + 1], 4, false)]);
        assert_eq!(said.len(), HELD_MAX + 1);
    }

    #[test]
    fn a_death_passes_on_what_is_held_and_what_is_no_whole_line() {
        let mut stream = stream();
        fed(&mut stream, &[(b"half", 2, true), (&SECRET[..5], 2, false)]);
        assert_eq!(ended(&mut stream, 2), lines(&[(2, "half01234")]));
        fed(&mut stream, &[(b"of two", 2, true), (b"three", 3, false)]);
        let said = ended(&mut stream, 3);
        assert_eq!(said, lines(&[(2, "of two"), (3, "three")]));
        assert_eq!(ended(&mut stream, 3), lines(&[]));
    }

    #[test]
    fn a_task_that_ends_ends_its_line_and_no_other() {
        let mut stream = stream();
        let mut said = Vec::new();
        let mut end = |stream: &mut Stream, task| {
            stream.end_task(task, &mut |task, line| said.push((task, line.to_vec())));
        };
        fed(&mut stream, &[(b"half", 2, true)]);
        end(&mut stream, 1);
        end(&mut stream, 2);
        end(&mut stream, 2);
        // What is held may be the rest of the line.
        fed(&mut stream, &[(b"ha", 3, true), (b"lf", 3, false)]);
        end(&mut stream, 3);
        assert_eq!(said, [(2, b"half".to_vec())]);
        assert_eq!(ended(&mut stream, 3), lines(&[(3, "half")]));
    }

    #[test]
    fn a_long_line_comes_in_pieces_of_whole_letters() {
        let mut long = "ä".repeat(LINE_MAX);
        long.insert(0, 'x');
        for pieces in [1, 3, 1000] {
            let mut stream = stream();
            let mut said = Vec::new();
            for piece in long.as_bytes().chunks(long.len().div_ceil(pieces)) {
                said.extend(fed(&mut stream, &[(piece, 1, true)]));
                assert!(stream.line.len() <= LINE_MAX);
            }
            said.extend(fed(&mut stream, &[(b"\nnext\n", 1, true)]));
            let next = said.pop().unwrap();
            assert_eq!(next.1, "next");
            assert!(said.iter().all(|(_, line)| line.len() <= LINE_MAX));
            assert_eq!(said.len(), 3);
            let text: String = said.into_iter().map(|(_, line)| line).collect();
            assert!(text == long, "in {pieces} pieces");
        }
    }

    #[test]
    fn bytes_that_are_no_letters_are_cut_anywhere() {
        let mut stream = stream();
        let mut length = 0;
        let wrong = vec![0x80; 3 * LINE_MAX];
        stream.feed(&wrong, 1, true, &mut |_, line| length += line.len());
        stream.end(1, &mut |_, line| length += line.len());
        assert_eq!(length, wrong.len());
    }
}
