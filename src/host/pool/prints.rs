//! The pipes that are the workers' standard outputs.
//!
//! They share an epoll descriptor of their own, so that we can stop reading all of them while the
//! reader of our own output is slow. Then the pipes fill up, and tasks that print wait.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::Arc,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{News, PoolHost, child::Left};
use crate::{
    host::{Host, hear::Source},
    units::WorkerId,
};

/// The most pipes that are read in one turn. This bounds the memory for what is not passed on yet.
const PIPES_MAX: usize = 8;
/// Reads and bytes of one pipe before another one is read. A pipe holds 64 KiB, or up to 1 MiB if
/// its worker sets that (pipe(7)).
const READS_MAX: usize = 16;
const BYTES_MAX: usize = 1 << 20;
/// The byte of a worker's page that is not 0 while we read its pipe (`prints.py`).
const READING: u64 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Outputs {
    epoll: Epoll,
    /// By the token in the events of their pipes.
    tokens: BTreeMap<u64, WorkerId>,
    next_token: u64,
    pipes: BTreeMap<WorkerId, Output>,
    /// The token of `epoll` in the epoll of the loop; `None`: nothing is read.
    watched: Option<u64>,
    news: Vec<News>,
}

/// One worker's pipe. It stays open until all processes have closed the other end. Otherwise
/// SIGPIPE would kill a process that outlives the worker when it prints.
#[derive(Debug)]
struct Output {
    pipe: File,
    token: u64,
    /// `None`: the worker has ended.
    page: Option<Arc<File>>,
    /// The task that the worker began last, if it has ended.
    last_begun: u64,
    /// The value of `READING` in the page.
    reading: bool,
}

impl Outputs {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            tokens: BTreeMap::new(),
            next_token: 0,
            pipes: BTreeMap::new(),
            watched: None,
            news: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, worker: WorkerId, pipe: OwnedFd, page: Arc<File>) {
        // This sets O_NONBLOCK for our end only. Programs expect the other one to block (open(2)).
        if fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_err() {
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        if self
            .epoll
            .add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .is_err()
        {
            return;
        }
        self.tokens.insert(token, worker);
        let output = Output {
            pipe: File::from(pipe),
            token,
            page: Some(page),
            last_begun: 0,
            reading: false,
        };
        self.pipes.insert(worker, output);
    }

    /// Reads some of the pipes that have data. Returns whether there was one, and whether there may
    /// be more.
    fn read_some(&mut self, buffer: &mut [u8]) -> (bool, bool) {
        let mut wakes = [EpollEvent::empty(); PIPES_MAX];
        let wait = self.epoll.wait(&mut wakes, EpollTimeout::ZERO);
        let count = wait.unwrap_or(0);
        let mut more = count == wakes.len();
        for wake in wakes.iter().take(count) {
            if let Some(worker) = self.tokens.get(&wake.data()).copied() {
                more |= self.read(worker, buffer) == Left::Perhaps;
            }
        }
        (count > 0, more)
    }

    fn read(&mut self, worker: WorkerId, buffer: &mut [u8]) -> Left {
        let Some(output) = self.pipes.get_mut(&worker) else {
            return Left::End;
        };
        let mut left = Left::Perhaps;
        let mut bytes = 0;
        for _ in 0..READS_MAX {
            let (piece, after) = output.read(buffer);
            left = after;
            let Some(piece) = piece else { break };
            bytes += piece.bytes.len();
            let is_enough = piece.is_settled || bytes >= BYTES_MAX;
            self.news.push(News::Printed { worker, piece });
            if is_enough {
                break;
            }
        }
        if left == Left::End {
            self.remove(worker);
        }
        left
    }

    fn remove(&mut self, worker: WorkerId) {
        if let Some(output) = self.pipes.remove(&worker) {
            self.tokens.remove(&output.token);
            let _ = self.epoll.delete(&output.pipe);
            self.news.push(News::PrintsOver(worker));
        }
    }

    /// Reads what is in the pipe of a worker, unless reading is paused.
    pub(super) fn read_if_ready(&mut self, worker: WorkerId, buffer: &mut [u8]) {
        let ready = self.watched.is_some()
            && self.pipes.get(&worker).is_some_and(|output| {
                let mut ask = [PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN)];
                poll(&mut ask, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            });
        if ready {
            self.read(worker, buffer);
        }
    }

    /// The worker has ended: reads what is in its pipe, unless reading is paused. True: the pipe
    /// stays open, for a process that outlives the worker or for what is not read yet.
    pub(super) fn end(&mut self, worker: WorkerId, begun: u64, buffer: &mut [u8]) -> bool {
        if let Some(output) = self.pipes.get_mut(&worker) {
            output.page = None;
            output.last_begun = begun;
        }
        self.read_if_ready(worker, buffer);
        self.pipes.contains_key(&worker)
    }

    /// Closes the pipe of the oldest worker that has ended, because new workers need descriptors.
    ///
    /// RACE: a process that has outlived that worker is killed when it prints.
    pub(super) fn close_one_ended(&mut self) {
        let ended = self.pipes.iter().find(|(_, it)| it.page.is_none());
        if let Some(worker) = ended.map(|(worker, _)| *worker) {
            self.remove(worker);
        }
    }
}

/// What one read of a worker's output has found.
#[derive(Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The task that the worker had begun last when they were read.
    pub begun: u64,
    /// The bytes after the last mark belong to that task. If false, a later piece tells: it has a
    /// mark, or is settled.
    pub is_settled: bool,
}

impl Output {
    /// Reads what is in the pipe. Returns no piece at the end of the pipe.
    ///
    /// RACE: tasks end and begin while we read. A task that ends while `READING` is set writes a
    /// mark, even if we have read all its output. So if a read empties the pipe, and the page names
    /// the same task before and after it, the bytes after the last mark belong to that task.
    /// Otherwise `READING` stays set, and the pipe is read again.
    fn read(&mut self, buffer: &mut [u8]) -> (Option<Piece>, Left) {
        self.set_reading(true);
        let before = self.begun();
        let (length, left) = match self.pipe.read(buffer) {
            Ok(0) => return (None, Left::End),
            Ok(length) if length < buffer.len() => (length, Left::Nothing),
            Ok(length) => (length, Left::Perhaps),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Left::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (0, Left::Perhaps),
            Err(_) => return (None, Left::End),
        };
        let begun = self.begun();
        let is_settled = left == Left::Nothing && before == begun;
        if is_settled {
            self.set_reading(false);
        }
        let piece = Piece {
            bytes: buffer.get(..length).unwrap_or_default().to_vec(),
            begun,
            is_settled,
        };
        (Some(piece), left)
    }

    fn set_reading(&mut self, reading: bool) {
        if let Some(page) = &self.page
            && self.reading != reading
        {
            self.reading = reading;
            let _ = page.write_all_at(&u64::from(reading).to_ne_bytes(), READING);
        }
    }

    fn begun(&self) -> u64 {
        let Some(page) = &self.page else {
            return self.last_begun;
        };
        let mut word = [0; 8];
        // If the page cannot be read, the word is 0, which names no task.
        let _ = page.read_exact_at(&mut word, 0);
        u64::from_ne_bytes(word)
    }
}

impl PoolHost {
    /// Reports what was read of the outputs, in order, after all earlier news.
    pub(super) fn report_outputs(&mut self) {
        self.news.extend(self.outputs.news.drain(..));
    }
}

impl Host {
    pub(in crate::host) fn on_prints(&mut self) {
        if let Some(pool) = &mut self.pool {
            let (_, more) = pool.outputs.read_some(&mut pool.buffer);
            pool.report_outputs();
            pool.more |= more;
        }
    }

    /// Reads what is left in the pipes when all processes have ended. False: nothing is left.
    pub fn read_prints(&mut self) -> bool {
        let Some(pool) = &mut self.pool else {
            return false;
        };
        let (some, _) = pool.outputs.read_some(&mut pool.buffer);
        pool.report_outputs();
        some
    }

    /// Starts or pauses the reading of all outputs.
    pub fn take_prints(&mut self, takes: bool) {
        let Some(pool) = &mut self.pool else { return };
        let fd = pool.outputs.epoll.0.as_raw_fd();
        match (pool.outputs.watched, takes) {
            (None, true) => {
                // If this fails, no output is read, and tasks that print wait.
                let watched = self.watch_raw(fd, Source::Prints);
                if let Some(pool) = &mut self.pool {
                    pool.outputs.watched = watched.ok();
                }
            }
            (Some(token), false) => {
                pool.outputs.watched = None;
                self.sources.remove(&token);
                let _ = self.epoll.delete(&pool.outputs.epoll.0);
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}
