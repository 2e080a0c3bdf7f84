//! The pipes that are the workers' standard outputs.
//!
//! They share a separate epoll descriptor, so that reading all of them can be paused while the
//! reader of the pool's own output is slow. Then the pipes fill up, and tasks that print wait.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
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
    host::{context::Context, kernel_events::Source},
    protocol::pool_page::{self, READING},
    units::WorkerId,
};

/// Maximum pipes that are read in one turn. This bounds the memory for output that was read and not
/// passed on yet.
const PIPES_MAX: usize = 8;
/// Maximum reads from one pipe before another one is read.
const READS_MAX: usize = 16;
/// Maximum bytes from one pipe before another one is read. A pipe holds 64 KiB, or up to 1 MiB if
/// its worker sets that (pipe(7)).
const BYTES_MAX: usize = 1 << 20;

/// The outputs of all workers.
#[derive(Debug)]
pub(super) struct Outputs {
    epoll: Epoll,
    /// The workers by the token in the events of their pipes.
    tokens: BTreeMap<u64, WorkerId>,
    next_token: u64,
    pipes: BTreeMap<WorkerId, Output>,
    /// The token of `epoll` in the epoll of the loop. `None`: reading is paused.
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
        // This sets O_NONBLOCK for the reading end only. Programs expect the writing end to block
        // (open(2)).
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

    /// Reads some of the pipes that have data. Returns whether there was such a pipe, and whether
    /// there may be more data.
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

    /// The worker has ended. Reads what is in its pipe, unless reading is paused. Returns true if
    /// the pipe stays open, because a process outlives the worker or because it was not read
    /// completely.
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

/// The result of one read of a worker's output.
#[derive(Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The task that the worker had begun last when they were read.
    pub begun: u64,
    /// The bytes after the last mark belong to that task. If false, a later piece with a mark, or a
    /// later settled piece, shows to which task they belong.
    pub is_settled: bool,
}

impl Output {
    /// Reads what is in the pipe. Returns no piece at the end of the pipe.
    ///
    /// RACE: tasks end and begin during the read. A task that ends while `READING` is set writes a
    /// mark, even if all its output has been read. So if a read empties the pipe, and the page
    /// names the same task before and after it, the bytes after the last mark belong to that task.
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
            let _ = page.write_all_at(&pool_page::bytes(u64::from(reading)), READING);
        }
    }

    fn begun(&self) -> u64 {
        let Some(page) = &self.page else {
            return self.last_begun;
        };
        let mut word = [0; 8];
        // If the page cannot be read, the word is 0, which names no task.
        let _ = page.read_exact_at(&mut word, pool_page::BEGUN);
        pool_page::value(word)
    }
}

impl PoolHost {
    /// Reports what was read of the outputs, in order, after all earlier news.
    pub(super) fn report_outputs(&mut self) {
        self.news.extend(self.outputs.news.drain(..));
    }
}

impl PoolHost {
    pub(super) fn on_prints(&mut self) {
        let (_, more) = self.outputs.read_some(&mut self.buffer);
        self.report_outputs();
        self.more |= more;
    }

    /// Reads what is left in the pipes when all processes have ended. Returns false if nothing is
    /// left.
    pub(super) fn read_prints(&mut self) -> bool {
        let (some, _) = self.outputs.read_some(&mut self.buffer);
        self.report_outputs();
        some
    }

    /// Starts or pauses the reading of all outputs.
    pub(super) fn take_prints(&mut self, context: &mut Context, takes: bool) {
        let epoll = &self.outputs.epoll.0;
        match (self.outputs.watched, takes) {
            (None, true) => {
                // If this fails, no output is read, and tasks that print wait.
                let watched = context.watches_mut().watch(epoll, Source::Prints);
                self.outputs.watched = watched.ok();
            }
            (Some(token), false) => {
                context.watches_mut().forget(token);
                context.watches().mute(epoll);
                self.outputs.watched = None;
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}
