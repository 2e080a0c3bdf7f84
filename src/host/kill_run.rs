//! The end of everything that one start of the command has started, by its keeper or without it.

use std::time::Duration;

use super::{Host, clock, reaper::kill_children, sweeper::Sweeper};
use crate::{
    supervisor::event::Effect,
    units::{RunId, Timestamp},
};

/// A keeper ends all that it keeps within this, as long as the kernel lets them end.
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
        if let Err(error) = run.keeper.end_all() {
            self.fail(format!("signal the keeper: {error}"), None, Effect::Signal);
        }
        if let Some(run) = &mut self.run {
            run.ending_since.get_or_insert_with(clock::now);
        }
        // Quicker for many processes; the keeper alone would do.
        let _ = self.groups.kill_all();
    }

    /// A keeper that is traced or does not run for another reason ends nobody: it is killed, and
    /// what it kept is ours to end.
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

    /// All that a killed keeper has left to us. False if there is nobody.
    fn kill_orphans(&self) -> bool {
        kill_children(self.sweeper.as_ref().map(Sweeper::pid))
    }

    pub(super) fn bury_orphans(&mut self) {
        if self.run.as_ref().is_some_and(|run| run.orphaned) && !self.kill_orphans() {
            self.end_run();
        }
    }
}
