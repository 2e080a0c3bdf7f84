//! The state that the host hands over when another binary takes over: one value for each component,
//! with descriptors as numbers.

use std::{io, os::fd::RawFd};

use serde::{Deserialize, Serialize};

use super::{
    Host,
    cgroup::{Found, ServiceGroups, ServiceGroupsState},
    context::Context,
    discovery::SearchState,
    listen::{Listen, ListenerState},
    memory::procfs::Proc,
    process::{Processes, ProcessesState, exec},
    systemd::TerminationMessage,
    workers::{Workers, WorkersState},
};
use crate::{
    supervisor::spec::{Kind, Spec},
    units::Timestamp,
};

/// See the module.
#[derive(Debug, Deserialize, Serialize)]
pub struct HostState {
    oom_score_adj: i32,
    groups: ServiceGroupsState,
    processes: ProcessesState,
    workers: WorkersState,
    discovery: Option<SearchState>,
    listeners: Vec<ListenerState>,
}

impl Host {
    /// The state for the new binary, and the descriptors that must stay open for it. `None` while
    /// no command runs.
    pub fn hand_over(&self) -> Option<(HostState, Vec<RawFd>)> {
        let (processes, mut keep) = self.processes.hand_over()?;
        let (workers, held) = self.workers.hand_over();
        let listeners = self.listen.hand_over();
        keep.extend(held);
        keep.extend(Listen::descriptors(&listeners));
        keep.extend(self.cgroups.descriptors());
        let state = HostState {
            oom_score_adj: self.context.oom_score_adj(),
            groups: self.cgroups.hand_over(),
            processes,
            workers,
            discovery: self.discovery.hand_over(&self.systemd.waiting_copies()),
            listeners,
        };
        Some((state, keep))
    }

    /// Continues from the state that the previous binary handed over.
    pub fn take_over(spec: &Spec, now: Timestamp, state: HostState) -> io::Result<Self> {
        let proc = Proc::default();
        let found = Found::discover(&proc).map_err(io::Error::other)?;
        let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let cgroups = ServiceGroups::take_over(spec, &proc, found, state.groups);
        let cgroups = cgroups.map_err(io::Error::other)?;
        let listen = Listen::take_over(spec, state.listeners)?;
        // A log file that can no longer be opened is no reason to end the service.
        let message = TerminationMessage::open(&spec.control.termination_log, own == 1);
        let mut context = Context::new(spec, state.oom_score_adj)?;
        let processes = Processes::take_over(&mut context, state.processes)?;
        let workers = Workers::take_over(&mut context, &cgroups, state.workers)?;
        let message = message.unwrap_or_default();
        let parts = (processes, workers, cgroups, listen, message);
        let mut host = Self::assemble(context, now, parts)?;
        if let (Some(search), Kind::Server(server)) = (state.discovery, host.context.spec().kind) {
            host.discovery.take_over(now, server, search);
        }
        // The command keeps the path of the socket. A message during the upgrade is lost.
        host.systemd.open_notify_socket(&mut host.context)?;
        exec::unblock_signals()?;
        // RACE: a child may have ended before the signals were watched, and its signal may have
        // been merged with another.
        host.on_child(now);
        Ok(host)
    }
}
