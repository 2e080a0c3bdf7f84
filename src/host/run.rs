//! One start of the command, from its keeper to the end of all that it started.

use std::{path::PathBuf, sync::Arc};

use super::{
    Host,
    backlog::{Backlog, Closed, reopen_all},
    cgroup::{CgroupError, Group},
    discovery::{Discovery, Finding},
    hear::Source,
    keeper::{Word, ended},
    notify::Ear,
    pidfd::PidFd,
    probe::Probe,
    reaper::reap,
    rlimit,
    spawn::Keeper,
    sweeper::Sweeper,
    tracked::{Tracked, gone_is_fine},
};
use crate::{
    supervisor::{
        event::{CapMechanism, Effect, Ended, Event, Oom},
        spec::{Kind, ReadyWhen},
    },
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};

/// The name of the group of the server's own processes.
pub(super) const SERVER: &str = "server";

/// A worker goes before its server does, should all together be too much for the machine.
const WORKERS_FIRST: i32 = 100;

/// An entrypoint may migrate a database before it starts the server: it is looked for once a
/// second, for an hour. Where there are many processes a look takes long, and looks are fewer.
const LOOKS_FOR_SERVER: u32 = 3600;

/// See the module.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) keeper: Keeper,
    pub(super) keeper_token: u64,
    /// The keeper is gone and was not done: what it kept is ours to bury.
    pub(super) orphaned: bool,
    /// When the keeper was told to kill all its processes and exit.
    pub(super) ending_since: Option<Timestamp>,
    /// The command's own process.
    pub(super) root: Option<i32>,
    pub(super) worker: Option<(WorkerId, Option<Bytes>)>,
    /// The group that the command is to live in, until it is there.
    pub(super) made: Option<Result<Group, CgroupError>>,
    pub(super) discovery: Option<Discovery>,
    /// Looks that are left for a server below a command that counts as one worker.
    pub(super) looks_for_server: u32,
    /// Not looked for before then.
    pub(super) look_for_server_at: Timestamp,
    pub(super) probe: Option<Probe>,
    pub(super) ear: Option<(Ear, u64)>,
    /// Who still waits to be accepted, while it is about to be told to stop.
    pub(super) backlog: Option<Backlog>,
    /// Files of its sockets that stay closed to new clients until the run ends.
    pub(super) closed: Vec<Closed>,
}

impl Run {
    /// Ends the wait for connections to be accepted.
    pub(super) fn end_backlog(&mut self) {
        let closed = self.backlog.take().map(Backlog::into_files);
        self.closed.extend(closed.into_iter().flatten());
    }
}

impl Host {
    pub(super) fn start(&mut self, run: RunId, worker: Option<(WorkerId, Option<Bytes>)>) {
        if let Err(error) = self.try_start(run, worker) {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let error = format!("start its keeper: {error}");
            self.events
                .push_back(Event::StartFailed { run, errno, error });
            self.events.push_back(Event::RunOver { run });
        }
    }

    fn try_start(
        &mut self,
        id: RunId,
        worker: Option<(WorkerId, Option<Bytes>)>,
    ) -> std::io::Result<()> {
        // An earlier owner of a socket, or an earlier run, may have left it closed.
        if let Err(error) = reopen_all(&self.proc) {
            let what = format!("open a listening socket to new connections again: {error}");
            self.fail(what, None, Effect::Other);
        }
        let ear = match self.spec.ready.when {
            ReadyWhen::Notify => {
                let ear = Ear::open(&self.notify_path())?;
                let token = self.watch(&ear, Source::Ear)?;
                Some((ear, token))
            }
            ReadyWhen::Auto | ReadyWhen::Tcp(_) | ReadyWhen::Http(_) | ReadyWhen::Delay(_) => None,
        };
        let path = ear.as_ref().map(|(ear, _)| ear.path());
        let made = self.make_group(worker);
        let place = made.as_ref().ok().and_then(Group::birthplace);
        let (spec, foreground) = (&self.spec, self.is_job());
        let sockets = &self.listeners;
        let started = Keeper::start(
            &spec.command,
            (foreground, path, place),
            self.files.given(),
            sockets,
        );
        let keeper = match started {
            Ok(keeper) => keeper,
            Err(error) => {
                self.gone.extend(made.ok());
                return Err(error);
            }
        };
        let keeper_token = self.watch(&keeper, Source::Keeper)?;
        self.run = Some(Run {
            id,
            keeper,
            keeper_token,
            orphaned: false,
            ending_since: None,
            root: None,
            worker,
            made: Some(made),
            discovery: None,
            looks_for_server: LOOKS_FOR_SERVER,
            look_for_server_at: Timestamp::default(),
            probe: None,
            ear,
            backlog: None,
            closed: Vec::new(),
        });
        Ok(())
    }

    /// The group of the command, with its cap.
    fn make_group(
        &mut self,
        worker: Option<(WorkerId, Option<Bytes>)>,
    ) -> Result<Group, CgroupError> {
        let name = worker.map_or_else(|| SERVER.to_owned(), |(worker, _)| worker.to_string());
        // RACE: that of the run before may still be there, and must not be removed once this one
        // is made. What cannot be removed now is taken over.
        let old = |group: &mut Group| group.name().as_ref() == Some(&name);
        for group in self.gone.extract_if(.., old) {
            let _ = group.remove();
        }
        let mut group = self.groups.leaf(&name)?;
        if let Some((_, cap)) = worker {
            if self.groups.caps() != CapMechanism::Rlimit {
                group.set_cap(cap, self.swap)?;
            }
            self.limit_pids(&group);
        }
        Ok(group)
    }

    pub(super) fn notify_path(&self) -> PathBuf {
        self.spec.control.socket.with_extension("notify")
    }

    /// What the keeper says.
    pub(super) fn on_keeper(&mut self, now: Timestamp) {
        let words = self
            .run
            .as_mut()
            .map(|run| run.keeper.words())
            .unwrap_or_default();
        for word in words {
            match word {
                Word::Waiting { pid } => self.prepare(pid),
                Word::Executed { pid } => self.on_executed(now, pid),
                Word::Failed { errno } => self.on_exec_failed(errno),
                Word::Reaped {
                    pid,
                    status,
                    peak_kib,
                } => {
                    self.on_reaped(pid, ended(status), peak_kib);
                }
            }
        }
    }

    /// The command's process waits: it gets its group and its limits before its first instruction.
    fn prepare(&mut self, pid: i32) {
        let Some(run) = &mut self.run else { return };
        run.root = Some(pid);
        let worker = run.worker;
        let Some(made) = run.made.take() else { return };
        // Where it was born in its group, that is so already.
        let made = made.and_then(|mut group| group.add(pid).map(|()| group));
        // Ours is never the command's: it must not be the last that the OOM killer takes.
        let _ = self.proc.set_oom_score_adj(pid, self.oom_score_adj);
        match (made, worker) {
            (Ok(group), Some((worker, cap))) => self.track_command(worker, pid, group, cap),
            (Ok(group), None) => self.server_group = Some(group),
            // Another process has killed it already, and its exit is about to be seen.
            (Err(error), _) if error.is_gone() => {}
            (Err(error), _) => {
                let worker = worker.map(|(worker, _)| worker);
                self.fail(error.to_string(), worker, Effect::Cap);
            }
        }
        for (name, limit) in &self.spec.rlimits.clone() {
            if let Err(error) = rlimit::set(pid, name, *limit) {
                self.fail(error.to_string(), None, Effect::Other);
            }
        }
        // The run was killed before the keeper's first message.
        if let Some(run) = self.run.as_ref().filter(|run| run.ending_since.is_some()) {
            return self.kill_run(run.id);
        }
        // A keeper that is gone executes nothing, and its end is on its way.
        let _ = self.run.as_mut().map(|run| run.keeper.go());
    }

    fn track_command(&mut self, worker: WorkerId, pid: i32, group: Group, cap: Option<Bytes>) {
        match PidFd::open(pid) {
            Ok(process) => {
                let tracked = Tracked::new(process, group, true);
                self.track(worker, tracked);
                self.rail(worker, cap);
            }
            Err(error) => self.fail(format!("hold process {pid}: {error}"), None, Effect::Other),
        }
    }

    fn on_executed(&mut self, now: Timestamp, pid: i32) {
        let hears = self.forks.is_some();
        let server = matches!(self.spec.kind, Kind::Server(_));
        let Some(run) = &mut self.run else { return };
        // RACE: one that was killed before it could say that it waits has an end as well.
        run.root.get_or_insert(pid);
        if server {
            run.discovery = Some(Discovery::new(pid, hears, now));
        }
        run.probe = Probe::start(&self.spec.ready.when, Arc::clone(&self.bell));
        self.events.push_back(Event::Started { run: run.id, pid });
    }

    fn on_exec_failed(&mut self, errno: i32) {
        let command = &self.spec.command;
        let whose = command.user.as_ref().map(|user| format!(" as {user}"));
        let error = format!(
            "execute {}{}: {}",
            command.program.display(),
            whose.unwrap_or_default(),
            std::io::Error::from_raw_os_error(errno)
        );
        let Some(run) = &self.run else { return };
        self.events.push_back(Event::StartFailed {
            run: run.id,
            errno,
            error,
        });
        if let Some((worker, _)) = run.worker {
            self.untrack(worker);
        }
    }

    /// A child of the keeper was buried: the command, or an orphan of its tree.
    fn on_reaped(&mut self, pid: i32, ended: Ended, peak_kib: i64) {
        let Some(run) = &mut self.run else { return };
        if let Some(discovery) = &mut run.discovery {
            discovery.forget(pid);
        }
        if run.root != Some(pid) {
            return;
        }
        let id = run.id;
        let successor = run
            .discovery
            .as_mut()
            .and_then(|found| found.successor(&self.proc));
        run.root = successor;
        if let Some((worker, _)) = run
            .worker
            .filter(|(worker, _)| self.workers.contains_key(worker))
        {
            let oom = self.oom_of(worker, ended);
            let peak = match oom {
                Oom::Cap => self
                    .workers
                    .get(&worker)
                    .and_then(|tracked| tracked.group.peak()),
                Oom::No | Oom::Budget | Oom::Elsewhere => None,
            };
            // ru_maxrss survives execve(2), so that it is the keeper's where that was larger; the
            // keeper is a few MB small.
            let resident = Bytes(u64::try_from(peak_kib).unwrap_or(0).saturating_mul(1024));
            let peak = peak.or(Some(resident));
            self.untrack(worker);
            self.events.push_back(Event::WorkerEnded {
                worker,
                ended,
                oom,
                peak,
            });
        }
        let oom = self.oom_of_server(ended);
        self.events.push_back(Event::CommandEnded {
            run: id,
            ended,
            oom,
            successor,
        });
    }

    /// A child of ours has ended.
    pub(super) fn on_child(&mut self, now: Timestamp) {
        let keeper = self.run.as_ref().map(|run| run.keeper.pid());
        let sweeper = self.sweeper.as_ref().map(Sweeper::pid);
        let ours: Vec<i32> = keeper.into_iter().chain(sweeper).collect();
        for dead in reap(&ours) {
            if sweeper == Some(dead.pid) {
                self.on_sweeper_gone();
                continue;
            }
            let Some(run) = &self.run else { continue };
            if dead.pid == run.keeper.pid() {
                // Its last words may still be in the socket.
                self.on_keeper(now);
                self.on_keeper_gone(ended(dead.status));
            } else if run.orphaned {
                self.on_reaped(dead.pid, ended(dead.status), dead.peak_kib);
            }
        }
        self.bury_orphans();
    }

    fn on_keeper_gone(&mut self, how: Ended) {
        let Some(run) = &mut self.run else { return };
        if how == Ended::Exit(0) {
            self.end_run();
            return;
        }
        // RACE: somebody killed the keeper. All that it kept are our children now (we are their
        // nearest subreaper), and go the way they would have gone.
        run.orphaned = true;
        let what = format!("keep the command: its keeper ended ({how:?}); ending what it kept");
        self.fail(what, None, Effect::Other);
        let _ = self.groups.kill_all();
    }

    pub(super) fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.unwatch(&run.keeper, run.keeper_token);
        if let Some((ear, token)) = &run.ear {
            self.unwatch(ear, *token);
        }
        self.gone.extend(run.made.and_then(Result::ok));
        self.gone.extend(self.server_group.take());
        self.events.push_back(Event::RunOver { run: run.id });
    }

    /// To the server's master, wherever a wrapper or a launcher has put it, else to the command.
    pub(super) fn signal_command(&mut self, id: RunId, signal: Signal) {
        let Some(run) = self.run.as_mut().filter(|run| run.id == id) else {
            return;
        };
        // The wait for its connections is over.
        run.end_backlog();
        let master = run.discovery.as_ref().and_then(Discovery::main);
        let Some(pid) = master.or(run.root) else {
            return;
        };
        let sent = PidFd::open(pid).and_then(|process| process.signal(signal));
        if let Err(error) = sent.or_else(gone_is_fine) {
            self.fail(
                format!("send {signal} to pid {pid}: {error}"),
                None,
                Effect::Signal,
            );
        }
    }

    /// Looks for workers, and tells what was found.
    pub(super) fn discover(&mut self, now: Timestamp) {
        let Some(run) = &mut self.run else { return };
        let Some(discovery) = run
            .discovery
            .as_mut()
            .filter(|found| found.deadline() <= now)
        else {
            return;
        };
        let before = discovery.masters();
        let findings = discovery.scan(&self.proc, now);
        let masters = discovery.masters();
        let id = run.id;
        if before != masters
            && let Some(forks) = &self.forks
            && forks.watch(&masters).is_err()
        {
            // The slow scan goes on; it is only later by up to a second.
            self.forks = None;
        }
        for finding in findings {
            let event = match finding {
                Finding::Seen { pid } => Event::WorkerSeen { run: id, pid },
                Finding::Masters { count } => Event::Masters { run: id, count },
                Finding::NoWorker { pid } => match self.worker_of(pid) {
                    Some(worker) => {
                        self.give_to_server(worker, pid);
                        Event::NoWorker { worker }
                    }
                    None => continue,
                },
                Finding::Ready { pid } => match self.worker_of(pid) {
                    Some(worker) => Event::WorkerReady { worker },
                    None => continue,
                },
                Finding::Helper { pid } => Event::ServerHelper(pid, self.proc.command(pid)),
            };
            self.events.push_back(event);
        }
    }

    fn worker_of(&self, pid: i32) -> Option<WorkerId> {
        let held = self.workers.iter();
        let held = held.map(|(id, tracked)| (tracked.process.pid(), *id));
        held.chain(self.files.waiting())
            .find_map(|(its, id)| (its == pid).then_some(id))
    }

    /// A process of the server is a worker from now on.
    pub(super) fn adopt(&mut self, worker: WorkerId, pid: i32, cap: Option<Bytes>) {
        let process = match PidFd::open(pid) {
            Ok(process) if self.files.leaves_reserve(&process) => process,
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                // RACE: it was gone before we held it.
                self.ended_unheld(worker);
                return;
            }
            Ok(_) | Err(_) => {
                self.wait_for_room(worker, pid, cap);
                return;
            }
        };
        let group = self.make_worker_group(worker, pid, cap);
        let _ = self.proc.set_oom_score_adj(
            pid,
            self.oom_score_adj.saturating_add(WORKERS_FIRST).min(1000),
        );
        self.track(worker, Tracked::new(process, group, false));
        self.rail(worker, cap);
    }

    /// The group of a worker that runs already, with its cap; it is moved there with its children.
    pub(super) fn make_worker_group(
        &mut self,
        worker: WorkerId,
        pid: i32,
        cap: Option<Bytes>,
    ) -> Group {
        let mut group = match self.groups.leaf(&worker.to_string()) {
            Ok(group) => group,
            Err(error) => {
                self.fail_cap(worker, pid, error.to_string());
                Group::nowhere(&worker.to_string())
            }
        };
        if group.holds_processes() {
            let capped = match self.groups.caps() {
                CapMechanism::Rlimit => Ok(()),
                CapMechanism::CgroupV1 | CapMechanism::CgroupV2 => {
                    group.set_cap(cap, self.swap).map(drop)
                }
            };
            self.limit_pids(&group);
            // A worker that forks while we move it leaves that child behind: move the tree after
            // it.
            let moved = capped.and_then(|()| group.add(pid)).and_then(|()| {
                let helpers = self.proc.descendants(pid);
                helpers.into_iter().try_for_each(|helper| {
                    group
                        .add(helper)
                        .or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })
                })
            });
            if let Err(error) = moved
                && !error.is_gone()
            {
                self.fail_cap(worker, pid, error.to_string());
            }
        }
        group
    }
}
