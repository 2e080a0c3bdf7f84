//! Workers of a server that end again and again, while their server starts others at once.
//!
//! There are two kinds of such loops. In one, workers end before they are ready: the application
//! cannot start, whatever its exit status is. In the other, the kernel kills healthy workers
//! because something outside the workers fills the budget. Each kind is warned of once, with its
//! figures. Where no worker serves any more, the whole server is ended, so that its restarts are
//! spaced like those of any command that fails.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Supervisor, action::Action, cause::Class, event::Oom, report::Cause, spec::Kind, tell::span,
    worker::Worker,
};
use crate::units::{Bytes, Timestamp};

/// This many workers in a row that ended before they were ready are a loop.
const UNREADY_MAX: u32 = 5;
/// This many kills at the budget within `KILLS_WINDOW` are a loop.
const KILLS_MAX: usize = 5;
const KILLS_WINDOW: Duration = Duration::from_secs(30);
/// The wait before the next start after a loop of kills; each doubles the one before.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Without a kill for this long after a wait the loop is over.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// Why we end a server that goes on with such a loop.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum LoopCause {
    /// Its workers end before they are ready.
    CannotStart,
    /// Something outside the workers fills the budget.
    BudgetIsFull,
}

/// What is remembered of ends that may become a loop.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct EndLoop {
    /// Workers in a row that ended before they were ready, since when, and why the last one did.
    unready: u32,
    unready_since: Option<Timestamp>,
    unready_last: Option<Cause>,
    /// Kills at the budget, oldest first.
    kills: VecDeque<Timestamp>,
    last_kill: Option<Timestamp>,
    /// The wait after the last loop of kills.
    wait: Duration,
    /// What is wrong, as long as it is.
    problem: Option<String>,
}

impl EndLoop {
    /// Notes a worker that ended before it was ready. True if that is a loop by now.
    fn on_unready(&mut self, now: Timestamp, cause: Cause) -> bool {
        self.unready = self.unready.saturating_add(1);
        self.unready_since.get_or_insert(now);
        self.unready_last = Some(cause);
        self.unready >= UNREADY_MAX
    }

    /// Notes a kill at the budget. True when that completes a loop.
    fn on_kill(&mut self, now: Timestamp) -> bool {
        let calm = OVER_AFTER.saturating_add(self.wait);
        if self.last_kill.is_some_and(|last| now.since(last) > calm) {
            self.wait = Duration::ZERO;
        }
        self.last_kill = Some(now);
        self.kills.push_back(now);
        let old = |at: &Timestamp| now.since(*at) > KILLS_WINDOW;
        while self.kills.front().is_some_and(old) {
            self.kills.pop_front();
        }
        if self.kills.len() < KILLS_MAX {
            return false;
        }
        self.complete();
        true
    }

    /// The kills are a loop: the next start waits, longer than after the loop before.
    fn complete(&mut self) {
        self.kills.clear();
        self.wait = self.wait.saturating_mul(2).clamp(WAIT_MIN, WAIT_MAX);
    }

    /// A worker serves, so workers can start.
    pub(super) fn on_ready(&mut self) {
        if self.unready >= UNREADY_MAX {
            self.problem = None;
        }
        self.unready = 0;
        self.unready_since = None;
    }

    /// The server is started anew.
    pub(super) const fn on_start(&mut self) {
        self.unready = 0;
        self.unready_since = None;
    }

    /// How the last worker ended that was never ready.
    pub(super) fn unready_reason(&self) -> Option<String> {
        let last = self.unready_last?.in_words();
        Some(format!("{last}, before its workers were ready"))
    }

    /// What is wrong at the moment.
    pub(super) fn problem(&self, now: Timestamp) -> Option<String> {
        let calm = OVER_AFTER.saturating_add(self.wait);
        let kills = self.unready < UNREADY_MAX && self.last_kill.is_some();
        let over = kills && self.last_kill.is_some_and(|last| now.since(last) > calm);
        self.problem.clone().filter(|_| !over)
    }
}

impl Supervisor {
    /// A worker ended without being asked to.
    pub(super) fn check_end_loop(
        &mut self,
        now: Timestamp,
        worker: &Worker,
        (cause, oom): (Cause, Oom),
    ) {
        let server = matches!(self.spec.kind, Kind::Server(_));
        let ends = self.service.is_stopping() || self.service.loops.is_some();
        if !server || ends || self.service.pid().is_none() {
            return;
        }
        if cause == Cause::BudgetKill {
            self.on_budget_kill(now, worker);
        } else if worker.is_starting() && cause.class() == Class::Own && oom == Oom::No {
            self.on_ended_unready(now, cause);
        }
    }

    fn on_ended_unready(&mut self, now: Timestamp, cause: Cause) {
        if !self.ends_loop.on_unready(now, cause) {
            return;
        }
        let (times, since) = (self.ends_loop.unready, self.ends_loop.unready_since);
        let within = span(now.since(since.unwrap_or(now)));
        // A worker that was told to leave still answers the requests it has begun.
        let serve = self.workers.values().filter(|one| one.birth.is_some());
        let serve = serve.count();
        let others = match serve {
            0 => "no worker serves".to_owned(),
            1 => "1 older worker still serves".to_owned(),
            many => format!("{many} older workers still serve"),
        };
        let problem = format!(
            "workers cannot start: the last {times} ended before they were ready, within {within}, \
             the last with {}; {others}",
            cause.in_words()
        );
        self.ends_loop.problem = Some(problem.clone());
        self.warn_once("workers cannot start", || {
            format!(
                "{problem}. hint: the application's log says why; if not, import the application \
                 by hand"
            )
        });
        if serve == 0 {
            // The server would try for ever, and each attempt costs an import. We end it, and it is
            // restarted by the rules for a command that fails.
            self.end_looping_run(LoopCause::CannotStart);
        }
    }

    fn on_budget_kill(&mut self, now: Timestamp, worker: &Worker) {
        let Some(budget) = self.limits.budget.bytes else {
            return;
        };
        let is_loop = self.ends_loop.on_kill(now);
        if !is_loop {
            return;
        }
        let of_workers = self.memory_of_workers().plus(worker.memory.value());
        let contents = self.budget_contents();
        let kills = KILLS_MAX;
        let killed = format!(
            "the budget of {budget} is full, and the kernel has killed {kills} workers within {}s",
            KILLS_WINDOW.as_secs()
        );
        // Where the workers themselves fill the budget, each kill makes room.
        if of_workers >= budget.scaled(0.5) {
            let problem = format!("{killed}; workers hold {of_workers}{contents}");
            self.ends_loop.problem = Some(problem.clone());
            self.warn_once("workers fill the budget", || {
                format!("{problem}. hint: run fewer workers, or give a lower --ceiling")
            });
            return;
        }
        self.tell_full_budget(format!(
            "{killed}, though all workers together hold {of_workers}{contents}"
        ));
        self.end_looping_run(LoopCause::BudgetIsFull);
    }

    /// The kernel killed the server itself at the budget. That ends all its workers, so one such
    /// kill counts as a loop of them.
    pub(super) fn on_server_budget_kill(&mut self, now: Timestamp) {
        let Some(budget) = self.limits.budget.bytes else {
            return;
        };
        if !self.ends_loop.on_kill(now) {
            self.ends_loop.complete();
        }
        let contents = self.budget_contents();
        self.tell_full_budget(format!(
            "the budget of {budget} is full, and the kernel has killed the server itself{contents}"
        ));
        // A job is not started again, and its status is its server's.
        if !self.is_job() {
            self.service.loops = Some(LoopCause::BudgetIsFull);
        }
    }

    fn tell_full_budget(&mut self, problem: String) {
        let wait = span(self.ends_loop.wait);
        self.ends_loop.problem = Some(problem.clone());
        self.warn_once("something fills the budget", || {
            format!(
                "{problem}. Replacing workers does not help: the server is restarted after {wait}, \
                 and after a longer wait each time this happens again. hint: remove what fills the \
                 budget, or give a larger --budget"
            )
        });
    }

    /// Ends the server; `endings` decides what follows, as for any other end.
    fn end_looping_run(&mut self, why: LoopCause) {
        if self.service.loops.replace(why).is_none() {
            self.act(Action::KillRun {
                run: self.service.run,
            });
        }
    }

    /// How long the next start waits after a loop of kills.
    pub(super) const fn wait_after_kills(&self) -> Duration {
        self.ends_loop.wait
    }

    /// What fills the budget beside workers, for a message: `: 372M of files in tmpfs (…), …`.
    pub(super) fn budget_contents(&self) -> String {
        let contents = &self.contents;
        let mut parts = Vec::new();
        let least = self.limits.budget.bytes.unwrap_or_default().scaled(0.02);
        if contents.shared >= least {
            let mut text = format!("{} in tmpfs and shared memory", contents.shared);
            let files: Vec<_> = contents
                .files
                .iter()
                .map(|file| format!("`{}` {}", file.path, file.size))
                .collect();
            if !files.is_empty() {
                let more = match contents.more_files {
                    0 => String::new(),
                    more => format!(" and {more} more of {}", contents.more_size),
                };
                text.push_str(&format!(
                    " (the largest files written since the start: {}{more})",
                    files.join(", ")
                ));
            }
            parts.push(text);
        }
        let mut named = |what: &str, size: Bytes| {
            if size >= least {
                parts.push(format!("{size} {what}"));
            }
        };
        named("in the server's own processes", self.server_memory);
        named("in page tables and other kernel memory", contents.kernel);
        let workers = self.memory_of_workers();
        let known = workers.plus(self.server_memory).plus(contents.shared);
        named("in helpers and other processes", self.held.minus(known));
        if parts.is_empty() {
            return String::new();
        }
        format!(": {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    #[test]
    fn five_workers_in_a_row_that_never_were_ready_are_a_loop() {
        let mut ends = EndLoop::default();
        for second in 0..4 {
            assert!(!ends.on_unready(at(second), Cause::Exit(0)));
        }
        assert!(ends.on_unready(at(4), Cause::Exit(0)));
        ends.on_ready();
        assert!(!ends.on_unready(at(5), Cause::Exit(0)));
    }

    #[test]
    fn kills_at_the_budget_are_a_loop_only_close_together() {
        let mut ends = EndLoop::default();
        assert!((0..20).all(|turn| !ends.on_kill(at(turn * 10))));
        let looped: Vec<_> = (0..10).map(|turn| ends.on_kill(at(300 + turn))).collect();
        assert_eq!(looped.iter().filter(|looped| **looped).count(), 2);
    }

    #[test]
    fn the_waits_after_loops_of_kills_double_until_there_is_calm() {
        let mut ends = EndLoop::default();
        let mut waits = Vec::new();
        for turn in 0..15 {
            if ends.on_kill(at(turn)) {
                waits.push(ends.wait.as_secs());
            }
        }
        assert_eq!(waits, [5, 10, 20]);
        ends.problem = Some("full".to_owned());
        assert!(ends.problem(at(15)).is_some());
        assert!(ends.problem(at(200)).is_none());
        assert!((0..5).any(|turn| ends.on_kill(at(500 + turn))));
        assert_eq!(ends.wait.as_secs(), 5);
    }
}
