//! The pipes that are the workers' standard outputs.
//!
//! They have an epoll descriptor of their own, so that all can be left alone while whoever reads
//! our output is behind: the pipes fill up, and the tasks that print wait.

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

/// Pipes that are read in one turn at most: what was read and not passed on yet is bounded.
const PIPES_AT_ONCE: usize = 8;
/// Reads and bytes of one pipe before another one is read. A pipe holds 64 KiB, and up to 1 MiB if
/// its worker wishes (pipe(7)).
const READS_MAX: usize = 16;
const BYTES_MAX: usize = 1 << 20;
/// Where the word that says that we read is in a worker's page (`prints.py`).
const READING: u64 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Outputs {
    epoll: Epoll,
    /// By what their events say.
    tokens: BTreeMap<u64, WorkerId>,
    next_token: u64,
    pipes: BTreeMap<WorkerId, Output>,
    /// Its token in the loop's epoll; `None`: nothing is read.
    watched: Option<u64>,
    news: Vec<News>,
}

/// One worker's pipe. It is kept until nobody has its other end: a process that outlives the worker
/// would be killed by its next line otherwise (SIGPIPE).
#[derive(Debug)]
struct Output {
    pipe: File,
    token: u64,
    /// `None`: the worker has ended.
    page: Option<Arc<File>>,
    /// The task that it has begun last, once it has ended.
    last: u64,
    /// The worker was told that we read.
    told: bool,
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

    pub(super) fn hold(&mut self, worker: WorkerId, pipe: OwnedFd, page: Arc<File>) {
        // O_NONBLOCK is of our end alone: the other one stays as programs expect it (open(2)).
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
            last: 0,
            told: false,
        };
        self.pipes.insert(worker, output);
    }

    /// Reads some of the pipes that have something to read. The result: whether there was one, and
    /// whether there may be more.
    fn read_some(&mut self, buffer: &mut [u8]) -> (bool, bool) {
        let mut wakes = [EpollEvent::empty(); PIPES_AT_ONCE];
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
            self.forget(worker);
        }
        left
    }

    fn forget(&mut self, worker: WorkerId) {
        if let Some(output) = self.pipes.remove(&worker) {
            self.tokens.remove(&output.token);
            let _ = self.epoll.delete(&output.pipe);
            self.news.push(News::PrintsOver(worker));
        }
    }

    /// Reads what a worker has printed before it said something: it comes first.
    pub(super) fn read_before(&mut self, worker: WorkerId, buffer: &mut [u8]) {
        let ready = self.watched.is_some()
            && self.pipes.get(&worker).is_some_and(|output| {
                let mut ask = [PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN)];
                poll(&mut ask, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            });
        if ready {
            self.read(worker, buffer);
        }
    }

    /// The worker has ended: what it printed to its last moment is read, unless no pipe is read
    /// now. True: the pipe is kept, for a process that has outlived the worker.
    pub(super) fn end(&mut self, worker: WorkerId, begun: u64, buffer: &mut [u8]) -> bool {
        if let Some(output) = self.pipes.get_mut(&worker) {
            output.page = None;
            output.last = begun;
        }
        self.read_before(worker, buffer);
        self.pipes.contains_key(&worker)
    }

    /// The oldest pipe of a worker that has ended is closed.
    ///
    /// RACE: a process that has outlived it is killed by its next line. There is no descriptor left
    /// to listen to it, and the workers need theirs.
    pub(super) fn close_one(&mut self) {
        let ended = self.pipes.iter().find(|(_, it)| it.page.is_none());
        if let Some(worker) = ended.map(|(worker, _)| *worker) {
            self.forget(worker);
        }
    }
}

/// What was read of a worker's output.
#[derive(Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The task that the worker had begun last when they were read.
    pub begun: u64,
    /// What follows the last mark in them is of that task. Else a mark is still to come, or a
    /// piece that is settled.
    pub is_settled: bool,
}

impl Output {
    /// Reads what is in the pipe by now. The result: nothing if the pipe is at its end.
    ///
    /// RACE: tasks end and begin while we read. Each task that ends while the page's word is set
    /// leaves a mark, even if its output was read before it looked. So after a read that empties
    /// the pipe, what follows the last mark is of the task that is running, if the page names the
    /// same task before and after the read. Else the word stays set and the pipe is read again.
    fn read(&mut self, buffer: &mut [u8]) -> (Option<Piece>, Left) {
        self.tell(true);
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
            self.tell(false);
        }
        let piece = Piece {
            bytes: buffer.get(..length).unwrap_or_default().to_vec(),
            begun,
            is_settled,
        };
        (Some(piece), left)
    }

    fn tell(&mut self, reading: bool) {
        if let Some(page) = &self.page
            && self.told != reading
        {
            self.told = reading;
            let _ = page.write_all_at(&u64::from(reading).to_ne_bytes(), READING);
        }
    }

    fn begun(&self) -> u64 {
        let Some(page) = &self.page else {
            return self.last;
        };
        let mut word = [0; 8];
        // A page that cannot be read names no task.
        let _ = page.read_exact_at(&mut word, 0);
        u64::from_ne_bytes(word)
    }
}

impl PoolHost {
    /// What was read is told in the order in which it was read.
    pub(super) fn tell_prints(&mut self) {
        self.news.extend(self.outputs.news.drain(..));
    }
}

impl Host {
    pub(in crate::host) fn on_prints(&mut self) {
        if let Some(pool) = &mut self.pool {
            let (_, more) = pool.outputs.read_some(&mut pool.buffer);
            pool.tell_prints();
            pool.more |= more;
        }
    }

    /// Reads what is left when all processes have ended. False: there is nothing left.
    pub fn read_prints(&mut self) -> bool {
        let Some(pool) = &mut self.pool else {
            return false;
        };
        let (some, _) = pool.outputs.read_some(&mut pool.buffer);
        pool.tell_prints();
        some
    }

    /// From now on prints are taken, or left where they are.
    pub fn take_prints(&mut self, takes: bool) {
        let Some(pool) = &mut self.pool else { return };
        let fd = pool.outputs.epoll.0.as_raw_fd();
        match (pool.outputs.watched, takes) {
            (None, true) => {
                // Without it no print is seen, and tasks that print would stand still.
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
