//! The processes of a pool: the messages of the template and the fork servers, and the workers'
//! sockets, pages and outputs.
//!
//! A fork server is tracked like a worker of a server, with a cgroup, a cap and a descriptor. The
//! workers that it forks start in its cgroup.

mod child;
mod inputs;
mod interface;
mod memory;
mod messages;
mod prints;
mod sockets;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};

use super::{
    cgroup::ServiceGroups,
    context::Context,
    held::{ForkServerId, HeldId},
    kernel_events::Source,
    workers::Workers,
};
use crate::{
    protocol::{
        fork_server,
        mark::Secret,
        template::{self, Imports, ToTemplate},
    },
    supervisor::{input::Oom, pool::input::WorkerEnd},
    units::{Bytes, Signal, WorkerId},
};
use child::Child;
pub(super) use messages::adopt_inherited;
use messages::send_message;
use prints::Outputs;
pub use prints::Piece;

/// The length of the longest message: why a template cannot import.
const MESSAGE_MAX: usize = 256 << 10;
/// The most bytes in one read of a worker's socket or output.
const CHUNK: usize = 256 << 10;

/// Something that happened in the processes of the pool.
#[derive(Debug)]
pub enum News {
    /// The template has imported everything, and names what its forks cannot share.
    TemplateReady(Imports),
    /// The template cannot import. The bytes are the error.
    TemplateFailed(Vec<u8>),
    /// A fork server is in its group.
    ForkServerUp(u32),
    /// A fork server has ended, and so have all processes in its group.
    ForkServerGone(u32, Oom),
    /// A fork server, or a worker of it, could not be forked.
    NotForked(u32, Option<WorkerId>, io::Error),
    /// The kernel killed a child process of a task at a memory limit.
    ChildKilled,
    /// A worker was forked with this pid. Each mark in its output begins with the secret.
    Forked(WorkerId, i32, Secret),
    /// A worker has sent something. `Host::take_received` returns it.
    Received(WorkerId),
    /// A worker or its child process has printed.
    Printed {
        /// The worker.
        worker: WorkerId,
        /// What was read.
        piece: Piece,
    },
    /// All processes have closed this worker's output.
    PrintsOver(WorkerId),
    /// A worker has ended. The news of all that it sent came before. `Host::forget_child` must
    /// follow.
    Ended(WorkerEnd),
}

/// The processes of a pool.
#[derive(Debug)]
pub(super) struct PoolHost {
    /// The socket to the template.
    control: OwnedFd,
    fork_servers: BTreeMap<u32, ForkServer>,
    caps: BTreeMap<u32, Option<Bytes>>,
    next_fork_server: u64,
    children: BTreeMap<WorkerId, Child>,
    /// The live workers by their number in the messages of a fork server.
    numbers: BTreeMap<u64, WorkerId>,
    next_number: u64,
    outputs: Outputs,
    news: VecDeque<News>,
    buffer: Vec<u8>,
    /// A socket or output may contain more that was not read yet.
    more: bool,
}

/// The parts of the host that the pool needs.
#[derive(Debug)]
pub(super) struct PoolContext<'host> {
    context: &'host mut Context,
    groups: &'host mut ServiceGroups,
    workers: &'host mut Workers,
}

impl PoolHost {
    /// Makes the socket to a template, and forgets what is known of an earlier one. Returns the
    /// template's end.
    fn open(pool: &mut Option<Self>, context: &mut Context) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        context.watches_mut().watch(&ours, Source::Template)?;
        let (next_fork_server, outputs) = match pool.take() {
            Some(pool) => (pool.next_fork_server, pool.outputs),
            None => (1, Outputs::new()?),
        };
        *pool = Some(Self {
            control: ours,
            fork_servers: BTreeMap::new(),
            caps: BTreeMap::new(),
            next_fork_server,
            children: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 1,
            outputs,
            news: VecDeque::new(),
            buffer: vec![0; CHUNK],
            more: false,
        });
        Ok(theirs)
    }

    /// Returns true if a socket or output may contain more that was not read yet, and clears that.
    pub(super) const fn take_more(&mut self) -> bool {
        std::mem::replace(&mut self.more, false)
    }

    /// Asks the template for a fork server.
    fn fork_server(&mut self, slot: u32, cap: Option<Bytes>) {
        self.caps.insert(slot, cap);
        // RACE: the template may have ended, which is reported separately. If this error were
        // reported as the end of the fork server, the pool would ask for another one at once, in an
        // endless loop.
        let order = template::encode(&ToTemplate::ForkServer { slot });
        let _ = send_message(&self.control, order.as_bytes());
    }

    /// Asks a fork server for a worker.
    fn fork(&mut self, slot: u32, worker: WorkerId) {
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(number, worker);
        // The end of a fork server is reported separately.
        if let Some(server) = self.fork_servers.get(&slot) {
            let _ = send_message(&server.socket, &fork_server::fork(number));
        }
    }

    /// Removes a worker that has ended.
    fn forget(&mut self, context: &mut Context, worker: WorkerId) {
        if let Some(child) = self.children.remove(&worker)
            && let Some(token) = child.token
        {
            context.watches_mut().forget(token);
        }
    }

    /// Sends SIGKILL to one worker.
    fn kill(&self, worker: WorkerId) {
        let child = self.children.get(&worker);
        if let Some(process) = child.and_then(|it| it.process.as_ref()) {
            let _ = process.signal(Signal::KILL);
        }
    }

    fn fork_server_of(&self, slot: u32) -> Option<HeldId> {
        Some(HeldId::ForkServer(self.fork_servers.get(&slot)?.id))
    }

    /// The slot of a fork server.
    fn slot_of(&self, server: ForkServerId) -> Option<u32> {
        let mut known = self.fork_servers.iter();
        known.find(|(_, it)| it.id == server).map(|(slot, _)| *slot)
    }

    /// The processes that a fork server has forked and has not reported as ended.
    pub(super) fn children_of(&self, server: ForkServerId) -> Vec<i32> {
        let slot = self.slot_of(server);
        let in_slot = self
            .children
            .values()
            .filter(|child| Some(child.slot) == slot);
        in_slot
            .filter_map(|child| Some(child.process.as_ref()?.pid()))
            .collect()
    }
}

#[derive(Debug)]
struct ForkServer {
    id: ForkServerId,
    socket: OwnedFd,
}
