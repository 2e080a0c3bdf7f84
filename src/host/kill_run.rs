//! Kills everything that one start of the command has started, through its keeper or without it.

use std::time::Duration;

use super::{Host, clock, reaper::kill_children, sweeper::Sweeper};
use crate::{
    supervisor::event::Effect,
    units::{RunId, Timestamp},
};

/// Time limit of a keeper to kill its processes.
const KEEPER_MAX: Duration = Duration::from_secs(5);

impl Host {
    /// SIGKILL for everything that this run started.
    pub(super) fn kill_run(&mut self, id: RunId) {
        let Some(run) = self.run.as_ref().filter(|run| run.id == id) else {
            return;
        };
        if run.orphaned {
            self.kill_orphans();
            return;
        }
        if run.made.is_some() {
            // RACE: a new keeper may not block signals yet, and ours would kill it before it has
            // killed its processes. `prepare` signals it, after its first message.
            if let Some(run) = &mut self.run {
                run.ending_since.get_or_insert_with(clock::now);
            }
            return;
        }
        if let Err(error) = run.keeper.end_all() {
            self.fail(format!("signal the keeper: {error}"), None, Effect::Signal);
        }
        if let Some(run) = &mut self.run {
            run.ending_since.get_or_insert_with(clock::now);
        }
        // Quicker for many processes; the keeper alone would do.
        let _ = self.groups.kill_all();
    }

    /// Kills a keeper that does not run, for instance because it is traced. Its processes become
    /// our children then, and we kill them.
    pub(super) fn hurry_keeper(&mut self, now: Timestamp) {
        let Some(run) = self.run.as_ref().filter(|run| !run.orphaned) else {
            return;
        };
        if run
            .ending_since
            .is_some_and(|since| now.since(since) >= KEEPER_MAX)
        {
            run.keeper.kill();
        }
    }

    /// Kills the processes that a killed keeper left to us. False if there are none.
    fn kill_orphans(&self) -> bool {
        kill_children(self.sweeper.as_ref().map(Sweeper::pid))
    }

    pub(super) fn bury_orphans(&mut self) {
        if self.run.as_ref().is_some_and(|run| run.orphaned) && !self.kill_orphans() {
            self.end_run();
        }
    }
}
