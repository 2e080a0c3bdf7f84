//! The groups of the service as a component of the host: the server's own group, the groups of
//! workers that have ended, the limits on all together, and the memory available to the service.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use nix::sys::epoll::EpollFlags;
use serde::{Deserialize, Serialize};

use super::{CgroupError, ContainerKills, Found, Group, Groups, GroupsState, Pressure};
use crate::{
    host::{
        context::Context,
        diagnosis::privileges,
        held::HeldId,
        kernel_events::Source,
        memory::{
            procfs::{Proc, ProcError},
            tmpfs,
        },
    },
    supervisor::{
        input::{CapMechanism, Effect, Ended, Input, Machine, Oom},
        spec::{Limit, Spec},
    },
    units::{Bytes, Signal, WorkerId},
};

/// The name of the group of the server's own processes.
const SERVER: &str = "server";
/// Memory outside of processes that is less than this is not reported as part of the budget.
const CONTENTS_MIN: Bytes = Bytes::mib(4);
/// Files in memory are reported by name from this part of the budget on.
const FILES_FROM: f64 = 0.3;

/// See the module.
#[derive(Debug)]
pub(in crate::host) struct ServiceGroups {
    found: Found,
    groups: Groups,
    /// The trigger exists as long as this is open.
    pressure: Option<Pressure>,
    /// The group of the server's own processes.
    server: Option<Group>,
    /// Groups whose worker or command has ended, until they are empty and can be removed.
    ended: Vec<Group>,
    container_kills: ContainerKills,
    /// How much of a cap may be swap. `None`: all of it.
    swap: Option<Bytes>,
    available: Bytes,
    budget: Option<Bytes>,
}

/// The state that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::host) struct ServiceGroupsState {
    groups: GroupsState,
    server: bool,
    ended: Vec<String>,
}

impl ServiceGroups {
    pub(in crate::host) fn new(
        spec: &Spec,
        proc: &Proc,
        (found, groups): (Found, Groups),
    ) -> Result<Self, ProcError> {
        let available = found.available(proc)?;
        Ok(Self {
            pressure: groups.watch_pressure(),
            server: None,
            ended: Vec::new(),
            container_kills: ContainerKills::new(&found),
            swap: swap_allowed(spec.memory.swap, available),
            available,
            budget: None,
            found,
            groups,
        })
    }

    /// Continues with the groups that the previous binary handed over.
    pub(in crate::host) fn take_over(
        spec: &Spec,
        proc: &Proc,
        found: Found,
        state: ServiceGroupsState,
    ) -> Result<Self, ProcError> {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let mut all = Self::new(spec, proc, (found, Groups::take_over(state.groups, own)))?;
        if state.server {
            all.server = all.groups.leaf(SERVER).ok();
        }
        let ended = state.ended.iter();
        all.ended = ended
            .filter_map(|name| all.groups.leaf(name).ok())
            .collect();
        Ok(all)
    }

    pub(in crate::host) fn hand_over(&self) -> ServiceGroupsState {
        ServiceGroupsState {
            groups: self.groups.hand_over(),
            server: self.server.is_some(),
            ended: self.ended.iter().filter_map(Group::name).collect(),
        }
    }

    /// The descriptors that stay open for the new binary.
    pub(in crate::host) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.groups.descriptors()
    }

    /// Watches for pressure on all groups together.
    pub(in crate::host) fn watch(&self, context: &mut Context) -> io::Result<()> {
        if let Some(pressure) = &self.pressure {
            // It is always readable, which has no meaning. Only EPOLLPRI reports pressure.
            let fd = pressure.as_fd().as_raw_fd();
            let watches = context.watches_mut();
            watches.watch_for(fd, Source::Pressure, EpollFlags::EPOLLPRI)?;
        }
        Ok(())
    }

    pub(in crate::host) const fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The mechanism that enforces a cap.
    pub(in crate::host) fn caps(&self) -> CapMechanism {
        self.groups.caps()
    }

    pub(in crate::host) const fn available(&self) -> Bytes {
        self.available
    }

    /// The groups whose worker or command has ended.
    pub(in crate::host) fn ended(&self) -> &[Group] {
        &self.ended
    }

    /// The limits that this machine can enforce.
    pub(in crate::host) fn machine(&self) -> Machine {
        let trial = self.groups.trial();
        let obstacle = self.groups.obstacle();
        Machine {
            caps: self.groups.caps(),
            why_not: obstacle.map(ToString::to_string),
            threshold: trial.threshold,
            budget: trial.budget,
            priority: privileges::may_raise_priority(),
        }
    }

    /// Enables the controllers, besides memory, that the settings need.
    pub(in crate::host) fn enable_controllers(&self, context: &mut Context) {
        let wanted = context.spec().cgroup;
        let weight = wanted
            .cpu_weight
            .map(|weight| self.groups.set_cpu_weight(weight));
        let pids = wanted.pids_max.map(|_| self.groups.enable("pids"));
        for (result, what) in [(weight, "cpu_weight"), (pids, "pids_max")] {
            if let Some(Err(error)) = result {
                let what = format!("apply cgroup.{what}, which has no effect now: {error}");
                context.fail(what, None, Effect::Other);
            }
        }
    }

    /// Sets the limit on all groups together.
    pub(in crate::host) fn set_budget(&mut self, context: &mut Context, budget: Option<Bytes>) {
        self.budget = budget;
        if self.groups.trial().budget
            && let Err(error) = self.groups.set_budget(budget)
        {
            context.fail(error.to_string(), None, Effect::Budget);
        }
    }

    /// Makes the group of the command: a worker's group with its cap, or the server's own group.
    pub(in crate::host) fn make_command_group(
        &mut self,
        spec: &Spec,
        worker: Option<(WorkerId, Option<Bytes>)>,
    ) -> Result<Group, CgroupError> {
        let name = worker.map_or_else(|| SERVER.to_owned(), |(worker, _)| worker.to_string());
        // RACE: the group of the previous start may still exist, and must not be removed after this
        // one is made. A group that cannot be removed now is used again.
        let old = |group: &mut Group| group.name().as_ref() == Some(&name);
        for group in self.ended.extract_if(.., old) {
            let _ = group.remove();
        }
        let mut group = self.groups.leaf(&name)?;
        if let Some((_, cap)) = worker {
            if self.groups.caps() != CapMechanism::Rlimit {
                group.set_cap(cap, self.swap)?;
            }
            limit_pids(spec, &group);
        }
        Ok(group)
    }

    /// Makes the group of a running worker, with its cap, and moves the worker and its children
    /// there.
    pub(in crate::host) fn make_worker_group(
        &self,
        context: &mut Context,
        id: HeldId,
        pid: i32,
        cap: Option<Bytes>,
    ) -> Group {
        let mut group = match self.groups.leaf(&id.to_string()) {
            Ok(group) => group,
            Err(error) => {
                context.fail_cap(id, pid, error.to_string());
                Group::nowhere(&id.to_string())
            }
        };
        if group.holds_processes() {
            let capped = if self.groups.caps() == CapMechanism::Rlimit {
                Ok(())
            } else {
                group.set_cap(cap, self.swap).map(drop)
            };
            limit_pids(context.spec(), &group);
            // A child that the worker forks during its move stays behind, so the descendants are
            // moved after the worker.
            let moved = capped
                .and_then(|()| group.add(pid))
                .and_then(|()| group.add_those_left(context.proc().descendants(pid)));
            if let Err(error) = moved
                && !error.is_gone()
            {
                context.fail_cap(id, pid, error.to_string());
            }
        }
        group
    }

    /// Sets the cap of a worker's group. Returns the limit in force.
    pub(in crate::host) fn set_cap(
        &self,
        group: &mut Group,
        cap: Option<Bytes>,
    ) -> Result<Option<Bytes>, CgroupError> {
        group.set_cap(cap, self.swap)
    }

    /// Notes the group of the command's own processes.
    pub(in crate::host) fn set_server(&mut self, group: Group) {
        self.server = Some(group);
    }

    /// The same for a group that was a worker's until now.
    pub(in crate::host) fn set_server_without_cap(
        &mut self,
        context: &mut Context,
        mut group: Group,
    ) {
        if self.groups.caps() != CapMechanism::Rlimit
            && group.holds_processes()
            && let Err(error) = group.set_cap(None, self.swap)
        {
            context.fail(error.to_string(), None, Effect::Cap);
        }
        self.set_server(group);
    }

    /// Moves a helper that was taken for a worker to the server's group, with its children.
    pub(in crate::host) fn give_to_server(&mut self, context: &mut Context, pid: i32) {
        let Some(server) = &mut self.server else {
            return;
        };
        let pids = std::iter::once(pid).chain(context.proc().descendants(pid));
        if let Err(error) = server.add_those_left(pids.collect()) {
            context.fail(error.to_string(), None, Effect::Cap);
        }
    }

    /// Removes this group when it is empty. All its processes have ended or are ending.
    pub(in crate::host) fn retire(&mut self, group: Group) {
        self.ended.push(group);
    }

    /// Like [`ServiceGroups::retire`], for the server's own group.
    pub(in crate::host) fn retire_server(&mut self) {
        self.ended.extend(self.server.take());
    }

    /// Removes the groups that are empty. A child process may outlive its worker and finish its
    /// work; its group is removed after it.
    pub(in crate::host) fn remove_ended(&mut self) {
        self.ended
            .retain(|group| group.remove().is_err_and(|error| !error.is_gone()));
    }

    /// Sends SIGKILL to all processes in all groups.
    pub(in crate::host) fn kill_all(&self) {
        // The callers have other ways to kill as well.
        let _ = self.groups.kill_all();
    }

    /// Removes all groups. Call it when no process that we started is left.
    pub(in crate::host) fn remove_all(&mut self) {
        self.ended.clear();
        self.groups.remove_all();
    }

    /// Whether the OOM killer has killed the server's main process.
    pub(in crate::host) fn oom_of_server(&mut self, ended: Ended) -> Oom {
        match (ended, &mut self.server) {
            (Ended::Signal(Signal::KILL), Some(group)) => self.groups.oom(group),
            _ => Oom::No,
        }
    }

    /// Whether a limit above us has killed a process. This is known only if we have no groups of
    /// our own; the counts of the container's group show it then.
    pub(in crate::host) fn take_kill_above(&mut self, ended: Ended) -> bool {
        self.caps() == CapMechanism::Rlimit
            && ended == Ended::Signal(Signal::KILL)
            && self.container_kills.take_one(&self.found)
    }

    /// Call it once a second. A kill above us that was not taken by now was of another process.
    pub(in crate::host) fn on_second(&mut self) {
        self.container_kills.on_second(&self.found);
    }

    /// Reports how near the groups above us are to their limits.
    pub(in crate::host) fn tell_charge(&self, context: &mut Context) {
        if let Some(charge) = self.found.charge() {
            context.tell(Input::Charged {
                used: charge.used,
                of: charge.limit,
            });
        }
    }

    /// Reports the memory available to the service, if it has changed.
    pub(in crate::host) fn tell_available(&mut self, context: &mut Context) {
        if let Ok(available) = self.found.available(context.proc())
            && available != self.available
        {
            self.available = available;
            context.tell(Input::Available(available));
        }
    }

    /// Reports the memory that the kernel counts against the budget.
    pub(in crate::host) fn tell_held_memory(&self, context: &mut Context) {
        if let Some(held) = self.groups.held() {
            context.tell(Input::Held { held });
        }
        if let Some(mut contents) = self.groups.contents()
            && contents.shared.plus(contents.kernel) >= CONTENTS_MIN
        {
            // A search of a tmpfs takes time, so it is done only if its files may matter.
            if contents.shared >= self.budget.unwrap_or(self.available).scaled(FILES_FROM) {
                tmpfs::name_files(&mut contents, tmpfs::process_start(context.proc()));
            }
            context.tell(Input::Contents(contents));
        }
    }

    /// Reports the private memory (anonymous pages) of the server's own processes: its masters, and
    /// their children that are not workers. Pages that a preloaded application shares with its
    /// workers are charged to the master. If the server has no control group, only the masters are
    /// read.
    pub(in crate::host) fn tell_server_memory(&self, context: &mut Context, masters: &[i32]) {
        let charged = self.server.as_ref().and_then(Group::charged);
        let anon_of = |pid: &i32| {
            let statm = context.proc().statm(*pid);
            let seen = statm.and_then(|statm| statm.read()).ok()?;
            Some(seen.resident.minus(seen.shared))
        };
        let of_masters = || {
            masters
                .iter()
                .filter_map(anon_of)
                .fold(Bytes::ZERO, Bytes::plus)
        };
        let private = charged.map_or_else(of_masters, |(anon, _)| anon);
        context.tell(Input::ServerSampled { private });
    }
}

/// Sets the limit of processes. If the controller is missing, that was reported at start.
fn limit_pids(spec: &Spec, group: &Group) {
    if let Some(max) = spec.cgroup.pids_max {
        let _ = group.set_pids(max);
    }
}

/// How much of a cap may be swap; nothing, unless the settings allow it.
fn swap_allowed(limit: Limit, available: Bytes) -> Option<Bytes> {
    match limit {
        Limit::Off | Limit::Auto => Some(Bytes::ZERO),
        Limit::At(size) => Some(size.of(available)),
    }
}
