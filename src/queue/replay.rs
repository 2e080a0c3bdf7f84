//! Reads the lines that a journal had when it was opened.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::{SeqSet, record};

const BUFFER: usize = 256 << 10;

/// The position of a line in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) length: usize,
}

/// Reads without a change of the file offset, which duplicated descriptors share.
#[derive(Debug)]
struct ReadAt {
    file: File,
    position: u64,
    end: u64,
}

impl Read for ReadAt {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let most = left.min(into.len());
        let count = self.file.read_at(&mut into[..most], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// The lines of a file, one after the other.
#[derive(Debug)]
pub(super) struct Walk {
    reader: BufReader<ReadAt>,
    /// The offset of the next line in the file.
    position: u64,
}

impl Walk {
    pub(super) fn new(file: File, start: u64, end: u64) -> Self {
        let range = ReadAt {
            file,
            position: start,
            end,
        };
        Self {
            reader: BufReader::with_capacity(BUFFER, range),
            position: start,
        }
    }

    /// Reads the next line into `line`, with its end of line.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Span>> {
        line.clear();
        let length = self.reader.read_until(b'\n', line)?;
        let start = self.position;
        self.position += length as u64;
        Ok((length > 0).then_some(Span { start, length }))
    }

    fn reread(&self, span: Span, line: &mut Vec<u8>) -> io::Result<()> {
        line.resize(span.length, 0);
        self.reader.get_ref().file.read_exact_at(line, span.start)
    }
}

/// The results in a journal that a resumed run writes to its output again.
#[derive(Debug)]
pub(super) struct Replay {
    walk: Walk,
    done: Arc<SeqSet>,
    /// For tasks with several records: where the last one starts, which is the valid one.
    last_records: BTreeMap<u64, u64>,
    /// Only for results in order: records that were read before the records of earlier tasks.
    ahead: BTreeMap<u64, Span>,
    /// Only for results in order: the task whose result is next.
    next: Option<u64>,
}

impl Replay {
    pub(super) fn new(walk: Walk, done: Arc<SeqSet>, last_records: BTreeMap<u64, u64>) -> Self {
        let next = done.first_from(0);
        Self {
            walk,
            done,
            last_records,
            ahead: BTreeMap::new(),
            next,
        }
    }

    /// Reads the next result in the order of the file, with its end of line. False: there is none.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        let found = self.next_record(line)?.is_some();
        if found {
            record_to_result(line)?;
        }
        Ok(found)
    }

    /// Reads the next result in the order of the tasks, if its task comes before `limit`.
    pub(super) fn next_below(&mut self, limit: u64, line: &mut Vec<u8>) -> io::Result<bool> {
        let Some(turn) = self.next.filter(|seq| *seq < limit) else {
            return Ok(false);
        };
        if let Some(span) = self.ahead.remove(&turn) {
            self.walk.reread(span, line)?;
        } else {
            loop {
                let (seq, span) = self.next_record(line)?.ok_or_else(changed)?;
                if seq == turn {
                    break;
                }
                self.ahead.insert(seq, span);
            }
        }
        self.next = turn
            .checked_add(1)
            .and_then(|seq| self.done.first_from(seq));
        record_to_result(line)?;
        Ok(true)
    }

    fn next_record(&mut self, line: &mut Vec<u8>) -> io::Result<Option<(u64, Span)>> {
        while let Some(span) = self.walk.next(line)? {
            let seq = record::read(line).map_err(|_| changed())?.line;
            let is_last = self
                .last_records
                .get(&seq)
                .is_none_or(|start| *start == span.start);
            if is_last && self.done.contains(seq) {
                return Ok(Some((seq, span)));
            }
        }
        Ok(None)
    }
}

/// Removes from a record all that is not part of the result.
fn record_to_result(line: &mut Vec<u8>) -> io::Result<()> {
    let length = record::read(line).map_err(|_| changed())?.result.len();
    line.truncate(length);
    line.extend_from_slice(b"}\n");
    Ok(())
}

fn changed() -> io::Error {
    io::Error::other("another program has changed it during this run")
}
