//! TOUCHES THE KERNEL: carries out the decider's actions, and reports what happened as inputs. This
//! is the only module with `unsafe` code.
//!
//! Each submodule is a component: it owns its fields, and only its methods change them. [`Host`]
//! holds the components, gives each action to the component that carries it out, and collects the
//! inputs.
//!
//! [`Host::carry_out`] takes one action. [`Host::collect`] reads what the kernel reports; call it
//! when the epoll descriptor of [`Host`] is readable, or when [`Host::deadline`] has passed.
//! [`Host::poll_event`] returns one input. Nothing here blocks: system calls return at once, and
//! slow work (exact readings of memory, readiness requests to the service) runs on threads of its
//! own.

pub mod cgroup;
pub mod clock;
mod command;
mod context;
pub mod diagnosis;
pub mod discovery;
mod dispatch;
mod handover;
mod held;
mod housekeeping;
mod kernel_events;
mod listen;
pub mod memory;
pub mod pool;
pub mod process;
mod systemd;
pub mod terminal;
pub mod workers;

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
    time::Duration,
};

use tokio::io::unix::AsyncFd;

use crate::{
    supervisor::{action::Notice, input::Input, spec::Spec},
    units::{Bytes, Timestamp},
};
use cgroup::{Found, Groups, ServiceGroups};
use context::Context;
use diagnosis::privileges;
use discovery::Discovery;
pub use handover::HostState;
use housekeeping::Housekeeping;
use listen::Listen;
use memory::procfs::Proc;
use pool::PoolHost;
pub use process::signals::fail_at_file_size_limit;
use process::{Processes, open_files::OpenFiles, sweeper::Sweeper};
use systemd::{Systemd, TerminationMessage};
use workers::{
    Workers,
    agents::{AgentAnswers, Agents},
};

/// The machine that the command runs on, and the command's processes.
#[derive(Debug)]
pub struct Host {
    context: Context,
    cgroups: ServiceGroups,
    processes: Processes,
    workers: Workers,
    discovery: Discovery,
    listen: Listen,
    systemd: Systemd,
    agent_answers: AgentAnswers,
    /// `None`: the command is not a pool.
    pool: Option<PoolHost>,
    housekeeping: Housekeeping,
}

impl Host {
    /// Makes the control groups, installs the signal handlers, and becomes the subreaper of all
    /// orphaned descendants. It does not start the command yet.
    pub fn set_up(spec: &Spec, now: Timestamp) -> io::Result<Self> {
        // First, because this is the step most likely to be refused, and it leaves nothing to clean
        // up.
        let listen = Listen::open(spec)?;
        let proc = Proc::default();
        let found = Found::discover(&proc).map_err(io::Error::other)?;
        let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        // Before anything is made that would have to be removed after an error.
        let message = TerminationMessage::open(&spec.control.termination_log, own == 1)?;
        cgroup::remove_stale(&found, &proc, &spec.name, own);
        // Started before the first group is made. Without a sweeper, groups stay if we are killed
        // while no keeper runs; the next start of this service removes them.
        let sweeper = Sweeper::start(&spec.name).ok();
        let groups = Groups::create(&found, &spec.name, own);
        let context = Context::new(spec, privileges::protect_from_oom(&proc, own))?;
        let cgroups = ServiceGroups::new(spec, &proc, (found, groups)).map_err(io::Error::other)?;
        let processes = Processes::new(sweeper)?;
        let workers = Workers::new(&context, OpenFiles::raise(None))?;
        let parts = (processes, workers, cgroups, listen, message);
        let mut host = Self::assemble(context, now, parts)?;
        host.cgroups.enable_controllers(&mut host.context);
        Ok(host)
    }

    fn assemble(
        context: Context,
        now: Timestamp,
        (processes, workers, cgroups, listen, message): (
            Processes,
            Workers,
            ServiceGroups,
            Listen,
            TerminationMessage,
        ),
    ) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut host = Self {
            context,
            cgroups,
            processes,
            workers,
            discovery: Discovery::new(),
            listen,
            systemd: Systemd::new(message)?,
            agent_answers: AgentAnswers::default(),
            pool: None,
            housekeeping: Housekeeping::new(now),
        };
        privileges::use_real_time_priority();
        let context = &mut host.context;
        host.processes.watch(context)?;
        host.workers.watch(context)?;
        host.discovery.watch(context)?;
        host.systemd.watch(context)?;
        host.cgroups.watch(context)?;
        context.tell(Input::Machine(host.cgroups.machine()));
        context.tell(Input::Available(host.cgroups.available()));
        Ok(host)
    }

    /// Registers the host's epoll descriptor with the tokio runtime.
    #[expect(
        unsafe_code,
        reason = "tokio cannot check that the descriptor stays the same"
    )]
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the epoll descriptor is ours, and stays open and unchanged as long as `self`
        // lives.
        let registered =
            unsafe { AsyncFd::register_with_interest(self, tokio::io::Interest::READABLE) };
        registered.map_err(io::Error::from)
    }

    /// Changes the command line, from the next start of the command.
    pub fn set_command(&mut self, argv: Vec<std::ffi::OsString>) {
        self.context.set_command(argv);
    }

    /// Takes the oldest input.
    pub fn poll_event(&mut self) -> Option<Input> {
        self.context.next_input()
    }

    /// The latest time to call [`Host::collect`].
    pub fn deadline(&self) -> Timestamp {
        let scan = self.discovery.deadline().into_iter();
        let own = scan
            .chain(self.listen.deadline())
            .chain(self.workers.deadline());
        own.fold(self.housekeeping.deadline(), Ord::min)
    }

    /// The interval within which the service manager expects a watchdog message.
    pub fn watchdog(&self) -> Option<Duration> {
        self.systemd.watchdog()
    }

    /// Whether a service manager has asked for notifications.
    pub fn has_manager(&self) -> bool {
        self.systemd.has_manager()
    }

    /// Sends a watchdog message to the service manager.
    pub fn send_watchdog(&self) {
        self.systemd.send_watchdog();
    }

    /// Sends a notice to the service manager.
    pub fn notify(&self, now: Timestamp, notice: &Notice) {
        self.systemd.notify(now, notice);
    }

    /// Access to the agents in the workers.
    pub const fn agents(&mut self) -> Agents<'_> {
        Agents::new(&mut self.workers, self.context.proc())
    }

    /// Watches this directory for answers of agents.
    pub fn watch_answers(&mut self, directory: &Path) -> io::Result<()> {
        self.agent_answers.watch(&mut self.context, directory)
    }

    /// Whether answers have come since the last call.
    pub const fn take_answers(&mut self) -> bool {
        self.agent_answers.take()
    }

    /// The resident memory of the supervisor itself.
    pub fn own_memory(&self) -> Option<Bytes> {
        let own = i32::try_from(std::process::id()).ok()?;
        let statm = self.context.proc().statm(own);
        let seen = statm.and_then(|statm| statm.read()).ok()?;
        Some(seen.resident)
    }

    /// Removes the control groups. Call it when no process that we started is left.
    pub fn remove_groups(&mut self) {
        self.workers.clear();
        self.cgroups.remove_all();
        self.processes.end_sweeper();
    }
}

impl AsRawFd for Host {
    fn as_raw_fd(&self) -> RawFd {
        self.context.watches().as_fd().as_raw_fd()
    }
}
