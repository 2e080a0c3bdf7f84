//! The processes of a pool: the messages of the template and the nests, and the workers' sockets,
//! pages and outputs.
//!
//! A nest is tracked like a worker of a server, with a group, a cap and a descriptor. The workers
//! that it forks start in its group.

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
    supervisor::{event::Oom, pool::event::WorkerEnd},
    units::{Bytes, Signal, Timestamp, WorkerId},
};
use child::Child;
use prints::Outputs;
pub use prints::Piece;
pub(super) use words::adopt_inherited;
use words::send_message;

/// The length of the longest message: why a template cannot import.
const MESSAGE_MAX: usize = 256 << 10;
/// The most bytes in one read of a worker's socket or output.
const CHUNK: usize = 256 << 10;

/// Something that happened in the processes of the pool.
#[derive(Debug)]
pub enum News {
    /// The template has imported everything, and names what its forks cannot share.
    TemplateReady(Vec<u8>),
    /// The template cannot import: the error.
    TemplateFailed(Vec<u8>),
    /// A nest is in its group.
    NestUp(u32),
    /// A nest has ended, and so have all processes in its group.
    NestGone(u32, Oom),
    /// A nest, or a worker in it, could not be forked.
    NotForked(u32, Option<WorkerId>, io::Error),
    /// A worker was forked. The bytes begin each mark in its output.
    Born(WorkerId, [u8; 16]),
    /// A worker has sent something: [`Host::take_said`].
    Said(WorkerId),
    /// A worker or its child process has printed.
    Printed {
        /// The worker.
        worker: WorkerId,
        /// What was read.
        piece: Piece,
    },
    /// No process has this worker's output open any more.
    PrintsOver(WorkerId),
    /// A worker has ended. News of what it sent came before. [`Host::forget_child`] must follow.
    Ended(WorkerEnd),
}

/// See the module.
#[derive(Debug)]
pub(super) struct PoolHost {
    control: OwnedFd,
    nests: BTreeMap<u32, Nest>,
    caps: BTreeMap<u32, Option<Bytes>>,
    next_nest: WorkerId,
    children: BTreeMap<WorkerId, Child>,
    /// By the number in the messages of a nest.
    numbers: BTreeMap<u64, WorkerId>,
    next_number: u64,
    outputs: Outputs,
    pub(super) news: VecDeque<News>,
    buffer: Vec<u8>,
    /// A socket or output may hold more, which was not read yet.
    pub(super) more: bool,
}

impl PoolHost {
    /// The processes that a nest has forked and has not reported as ended.
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
    /// Makes the socket to a template. Returns the template's end, which a command inherits.
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

    /// Closes our copy of the template's end of the socket, so that we see when the template closes
    /// its own.
    pub fn close_inherited(&mut self, fd: RawFd) {
        drop(adopt_inherited(fd));
    }

    /// Lets the template exit: it reads the end of its socket.
    pub fn quit_template(&self) {
        if let Some(pool) = &self.pool {
            // The end of a template is reported separately.
            let _ = shutdown(pool.control.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Reads the messages of the template that have arrived.
    pub fn hear_template(&mut self) {
        self.on_template(u64::MAX);
    }

    /// Takes the oldest news of the pool.
    pub fn poll_news(&mut self) -> Option<News> {
        self.pool.as_mut()?.news.pop_front()
    }

    /// Asks the template for a nest.
    pub fn raise_nest(&mut self, slot: u32, cap: Option<Bytes>) {
        let Some(pool) = &mut self.pool else { return };
        pool.caps.insert(slot, cap);
        // RACE: the template may have ended, which is reported separately. If this were the end of
        // the nest, the pool would ask for the nest again at once, in an endless loop.
        let _ = send_message(&pool.control, &format!("nest {slot}"));
    }

    /// Asks a nest for a worker.
    pub fn fork_child(&mut self, slot: u32, worker: WorkerId) {
        let Some(pool) = &mut self.pool else { return };
        let number = pool.next_number;
        pool.next_number += 1;
        pool.numbers.insert(number, worker);
        // The end of a nest is reported separately.
        if let Some(nest) = pool.nests.get(&slot) {
            let _ = send_message(&nest.socket, &format!("fork {number}"));
        }
    }

    /// Removes a worker that has ended.
    pub fn forget_child(&mut self, worker: WorkerId) {
        if let Some(pool) = &mut self.pool
            && let Some(child) = pool.children.remove(&worker)
            && let Some(token) = child.token
        {
            self.sources.remove(&token);
        }
    }

    /// Stops a worker from beginning another task.
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

    /// SIGKILL for all processes in a slot.
    pub fn kill_slot(&mut self, now: Timestamp, slot: u32) {
        if let Some(id) = self.nest_of(slot) {
            self.kill_worker(now, id);
        }
    }

    /// A signal for all workers in a slot, but not its nest.
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
