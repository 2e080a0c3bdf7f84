//! The actions on one worker: tracking it, sampling it, setting its limits, signalling it.

use std::os::fd::AsRawFd;

use nix::sys::epoll::EpollFlags;

use super::{
    ForkServerNews, Workers,
    tracked::{Tracked, UNNAMED_WITHIN, gone_is_fine},
};
use crate::{
    host::{
        cgroup::{Group, ServiceGroups},
        clock,
        context::Context,
        held::HeldId,
        kernel_events::Source,
        memory::{procfs::Proc, smaps_sampler::Job},
        process::{open_files::Waiting, pidfd::PidFd, rlimit},
    },
    supervisor::{
        action::{Priority, SampleKind},
        input::{CapMechanism, Effect, Ended, Input, Oom},
        spec::Measure,
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// Workers are killed before their server if all of them together need too much memory.
const WORKERS_FIRST: i32 = 100;

/// The memory of all processes in a group.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct GroupMemory {
    pub(in crate::host) bytes: Bytes,
    /// Whether it is the charge of the group, and not a sum over its processes.
    pub(in crate::host) is_charge: bool,
}

impl Workers {
    pub(super) fn track(&mut self, context: &mut Context, id: HeldId, tracked: Tracked) {
        let watched = if tracked.is_command {
            Ok(0)
        } else {
            context
                .watches_mut()
                .watch(&tracked.process, Source::Process(id))
        };
        let oom = tracked.group.oom_fd().map(|fd| fd.as_raw_fd());
        // The count is read at the end of a process, not at each event.
        let flags = tracked.group.interest() | EpollFlags::EPOLLET;
        let watched = watched.and_then(|_| match oom {
            Some(fd) => context
                .watches_mut()
                .watch_for(fd, Source::Oom(id), flags)
                .map(drop),
            None => Ok(()),
        });
        self.held.insert(id, tracked);
        if let Err(error) = watched {
            context.fail(format!("watch {id}: {error}"), id.worker(), Effect::Other);
        }
    }

    /// Stops tracking a worker. Its group is removed when it is empty.
    pub(in crate::host) fn untrack(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        id: HeldId,
    ) {
        if let Some(group) = self.release(context, id) {
            groups.retire(group);
            self.is_urgent = true;
        }
    }

    /// Stops tracking a worker. Returns its group.
    fn release(&mut self, context: &mut Context, id: HeldId) -> Option<Group> {
        self.files.forget(id);
        let tracked = self.held.remove(&id)?;
        let its = [Source::Process(id), Source::Oom(id)];
        context.watches_mut().forget_sources(&its);
        if let Some(worker) = id.worker() {
            let threshold = Source::Threshold(worker);
            context.watches_mut().forget_sources(&[threshold]);
        }
        Some(tracked.group)
    }

    /// The command is not a worker but a server. Its group becomes the server's, without a cap.
    pub(in crate::host) fn give_all_to_server(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        worker: WorkerId,
    ) {
        if let Some(group) = self.release(context, worker.into()) {
            groups.set_server_without_cap(context, group);
        }
    }

    /// Corrects the adoption of a process that is a helper of the server and not a worker.
    pub(in crate::host) fn give_to_server(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        worker: WorkerId,
        pid: i32,
    ) {
        let id = HeldId::from(worker);
        self.untrack(context, groups, id);
        groups.give_to_server(context, pid);
    }

    pub(in crate::host) fn sample(
        &mut self,
        context: &mut Context,
        now: Timestamp,
        worker: WorkerId,
        how: SampleKind,
    ) {
        let id = HeldId::from(worker);
        let Some(tracked) = self.held.get_mut(&id) else {
            return;
        };
        match how {
            SampleKind::Cheap => {
                let measure = context.spec().memory.measure;
                if let Some(sample) = tracked.sample(context.proc(), now, measure) {
                    context.tell(Input::Sampled { worker, sample });
                }
            }
            SampleKind::Exact { within } => {
                let pids = tracked.pids(context.proc(), now).to_vec();
                let charged = tracked.charged_anon();
                self.sampler.request(Job {
                    id,
                    pids,
                    within,
                    charged,
                });
            }
        }
    }

    pub(in crate::host) fn set_cap(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        worker: WorkerId,
        cap: Option<Bytes>,
    ) {
        let id = HeldId::from(worker);
        let Some(tracked) = self.held.get_mut(&id) else {
            return;
        };
        if groups.caps() == CapMechanism::Rlimit || !tracked.group.holds_processes() {
            self.rlimit_cap(context, groups, id, cap);
            return;
        }
        match groups.set_cap(&mut tracked.group, cap) {
            Ok(Some(limit)) if Some(limit) != cap => {
                context.tell(Input::CapHigher { worker, limit });
            }
            Err(error) if !error.is_gone() => {
                let pid = tracked.process.pid();
                context.fail_cap(id, pid, error.to_string());
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Sets `RLIMIT_DATA`, for each process by itself, if no group can hold the cap: on a machine
    /// without groups, and for a worker whose group could not be made.
    pub(in crate::host) fn rlimit_cap(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        id: HeldId,
        cap: Option<Bytes>,
    ) {
        let Some(tracked) = self.held.get(&id) else {
            return;
        };
        if groups.caps() != CapMechanism::Rlimit && tracked.group.holds_processes() {
            return;
        }
        let pid = tracked.process.pid();
        if let Err(error) = rlimit::set_cap(context.proc(), pid, cap)
            && !error.is_gone()
        {
            context.fail_cap(id, pid, error.to_string());
        }
    }

    pub(in crate::host) fn arm_threshold(
        &mut self,
        context: &mut Context,
        worker: WorkerId,
        room: Bytes,
    ) {
        let id = HeldId::from(worker);
        if !self.files.has_room(context.watches()) && self.held.contains_key(&id) {
            let what = format!("set the memory threshold of {id}: too many open files");
            return context.fail(what, id.worker(), Effect::Threshold);
        }
        let Some(tracked) = self.held.get_mut(&id) else {
            return;
        };
        context
            .watches_mut()
            .forget_sources(&[Source::Threshold(worker)]);
        let set = tracked.group.set_threshold(room);
        let fd = tracked.group.threshold_fd().map(|fd| fd.as_raw_fd());
        let flags = tracked.group.interest();
        let result = match (set, fd) {
            (Ok(()), Some(fd)) => context
                .watches_mut()
                .watch_for(fd, Source::Threshold(worker), flags)
                .map(drop)
                .map_err(|error| error.to_string()),
            (Err(error), _) if !error.is_gone() => Err(error.to_string()),
            (Ok(()) | Err(_), _) => Ok(()),
        };
        if let Err(what) = result {
            context.fail(what, id.worker(), Effect::Threshold);
        }
    }

    pub(in crate::host) fn signal(
        &mut self,
        context: &mut Context,
        worker: WorkerId,
        signal: Signal,
    ) {
        let id = HeldId::from(worker);
        let sent = match self.held.get(&id) {
            Some(tracked) => tracked.process.signal(signal),
            None => match self.files.waiting_process(id) {
                Some(process) => process.signal(signal),
                None => return,
            },
        };
        if let Err(error) = sent.or_else(gone_is_fine) {
            context.fail(
                format!("send {signal} to {id}: {error}"),
                id.worker(),
                Effect::Signal,
            );
        }
    }

    pub(in crate::host) fn kill(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        now: Timestamp,
        id: HeldId,
    ) {
        let Some(tracked) = self.held.get_mut(&id) else {
            if let Some(process) = self.files.waiting_process(id) {
                let group = groups.groups().leaf(&id.to_string());
                // A group includes the child processes; without a group, the worker is killed
                // alone.
                let _ = group.map(|group| group.kill());
                let _ = process.signal(Signal::KILL);
            }
            return;
        };
        if let Err(error) = tracked.kill(context.proc(), now) {
            context.fail(format!("kill {id}: {error}"), id.worker(), Effect::Signal);
        }
    }

    /// Gives a worker idle priority, or its normal priority.
    pub(in crate::host) fn prioritize(
        &mut self,
        context: &Context,
        now: Timestamp,
        worker: WorkerId,
        priority: Priority,
    ) {
        let id = HeldId::from(worker);
        if let Some(tracked) = self.held.get_mut(&id) {
            tracked.prioritize(context.proc(), now, priority);
        }
    }

    /// Starts to track the command as this worker. Its process still waits for its release.
    pub(in crate::host) fn hold_command(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        (worker, cap): (WorkerId, Option<Bytes>),
        (pid, group): (i32, Group),
    ) {
        let id = HeldId::from(worker);
        match PidFd::open(pid) {
            Ok(process) => {
                self.track(context, id, Tracked::new(process, group, true));
                self.rlimit_cap(context, groups, id, cap);
            }
            Err(error) => {
                let what = format!("hold process {pid}: {error}");
                context.fail(what, None, Effect::Other);
            }
        }
    }

    /// Starts to track a process of the server as a worker.
    pub(in crate::host) fn adopt(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        Waiting { id, pid, cap }: Waiting,
    ) {
        let process = match PidFd::open(pid) {
            Ok(process) if self.files.leaves_reserve(&process) => process,
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                // RACE: the process ended before we held it.
                self.end_unheld(context, groups, id);
                return;
            }
            Ok(_) | Err(_) => {
                self.wait_for_room(context, groups, Waiting { id, pid, cap });
                return;
            }
        };
        let group = groups.make_worker_group(context, id, pid, cap);
        let score = context.oom_score_adj().saturating_add(WORKERS_FIRST);
        let _ = context.proc().set_oom_score_adj(pid, score.min(1000));
        self.track(context, id, Tracked::new(process, group, false));
        self.rlimit_cap(context, groups, id, cap);
    }

    /// Handles the end of a worker's own process. Returns its pid.
    pub(in crate::host) fn on_end(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        id: HeldId,
    ) -> Option<i32> {
        let tracked = self.held.get(&id)?;
        let pid = tracked.process.pid();
        let ended = tracked.process.ended(context.proc());
        self.end(context, groups, (id, ended), None);
        Some(pid)
    }

    /// Handles the end of a worker. `resident`: its highest resident memory, if known.
    pub(in crate::host) fn end(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        (id, ended): (HeldId, Ended),
        resident: Option<Bytes>,
    ) {
        let oom = self.oom_of(context, groups, id, ended);
        let peak = match oom {
            Oom::Cap => self.peak(id),
            Oom::No | Oom::Budget | Oom::Elsewhere => None,
        };
        self.untrack(context, groups, id);
        self.tell_end(context, id, (ended, oom, peak.or(resident)));
    }

    /// Tells the decider, or the processes of the pool, that what was held has ended.
    pub(super) fn tell_end(
        &mut self,
        context: &mut Context,
        id: HeldId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) {
        match id {
            HeldId::Worker(worker) => context.tell(Input::WorkerEnded {
                worker,
                ended,
                oom,
                peak,
            }),
            HeldId::ForkServer(id) => {
                self.fork_server_news
                    .push(ForkServerNews::Ended { id, oom, peak });
            }
        }
    }

    /// Takes what has happened to the fork servers of the pool.
    pub(in crate::host) fn take_fork_server_news(&mut self) -> Vec<ForkServerNews> {
        std::mem::take(&mut self.fork_server_news)
    }

    /// The memory of all processes in the group of a pool's slot: the anonymous pages charged to
    /// the group, plus the unnamed part of its shared memory, from the last exact reading.
    pub(in crate::host) fn memory_of_group(
        &mut self,
        proc: &Proc,
        now: Timestamp,
        id: HeldId,
    ) -> Option<GroupMemory> {
        let tracked = self.held.get_mut(&id)?;
        let charged = tracked.group.charged();
        let (anon, shmem) = match charged {
            Some(charged) => charged,
            None => {
                let sample = tracked.sample(proc, now, Measure::Private)?;
                (sample.anon, sample.shmem)
            }
        };
        let (unnamed, wants_reading) = tracked.unnamed_shmem(now, shmem);
        if wants_reading {
            self.sampler.request(Job {
                id,
                pids: tracked.pids(proc, now).to_vec(),
                within: UNNAMED_WITHIN,
                charged: None,
            });
        }
        Some(GroupMemory {
            bytes: anon.plus(unnamed),
            is_charge: charged.is_some(),
        })
    }

    /// The highest charge of a worker's group.
    pub(in crate::host) fn peak(&self, id: HeldId) -> Option<Bytes> {
        self.held.get(&id)?.group.peak()
    }

    /// Handles an event of a worker's threshold, which may have been crossed.
    pub(in crate::host) fn on_threshold(
        &mut self,
        context: &mut Context,
        worker: WorkerId,
        token: u64,
    ) {
        let id = HeldId::from(worker);
        let Some(tracked) = self.held.get_mut(&id) else {
            return;
        };
        if tracked.group.take_threshold() {
            context.watches_mut().forget(token);
            context.tell(Input::ThresholdReached { worker });
        }
    }

    /// Reports the exact samples that are ready.
    pub(in crate::host) fn on_sampled(&mut self, context: &mut Context) {
        for (id, sample) in self.sampler.take() {
            let Some(tracked) = self.held.get_mut(&id) else {
                continue;
            };
            let exact = sample.and_then(|sample| sample.exact);
            tracked.on_reading(clock::now(), exact);
            let Some(mut sample) = sample else { continue };
            sample.cgroup = tracked.group.usage();
            sample.held = tracked.group.held();
            if let Some(exact) = &mut sample.exact {
                // RACE: the worker may allocate and free memory during the reading. The charge is
                // read before and after, so that memory freed meanwhile does not count as charged
                // elsewhere.
                exact.charged = exact.charged.max(tracked.charged_anon());
            }
            if let Some(worker) = id.worker() {
                context.tell(Input::Sampled { worker, sample });
            }
        }
    }
}
