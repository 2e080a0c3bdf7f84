//! The processes of a pool: the template's and the nests' words, the workers' sockets and pages.
//!
//! A nest is tracked as a worker of a server is: it has its group, its cap, its descriptor. What it
//! forks is born in its group.

mod child;
mod hearing;
mod memory;
mod prints;
mod sockets;
mod words;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd, RawFd},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair},
};

use super::{Host, hear::Source};
use crate::{
    supervisor::event::{Ended, Oom},
    units::{Bytes, Signal, Timestamp, WorkerId},
};
use child::Child;
use prints::Outputs;
pub use prints::Piece;
pub(super) use words::adopt_inherited;
use words::say;

/// A template that cannot import says so in at most so many bytes.
const WORD_MAX: usize = 256 << 10;
/// So much of a worker's words is read at a time.
const CHUNK: usize = 256 << 10;

/// What the pool's processes have said or suffered, oldest first.
#[derive(Debug)]
pub enum News {
    /// The template has imported everything, and says what of it forks cannot share.
    TemplateReady(Vec<u8>),
    /// It could not: its words.
    TemplateFailed(Vec<u8>),
    /// A nest is in its group.
    NestUp(u32),
    /// A nest is gone, and all that lived in its group.
    NestGone(u32, Oom),
    /// A nest, or a worker of it, could not be forked.
    NotForked(u32, Option<WorkerId>, io::Error),
    /// A worker was forked; what marks in its output begin with.
    Born(u32, WorkerId, [u8; 16]),
    /// A worker has said something: [`Host::take_said`].
    Said(WorkerId),
    /// A worker, or what it has started, has printed.
    Printed {
        /// Which.
        worker: WorkerId,
        /// What.
        piece: Piece,
    },
    /// Nobody is left who could print on this worker's output.
    PrintsOver(WorkerId),
    /// A worker has ended; what it said was told before. Then [`Host::forget_child`].
    Ended {
        /// Which.
        worker: WorkerId,
        /// How.
        ended: Ended,
        /// Whether it was the OOM killer.
        oom: Oom,
        /// Its peak.
        peak: Option<Bytes>,
        /// The task that it had begun last.
        begun: u64,
        /// The task that it had finished last.
        finished: u64,
        /// The task that it had read a part of last.
        receiving: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct PoolHost {
    control: OwnedFd,
    nests: BTreeMap<u32, Nest>,
    caps: BTreeMap<u32, Option<Bytes>>,
    next_nest: WorkerId,
    children: BTreeMap<WorkerId, Child>,
    /// By the number that a nest knows.
    numbers: BTreeMap<u64, WorkerId>,
    next_number: u64,
    outputs: Outputs,
    pub(super) news: VecDeque<News>,
    buffer: Vec<u8>,
    /// A worker was not listened to to its end.
    pub(super) more: bool,
}

impl PoolHost {
    /// The processes that a nest has forked and that were not heard to have ended.
    pub(super) fn children_of(&self, nest: WorkerId) -> Vec<i32> {
        let is_this = |(_, known): &(&u32, &Nest)| known.id == nest;
        let slot = self.nests.iter().find(is_this).map(|(slot, _)| *slot);
        let its = self
            .children
            .values()
            .filter(|child| Some(child.slot) == slot);
        its.filter_map(|child| Some(child.process.as_ref()?.pid()))
            .collect()
    }
}

#[derive(Debug)]
struct Nest {
    id: WorkerId,
    socket: OwnedFd,
}

impl Host {
    /// Makes the socket to a template; the result is its end, which a command inherits.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn open_pool(&mut self) -> io::Result<RawFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        self.watch(&ours, Source::Template)?;
        let (next_nest, outputs) = match self.pool.take() {
            Some(pool) => (pool.next_nest, pool.outputs),
            None => (WorkerId::FIRST, Outputs::new()?),
        };
        self.pool = Some(PoolHost {
            control: ours,
            nests: BTreeMap::new(),
            caps: BTreeMap::new(),
            next_nest,
            children: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 1,
            outputs,
            news: VecDeque::new(),
            buffer: vec![0; CHUNK],
            more: false,
        });
        // The template's end stays open here until it has inherited it: [`Host::close_inherited`].
        Ok(theirs.into_raw_fd())
    }

    /// The template has its end of the socket: ours of it is closed, so that its end is seen.
    pub fn close_inherited(&mut self, fd: RawFd) {
        drop(adopt_inherited(fd));
    }

    /// The template hears that nothing more comes, and ends.
    pub fn quit_template(&self) {
        if let Some(pool) = &self.pool {
            // One that is gone tells by its end.
            let _ = shutdown(pool.control.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Reads what the template has said by now.
    pub fn hear_template(&mut self) {
        self.on_template(u64::MAX);
    }

    /// What has happened in the pool, oldest first.
    pub fn poll_news(&mut self) -> Option<News> {
        self.pool.as_mut()?.news.pop_front()
    }

    /// Asks the template for a nest.
    pub fn raise_nest(&mut self, slot: u32, cap: Option<Bytes>) {
        let Some(pool) = &mut self.pool else { return };
        pool.caps.insert(slot, cap);
        // RACE: a template that is gone tells by its end. Told as the nest's end the nest was asked
        // for again at once, for ever, and nobody heard of the template's.
        let _ = say(&pool.control, &format!("nest {slot}"));
    }

    /// Asks a nest for a worker.
    pub fn fork_child(&mut self, slot: u32, worker: WorkerId) {
        let Some(pool) = &mut self.pool else { return };
        let number = pool.next_number;
        pool.next_number += 1;
        pool.numbers.insert(number, worker);
        // A nest that is gone tells by its end.
        if let Some(nest) = pool.nests.get(&slot) {
            let _ = say(&nest.socket, &format!("fork {number}"));
        }
    }

    /// Nobody needs what it said any more.
    pub fn forget_child(&mut self, worker: WorkerId) {
        if let Some(pool) = &mut self.pool
            && let Some(child) = pool.children.remove(&worker)
            && let Some(token) = child.token
        {
            self.sources.remove(&token);
        }
    }

    /// A worker begins no other task.
    pub fn halt_child(&self, worker: WorkerId) {
        let child = self.pool.as_ref().and_then(|it| it.children.get(&worker));
        if let Some(child) = child {
            child.halt();
        }
    }

    /// SIGKILL for one worker.
    pub fn kill_child(&self, worker: WorkerId) {
        let child = self.pool.as_ref().and_then(|it| it.children.get(&worker));
        if let Some(process) = child.and_then(|it| it.process.as_ref()) {
            let _ = process.signal(Signal::KILL);
        }
    }

    /// SIGKILL for all in a slot.
    pub fn kill_slot(&mut self, now: Timestamp, slot: u32) {
        if let Some(id) = self.nest_of(slot) {
            self.kill_worker(now, id);
        }
    }

    /// A signal for all in a slot but its nest.
    pub fn signal_slot(&self, slot: u32, signal: Signal) {
        let Some(pool) = &self.pool else { return };
        for child in pool.children.values().filter(|it| it.slot == slot) {
            if let Some(process) = &child.process {
                let _ = process.signal(signal);
            }
        }
    }

    fn nest_of(&self, slot: u32) -> Option<WorkerId> {
        Some(self.pool.as_ref()?.nests.get(&slot)?.id)
    }
}
