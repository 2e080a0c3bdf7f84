//! The descriptors that the host watches with epoll, and what each of them is for.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::held::HeldId;
use crate::units::WorkerId;

/// Maximum events in one call, so that no source starves the loop.
const WAKES_MAX: usize = 64;

/// What a descriptor is for. Events are handled in this order: the end of a process before any
/// event that leads to an action on it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Source {
    Prints,
    /// The messages of a fork server are handled before its end.
    ForkServer(u32),
    Child(WorkerId),
    Template,
    Process(HeldId),
    Keeper,
    Forks,
    Threshold(WorkerId),
    Oom(HeldId),
    Pressure,
    SmapsSampler,
    AgentAnswers,
    Waker,
    NotifySocket,
    Signals,
}

/// The watched descriptors, and what each of them is for.
#[derive(Debug)]
pub(super) struct Watches {
    epoll: Epoll,
    sources: BTreeMap<u64, Source>,
    next_token: u64,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sources: BTreeMap::new(),
            next_token: 0,
        })
    }

    /// The sources that are ready now, in the order in which to handle them.
    pub(super) fn ready(&self) -> Vec<(Source, u64)> {
        let mut wakes = [EpollEvent::empty(); WAKES_MAX];
        let count = self.epoll.wait(&mut wakes, EpollTimeout::ZERO).unwrap_or(0);
        let tokens = wakes[..count].iter().map(EpollEvent::data);
        let mut ready: Vec<_> = tokens
            .filter_map(|token| Some((*self.sources.get(&token)?, token)))
            .collect();
        ready.sort_unstable();
        ready
    }

    pub(super) fn watch(&mut self, fd: &impl AsFd, source: Source) -> io::Result<u64> {
        self.watch_raw(fd.as_fd().as_raw_fd(), source)
    }

    pub(super) fn watch_raw(&mut self, fd: RawFd, source: Source) -> io::Result<u64> {
        self.watch_for(fd, source, EpollFlags::EPOLLIN)
    }

    pub(super) fn watch_for(
        &mut self,
        fd: RawFd,
        source: Source,
        flags: EpollFlags,
    ) -> io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        #[expect(
            unsafe_code,
            reason = "epoll_ctl needs a borrow, and the owner is another part of the host"
        )]
        // SAFETY: the descriptor is open, because the callers hold its owner.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.epoll.add(fd, EpollEvent::new(flags, token))?;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub(super) fn unwatch(&mut self, fd: &impl AsFd, token: u64) {
        self.sources.remove(&token);
        // A closed descriptor is removed by the kernel (epoll(7)).
        let _ = self.epoll.delete(fd);
    }

    /// Forgets a descriptor that is closed or at its end.
    pub(super) fn forget(&mut self, token: u64) {
        self.sources.remove(&token);
    }

    /// Forgets all descriptors of these sources, which are already closed.
    pub(super) fn forget_sources(&mut self, closed: &[Source]) {
        self.sources.retain(|_, source| !closed.contains(source));
    }

    /// Stops watching a descriptor that stays open.
    pub(super) fn mute(&self, fd: &impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Changes the events that a descriptor is watched for.
    pub(super) fn modify(&self, fd: &impl AsFd, token: u64, flags: EpollFlags) {
        let mut event = EpollEvent::new(flags, token);
        let _ = self.epoll.modify(fd, &mut event);
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
