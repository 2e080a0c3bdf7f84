//! Reading a journal: line by line, from what it was when it was opened.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::{Skip, record};

const BUFFER: usize = 256 << 10;

/// Where a line lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) length: usize,
}

/// Reads without moving the place that other descriptors share.
#[derive(Debug)]
struct From {
    file: File,
    at: u64,
    end: u64,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = left.min(into.len());
        let count = self.file.read_at(&mut into[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// The lines of a file, one after the other.
#[derive(Debug)]
pub(super) struct Walk {
    from: BufReader<From>,
    at: u64,
}

impl Walk {
    pub(super) fn new(file: File, start: u64, end: u64) -> Self {
        let from = From {
            file,
            at: start,
            end,
        };
        Self {
            from: BufReader::with_capacity(BUFFER, from),
            at: start,
        }
    }

    /// Puts the next into `line`, its end included.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Span>> {
        line.clear();
        let length = self.from.read_until(b'\n', line)?;
        let start = self.at;
        self.at += length as u64;
        Ok((length > 0).then_some(Span { start, length }))
    }

    fn again(&self, span: Span, line: &mut Vec<u8>) -> io::Result<()> {
        line.resize(span.length, 0);
        self.from.get_ref().file.read_exact_at(line, span.start)
    }
}

/// What of a journal belongs in the output of the run that goes on with it.
#[derive(Debug)]
pub(super) struct Replay {
    walk: Walk,
    done: Arc<Skip>,
    /// Of those that have several lines: where the one that counts begins.
    last: BTreeMap<u64, u64>,
    /// In order: lines that were met before their turn.
    ahead: BTreeMap<u64, Span>,
    /// In order: whose turn it is.
    next: Option<u64>,
}

impl Replay {
    pub(super) fn new(walk: Walk, done: Arc<Skip>, last: BTreeMap<u64, u64>) -> Self {
        let next = done.first_from(0);
        Self {
            walk,
            done,
            last,
            ahead: BTreeMap::new(),
            next,
        }
    }

    /// The next result as it lies in the file, with its end of line. False: that was all.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        let is_one = self.wanted(line)?.is_some();
        if is_one {
            as_result(line)?;
        }
        Ok(is_one)
    }

    /// The next one in order, if its place is before `limit`.
    pub(super) fn next_below(&mut self, limit: u64, line: &mut Vec<u8>) -> io::Result<bool> {
        let Some(turn) = self.next.filter(|seq| *seq < limit) else {
            return Ok(false);
        };
        if let Some(span) = self.ahead.remove(&turn) {
            self.walk.again(span, line)?;
        } else {
            loop {
                let (seq, span) = self.wanted(line)?.ok_or_else(changed)?;
                if seq == turn {
                    break;
                }
                self.ahead.insert(seq, span);
            }
        }
        self.next = turn
            .checked_add(1)
            .and_then(|seq| self.done.first_from(seq));
        as_result(line)?;
        Ok(true)
    }

    fn wanted(&mut self, line: &mut Vec<u8>) -> io::Result<Option<(u64, Span)>> {
        while let Some(span) = self.walk.next(line)? {
            let seq = record::read(line).map_err(|_| changed())?.line;
            let is_last = self.last.get(&seq).is_none_or(|start| *start == span.start);
            if is_last && self.done.contains(seq) {
                return Ok(Some((seq, span)));
            }
        }
        Ok(None)
    }
}

/// Without its place.
fn as_result(line: &mut Vec<u8>) -> io::Result<()> {
    let length = record::read(line).map_err(|_| changed())?.result.len();
    line.truncate(length);
    line.extend_from_slice(b"}\n");
    Ok(())
}

fn changed() -> io::Error {
    io::Error::other("it was changed meanwhile")
}
