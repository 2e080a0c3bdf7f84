//! What the host hands to its successor when another binary takes over: descriptors by their
//! numbers, and what they are.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use serde::{Deserialize, Serialize};

use super::{
    Host,
    cgroup::{self, Found, Groups},
    discovery::{self, Discovery},
    exec,
    hear::Source,
    last_words::LastWords,
    listeners::{self, Listeners},
    notify::Ear,
    open_files::{HandedFiles, OpenFiles},
    pidfd::PidFd,
    procfs::Proc,
    run::Run,
    spawn::Keeper,
    sweeper::{HandedSweeper, Sweeper},
    tracked::Tracked,
};
use crate::{
    supervisor::spec::{ReadyWhen, Spec},
    units::{Bytes, RunId, Timestamp, WorkerId},
};

/// See the module.
#[derive(Debug, Deserialize, Serialize)]
pub struct Handed {
    groups: cgroup::HandedGroups,
    run: HandedRun,
    workers: Vec<HandedWorker>,
    server_group: bool,
    gone: Vec<String>,
    oom_score_adj: i32,
    listeners: Vec<listeners::Handed>,
    #[serde(default)]
    sweeper: Option<HandedSweeper>,
    #[serde(default)]
    files: Option<HandedFiles>,
}

#[derive(Debug, Deserialize, Serialize)]
struct HandedRun {
    id: RunId,
    keeper: i32,
    socket: RawFd,
    root: Option<i32>,
    worker: Option<(WorkerId, Option<Bytes>)>,
    discovery: Option<discovery::Handed>,
}

#[derive(Debug, Deserialize, Serialize)]
struct HandedWorker {
    id: WorkerId,
    pid: i32,
    process: RawFd,
    is_command: bool,
    /// Its group's name and what the OOM killer had done there.
    group: Option<cgroup::HandedGroup>,
}

impl Host {
    /// All that a successor needs, and the descriptors that are to stay open for it. `None` while
    /// no command runs.
    pub fn hand_over(&self) -> Option<(Handed, Vec<RawFd>)> {
        let run = self.run.as_ref().filter(|run| !run.orphaned)?;
        let socket = run.keeper.as_fd().as_raw_fd();
        let workers: Vec<_> = self
            .workers
            .iter()
            .map(|(id, tracked)| HandedWorker {
                id: *id,
                pid: tracked.process.pid(),
                process: tracked.process.as_fd().as_raw_fd(),
                is_command: tracked.is_command,
                group: tracked.group.hand_over(),
            })
            .collect();
        let processes = workers.iter().map(|worker| worker.process);
        let listeners = self.listeners.hand_over();
        let held = listeners.iter().map(listeners::Handed::socket);
        let sweeper = self.sweeper.as_ref().map(Sweeper::hand_over);
        let pipe = sweeper.iter().map(|sweeper| sweeper.pipe);
        let keep = std::iter::once(socket)
            .chain(processes)
            .chain(held)
            .chain(self.groups.descriptors())
            .chain(pipe)
            .collect();
        let handed = Handed {
            groups: self.groups.hand_over(),
            run: HandedRun {
                id: run.id,
                keeper: run.keeper.pid(),
                socket,
                root: run.root,
                worker: run.worker,
                discovery: run.discovery.as_ref().map(Discovery::hand_over),
            },
            workers,
            server_group: self.server_group.is_some(),
            gone: self.gone.iter().filter_map(cgroup::Group::name).collect(),
            oom_score_adj: self.oom_score_adj,
            listeners,
            sweeper,
            files: Some(self.files.hand_over()),
        };
        Some((handed, keep))
    }

    /// Goes on where another binary stopped.
    pub fn take_over(spec: &Spec, now: Timestamp, handed: Handed) -> io::Result<Self> {
        let found = Found::discover(&Proc::default()).map_err(io::Error::other)?;
        let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let groups = Groups::take_over(handed.groups, own);
        let listeners = Listeners::take_over(handed.listeners, &spec.command.listen, &spec.name)?;
        // One that cannot be opened any more is no reason to end the service.
        let last_words = LastWords::open(&spec.control.termination_log, own == 1);
        let all = (found, groups, listeners, last_words.unwrap_or_default());
        let sweeper = handed.sweeper.as_ref().and_then(Sweeper::take_over);
        let sweeper = sweeper.or_else(|| Sweeper::start(&spec.name).ok());
        let files = OpenFiles::raise(handed.files);
        let mut host = Self::hold(spec, now, all, (handed.oom_score_adj, sweeper, files))?;
        host.take_over_run(now, handed.run)?;
        for worker in handed.workers {
            host.take_over_worker(worker)?;
        }
        if handed.server_group {
            host.server_group = host.groups.leaf(super::run::SERVER).ok();
        }
        let gone = handed.gone.iter();
        host.gone = gone
            .filter_map(|name| host.groups.leaf(name).ok())
            .collect();
        exec::listen_again()?;
        // RACE: a child may have ended before we listened, and its signal may have been merged.
        host.on_child(now);
        Ok(host)
    }

    fn take_over_run(&mut self, now: Timestamp, handed: HandedRun) -> io::Result<()> {
        let socket = exec::adopt(handed.socket).ok_or_else(|| lost("the keeper's socket"))?;
        let keeper = Keeper::take_over(handed.keeper, socket.into())?;
        let keeper_token = self.watch(&keeper, Source::Keeper)?;
        let hears = self.forks.is_some();
        let discovery = handed
            .discovery
            .map(|discovery| Discovery::take_over(discovery, hears, now));
        if let (Some(forks), Some(discovery)) = (&self.forks, &discovery)
            && forks.watch(&discovery.masters()).is_err()
        {
            self.forks = None;
        }
        // What the command says there later is nobody's business, but it must not fail.
        let ear = match self.spec.ready.when {
            ReadyWhen::Notify => {
                let ear = Ear::open(&self.notify_path())?;
                let token = self.watch(&ear, Source::Ear)?;
                Some((ear, token))
            }
            ReadyWhen::Auto | ReadyWhen::Tcp(_) | ReadyWhen::Http(_) | ReadyWhen::Delay(_) => None,
        };
        self.run = Some(Run {
            id: handed.id,
            keeper,
            keeper_token,
            orphaned: false,
            ending_since: None,
            root: handed.root,
            worker: handed.worker,
            made: None,
            discovery,
            looks_for_server: 0,
            look_for_server_at: Timestamp::default(),
            probe: None,
            ear,
            backlog: None,
            closed: Vec::new(),
        });
        Ok(())
    }

    fn take_over_worker(&mut self, handed: HandedWorker) -> io::Result<()> {
        let fd = exec::adopt(handed.process).ok_or_else(|| lost("a worker's process"))?;
        let process = PidFd::take_over(handed.pid, fd);
        let group = match handed.group {
            Some(group) => self.groups.take_over_group(group),
            None => cgroup::Group::nowhere(&handed.id.to_string()),
        };
        self.track(handed.id, Tracked::new(process, group, handed.is_command));
        Ok(())
    }
}

fn lost(what: &str) -> io::Error {
    io::Error::other(format!("{what} was not left open"))
}
