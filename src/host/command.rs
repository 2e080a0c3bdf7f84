//! One start of the command, in which all components take part: from the start of its keeper to the
//! end of the last process that the command has started.

use std::io;

use super::{
    Host,
    cgroup::Group,
    discovery::{Finding, helpers},
    listen::{Service, ready_port},
    process::{
        ChildRole, Keeper, fleet,
        keeper::{Message, ended},
        pidfd::PidFd,
        signals::would_end,
    },
    workers::gone_is_fine,
};
use crate::{
    servers::profile::{Profile, Workers},
    supervisor::{
        input::{Effect, Ended, Input, Notification},
        spec::{Kind, ReadyWhen},
    },
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};

/// Ancestors of the sender of a message that are examined.
const GENERATIONS_MAX: usize = 8;

impl Host {
    /// Starts the command: as a worker with its cap, or as a server.
    pub(super) fn start(&mut self, run: RunId, worker: Option<(WorkerId, Option<Bytes>)>) {
        if let Err(error) = self.try_start(run, worker) {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let error = format!("start its keeper: {error}");
            self.context.tell(Input::StartFailed { run, errno, error });
            self.context.tell(Input::RunOver { run });
        }
    }

    fn try_start(
        &mut self,
        id: RunId,
        worker: Option<(WorkerId, Option<Bytes>)>,
    ) -> io::Result<()> {
        if worker.is_some() {
            self.context.treat_as_worker();
        }
        self.listen.reopen(&mut self.context);
        self.systemd.open_notify_socket(&mut self.context)?;
        let group = self.cgroups.make_command_group(self.context.spec(), worker);
        let place = group.as_ref().ok().and_then(Group::unified_fd);
        let started = Keeper::start(
            &self.context.spec().command,
            fleet::command_line(self.context.spec()),
            (self.context.is_job(), self.systemd.notify_path(), place),
            self.workers.files_of_command(),
            self.listen.listeners(),
        );
        let keeper = match started {
            Ok(keeper) => keeper,
            Err(error) => {
                if let Ok(group) = group {
                    self.cgroups.retire(group);
                }
                self.systemd.end_start(&mut self.context);
                return Err(error);
            }
        };
        self.discovery.begin_start();
        let context = &mut self.context;
        self.processes
            .begin_run(context, (id, keeper), worker, group)
    }

    /// Handles the messages of the keeper.
    pub(super) fn on_keeper(&mut self, now: Timestamp) {
        for message in self.processes.keeper_messages() {
            match message {
                Message::Waiting { pid } => self.on_waiting(pid),
                Message::Executed { pid } => self.on_executed(now, pid),
                Message::Failed { errno } => self.on_exec_failed(errno),
                Message::Reaped {
                    pid,
                    status,
                    peak_kib,
                } => self.on_reaped(pid, ended(status), peak_kib),
            }
        }
    }

    /// Handles the command's process, which waits to be released: it gets its group and its limits
    /// before its first instruction.
    fn on_waiting(&mut self, pid: i32) {
        let Some(group) = self.processes.on_waiting(pid) else {
            return;
        };
        let worker = self.processes.run().and_then(|run| run.worker());
        // A process that was created in its group is in it already.
        let group = group.and_then(|mut group| group.add(pid).map(|()| group));
        // The command does not inherit our score, which would make it the last victim of the OOM
        // killer.
        let score = self.context.oom_score_adj();
        let _ = self.context.proc().set_oom_score_adj(pid, score);
        match (group, worker) {
            (Ok(group), Some(worker)) => {
                let (context, groups) = (&mut self.context, &self.cgroups);
                self.workers
                    .hold_command(context, groups, worker, (pid, group));
            }
            (Ok(group), None) => self.cgroups.set_server(group),
            // Another process has killed it already, and its exit is about to be seen.
            (Err(error), _) if error.is_gone() => {}
            (Err(error), _) => {
                let worker = worker.map(|(worker, _)| worker);
                self.context.fail(error.to_string(), worker, Effect::Cap);
            }
        }
        self.processes.set_limits(&mut self.context, pid);
        let run = self.processes.run();
        match run.filter(|run| run.is_ending()).map(|run| run.id()) {
            // The run was killed before the keeper's first message.
            Some(run) => self.kill_run(run),
            None => self.processes.execute(),
        }
    }

    fn on_executed(&mut self, now: Timestamp, pid: i32) {
        let Some(run) = self.processes.on_executed(pid) else {
            return;
        };
        if let Kind::Server(server) = self.context.spec().kind {
            self.discovery.begin_search(now, server, pid);
        }
        self.systemd.start_probe(self.context.spec());
        self.context.tell(Input::Started { run, pid });
    }

    fn on_exec_failed(&mut self, errno: i32) {
        let command = &self.context.spec().command;
        let user = command.user.as_ref().map(|user| format!(" as {user}"));
        let error = format!(
            "execute {}{}: {}",
            command.program.display(),
            user.unwrap_or_default(),
            io::Error::from_raw_os_error(errno)
        );
        let Some(run) = self.processes.run() else {
            return;
        };
        self.context.tell(Input::StartFailed {
            run: run.id(),
            errno,
            error,
        });
        if let Some((worker, _)) = run.worker() {
            let (context, groups) = (&mut self.context, &mut self.cgroups);
            self.workers.untrack(context, groups, worker.into());
        }
    }

    /// The keeper has reaped a child: the command, or an orphan among its descendants.
    fn on_reaped(&mut self, pid: i32, ended: Ended, peak_kib: i64) {
        let Some(run) = self.processes.run() else {
            return;
        };
        self.discovery.forget(pid);
        if run.root() != Some(pid) {
            return;
        }
        let (id, worker) = (run.id(), run.worker().map(|(worker, _)| worker));
        let successor = self.discovery.successor(self.context.proc());
        self.processes.replace_root(successor);
        if let Some(worker) = worker.filter(|worker| self.workers.holds(*worker)) {
            // ru_maxrss survives execve(2), so it is the keeper's where that was larger. The keeper
            // uses a few MB only.
            let resident = Bytes(u64::try_from(peak_kib).unwrap_or(0).saturating_mul(1024));
            let (context, groups) = (&mut self.context, &mut self.cgroups);
            self.workers
                .end(context, groups, (worker.into(), ended), Some(resident));
        }
        self.context.tell(Input::CommandEnded {
            run: id,
            ended,
            oom: self.cgroups.oom_of_server(ended),
            successor,
        });
    }

    /// Handles the ends of our own children.
    pub(super) fn on_child(&mut self, now: Timestamp) {
        for dead in self.processes.reap() {
            match self.processes.role_of(dead.pid) {
                ChildRole::Sweeper => self.processes.restart_sweeper(self.context.spec()),
                ChildRole::Keeper => {
                    // Its last messages may still be in the socket.
                    self.on_keeper(now);
                    self.on_keeper_ended(ended(dead.status));
                }
                ChildRole::Orphan => self.on_reaped(dead.pid, ended(dead.status), dead.peak_kib),
                ChildRole::Stranger => {}
            }
        }
        if self.processes.are_orphans_gone() {
            self.end_run();
        }
    }

    fn on_keeper_ended(&mut self, how: Ended) {
        if how == Ended::Exit(0) {
            self.end_run();
            return;
        }
        // RACE: another process has killed the keeper. The processes that it kept are our children
        // now (we are their nearest subreaper). Each is reaped as the keeper would have reaped it.
        self.processes.adopt_orphans();
        let what = format!("keep the command: its keeper ended ({how:?}); killing its processes");
        self.context.fail(what, None, Effect::Other);
        self.cgroups.kill_all();
    }

    fn end_run(&mut self) {
        let Some((run, group)) = self.processes.end_run(&mut self.context) else {
            return;
        };
        self.systemd.end_start(&mut self.context);
        self.discovery.end_start();
        if let Some(group) = group {
            self.cgroups.retire(group);
        }
        self.cgroups.retire_server();
        self.context.tell(Input::RunOver { run });
        self.listen.end_start();
    }

    /// Sends SIGKILL to every process that this start has created.
    pub(super) fn kill_run(&mut self, run: RunId) {
        let (context, groups) = (&mut self.context, &self.cgroups);
        self.processes.kill_run(context, groups, run);
    }

    /// Signals the server's master, even if a wrapper or a launcher has started it; otherwise the
    /// command.
    pub(super) fn signal_command(&mut self, run: RunId, signal: Signal) {
        let Some(run) = self.processes.run_of(run) else {
            return;
        };
        // The wait for its connections is over.
        self.listen.end_wait();
        let Some(pid) = self.discovery.main_master().or(run.root()) else {
            return;
        };
        let is_stop = signal == self.context.spec().stop.signal;
        if let Some((worker, _)) = run.worker().filter(|_| is_stop)
            && would_end(self.context.proc(), pid, signal)
        {
            self.context.tell(Input::LeavesBadly(worker));
        }
        let sent = PidFd::open(pid).and_then(|process| process.signal(signal));
        if let Err(error) = sent.or_else(gone_is_fine) {
            let what = format!("send {signal} to pid {pid}: {error}");
            self.context.fail(what, None, Effect::Signal);
        }
    }

    /// Handles the messages that the command and its workers have sent about themselves.
    pub(super) fn on_notify_messages(&mut self) {
        let messages = self.systemd.take_messages();
        let Some(run) = self.processes.run() else {
            return;
        };
        let (run, program) = (run.id(), run.worker().map(|(worker, _)| worker));
        for message in messages {
            let is_ready = message.ready && self.context.spec().ready.when == ReadyWhen::Notify;
            if is_ready && self.systemd.on_ready_message(&self.context, message.sender) {
                self.context.tell(Input::ServiceReady { run });
            }
            let (status, extend) = (message.status, message.extend);
            if status.is_some() || extend.is_some() {
                // A helper such as systemd-notify(1) may have ended, but a single program is the
                // only worker.
                let worker = message.sender.and_then(|pid| self.worker_above(pid));
                self.context.tell(Input::Notified(Notification {
                    run,
                    worker: worker.or(program),
                    status,
                    extend,
                }));
            }
        }
        self.tell_copies();
    }

    /// The worker that this process belongs to: its own process or one of its ancestors.
    fn worker_above(&self, mut pid: i32) -> Option<WorkerId> {
        for _ in 0..GENERATIONS_MAX {
            let worker = self.workers.worker_of(pid);
            if worker.is_some() {
                return worker;
            }
            pid = self.context.proc().stat(pid).ok()?.ppid;
        }
        None
    }

    /// Searches for workers if a search is due, and reports what it has found.
    pub(super) fn discover(&mut self, now: Timestamp) {
        let Some(run) = self.processes.run().map(|run| run.id()) else {
            return;
        };
        for finding in self.discovery.scan(self.context.proc(), now) {
            let input = match finding {
                Finding::Seen { pid } => Input::WorkerSeen { run, pid },
                Finding::Masters { count } => Input::Masters { run, count },
                Finding::NoWorker { pid } => match self.workers.worker_of(pid) {
                    Some(worker) => {
                        let (context, groups) = (&mut self.context, &mut self.cgroups);
                        self.workers.give_to_server(context, groups, worker, pid);
                        Input::NoWorker { worker }
                    }
                    None => continue,
                },
                Finding::Ready { pid } => match self.workers.worker_of(pid) {
                    Some(worker) => {
                        if self.leaves_badly(pid) {
                            self.context.tell(Input::LeavesBadly(worker));
                        }
                        if !self.systemd.is_ready(&self.context, pid) {
                            continue;
                        }
                        Input::WorkerReady { worker }
                    }
                    None => continue,
                },
                Finding::Helper { pid } => {
                    Input::ServerHelper(pid, self.context.proc().command(pid))
                }
            };
            self.context.tell(input);
        }
    }

    /// Reports the copies of a fleet whose readiness is known now.
    pub(super) fn tell_copies(&mut self) {
        for (pid, result) in self.systemd.take_copies(self.context.proc()) {
            if let Some(worker) = self.workers.worker_of(pid) {
                self.context.tell(match result {
                    Ok(()) => Input::WorkerReady { worker },
                    Err(status) => Input::CopyFails(worker, status),
                });
            }
        }
    }

    /// Whether a worker does not handle the signal that makes it leave, or its server would stop
    /// then. A copy of a program is asked in any case, because it may have nothing to finish, but
    /// its end is explained.
    fn leaves_badly(&self, pid: i32) -> bool {
        let Kind::Server(profile) = self.context.spec().kind else {
            return false;
        };
        let proc = self.context.proc();
        if profile.workers == Workers::Copies {
            return would_end(proc, pid, self.context.spec().stop.signal);
        }
        let handles = |pid, signal| proc.catches(pid, &[signal]);
        let is_guarded = profile.guard.is_none_or(|guard| {
            let mut masters = self.discovery.masters().into_iter().flatten();
            masters.any(|master| handles(master, guard))
        });
        let retire = profile.retire();
        retire.is_some_and(|retire| !handles(pid, retire)) || !is_guarded
    }

    /// Closes the service's listening sockets to new connections, and watches the connections that
    /// wait to be accepted. `named`: sockets, as pid and inode, that the processes have named as
    /// their server's.
    pub fn drain_backlog(&mut self, now: Timestamp, id: RunId, named: Vec<(i32, u64)>) {
        let Some(run) = self.processes.run_of(id) else {
            return;
        };
        let masters = self.discovery.masters();
        let masters = masters.filter(|masters| !masters.is_empty());
        let command = || self.program_of(run.root());
        let service = Service {
            keeper: run.keeper(),
            top_pids: masters.unwrap_or_else(command),
            workers: self.workers.server_worker_pids(),
            named,
            ready_port: ready_port(&self.context.spec().ready.when),
        };
        self.listen.close(&mut self.context, now, &service);
        // Usually no connection waits.
        self.listen.check(&mut self.context, now, id);
    }

    /// The process of a command that is a single program. It may have a parent of ours.
    fn program_of(&self, root: Option<i32>) -> Vec<i32> {
        let mut copies = Vec::new();
        if let Some(parent) = root.filter(|_| self.context.spec().overlap) {
            // This fails for a process that has just ended.
            let _ = self.context.proc().children(parent, &mut copies);
        }
        if copies.is_empty() {
            copies.extend(root);
        }
        copies
    }

    /// Searches for a server among the descendants of a command that was started as a single
    /// program.
    pub(super) fn search_for_server(&mut self, now: Timestamp) {
        if self.pool.is_none()
            && let Some(run) = self.processes.run()
        {
            let context = &mut self.context;
            self.discovery.search_for_server(context, now, run.root());
        }
    }

    /// Treats the command, which was a worker until now, as a server, and searches for its workers.
    pub(super) fn treat_as_server(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        server: &'static Profile,
    ) {
        self.context.treat_as_server(server);
        let Some(run) = self.processes.run_mut() else {
            return;
        };
        run.treat_as_server();
        if let Some(root) = run.root() {
            self.discovery.begin_search(now, server, root);
        }
        let (context, groups) = (&mut self.context, &mut self.cgroups);
        self.workers.give_all_to_server(context, groups, worker);
    }

    /// Reports the processes that have outlived the worker of the server which started them.
    pub(super) fn tell_leftovers(&mut self, now: Timestamp) {
        if self.context.is_server()
            && self.pool.is_none()
            && let Some(run) = self.processes.run()
        {
            let (root, discovery) = (run.root(), &self.discovery);
            let is_of_server = |pid| root == Some(pid) || discovery.is_master_or_child(pid);
            let (context, groups) = (&mut self.context, &self.cgroups);
            self.workers
                .tell_leftovers(context, groups, now, &is_of_server);
        }
    }

    /// Reports the memory of the server's own processes.
    pub(super) fn tell_server_memory(&mut self) {
        if let Some(mut pids) = self.discovery.masters() {
            let helpers = helpers::of_server(&self.context, &self.discovery.helpers());
            pids.extend(helpers.iter().map(|helper| helper.pid));
            self.context.tell(Input::ServerHelpers(helpers));
            self.cgroups.tell_server_memory(&mut self.context, &pids);
        }
    }

    /// Reports the memory charged to all groups together, and to the groups above ours.
    pub(super) fn tell_charges(&mut self) {
        self.cgroups.tell_held_memory(&mut self.context);
        self.cgroups.on_second();
        if self.systemd.has_termination_message() {
            self.cgroups.tell_charge(&mut self.context);
        }
    }
}
