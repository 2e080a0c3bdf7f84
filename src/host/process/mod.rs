//! Processes that we start and end: the keeper, and through it the command; the sweeper; the binary
//! that is checked before an upgrade; and this process itself when it executes another binary.

mod check_marker;
pub mod exec;
pub mod fleet;
pub mod keeper;
pub mod open_files;
pub(super) mod pidfd;
mod reaper;
pub mod rlimit;
mod run;
pub(super) mod signals;
mod spawn;
pub mod sweeper;
pub mod users;

use std::{io, os::fd::RawFd, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    cgroup::{CgroupError, Group, ServiceGroups},
    clock,
    context::Context,
    kernel_events::Source,
};
use crate::{
    supervisor::{input::Effect, spec::Spec},
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};
use keeper::Message;
use reaper::{Reaped, kill_children, reap};
use run::{Run, RunState};
use signals::Signals;
pub(super) use spawn::Keeper;
use sweeper::{Sweeper, SweeperState};

/// Time limit for a keeper to kill its processes.
const KEEPER_MAX: Duration = Duration::from_secs(5);

/// The processes of a service that are not its workers, and the signals to the supervisor.
#[derive(Debug)]
pub(super) struct Processes {
    /// The current start of the command.
    run: Option<Run>,
    sweeper: Option<Sweeper>,
    signals: Signals,
}

/// The state that the new binary needs.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ProcessesState {
    run: RunState,
    sweeper: Option<SweeperState>,
}

/// What a child of ours was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ChildRole {
    Sweeper,
    Keeper,
    /// A process that became our child because its keeper was killed.
    Orphan,
    Stranger,
}

impl Processes {
    /// Installs the signal handlers.
    pub(super) fn new(sweeper: Option<Sweeper>) -> io::Result<Self> {
        Ok(Self {
            run: None,
            sweeper,
            signals: Signals::listen()?,
        })
    }

    /// Continues with the processes that the previous binary handed over.
    pub(super) fn take_over(context: &mut Context, state: ProcessesState) -> io::Result<Self> {
        let sweeper = state.sweeper.as_ref().and_then(Sweeper::take_over);
        let sweeper = sweeper.or_else(|| Sweeper::start(&context.spec().name).ok());
        let mut processes = Self::new(sweeper)?;
        processes.run = Some(Run::take_over(context, state.run)?);
        Ok(processes)
    }

    /// The state for the new binary, and the descriptors that stay open for it. `None` while no
    /// command runs.
    pub(super) fn hand_over(&self) -> Option<(ProcessesState, Vec<RawFd>)> {
        let run = self.run.as_ref().filter(|run| !run.is_orphaned())?;
        let run = run.hand_over();
        let sweeper = self.sweeper.as_ref().map(Sweeper::hand_over);
        let pipe = sweeper.iter().map(SweeperState::pipe);
        let keep = std::iter::once(run.socket()).chain(pipe).collect();
        Some((ProcessesState { run, sweeper }, keep))
    }

    /// Watches for signals.
    pub(super) fn watch(&self, context: &mut Context) -> io::Result<()> {
        let watches = context.watches_mut();
        watches.watch(&self.signals, Source::Signals).map(drop)
    }

    /// The signals since the last call.
    pub(super) fn take_signals(&mut self) -> Vec<Signal> {
        self.signals.take()
    }

    /// The current start of the command.
    pub(super) const fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    pub(super) const fn run_mut(&mut self) -> Option<&mut Run> {
        self.run.as_mut()
    }

    /// The current start of the command, if it has this id.
    pub(super) fn run_of(&self, id: RunId) -> Option<&Run> {
        self.run.as_ref().filter(|run| run.id() == id)
    }

    /// Notes a started keeper, whose command gets this group.
    pub(super) fn begin_run(
        &mut self,
        context: &mut Context,
        (id, keeper): (RunId, Keeper),
        worker: Option<(WorkerId, Option<Bytes>)>,
        group: Result<Group, CgroupError>,
    ) -> io::Result<()> {
        self.run = Some(Run::begin(context, (id, keeper), worker, group)?);
        Ok(())
    }

    /// The keeper's messages since the last call.
    pub(super) fn keeper_messages(&mut self) -> Vec<Message> {
        let run = self.run.as_mut();
        run.map(Run::keeper_messages).unwrap_or_default()
    }

    /// Handles the command's process, which waits for its group and limits. Returns the group;
    /// `None` if it was returned already.
    pub(super) fn on_waiting(&mut self, pid: i32) -> Option<Result<Group, CgroupError>> {
        self.run.as_mut()?.on_waiting(pid)
    }

    /// Sets the limits of the command's process.
    pub(super) fn set_limits(&self, context: &mut Context, pid: i32) {
        for (name, limit) in &context.spec().rlimits.clone() {
            if let Err(error) = rlimit::set(pid, name, *limit) {
                context.fail(error.to_string(), None, Effect::Other);
            }
        }
    }

    /// Lets the waiting command execute.
    pub(super) fn execute(&mut self) {
        // A keeper that has ended executes nothing, and its end is about to be reported.
        let _ = self.run.as_mut().map(Run::execute);
    }

    /// Notes that the command has executed.
    pub(super) fn on_executed(&mut self, pid: i32) -> Option<RunId> {
        self.run.as_mut().map(|run| run.on_executed(pid))
    }

    /// Notes the end of the command's own process, and the process that takes its place.
    pub(super) fn replace_root(&mut self, successor: Option<i32>) {
        if let Some(run) = &mut self.run {
            run.replace_root(successor);
        }
    }

    /// Sends SIGKILL to every process that this start has created, through its keeper or directly.
    pub(super) fn kill_run(&mut self, context: &mut Context, groups: &ServiceGroups, id: RunId) {
        let Some(run) = self.run.as_mut().filter(|run| run.id() == id) else {
            return;
        };
        if run.is_orphaned() {
            self.kill_orphans();
            return;
        }
        run.note_end(clock::now());
        if !run.has_begun() {
            // RACE: a new keeper may not block signals yet. Our signal would kill it before it has
            // killed its processes, so it is signalled after its first message.
            return;
        }
        if let Err(error) = run.kill_through_keeper() {
            let what = format!("signal the keeper: {error}");
            context.fail(what, None, Effect::Signal);
        }
        // The keeper alone would be enough; this is faster for many processes.
        groups.kill_all();
    }

    /// Kills a keeper that does not run, such as one that is traced. Its processes become our
    /// children then, and we kill them.
    pub(super) fn kill_late_keeper(&self, now: Timestamp) {
        if let Some(run) = self.run.as_ref().filter(|run| !run.is_orphaned())
            && run.ending_for(now) >= Some(KEEPER_MAX)
        {
            run.kill_keeper();
        }
    }

    /// Reaps our children that have ended.
    pub(super) fn reap(&self) -> Vec<Reaped> {
        let keeper = self.run.as_ref().map(Run::keeper);
        let sweeper = self.sweeper.as_ref().map(Sweeper::pid);
        let ours: Vec<i32> = keeper.into_iter().chain(sweeper).collect();
        reap(&ours)
    }

    /// What this child of ours was.
    pub(super) fn role_of(&self, pid: i32) -> ChildRole {
        if self.sweeper.as_ref().map(Sweeper::pid) == Some(pid) {
            return ChildRole::Sweeper;
        }
        match &self.run {
            Some(run) if run.keeper() == pid => ChildRole::Keeper,
            Some(run) if run.is_orphaned() => ChildRole::Orphan,
            Some(_) | None => ChildRole::Stranger,
        }
    }

    /// Replaces a sweeper that was killed.
    pub(super) fn restart_sweeper(&mut self, spec: &Spec) {
        // Without a sweeper, groups may stay if we are killed, until the next start of this
        // service.
        self.sweeper = Sweeper::start(&spec.name).ok();
    }

    /// Ends the sweeper and waits for its end.
    pub(super) fn end_sweeper(&mut self) {
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.end();
        }
    }

    /// Notes that the keeper was killed, and that the processes it kept are our children now.
    pub(super) fn adopt_orphans(&mut self) {
        if let Some(run) = &mut self.run {
            run.adopt_orphans();
        }
    }

    /// Kills the processes of a killed keeper. False if there are none.
    fn kill_orphans(&self) -> bool {
        kill_children(self.sweeper.as_ref().map(Sweeper::pid))
    }

    /// Whether the keeper was killed and none of its processes is left.
    pub(super) fn are_orphans_gone(&self) -> bool {
        self.run.as_ref().is_some_and(Run::is_orphaned) && !self.kill_orphans()
    }

    /// Ends this start of the command, all of whose processes have ended. Returns its group if no
    /// process was ever in it.
    pub(super) fn end_run(&mut self, context: &mut Context) -> Option<(RunId, Option<Group>)> {
        Some(self.run.take()?.end(context))
    }
}
