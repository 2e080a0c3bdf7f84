//! TOUCHES THE KERNEL: carries out what was decided, and tells what happened. The only room with
//! `unsafe` in it.
//!
//! [`Host::carry_out`] takes one action; [`Host::collect`] gathers what the kernel has to tell when
//! [`Host`] (an epoll descriptor) is readable or [`Host::deadline`] has passed;
//! [`Host::poll_event`] gives it out. Nothing here waits, but for system calls that the kernel
//! answers at once; what takes long (exact looks, questions to the service) has threads of its own.

mod absent;
pub mod agents;
mod asked;
mod backlog;
pub mod cgroup;
pub mod clock;
mod discovery;
pub mod doctor;
pub mod exec;
mod forks;
mod handed;
mod hear;
pub mod heartbeat;
pub mod keeper;
mod kill_run;
mod kills;
mod last_words;
mod leftovers;
mod limits;
mod listeners;
mod looker;
mod notify;
pub mod open_files;
mod pidfd;
pub mod pool;
mod probe;
pub mod proc_memory;
pub mod procfs;
mod reaper;
pub mod rights;
pub mod rlimit;
mod run;
mod signals;
mod smaps;
mod spawn;
pub mod sweeper;
mod tmpfs;
mod tracked;
mod upkeep;
pub mod users;
mod workers;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags},
    eventfd::{EfdFlags, EventFd},
    inotify::Inotify,
};

use tokio::io::unix::AsyncFd;

use crate::{
    supervisor::{
        action::{Action, Notice},
        event::{Effect, Event},
        spec::{RestartWhen, Spec},
    },
    units::{Bytes, Timestamp, WorkerId},
};
use cgroup::{Found, Group, Groups, Kills, Pressure};
use forks::Forks;
pub use handed::Handed;
use hear::Source;
use last_words::LastWords;
use limits::swap_allowed;
use listeners::Listeners;
use looker::Looker;
use notify::Manager;
use open_files::OpenFiles;
use procfs::Proc;
use run::Run;
use signals::Signals;
pub use signals::fail_at_file_size_limit;
use sweeper::Sweeper;
use tracked::Tracked;

/// The machine we run on, with the command on it.
#[derive(Debug)]
pub struct Host {
    spec: Spec,
    proc: Proc,
    epoll: Epoll,
    sources: BTreeMap<u64, Source>,
    next_token: u64,
    signals: Signals,
    forks: Option<Forks>,
    looker: Looker,
    bell: Arc<EventFd>,
    found: Found,
    groups: Groups,
    sweeper: Option<Sweeper>,
    files: OpenFiles,
    swap: Option<Bytes>,
    /// Held for as long as it is to be heard of.
    pressure: Option<Pressure>,
    server_group: Option<Group>,
    run: Option<Run>,
    workers: BTreeMap<WorkerId, Tracked>,
    /// Groups of what has ended, until they are empty and can be removed.
    gone: Vec<Group>,
    idle: leftovers::Idle,
    manager: Manager,
    last_words: LastWords,
    kills: Kills,
    oom_score_adj: i32,
    available: Bytes,
    budget: Option<Bytes>,
    /// The command's listening sockets.
    listeners: Listeners,
    /// Where answers of agents are heard of.
    post: Option<Inotify>,
    has_post: bool,
    /// Where we are a pool.
    pool: Option<pool::PoolHost>,
    upkeep: upkeep::Upkeep,
    events: VecDeque<Event>,
}

impl Host {
    /// Takes hold of the machine: groups are made, signals are heard, and we become the nearest
    /// relative of all orphans to come. Nothing is started yet.
    pub fn take(spec: &Spec, now: Timestamp) -> io::Result<Self> {
        // The likeliest to be refused; nothing is to be tidied up after it.
        let listeners = Listeners::take(&spec.command.listen, &spec.name)?;
        let proc = Proc::default();
        let found = Found::discover(&proc).map_err(io::Error::other)?;
        let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        // Before anything is made that would have to be removed again.
        let last_words = LastWords::open(&spec.control.termination_log, own == 1)?;
        cgroup::remove_stale(&found, &proc, &spec.name, own);
        // Started before the first group is made. Without a sweeper, groups stay if we are killed
        // while no keeper runs; the next start of this service removes them.
        let sweeper = Sweeper::start(&spec.name).ok();
        let groups = Groups::create(&found, &spec.name, own);
        let oom_score_adj = rights::protect_from_oom(&proc, own);
        let all = (found, groups, listeners, last_words);
        let files = OpenFiles::raise(None);
        let mut host = Self::hold(spec, now, all, (oom_score_adj, sweeper, files))?;
        host.enable_controllers();
        Ok(host)
    }

    fn hold(
        spec: &Spec,
        now: Timestamp,
        (found, groups, listeners, last_words): (Found, Groups, Listeners, LastWords),
        (oom_score_adj, sweeper, files): (i32, Option<Sweeper>, OpenFiles),
    ) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let proc = Proc::default();
        let available = found.available(&proc).map_err(io::Error::other)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let mut host = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sources: BTreeMap::new(),
            next_token: 0,
            signals: Signals::listen()?,
            forks: Forks::listen().ok(),
            looker: Looker::start(proc.clone())?,
            bell: Arc::new(EventFd::from_flags(flags)?),
            swap: swap_allowed(spec.memory.swap, available),
            spec: spec.clone(),
            proc,
            kills: Kills::new(&found),
            found,
            pressure: groups.watch_pressure(),
            groups,
            sweeper,
            files,
            server_group: None,
            run: None,
            workers: BTreeMap::new(),
            gone: Vec::new(),
            idle: leftovers::Idle::default(),
            manager: Manager::find(),
            last_words,
            oom_score_adj,
            available,
            budget: None,
            listeners,
            post: None,
            has_post: false,
            pool: None,
            upkeep: upkeep::Upkeep::new(now),
            events: VecDeque::new(),
        };
        rights::watch_in_real_time();
        host.watch_own()?;
        let machine = host.machine();
        host.events.push_back(Event::Machine(machine));
        host.events.push_back(Event::Available(available));
        Ok(host)
    }

    /// For a tokio runtime to wait for.
    #[expect(
        unsafe_code,
        reason = "tokio cannot see that the descriptor stays the same"
    )]
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the epoll descriptor is ours, and is neither closed nor changed while we live.
        let registered =
            unsafe { AsyncFd::register_with_interest(self, tokio::io::Interest::READABLE) };
        registered.map_err(io::Error::from)
    }

    /// Does what was decided. What does not work becomes an event.
    pub fn carry_out(&mut self, now: Timestamp, action: Action) {
        match action {
            Action::Start { run, worker } => self.start(run, worker),
            Action::Adopt {
                run: _,
                worker,
                pid,
                cap,
            } => self.adopt(worker, pid, cap),
            Action::Cap { worker, cap } => self.cap(worker, cap),
            Action::Budget { budget } => self.budget(budget),
            Action::ArmWire { worker, room } => self.arm_wire(worker, room),
            Action::Look { worker, how } => self.look(now, worker, how),
            Action::SignalCommand { run, signal } => self.signal_command(run, signal),
            Action::SignalWorker { worker, signal } => self.signal_worker(worker, signal),
            Action::EndLeftover { process, signal } => self.end_leftover(process, signal),
            Action::KillWorker { worker } => self.kill_worker(now, worker),
            Action::KillRun { run } => self.kill_run(run),
            Action::Prioritize { worker, priority } => {
                if let Some(tracked) = self.workers.get_mut(&worker) {
                    tracked.prioritize(&self.proc, now, priority);
                }
            }
            Action::Notify(notice) => self.notify(now, &notice),
            Action::LastWords { text } => self.keep_last_words(&text),
            // The driver's: it knows who asked, it has the agent, and it is the one that ends.
            Action::FindAgent { .. }
            | Action::AskAgent { .. }
            | Action::NoteStack { .. }
            | Action::KeepReport { .. }
            | Action::ReadCounts
            | Action::DrainBacklog { .. }
            | Action::CheckUpgrade { .. }
            | Action::Upgrade
            | Action::Reply { .. }
            | Action::Exit { .. } => {}
        }
    }

    /// What is executed from now on.
    pub fn set_command(&mut self, argv: Vec<std::ffi::OsString>) {
        self.spec.command.argv = argv;
    }

    /// The next thing that happened, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Host::collect`] at the latest.
    pub fn deadline(&self) -> Timestamp {
        let discovery = self.run.as_ref().and_then(|run| run.discovery.as_ref());
        let scan = discovery.map(discovery::Discovery::deadline);
        let backlog = self.run.as_ref().and_then(|run| run.backlog.as_ref());
        let look = backlog.map(|backlog| backlog.next_look);
        let kills = self.kills_deadline();
        let own = scan.into_iter().chain(look).chain(kills);
        own.fold(self.upkeep.deadline(), Ord::min)
    }

    /// How often the service manager wants to hear that we are alive.
    pub fn watchdog(&self) -> Option<Duration> {
        self.manager.watchdog()
    }

    /// There is a service manager that wants to hear of us.
    pub fn has_manager(&self) -> bool {
        self.manager.is_there()
    }

    /// Tells the service manager that we are alive.
    pub fn pat_watchdog(&self) {
        self.manager.pat();
    }

    /// Tells the service manager something.
    pub fn notify(&self, now: Timestamp, notice: &Notice) {
        self.manager.tell(notice, now.as_nanos() / 1000);
    }

    const fn is_job(&self) -> bool {
        matches!(self.spec.restart.when, RestartWhen::Never)
    }

    fn fail(&mut self, what: String, worker: Option<WorkerId>, effect: Effect) {
        self.events.push_back(Event::Failed {
            what,
            worker,
            effect,
        });
    }
}

impl AsRawFd for Host {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}
