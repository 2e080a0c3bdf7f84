//! Splits the output of a worker into lines, and finds the task of each line.
//!
//! The worker writes a mark into the stream after each task ([`crate::protocol::mark`]).
//! The output is not trusted. A task that finds the secret in its memory can attribute its output
//! to another task of its pool, and nothing more.

use memchr::memchr;

use crate::protocol::mark::{self, Secret};

/// A longer line is split into parts of at most this length.
pub const LINE_MAX: usize = 64 << 10;
/// Maximum bytes that are held back until a mark arrives.
const HELD_MAX: usize = 256 << 10;

/// Receives lines: the task, and the line without its end.
pub type Lines<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// The output of one worker.
#[derive(Debug)]
pub struct Stream {
    secret: Secret,
    /// Output whose task is not known yet.
    held: Vec<u8>,
    /// The start of a line whose end has not arrived yet.
    line: Vec<u8>,
    /// The task that has printed `line`.
    task: u64,
}

impl Stream {
    /// An empty stream. Output before the first task belongs to task 0.
    pub const fn new(secret: Secret) -> Self {
        Self {
            secret,
            held: Vec::new(),
            line: Vec::new(),
            task: 0,
        }
    }

    /// Takes bytes that were read. `is_settled`: the pipe was empty while `begun` was the current
    /// task, so the bytes after the last mark belong to that task. Otherwise they are held until
    /// the next mark, which may have arrived in part, or until the next settled read.
    pub fn feed(&mut self, bytes: &[u8], begun: u64, is_settled: bool, lines: Lines<'_>) {
        let mut before = std::mem::take(&mut self.held);
        let mut rest = if before.is_empty() {
            bytes
        } else {
            before.extend_from_slice(bytes);
            before.as_slice()
        };
        while let Some(found) = mark::find(rest, &self.secret) {
            self.put(found.task, found.before, lines);
            self.end_line(lines);
            rest = found.after;
        }
        if is_settled || rest.len() > HELD_MAX {
            self.put(begun, rest, lines);
        } else {
            self.held = rest.to_vec();
        }
    }

    /// Whether the last line of `task` is not complete yet.
    pub const fn has_line_of(&self, task: u64) -> bool {
        self.task == task && !self.line.is_empty() && self.held.is_empty()
    }

    /// Emits the last line of a task that has ended and whose output was read, even if the line is
    /// not complete.
    pub fn end_task(&mut self, task: u64, lines: Lines<'_>) {
        if self.has_line_of(task) {
            self.end_line(lines);
        }
    }

    /// Emits everything that is held, because the worker has ended in the task `begun` or no more
    /// output comes.
    pub fn end(&mut self, begun: u64, lines: Lines<'_>) {
        let held = std::mem::take(&mut self.held);
        self.put(begun, &held, lines);
        self.end_line(lines);
    }

    /// The task of the latest output.
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
                self.put_line(line, lines);
            } else {
                self.add(line, lines);
                self.end_line(lines);
            }
        }
        self.add(bytes, lines);
    }

    /// Takes a complete line.
    fn put_line(&mut self, line: &[u8], lines: Lines<'_>) {
        if line.len() <= LINE_MAX {
            lines(self.task, line);
        } else {
            self.add(line, lines);
            self.end_line(lines);
        }
    }

    /// Takes a part of a line.
    fn add(&mut self, mut bytes: &[u8], lines: Lines<'_>) {
        while self.line.len() + bytes.len() > LINE_MAX {
            let (now, rest) = bytes.split_at(LINE_MAX.saturating_sub(self.line.len()));
            self.line.extend_from_slice(now);
            bytes = rest;
            let cut = char_boundary(&self.line);
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

/// The length of `bytes` without an incomplete UTF-8 character at the end.
fn char_boundary(bytes: &[u8]) -> usize {
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
    use proptest::prelude::*;

    use super::*;

    const SECRET: Secret = *b"0123456789abcdef";

    fn mark(task: u64) -> Vec<u8> {
        mark::of(SECRET, task)
    }

    fn stream() -> Stream {
        Stream::new(SECRET)
    }

    /// Feeds pieces: the bytes, the task `begun`, and `is_settled`. Returns the lines.
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
    fn each_line_belongs_to_the_task_of_the_next_mark_for_any_split_of_the_reads() {
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
                // Bytes like the start of a mark are not held back, because marks are written
                // whole.
                let rest = fed(&mut stream, &[(b"seven\n", 7, true)]);
                assert_eq!(rest, lines(&[(6, "0"), (7, "seven")]));
            }
        }
    }

    proptest! {
        /// A task can write anything to its output, including parts of marks.
        #[test]
        fn any_output_is_emitted_completely_and_in_short_lines(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    (0..=mark(7).len()).prop_map(|length| mark(7)[..length].to_vec()),
                    Just(b"\n".to_vec()),
                ],
                0..8,
            ),
            settled in any::<[bool; 8]>(),
        ) {
            let mut stream = stream();
            let mut length = 0;
            let mut lines = |_, line: &[u8]| {
                assert!(line.len() <= LINE_MAX);
                length += line.len();
            };
            for (part, settled) in parts.iter().zip(settled) {
                stream.feed(part, 7, settled, &mut lines);
            }
            stream.end(7, &mut lines);
            prop_assert!(length <= parts.concat().len());
            prop_assert!(stream.held.is_empty() && stream.line.is_empty());
        }
    }

    #[test]
    fn a_line_is_emitted_while_its_task_runs() {
        let mut stream = stream();
        let said = fed(&mut stream, &[(b"step 1\nst", 7, true)]);
        assert_eq!(said, lines(&[(7, "step 1")]));
        let rest = [b"ep 2", &mark(7)[..]].concat();
        let said = fed(&mut stream, &[(&rest, 8, true)]);
        assert_eq!(said, lines(&[(7, "step 2")]));
    }

    #[test]
    fn output_that_is_not_settled_waits_for_its_mark() {
        let mut stream = stream();
        assert_eq!(fed(&mut stream, &[(b"x\n", 2, false)]), lines(&[]));
        let said = fed(&mut stream, &[(&mark(1), 2, true)]);
        assert_eq!(said, lines(&[(1, "x")]));
        // No mark has followed, so the output belongs to the running task.
        assert_eq!(fed(&mut stream, &[(b"y\n", 3, false)]), lines(&[]));
        assert_eq!(fed(&mut stream, &[(b"", 3, true)]), lines(&[(3, "y")]));
        // Output of a worker that never writes marks is not held back for ever.
        let said = fed(&mut stream, &[(&vec![b'\n'; HELD_MAX + 1], 4, false)]);
        assert_eq!(said.len(), HELD_MAX + 1);
    }

    #[test]
    fn the_end_of_a_worker_emits_held_output_and_an_unfinished_line() {
        let mut stream = stream();
        fed(&mut stream, &[(b"half", 2, true), (&SECRET[..5], 2, false)]);
        assert_eq!(ended(&mut stream, 2), lines(&[(2, "half01234")]));
        fed(&mut stream, &[(b"of two", 2, true), (b"three", 3, false)]);
        let said = ended(&mut stream, 3);
        assert_eq!(said, lines(&[(2, "of two"), (3, "three")]));
        assert_eq!(ended(&mut stream, 3), lines(&[]));
    }

    #[test]
    fn the_end_of_a_task_emits_its_own_line_only() {
        let mut stream = stream();
        let mut said = Vec::new();
        let mut end = |stream: &mut Stream, task| {
            stream.end_task(task, &mut |task, line| said.push((task, line.to_vec())));
        };
        fed(&mut stream, &[(b"half", 2, true)]);
        end(&mut stream, 1);
        end(&mut stream, 2);
        end(&mut stream, 2);
        // Held output may be the rest of the line.
        fed(&mut stream, &[(b"ha", 3, true), (b"lf", 3, false)]);
        end(&mut stream, 3);
        assert_eq!(said, [(2, b"half".to_vec())]);
        assert_eq!(ended(&mut stream, 3), lines(&[(3, "half")]));
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
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
    fn a_long_line_that_is_not_utf8_loses_no_bytes() {
        let mut stream = stream();
        let mut length = 0;
        let wrong = vec![0x80; 3 * LINE_MAX];
        stream.feed(&wrong, 1, true, &mut |_, line| length += line.len());
        stream.end(1, &mut |_, line| length += line.len());
        assert_eq!(length, wrong.len());
    }
}
