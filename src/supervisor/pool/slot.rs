//! A slot of the pool: its fork server, the samples of its memory, and its pauses.

use crate::units::{Bytes, Timestamp, WorkerId};

/// A slot of the pool. All processes in it share one cgroup and one cap.
#[derive(Debug, Default)]
pub(super) struct Slot {
    fork_server: ForkServer,
    /// The memory of all its processes, as last sampled.
    memory: Bytes,
    /// The worker whose memory this is taken to be: the oldest in the slot at the last sample.
    sampled: Option<WorkerId>,
    /// The time of the next sample.
    sample_at: Timestamp,
    /// A sample was requested and has not arrived yet.
    sampling: bool,
    /// Its workers are suspended.
    suspended: bool,
    /// The time before which nothing is forked in it.
    backoff_until: Option<Timestamp>,
    /// The forks that were refused in a row.
    refusals: u32,
    /// The worker for which the kernel has killed all processes of the slot.
    oom_victim: Option<WorkerId>,
}

/// The process that forks the workers of a slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum ForkServer {
    #[default]
    None,
    /// The template was asked to fork it.
    Asked,
    Up,
    /// It was killed, and has not ended yet.
    Doomed,
}

impl Slot {
    pub(super) const fn fork_server(&self) -> ForkServer {
        self.fork_server
    }

    /// The template is asked for a fork server.
    pub(super) const fn start_fork_server(&mut self) {
        if matches!(self.fork_server, ForkServer::None) {
            self.fork_server = ForkServer::Asked;
        }
    }

    /// Its fork server runs. Returns whether one was asked for.
    pub(super) const fn on_fork_server_up(&mut self, now: Timestamp) -> bool {
        let was_asked = matches!(self.fork_server, ForkServer::Asked);
        if was_asked {
            self.fork_server = ForkServer::Up;
            self.suspended = false;
            self.memory = Bytes::ZERO;
            self.sample_at = now;
        }
        was_asked
    }

    /// Its fork server and all processes that it forked have ended.
    pub(super) const fn on_gone(&mut self) {
        self.fork_server = ForkServer::None;
        self.suspended = false;
        self.sampling = false;
        self.memory = Bytes::ZERO;
        self.oom_victim = None;
    }

    /// The kernel has killed its processes at a limit: for the memory of this worker, unless that
    /// of another worker is the known reason. Returns the worker that is the reason.
    pub(super) fn on_oom(&mut self, worker: WorkerId) -> WorkerId {
        *self.oom_victim.get_or_insert(worker)
    }

    /// All its processes are being killed. Returns true if the kill has to be sent.
    pub(super) const fn kill(&mut self) -> bool {
        let was_up = matches!(self.fork_server, ForkServer::Up);
        if was_up {
            self.fork_server = ForkServer::Doomed;
        }
        was_up
    }

    pub(super) const fn is_suspended(&self) -> bool {
        self.suspended
    }

    pub(super) const fn suspend(&mut self) {
        self.suspended = true;
    }

    pub(super) const fn resume(&mut self) {
        self.suspended = false;
    }

    pub(super) const fn memory(&self) -> Bytes {
        self.memory
    }

    /// The time of the next sample. `None`: there is no process to sample, or a sample is awaited.
    pub(super) fn next_sample(&self) -> Option<Timestamp> {
        let can_sample = self.fork_server == ForkServer::Up && !self.sampling;
        can_sample.then_some(self.sample_at)
    }

    /// Returns true if a sample has to be requested now.
    pub(super) fn request_sample(&mut self, now: Timestamp) -> bool {
        let is_due = self.next_sample().is_some_and(|at| at <= now);
        self.sampling |= is_due;
        is_due
    }

    /// The memory, if it is taken to be that of this worker.
    pub(super) fn memory_of(&self, worker: WorkerId) -> Option<Bytes> {
        (self.sampled == Some(worker)).then_some(self.memory)
    }

    /// The sample of the slot has arrived. `oldest` is its oldest worker. The next sample is at
    /// `next`.
    pub(super) const fn on_sampled(
        &mut self,
        memory: Bytes,
        oldest: Option<WorkerId>,
        next: Timestamp,
    ) {
        self.sampling = false;
        self.sampled = oldest;
        self.memory = memory;
        self.sample_at = next;
    }

    /// The next sample is at `soon` at the latest.
    pub(super) fn sample_soon(&mut self, soon: Timestamp) {
        self.sample_at = self.sample_at.min(soon);
    }

    /// A fork was refused. Returns how many were refused in a row.
    pub(super) const fn on_fork_refused(&mut self) -> u32 {
        self.refusals = self.refusals.saturating_add(1);
        self.refusals
    }

    /// A worker has started, which ends a row of refused forks.
    pub(super) const fn on_worker_ready(&mut self) {
        self.refusals = 0;
    }

    /// A worker of the slot is alive, so the last kill did not end all of the slot.
    pub(super) const fn forget_oom(&mut self) {
        self.oom_victim = None;
    }

    /// Nothing is forked before `until`.
    pub(super) const fn back_off(&mut self, until: Timestamp) {
        self.backoff_until = Some(until);
    }

    pub(super) const fn backoff_until(&self) -> Option<Timestamp> {
        self.backoff_until
    }

    /// Ends a back-off whose time is over. Returns whether there was one.
    pub(super) fn end_back_off(&mut self, now: Timestamp) -> bool {
        let is_over = self.backoff_until.is_some_and(|until| until <= now);
        if is_over {
            self.backoff_until = None;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    fn up() -> Slot {
        let mut slot = Slot::default();
        slot.start_fork_server();
        assert!(slot.on_fork_server_up(at(1)));
        slot
    }

    #[test]
    fn a_fork_server_that_was_not_asked_for_is_ignored() {
        let mut slot = Slot::default();
        assert!(!slot.on_fork_server_up(at(1)));
        assert_eq!(slot.fork_server(), ForkServer::None);
        let mut slot = up();
        assert!(slot.kill());
        assert!(!slot.on_fork_server_up(at(2)));
        assert_eq!(slot.fork_server(), ForkServer::Doomed);
    }

    #[test]
    fn a_slot_is_killed_once() {
        let mut slot = up();
        assert!(slot.kill());
        assert!(!slot.kill());
        slot.on_gone();
        assert!(!slot.kill());
    }

    #[test]
    fn one_sample_is_awaited_at_a_time() {
        let mut slot = up();
        assert!(slot.request_sample(at(1)));
        assert!(!slot.request_sample(at(2)));
        slot.on_sampled(Bytes::mib(7), None, at(5));
        assert!(!slot.request_sample(at(4)));
        slot.sample_soon(at(4));
        assert!(slot.request_sample(at(4)));
    }

    #[test]
    fn a_back_off_ends_once() {
        let mut slot = up();
        slot.back_off(at(3));
        assert!(!slot.end_back_off(at(2)));
        assert!(slot.end_back_off(at(3)));
        assert!(!slot.end_back_off(at(3)));
    }
}
