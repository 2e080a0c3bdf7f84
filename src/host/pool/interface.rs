//! The methods by which the driver controls the processes of a pool.

use std::{
    io,
    os::fd::{AsRawFd as _, IntoRawFd as _, RawFd},
};

use bytes::BytesMut;
use nix::sys::socket::{Shutdown, shutdown};

use super::{News, PoolContext, PoolHost, adopt_inherited, child::Child};
use crate::{
    host::{Host, kernel_events::Source},
    units::{Bytes, Signal, Timestamp, WorkerId},
};

impl Host {
    fn pool_with(&mut self) -> Option<(&mut PoolHost, PoolContext<'_>)> {
        let with = PoolContext {
            context: &mut self.context,
            groups: &mut self.cgroups,
            workers: &mut self.workers,
        };
        Some((self.pool.as_mut()?, with))
    }

    /// A descriptor of the pool is ready.
    pub(in crate::host) fn on_pool_event(&mut self, source: Source, token: u64) {
        let Some((pool, mut with)) = self.pool_with() else {
            return;
        };
        match source {
            Source::Prints => pool.on_prints(),
            Source::ForkServer(slot) => pool.on_fork_server(&mut with, slot),
            Source::Child(worker) => pool.on_child_readable(with.context, worker, token),
            _ => pool.on_template(&mut with, token),
        }
    }

    /// Makes the socket to a template. Returns the template's end of it, which the template
    /// inherits.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn open_pool(&mut self) -> io::Result<RawFd> {
        let theirs = PoolHost::open(&mut self.pool, &mut self.context)?;
        // The template's end stays open here until the template has inherited it. See
        // `Host::close_inherited`.
        Ok(theirs.into_raw_fd())
    }

    /// Closes the supervisor's copy of the template's end of the socket. Otherwise the supervisor
    /// would not notice that the template has closed it.
    pub fn close_inherited(&mut self, fd: RawFd) {
        drop(adopt_inherited(fd));
    }

    /// Closes the socket to the template, so that the template exits.
    pub fn quit_template(&self) {
        if let Some(pool) = &self.pool {
            // The end of a template is reported separately.
            let _ = shutdown(pool.control.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Reads the messages of the template that have arrived.
    pub fn read_template_messages(&mut self) {
        if let Some((pool, mut with)) = self.pool_with() {
            pool.on_template(&mut with, u64::MAX);
        }
    }

    /// Takes the oldest news of the pool.
    pub fn poll_news(&mut self) -> Option<News> {
        let (pool, mut with) = self.pool_with()?;
        pool.on_fork_server_news(&mut with);
        pool.news.pop_front()
    }

    /// Asks the template for a fork server.
    pub fn fork_server(&mut self, slot: u32, cap: Option<Bytes>) {
        if let Some(pool) = &mut self.pool {
            pool.fork_server(slot, cap);
        }
    }

    /// Asks a fork server for a worker.
    pub fn fork_child(&mut self, slot: u32, worker: WorkerId) {
        if let Some(pool) = &mut self.pool {
            pool.fork(slot, worker);
        }
    }

    /// Removes a worker that has ended.
    pub fn forget_child(&mut self, worker: WorkerId) {
        if let Some(pool) = &mut self.pool {
            pool.forget(&mut self.context, worker);
        }
    }

    /// Prevents a worker from beginning another task.
    pub fn halt_child(&self, worker: WorkerId) {
        let child = self.pool.as_ref().and_then(|it| it.children.get(&worker));
        if let Some(child) = child {
            child.halt();
        }
    }

    /// Sends SIGKILL to one worker.
    pub fn kill_child(&self, worker: WorkerId) {
        if let Some(pool) = &self.pool {
            pool.kill(worker);
        }
    }

    /// Sends SIGKILL to all processes in a slot.
    pub fn kill_slot(&mut self, now: Timestamp, slot: u32) {
        if let Some(id) = self
            .pool
            .as_ref()
            .and_then(|pool| pool.fork_server_of(slot))
        {
            let (context, groups) = (&mut self.context, &self.cgroups);
            self.workers.kill(context, groups, now, id);
        }
    }

    /// Sends a signal to all workers in a slot, but not to its fork server.
    pub fn signal_slot(&self, slot: u32, signal: Signal) {
        let Some(pool) = &self.pool else { return };
        for child in pool.children.values().filter(|it| it.slot == slot) {
            if let Some(process) = &child.process {
                let _ = process.signal(signal);
            }
        }
    }

    /// The memory of all processes in a slot: the anonymous pages in the charge of its cgroup, and
    /// its unnamed shared memory in the last exact sample.
    pub fn slot_memory(&mut self, now: Timestamp, slot: u32) -> Option<Bytes> {
        let (pool, mut with) = self.pool_with()?;
        pool.slot_memory(&mut with, now, slot)
    }

    /// The peak memory of a worker and its child processes up to its last task.
    pub fn peak_of_child(&self, worker: WorkerId) -> Option<Bytes> {
        self.pool.as_ref()?.peak_so_far(&self.workers, worker)
    }

    /// Sends to a worker now, or later when its socket has room.
    pub fn send_child(&mut self, worker: WorkerId, bytes: &[u8]) {
        if let Some(pool) = &mut self.pool {
            pool.send(&self.context, worker, bytes);
        }
    }

    /// Takes the bytes that were received from a worker.
    pub fn take_received(&mut self, worker: WorkerId) -> BytesMut {
        let child = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker));
        child.map(Child::take_received).unwrap_or_default()
    }

    /// Puts back the bytes of an incomplete frame.
    pub fn return_received(&mut self, worker: WorkerId, rest: BytesMut) {
        let child = self
            .pool
            .as_mut()
            .and_then(|it| it.children.get_mut(&worker));
        if let Some(child) = child {
            child.return_received(rest);
        }
    }

    /// Reads what is left in the pipes when all processes have ended. Returns false if nothing is
    /// left.
    pub fn read_prints(&mut self) -> bool {
        self.pool.as_mut().is_some_and(PoolHost::read_prints)
    }

    /// Starts or pauses the reading of all outputs.
    pub fn take_prints(&mut self, takes: bool) {
        if let Some(pool) = &mut self.pool {
            pool.take_prints(&mut self.context, takes);
        }
    }
}
