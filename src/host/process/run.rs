//! One start of the command, from the start of its keeper to the end of its last process.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{exec, keeper::Message, spawn::Keeper};
use crate::{
    host::{
        cgroup::{CgroupError, Group},
        context::Context,
        kernel_events::Source,
    },
    units::{Bytes, RunId, Timestamp, WorkerId},
};

/// See the module.
#[derive(Debug)]
pub(in crate::host) struct Run {
    id: RunId,
    keeper: Keeper,
    keeper_token: u64,
    /// The keeper was killed: the supervisor reaps and kills its processes.
    is_orphaned: bool,
    /// When the keeper was told to kill all its processes and exit.
    ending_since: Option<Timestamp>,
    /// The command's own process.
    root: Option<i32>,
    /// The worker that the command is, with its cap. `None`: the command is a server.
    worker: Option<(WorkerId, Option<Bytes>)>,
    /// The group of the command, until its process is in it.
    group: Option<Result<Group, CgroupError>>,
}

/// The state that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct RunState {
    id: RunId,
    keeper: i32,
    socket: RawFd,
    root: Option<i32>,
    worker: Option<(WorkerId, Option<Bytes>)>,
}

impl RunState {
    /// The descriptor that stays open.
    pub(super) const fn socket(&self) -> RawFd {
        self.socket
    }
}

impl Run {
    pub(super) fn begin(
        context: &mut Context,
        (id, keeper): (RunId, Keeper),
        worker: Option<(WorkerId, Option<Bytes>)>,
        group: Result<Group, CgroupError>,
    ) -> io::Result<Self> {
        Ok(Self {
            id,
            keeper_token: context.watches_mut().watch(&keeper, Source::Keeper)?,
            keeper,
            is_orphaned: false,
            ending_since: None,
            root: None,
            worker,
            group: Some(group),
        })
    }

    pub(super) fn hand_over(&self) -> RunState {
        RunState {
            id: self.id,
            keeper: self.keeper.pid(),
            socket: self.keeper.as_fd().as_raw_fd(),
            root: self.root,
            worker: self.worker,
        }
    }

    pub(super) fn take_over(context: &mut Context, state: RunState) -> io::Result<Self> {
        let socket = exec::adopt_kept(state.socket, "the keeper's socket")?;
        let keeper = Keeper::take_over(state.keeper, socket.into())?;
        Ok(Self {
            id: state.id,
            keeper_token: context.watches_mut().watch(&keeper, Source::Keeper)?,
            keeper,
            is_orphaned: false,
            ending_since: None,
            root: state.root,
            worker: state.worker,
            group: None,
        })
    }

    pub(in crate::host) const fn id(&self) -> RunId {
        self.id
    }

    /// The keeper's process.
    pub(in crate::host) const fn keeper(&self) -> i32 {
        self.keeper.pid()
    }

    /// The command's own process.
    pub(in crate::host) const fn root(&self) -> Option<i32> {
        self.root
    }

    /// The worker that the command is, with its cap. `None`: the command is a server.
    pub(in crate::host) const fn worker(&self) -> Option<(WorkerId, Option<Bytes>)> {
        self.worker
    }

    /// The command is a server.
    pub(in crate::host) const fn treat_as_server(&mut self) {
        self.worker = None;
    }

    pub(super) const fn is_orphaned(&self) -> bool {
        self.is_orphaned
    }

    pub(super) const fn adopt_orphans(&mut self) {
        self.is_orphaned = true;
    }

    /// Whether the command's process has existed.
    pub(super) const fn has_begun(&self) -> bool {
        self.group.is_none()
    }

    /// Whether the keeper was told to end, possibly before its first message.
    pub(in crate::host) const fn is_ending(&self) -> bool {
        self.ending_since.is_some()
    }

    pub(super) fn note_end(&mut self, now: Timestamp) {
        self.ending_since.get_or_insert(now);
    }

    /// The time since the keeper was told to end.
    pub(super) fn ending_for(&self, now: Timestamp) -> Option<Duration> {
        self.ending_since.map(|since| now.since(since))
    }

    pub(super) fn keeper_messages(&mut self) -> Vec<Message> {
        self.keeper.messages()
    }

    pub(super) fn on_waiting(&mut self, pid: i32) -> Option<Result<Group, CgroupError>> {
        self.root = Some(pid);
        self.group.take()
    }

    pub(super) fn execute(&mut self) -> io::Result<()> {
        self.keeper.release()
    }

    pub(super) fn on_executed(&mut self, pid: i32) -> RunId {
        // RACE: a process that was killed before its first message is noted here, so that its end
        // is handled.
        self.root.get_or_insert(pid);
        self.id
    }

    pub(super) const fn replace_root(&mut self, successor: Option<i32>) {
        self.root = successor;
    }

    pub(super) fn kill_through_keeper(&self) -> io::Result<()> {
        self.keeper.kill_all()
    }

    pub(super) fn kill_keeper(&self) {
        self.keeper.kill();
    }

    pub(super) fn end(self, context: &mut Context) -> (RunId, Option<Group>) {
        let watches = context.watches_mut();
        watches.unwatch(&self.keeper, self.keeper_token);
        (self.id, self.group.and_then(Result::ok))
    }
}
