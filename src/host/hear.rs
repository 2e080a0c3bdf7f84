//! Waiting for many things at once, and what each of them says.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use super::{Host, clock, forks::Forks, probe};
use crate::{
    supervisor::event::{Event, Oom},
    units::{Signal, Timestamp, WorkerId},
};

/// At most so many wake-ups are looked at in one turn, so that no source starves the loop.
const WAKES_MAX: usize = 64;

/// What a descriptor is for. The order is that in which news is told: the ends of processes come
/// before anything that might be done about them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Source {
    Prints,
    /// Its words come before its end.
    Nest(u32),
    Child(WorkerId),
    Template,
    Worker(WorkerId),
    Keeper,
    Forks,
    Wire(WorkerId),
    Oom(WorkerId),
    Pressure,
    Looker,
    Post,
    Bell,
    Ear,
    Signals,
}

impl Host {
    /// Gathers what has happened. True: a worker of a pool has said more, which is not read yet.
    pub fn collect(&mut self, now: Timestamp) -> bool {
        let mut wakes = [EpollEvent::empty(); WAKES_MAX];
        let count = self.epoll.wait(&mut wakes, EpollTimeout::ZERO).unwrap_or(0);
        let tokens = wakes[..count].iter().map(EpollEvent::data);
        let mut woken: Vec<_> = tokens
            .filter_map(|token| Some((*self.sources.get(&token)?, token)))
            .collect();
        woken.sort_unstable();
        for (source, token) in woken {
            match source {
                Source::Prints => self.on_prints(),
                Source::Nest(slot) => self.on_nest(slot),
                Source::Child(worker) => self.on_child_readable(worker, token),
                Source::Template => self.on_template(token),
                Source::Worker(worker) => self.on_worker_end(worker, token),
                Source::Keeper => self.on_keeper(now),
                Source::Forks => self.on_forks(now),
                Source::Wire(worker) => self.on_wire(worker, token),
                Source::Oom(worker) => self.on_oom(now, worker),
                Source::Pressure => self.events.push_back(Event::Pressed),
                Source::Looker => self.on_looked(),
                Source::Post => self.on_post(),
                Source::Bell => self.on_bell(),
                Source::Ear => self.on_ear(),
                Source::Signals => self.on_signals(now),
            }
        }
        self.discover(now);
        self.look_at_backlog(now);
        self.check_kills(now);
        self.keep_up(now);
        self.pool
            .as_mut()
            .is_some_and(|pool| std::mem::take(&mut pool.more))
    }

    pub(super) fn watch_own(&mut self) -> io::Result<()> {
        let fds = [
            (self.signals.as_fd().as_raw_fd(), Source::Signals),
            (self.looker.as_fd().as_raw_fd(), Source::Looker),
            (self.bell.as_fd().as_raw_fd(), Source::Bell),
        ];
        let forks = self
            .forks
            .as_ref()
            .map(|forks| (forks.as_fd().as_raw_fd(), Source::Forks));
        for (fd, source) in fds.into_iter().chain(forks) {
            self.watch_raw(fd, source)?;
        }
        let pressure = self.pressure.as_ref();
        let pressure = pressure.map(|pressure| pressure.as_fd().as_raw_fd());
        if let Some(fd) = pressure {
            // It can always be read, and what it has to say is not there.
            self.watch_for(fd, Source::Pressure, EpollFlags::EPOLLPRI)?;
        }
        Ok(())
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
            reason = "epoll_ctl wants a borrow, and the owner is a part of us"
        )]
        // SAFETY: the descriptor is open: our callers hold what it belongs to.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.epoll.add(fd, EpollEvent::new(flags, token))?;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub(super) fn unwatch(&mut self, fd: &impl AsFd, token: u64) {
        self.sources.remove(&token);
        // A closed descriptor has left by itself (epoll(7)).
        let _ = self.epoll.delete(fd);
    }

    pub(super) fn on_worker_end(&mut self, worker: WorkerId, token: u64) {
        self.sources.remove(&token);
        let Some(tracked) = self.workers.get(&worker) else {
            return;
        };
        let pid = tracked.process.pid();
        let ended = tracked.process.ended(&self.proc);
        let oom = self.oom_of(worker, ended);
        let peak = self.workers.get(&worker).and_then(|tracked| match oom {
            Oom::Cap => tracked.group.peak(),
            Oom::No | Oom::Budget | Oom::Elsewhere => None,
        });
        self.untrack(worker);
        if let Some(discovery) = self.run.as_mut().and_then(|run| run.discovery.as_mut()) {
            discovery.forget(pid);
        }
        self.events.push_back(Event::WorkerEnded {
            worker,
            ended,
            oom,
            peak,
        });
    }

    pub(super) fn on_forks(&mut self, now: Timestamp) {
        if self.forks.as_ref().is_some_and(Forks::take)
            && let Some(discovery) = self.run.as_mut().and_then(|run| run.discovery.as_mut())
        {
            discovery.hurry(now);
        }
    }

    pub(super) fn on_wire(&mut self, worker: WorkerId, token: u64) {
        let Some(tracked) = self.workers.get_mut(&worker) else {
            return;
        };
        if tracked.group.take_wire() {
            self.sources.remove(&token);
            self.events.push_back(Event::Tripped { worker });
        }
    }

    pub(super) fn on_looked(&mut self) {
        for (worker, sample) in self.looker.take() {
            let Some(tracked) = self.workers.get_mut(&worker) else {
                continue;
            };
            let exact = sample.and_then(|sample| sample.exact);
            tracked.unnamed.on_looked(clock::now(), exact);
            let Some(mut sample) = sample else { continue };
            sample.cgroup = tracked.group.usage();
            sample.held = tracked.group.held();
            if let Some(exact) = &mut sample.exact {
                // RACE: it may take and give back memory while it is looked at. Read before and
                // after, what it gave back meanwhile is not taken for charged elsewhere.
                exact.charged = exact.charged.max(tracked.charged_anon());
            }
            self.events.push_back(Event::Sampled { worker, sample });
        }
    }

    pub(super) fn on_bell(&mut self) {
        let _ = self.bell.read();
        let Some(run) = &self.run else { return };
        if run.probe.as_ref().is_some_and(probe::Probe::take) {
            self.events.push_back(Event::Answers { run: run.id });
        }
    }

    pub(super) fn on_ear(&mut self) {
        let Some(run) = &self.run else { return };
        if run.ear.as_ref().is_some_and(|(ear, _)| ear.heard_ready()) {
            self.events.push_back(Event::Answers { run: run.id });
        }
    }

    pub(super) fn on_signals(&mut self, now: Timestamp) {
        for signal in self.signals.take() {
            if signal == Signal::CHLD {
                self.on_child(now);
            } else {
                self.events.push_back(Event::Signalled(signal));
            }
        }
    }
}
