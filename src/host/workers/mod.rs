//! Worker processes: tracking, sampling, limits, signals and release; the child processes that
//! outlive a worker, the victims of the OOM killer, and the agents.

mod actions;
pub mod agents;
mod kills;
mod leftovers;
mod processes;
mod tracked;
mod waiting;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use serde::{Deserialize, Serialize};

use super::{
    cgroup::{Group, GroupState, ServiceGroups},
    context::Context,
    held::{ForkServerId, HeldId},
    kernel_events::Source,
    memory::smaps_sampler::SmapsSampler,
    process::{
        exec,
        open_files::{OpenFiles, OpenFilesState},
        pidfd::PidFd,
    },
};
use crate::{
    supervisor::input::Oom,
    units::{Bytes, Timestamp, WorkerId},
};
use leftovers::IdleTimes;
use tracked::Tracked;
pub(super) use tracked::gone_is_fine;

/// See the module.
#[derive(Debug)]
pub(super) struct Workers {
    /// The tracked workers and fork servers.
    held: BTreeMap<HeldId, Tracked>,
    /// What has happened to fork servers, until the pool takes it.
    fork_server_news: Vec<ForkServerNews>,
    /// Our limit of open files, and the workers that wait for descriptors.
    files: OpenFiles,
    idle: IdleTimes,
    sampler: SmapsSampler,
    /// Housekeeping has a task that should run soon.
    is_urgent: bool,
}

/// What has happened to a fork server.
#[derive(Debug)]
pub(super) enum ForkServerNews {
    Ended {
        id: ForkServerId,
        oom: Oom,
        /// The peak of its group, if the OOM killer ended it.
        peak: Option<Bytes>,
    },
    /// The kernel killed a process that a worker of it had started.
    ChildKilled,
}

/// The state of the workers that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct WorkersState {
    held: Vec<WorkerState>,
    files: OpenFilesState,
}

#[derive(Debug, Deserialize, Serialize)]
struct WorkerState {
    id: HeldId,
    pid: i32,
    process: RawFd,
    is_command: bool,
    /// The name of its group, and the kills of the OOM killer there so far.
    group: Option<GroupState>,
}

impl Workers {
    pub(super) fn new(context: &Context, files: OpenFiles) -> io::Result<Self> {
        Ok(Self {
            held: BTreeMap::new(),
            fork_server_news: Vec::new(),
            files,
            idle: IdleTimes::default(),
            sampler: SmapsSampler::start(context.proc().clone())?,
            is_urgent: false,
        })
    }

    /// The state for the new binary, and the descriptors that stay open for it.
    pub(super) fn hand_over(&self) -> (WorkersState, Vec<RawFd>) {
        let held = self.held.iter().map(|(id, tracked)| WorkerState {
            id: *id,
            pid: tracked.process.pid(),
            process: tracked.process.as_fd().as_raw_fd(),
            is_command: tracked.is_command,
            group: tracked.group.hand_over(),
        });
        let held: Vec<_> = held.collect();
        let keep = held.iter().map(|worker| worker.process).collect();
        let files = self.files.hand_over();
        (WorkersState { held, files }, keep)
    }

    /// Tracks the workers that the previous binary handed over.
    pub(super) fn take_over(
        context: &mut Context,
        groups: &ServiceGroups,
        state: WorkersState,
    ) -> io::Result<Self> {
        let mut workers = Self::new(context, OpenFiles::raise(Some(state.files)))?;
        for worker in state.held {
            let fd = exec::adopt_kept(worker.process, "a worker's process")?;
            let process = PidFd::take_over(worker.pid, fd);
            let group = match worker.group {
                Some(group) => groups.groups().take_over_group(group),
                None => Group::nowhere(&worker.id.to_string()),
            };
            let tracked = Tracked::new(process, group, worker.is_command);
            workers.track(context, worker.id, tracked);
        }
        Ok(workers)
    }

    /// Watches for exact samples.
    pub(super) fn watch(&self, context: &mut Context) -> io::Result<()> {
        let watches = context.watches_mut();
        watches.watch(&self.sampler, Source::SmapsSampler).map(drop)
    }

    /// The soft limit of open files for the command. `None`: unlimited.
    pub(super) const fn files_of_command(&self) -> Option<u64> {
        self.files.given()
    }

    /// Whether one more descriptor can be opened without using the reserve.
    pub(super) fn has_room(&self, context: &Context) -> bool {
        self.files.has_room(context.watches())
    }

    pub(super) fn holds(&self, worker: WorkerId) -> bool {
        self.held.contains_key(&worker.into())
    }

    /// The worker that this process is the main process of.
    pub(super) fn worker_of(&self, pid: i32) -> Option<WorkerId> {
        let held = self.held.iter();
        let held = held.map(|(id, tracked)| (tracked.process.pid(), *id));
        held.chain(self.files.waiting())
            .find_map(|(its, id)| id.worker().filter(|_| its == pid))
    }

    /// The main processes of all tracked workers that are not the command itself.
    pub(super) fn server_worker_pids(&self) -> Vec<i32> {
        let workers = self.held.values().filter(|worker| !worker.is_command);
        workers.map(|worker| worker.process.pid()).collect()
    }

    /// Forgets all workers. They have ended.
    pub(super) fn clear(&mut self) {
        self.held.clear();
    }

    /// Whether something has happened since the last call that housekeeping should handle soon.
    pub(super) const fn take_urgent(&mut self) -> bool {
        std::mem::replace(&mut self.is_urgent, false)
    }

    /// When to check again for a victim of the OOM killer.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.kills_deadline()
    }
}
