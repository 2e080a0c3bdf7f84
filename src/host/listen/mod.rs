//! The listening sockets of the service: held across restarts of the command, and closed to new
//! connections before the command stops.

mod backlog;
mod listeners;

use std::{io, os::fd::RawFd};

use super::context::Context;
use crate::{
    supervisor::{
        input::{Effect, Input},
        spec::Spec,
    },
    units::{RunId, Timestamp},
};
use backlog::{Backlog, Closed, reopen_all};
pub(super) use backlog::{Service, accepted, listens, ready_port};
pub(super) use listeners::{ListenerState, Listeners, Passing, Placed, VARIABLES};

/// See the module.
#[derive(Debug)]
pub(super) struct Listen {
    listeners: Listeners,
    /// The connections that wait to be accepted, before the command gets its stop signal.
    backlog: Option<Backlog>,
    /// Files of Unix sockets that stay closed to new clients until this start of the command ends.
    closed: Vec<Closed>,
}

impl Listen {
    /// Takes the sockets that were passed to us, and binds the others.
    pub(super) fn open(spec: &Spec) -> io::Result<Self> {
        let listeners = Listeners::take(&spec.command.listen, &spec.name)?;
        Ok(Self::with(listeners))
    }

    /// Takes the sockets that the previous binary handed over.
    pub(super) fn take_over(spec: &Spec, state: Vec<ListenerState>) -> io::Result<Self> {
        let listeners = Listeners::take_over(state, &spec.command.listen, &spec.name)?;
        Ok(Self::with(listeners))
    }

    const fn with(listeners: Listeners) -> Self {
        Self {
            listeners,
            backlog: None,
            closed: Vec::new(),
        }
    }

    pub(super) fn hand_over(&self) -> Vec<ListenerState> {
        self.listeners.hand_over()
    }

    /// The descriptors that stay open for the new binary.
    pub(super) fn descriptors(state: &[ListenerState]) -> impl Iterator<Item = RawFd> {
        state.iter().map(ListenerState::socket)
    }

    /// The sockets that are passed to the command.
    pub(super) const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Opens all sockets to new connections, because an earlier owner or start may have closed
    /// them.
    pub(super) fn reopen(&self, context: &mut Context) {
        if let Err(error) = reopen_all(context.proc()) {
            let what = format!("open a listening socket to new connections again: {error}");
            context.fail(what, None, Effect::Other);
        }
    }

    /// Closes the service's sockets to new connections, and watches the connections that wait.
    pub(super) fn close(&mut self, context: &mut Context, now: Timestamp, service: &Service) {
        let ours = self.listeners.bound();
        let (backlog, trouble) = Backlog::close(context.proc(), service, ours, now);
        self.backlog = Some(backlog);
        if let Some(error) = trouble.failed {
            let what = format!(
                "close a listening socket of the command to new connections: {error}; connections \
                 that it has not accepted when it ends are reset (`--listen` prevents it)"
            );
            context.fail(what, None, Effect::Other);
        }
        if !trouble.unknown.is_empty() {
            let what = format!(
                "determine which of these listening sockets belong to the service: {}; they stay \
                 open until the command closes them, which resets connections that it has not \
                 accepted; hint: `--ready tcp:ADDR` names one",
                trouble.unknown.join(", ")
            );
            context.fail(what, None, Effect::Other);
        }
    }

    /// When to check again for waiting connections.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.backlog.as_ref().map(Backlog::next_check)
    }

    /// Reports when all waiting connections have been accepted.
    pub(super) fn check(&mut self, context: &mut Context, now: Timestamp, run: RunId) {
        let due = self.backlog.as_mut().filter(|it| it.next_check() <= now);
        let Some(backlog) = due else { return };
        backlog.check_later(now);
        if backlog.is_empty(context.proc(), now) {
            self.end_wait();
            context.tell(Input::BacklogEmpty { run });
        }
    }

    /// Ends the wait for connections to be accepted.
    pub(super) fn end_wait(&mut self) {
        let closed = self.backlog.take().map(Backlog::into_files);
        self.closed.extend(closed.into_iter().flatten());
    }

    /// Restores the modes of closed files, at the end of this start of the command.
    pub(super) fn end_start(&mut self) {
        self.backlog = None;
        self.closed.clear();
    }
}
