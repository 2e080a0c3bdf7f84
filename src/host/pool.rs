//! The processes of a pool: the template's and the nests' words, the workers' sockets and pages.
//!
//! A nest is tracked as a worker of a server is: it has its group, its cap, its descriptor. What it
//! forks is born in its group.

#![expect(unsafe_code, reason = "descriptors that come by a message are adopted")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        epoll::{EpollEvent, EpollFlags},
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send,
            socketpair,
        },
    },
};

use super::{Host, hear::Source, keeper::ended, pidfd::PidFd};
use crate::{
    supervisor::event::{Effect, Ended, Oom},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// A template that cannot import says so in at most so many bytes.
const WORD_MAX: usize = 256 << 10;
/// So much of a worker's words is read at a time.
const CHUNK: usize = 256 << 10;

/// What the pool's processes have said or suffered, oldest first.
#[derive(Debug)]
pub enum News {
    /// The template has imported everything; so many threads run in it.
    TemplateReady(u32),
    /// It could not: its words.
    TemplateFailed(Vec<u8>),
    /// A nest is in its group.
    NestUp(u32),
    /// A nest is gone, and all that lived in its group.
    NestGone(u32, Oom),
    /// A worker was forked.
    Born(u32, WorkerId),
    /// A worker has said something: [`Host::take_said`].
    Said(WorkerId),
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
        /// What it had begun, and what it had finished.
        begun: u64,
        /// See above.
        finished: u64,
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
    pub(super) news: VecDeque<News>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Nest {
    id: WorkerId,
    socket: OwnedFd,
}

#[derive(Debug)]
struct Child {
    slot: u32,
    process: Option<PidFd>,
    socket: UnixStream,
    token: Option<u64>,
    page: File,
    said: Vec<u8>,
    unsent: Vec<u8>,
    waits: bool,
}

impl Child {
    /// The two words of its page.
    fn progress(&self) -> (u64, u64) {
        let mut words = [0; 16];
        // A page that cannot be read blames nobody.
        let _ = self.page.read_exact_at(&mut words, 0);
        let word = |from: usize| {
            let bytes = words.get(from..from + 8).and_then(|it| it.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        (word(0), word(8))
    }

    /// Reads what is there. False at the end.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    self.said
                        .extend_from_slice(buffer.get(..length).unwrap_or(&[]));
                    if length < buffer.len() || self.said.len() > 4 * CHUNK {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
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
        fcntl(&ours, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        self.watch(&ours, Source::Template)?;
        let next_nest = self
            .pool
            .as_ref()
            .map_or(WorkerId::FIRST, |pool| pool.next_nest);
        self.pool = Some(PoolHost {
            control: ours,
            nests: BTreeMap::new(),
            caps: BTreeMap::new(),
            next_nest,
            children: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 1,
            news: VecDeque::new(),
            buffer: vec![0; CHUNK],
        });
        // The template's end stays open here until it has inherited it: [`Host::close_inherited`].
        Ok(std::os::fd::IntoRawFd::into_raw_fd(theirs))
    }

    /// The template has its end of the socket: ours of it is closed, so that its end is seen.
    pub fn close_inherited(&mut self, fd: RawFd) {
        // SAFETY: `open_pool` has opened it, and gave it to nobody else in this process.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
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
        if say(&pool.control, &format!("nest {slot}")).is_err() {
            pool.news.push_back(News::NestGone(slot, Oom::No));
        }
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

    /// Sends to a worker, at once or when it can take it.
    pub fn send_child(&mut self, worker: WorkerId, bytes: &[u8]) {
        if let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        {
            child.unsent.extend_from_slice(bytes);
        }
        self.push(worker);
    }

    fn push(&mut self, worker: WorkerId) {
        let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        else {
            return;
        };
        let mut sent = 0;
        while let Some(rest) = child.unsent.get(sent..).filter(|rest| !rest.is_empty()) {
            match child.socket.write(rest) {
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // One that has ended takes nothing more, and its end is on its way.
                Err(_) => break,
            }
        }
        child.unsent.drain(..sent);
        let waits = !child.unsent.is_empty();
        if waits != child.waits
            && let Some(token) = child.token
        {
            child.waits = waits;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, waits);
            let mut event = EpollEvent::new(flags, token);
            let _ = self.epoll.modify(&child.socket, &mut event);
        }
    }

    /// What a worker has said and nobody has taken.
    pub fn take_said(&mut self, worker: WorkerId) -> Vec<u8> {
        let child = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker));
        child
            .map(|it| std::mem::take(&mut it.said))
            .unwrap_or_default()
    }

    /// Gives back what was not yet whole.
    pub fn return_said(&mut self, worker: WorkerId, rest: Vec<u8>) {
        if let Some(child) = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker))
        {
            child.said = rest;
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

    /// What all in a slot hold: what its group is charged with, page cache left out.
    pub fn slot_memory(&mut self, now: Timestamp, slot: u32) -> Option<Bytes> {
        let id = self.nest_of(slot)?;
        let tracked = self.workers.get_mut(&id)?;
        match tracked.group.charged_anon() {
            Some(anon) => Some(anon),
            None => tracked.look(&self.proc, now).map(|sample| sample.anon),
        }
    }

    fn nest_of(&self, slot: u32) -> Option<WorkerId> {
        Some(self.pool.as_ref()?.nests.get(&slot)?.id)
    }

    pub(super) fn on_template(&mut self, token: u64) {
        loop {
            let Some(pool) = &mut self.pool else { return };
            let Ok((word, fds)) = hear(&pool.control, &mut pool.buffer) else {
                return;
            };
            if word.is_empty() {
                // Its end is told by the keeper.
                self.sources.remove(&token);
                return;
            }
            let text = String::from_utf8_lossy(&word).into_owned();
            let mut words = text.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("ready"), Some(threads), _) => {
                    let threads = threads.parse().unwrap_or(0);
                    pool.news.push_back(News::TemplateReady(threads));
                }
                (Some("nest"), Some(slot), Some(pid)) => {
                    if let (Ok(slot), Ok(pid)) = (slot.parse(), pid.parse()) {
                        self.hold_nest(slot, pid, fds);
                    }
                }
                (Some("none"), Some(slot), _) => {
                    if let Ok(slot) = slot.parse() {
                        pool.news.push_back(News::NestGone(slot, Oom::No));
                    }
                }
                _ => {
                    let words = word.get(7..).unwrap_or_default().to_vec();
                    pool.news.push_back(News::TemplateFailed(words));
                }
            }
        }
    }

    fn hold_nest(&mut self, slot: u32, pid: i32, fds: Vec<OwnedFd>) {
        let Some(pool) = &mut self.pool else { return };
        let id = pool.next_nest;
        pool.next_nest = id.next();
        let cap = pool.caps.get(&slot).copied().flatten();
        let Some(socket) = fds.into_iter().next() else {
            pool.news.push_back(News::NestGone(slot, Oom::No));
            return;
        };
        let _ = fcntl(&socket, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK));
        let raw = socket.as_raw_fd();
        pool.nests.insert(slot, Nest { id, socket });
        let run = self.run.as_ref().map(|run| run.id).unwrap_or_default();
        self.carry_out(
            super::clock::now(),
            crate::supervisor::action::Action::Adopt {
                run,
                worker: id,
                pid,
                cap,
            },
        );
        if let Err(error) = self.watch_raw(raw, Source::Nest(slot)) {
            self.fail(format!("hear of slot {slot}: {error}"), None, Effect::Other);
        }
        if let Some(pool) = &mut self.pool {
            pool.news.push_back(News::NestUp(slot));
        }
    }

    pub(super) fn on_nest(&mut self, slot: u32) {
        loop {
            let Some(pool) = &mut self.pool else { return };
            let Some(nest) = pool.nests.get(&slot) else {
                return;
            };
            let Ok((word, fds)) = hear(&nest.socket, &mut pool.buffer) else {
                return;
            };
            if word.is_empty() {
                let raw = nest.socket.as_raw_fd();
                // Level-triggered: an end that is not unwatched would wake us for ever.
                let _ = self.epoll.delete(unsafe {
                    // SAFETY: it is open: the nest that holds it is in our books.
                    std::os::fd::BorrowedFd::borrow_raw(raw)
                });
                return;
            }
            let text = String::from_utf8_lossy(&word).into_owned();
            let words: Vec<&str> = text.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
            let its = number(1).and_then(|it| u64::try_from(it).ok());
            let Some(worker) = its.and_then(|it| pool.numbers.get(&it).copied()) else {
                continue;
            };
            match (words.first(), number(2), number(3)) {
                (Some(&"born"), Some(pid), _) => self.hold_child((slot, worker), pid, fds),
                (Some(&"ended"), Some(status), Some(peak)) => {
                    let status = i32::try_from(status).unwrap_or(0);
                    let peak = Bytes(u64::try_from(peak).unwrap_or(0).saturating_mul(1024));
                    self.on_child_ended((slot, worker), ended(status), peak);
                }
                _ => {
                    // No fork: it is as if it had ended.
                    self.end_child(worker, (Ended::Unseen, Oom::No, None));
                }
            }
        }
    }

    fn hold_child(&mut self, (slot, worker): (u32, WorkerId), pid: i64, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let (Some(socket), Some(page)) = (fds.next(), fds.next()) else {
            return;
        };
        let socket = UnixStream::from(socket);
        let _ = socket.set_nonblocking(true);
        let token = self.watch(&socket, Source::Child(worker)).ok();
        // RACE: it may have ended and been buried by now; its number cannot have come round since.
        let process = i32::try_from(pid)
            .ok()
            .and_then(|pid| PidFd::open(pid).ok());
        let child = Child {
            slot,
            process,
            socket,
            token,
            page: File::from(page),
            said: Vec::new(),
            unsent: Vec::new(),
            waits: false,
        };
        if let Some(pool) = &mut self.pool {
            pool.children.insert(worker, child);
            pool.news.push_back(News::Born(slot, worker));
        }
    }

    pub(super) fn on_child_readable(&mut self, worker: WorkerId, token: u64) {
        self.push(worker);
        let Some(pool) = &mut self.pool else { return };
        let Some(child) = pool.children.get_mut(&worker) else {
            return;
        };
        if !child.read(&mut pool.buffer) {
            let _ = self.epoll.delete(&child.socket);
            child.token = None;
            self.sources.remove(&token);
        }
        pool.news.push_back(News::Said(worker));
    }

    fn on_child_ended(&mut self, (slot, worker): (u32, WorkerId), how: Ended, peak: Bytes) {
        let nest = self.nest_of(slot);
        let oom = nest.map_or(Oom::No, |nest| self.oom_of(nest, how));
        let tracked = nest.and_then(|nest| self.workers.get(&nest));
        let peak = match oom {
            Oom::Cap => tracked.and_then(|it| it.group.peak()).or(Some(peak)),
            Oom::No | Oom::Budget | Oom::Elsewhere => Some(peak),
        };
        self.end_child(worker, (how, oom, peak));
    }

    /// What it has said to its last moment is read before its end is told.
    fn end_child(&mut self, worker: WorkerId, (ended, oom, peak): (Ended, Oom, Option<Bytes>)) {
        let Some(pool) = &mut self.pool else { return };
        pool.numbers.retain(|_, known| *known != worker);
        let (mut begun, mut finished) = (0, 0);
        if let Some(child) = pool.children.get_mut(&worker) {
            while child.read(&mut pool.buffer) && child.said.len() > 4 * CHUNK {}
            (begun, finished) = child.progress();
            if !child.said.is_empty() {
                pool.news.push_back(News::Said(worker));
            }
        }
        pool.news.push_back(News::Ended {
            worker,
            ended,
            oom,
            peak,
            begun,
            finished,
        });
    }

    /// A nest has ended: nobody in its group is to live on.
    pub fn on_nest_gone(&mut self, id: WorkerId, oom: Oom) {
        let Some(pool) = &mut self.pool else { return };
        let slot = pool
            .nests
            .iter()
            .find(|(_, nest)| nest.id == id)
            .map(|(slot, _)| *slot);
        let Some(slot) = slot else { return };
        // Its last words come before its end.
        self.on_nest(slot);
        let Some(pool) = &mut self.pool else { return };
        let left: Vec<WorkerId> = pool
            .children
            .iter()
            .filter(|(_, child)| child.slot == slot)
            .map(|(worker, _)| *worker)
            .filter(|worker| pool.numbers.values().any(|known| known == worker))
            .collect();
        for worker in left {
            self.kill_child(worker);
            self.end_child(worker, (Ended::Signal(Signal::KILL), oom, None));
        }
        let Some(pool) = &mut self.pool else { return };
        pool.nests.remove(&slot);
        self.sources
            .retain(|_, source| *source != Source::Nest(slot));
        pool.news.push_back(News::NestGone(slot, oom));
    }
}

/// Takes a descriptor that was inherited.
pub(super) fn adopt_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is only looked at.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if open < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was left open for us alone; nothing of ours has opened it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(owned)
}

fn say(socket: &OwnedFd, word: &str) -> io::Result<()> {
    let sent = send(socket.as_raw_fd(), word.as_bytes(), MsgFlags::MSG_NOSIGNAL);
    sent.map(drop).map_err(io::Error::from)
}

/// One datagram, and the descriptors beside it. Empty at the end.
fn hear(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 2]);
    let length = buffer.len().min(WORD_MAX);
    let mut parts = [IoSliceMut::new(
        buffer.get_mut(..length).unwrap_or_default(),
    )];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just opened them for us, and nobody else knows of them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = message.bytes;
    Ok((buffer.get(..length).unwrap_or_default().to_vec(), fds))
}
