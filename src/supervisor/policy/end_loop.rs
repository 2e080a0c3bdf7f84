//! Loops in which a server's workers end again and again, and the server starts others at once.
//!
//! There are two kinds of such loops. In the first, workers end before they are ready: the
//! application cannot start, whatever the exit status is. In the second, the kernel kills healthy
//! workers because something outside the workers fills the budget. Each kind causes one warning,
//! with figures. If no worker serves any more, the supervisor ends the whole server, so that its
//! restarts are delayed like those of any command that fails.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor, action::Action, cause::Cause, cause::Class, event_format::span, input::Oom,
    worker::Worker,
};
use crate::units::{Bytes, Timestamp};

/// This many workers in a row that ended before they were ready are a loop.
const UNREADY_MAX: u32 = 5;
/// This many kills at the budget within `KILLS_WINDOW` are a loop.
const KILLS_MAX: usize = 5;
const KILLS_WINDOW: Duration = Duration::from_secs(30);
/// The wait before the next start after a loop of kills. Each wait is twice as long as the last.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(300);
/// The loop is over if the kernel kills no worker for this long after a wait.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// Why the supervisor ends a server whose workers end in a loop.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum LoopCause {
    /// Its workers end before they are ready.
    CannotStart,
    /// Something outside the workers fills the budget.
    BudgetIsFull,
}

/// The ends of workers that may be a loop.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct EndLoop {
    /// Workers in a row that ended before they were ready.
    unready: u32,
    unready_since: Option<Timestamp>,
    unready_last: Option<Cause>,
    /// Kills at the budget, oldest first.
    kills: VecDeque<Timestamp>,
    last_kill: Option<Timestamp>,
    /// The wait after the last loop of kills.
    wait: Duration,
    /// What is wrong, and how `status` shows it, until it is over.
    problem: Option<(LoopCause, String)>,
    /// Workers in a row that reached their cap while they booted.
    capped_at_boot: u32,
}

impl EndLoop {
    /// Records a worker that ended before it was ready. Returns true if this is a loop by now.
    fn on_unready(&mut self, now: Timestamp, cause: Cause) -> bool {
        self.unready = self.unready.saturating_add(1);
        self.unready_since.get_or_insert(now);
        self.unready_last = Some(cause);
        self.unready >= UNREADY_MAX
    }

    /// Records a kill at the budget. Returns true if this kill completes a loop.
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
        self.complete_loop();
        true
    }

    /// The kills are a loop: the next start waits twice as long as after the last loop.
    fn complete_loop(&mut self) {
        self.kills.clear();
        self.wait = self.wait.saturating_mul(2).clamp(WAIT_MIN, WAIT_MAX);
    }

    /// A worker reached its cap while it booted. Returns how many in a row have done so.
    pub(crate) const fn on_capped_at_boot(&mut self) -> u32 {
        self.capped_at_boot = self.capped_at_boot.saturating_add(1);
        self.capped_at_boot
    }

    /// A worker is ready, so workers can start.
    pub(crate) fn on_ready(&mut self) {
        self.capped_at_boot = 0;
        // RACE: the loop may have ended the server, whose next start has cleared `unready`.
        self.problem
            .take_if(|(cause, _)| *cause == LoopCause::CannotStart);
        self.unready = 0;
        self.unready_since = None;
    }

    /// The server is being started again.
    pub(crate) const fn on_start(&mut self) {
        self.unready = 0;
        self.unready_since = None;
    }

    /// How the last worker that was never ready ended.
    pub(crate) fn unready_reason(&self) -> Option<String> {
        let last = self.unready_last?.in_words();
        Some(format!("{last}, before its workers were ready"))
    }

    /// What is wrong at the moment.
    pub(crate) fn problem(&self, now: Timestamp) -> Option<String> {
        let (cause, text) = self.problem.as_ref()?;
        let calm = OVER_AFTER.saturating_add(self.wait);
        let is_over = match cause {
            LoopCause::CannotStart => false,
            LoopCause::BudgetIsFull => self.last_kill.is_some_and(|last| now.since(last) > calm),
        };
        (!is_over).then(|| text.clone())
    }
}

impl Supervisor {
    /// A worker ended without being asked to. Ends the server if this completes a loop.
    pub(crate) fn check_end_loop(
        &mut self,
        now: Timestamp,
        worker: &Worker,
        (cause, oom): (Cause, Oom),
    ) {
        let server = self.profile().is_some();
        let ends = self.state.service.is_stopping() || self.state.service.ends_in_loop();
        if !server || ends || self.state.service.pid().is_none() {
            return;
        }
        if cause == Cause::BudgetKill {
            self.on_budget_kill(now, worker);
        } else if worker.is_starting() && cause.class() == Class::Own && oom == Oom::No {
            self.on_ended_unready(now, cause);
        }
    }

    fn on_ended_unready(&mut self, now: Timestamp, cause: Cause) {
        if !self.state.loops.on_unready(now, cause) {
            return;
        }
        let (times, since) = (self.state.loops.unready, self.state.loops.unready_since);
        let within = span(now.since(since.unwrap_or(now)));
        // A worker that is draining still answers the requests it has begun.
        let serve = self
            .state
            .workers
            .values()
            .filter(|one| one.ceiling_state().memory_when_ready().is_some());
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
        self.state.loops.problem = Some((LoopCause::CannotStart, problem.clone()));
        self.warn_once("workers cannot start", || {
            format!(
                "{problem}. hint: the application's log says why; if not, import the application \
                 by hand"
            )
        });
        if serve == 0 {
            // The server would try for ever, and each attempt costs an import. The supervisor ends
            // the server, and restarts it by the rules for a command that fails.
            self.end_looping_run(LoopCause::CannotStart);
        }
    }

    fn on_budget_kill(&mut self, now: Timestamp, worker: &Worker) {
        let Some(budget) = self.state.limits.budget.bytes else {
            return;
        };
        let is_loop = self.state.loops.on_kill(now);
        if !is_loop {
            return;
        }
        let of_workers = self.memory_of_workers().plus(worker.memory().value());
        let contents = self.budget_contents();
        let kills = KILLS_MAX;
        let killed = format!(
            "the budget of {budget} is full, and the kernel has killed {kills} workers within {}s",
            KILLS_WINDOW.as_secs()
        );
        // If the workers themselves fill the budget, each kill makes room.
        if of_workers >= budget.scaled(0.5) {
            let problem = format!("{killed}; workers hold {of_workers}{contents}");
            self.state.loops.problem = Some((LoopCause::BudgetIsFull, problem.clone()));
            self.warn_once("workers fill the budget", || {
                format!("{problem}. hint: run fewer workers, or give a lower --ceiling")
            });
            return;
        }
        self.warn_of_full_budget(format!(
            "{killed}, though all workers together hold only {of_workers}{contents}"
        ));
        self.end_looping_run(LoopCause::BudgetIsFull);
    }

    /// The kernel killed the server itself at the budget. That ends all its workers, so one such
    /// kill counts as a loop of them.
    pub(crate) fn on_server_budget_kill(&mut self, now: Timestamp) {
        let Some(budget) = self.state.limits.budget.bytes else {
            return;
        };
        if !self.state.loops.on_kill(now) {
            self.state.loops.complete_loop();
        }
        let contents = self.budget_contents();
        self.warn_of_full_budget(format!(
            "the budget of {budget} is full, and the kernel has killed the server itself{contents}"
        ));
        // A job is not restarted, and its exit status is that of its server.
        if !self.is_job() {
            self.state.service.end_for(LoopCause::BudgetIsFull);
        }
    }

    fn warn_of_full_budget(&mut self, problem: String) {
        let wait = span(self.state.loops.wait);
        self.state.loops.problem = Some((LoopCause::BudgetIsFull, problem.clone()));
        self.warn_once("something fills the budget", || {
            format!(
                "{problem}. Replacing workers does not help: the server is restarted after {wait}, \
                 and after a longer wait each time this happens again. hint: remove what fills the \
                 budget, or give a larger --budget"
            )
        });
    }

    /// Ends the server. `endings` decides what follows, as for any other end.
    fn end_looping_run(&mut self, why: LoopCause) {
        if self.state.service.end_for(why) {
            self.act(Action::KillRun {
                run: self.state.service.run(),
            });
        }
    }

    /// How long the next start waits after a loop of kills.
    pub(crate) const fn wait_after_kills(&self) -> Duration {
        self.state.loops.wait
    }

    /// What fills the budget besides the workers, for a message:
    /// `: 372M in tmpfs and shared memory (…), …`.
    pub(crate) fn budget_contents(&self) -> String {
        let contents = &self.state.usage.contents();
        let mut parts = Vec::new();
        let least = self
            .state
            .limits
            .budget
            .bytes
            .unwrap_or_default()
            .scaled(0.02);
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
        named("in the server's own processes", self.state.usage.server());
        named("in page tables and other kernel memory", contents.kernel);
        let workers = self.memory_of_workers();
        let known = workers
            .plus(self.state.usage.server())
            .plus(contents.shared);
        named(
            "in helpers and other processes",
            self.state.usage.held().minus(known),
        );
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
    fn five_workers_in_a_row_that_were_never_ready_are_a_loop() {
        let mut ends = EndLoop::default();
        for second in 0..4 {
            assert!(!ends.on_unready(at(second), Cause::Exit(0)));
        }
        assert!(ends.on_unready(at(4), Cause::Exit(0)));
        ends.on_ready();
        assert!(!ends.on_unready(at(5), Cause::Exit(0)));
    }

    #[test]
    fn workers_that_cannot_start_are_no_problem_any_more_when_one_is_ready() {
        for server_ends in [false, true] {
            let problem = Some((LoopCause::CannotStart, "cannot start".to_owned()));
            let mut ends = EndLoop {
                problem,
                ..EndLoop::default()
            };
            if server_ends {
                ends.on_start();
            }
            assert!(ends.problem(at(900)).is_some());
            ends.on_ready();
            assert!(ends.problem(at(900)).is_none());
        }
    }

    #[test]
    fn kills_at_the_budget_are_a_loop_only_within_the_window() {
        let mut ends = EndLoop::default();
        assert!((0..20).all(|turn| !ends.on_kill(at(turn * 10))));
        let looped: Vec<_> = (0..10).map(|turn| ends.on_kill(at(300 + turn))).collect();
        assert_eq!(looped.iter().filter(|looped| **looped).count(), 2);
    }

    #[test]
    fn the_wait_after_loops_of_kills_doubles_until_the_loop_is_over() {
        let mut ends = EndLoop::default();
        let mut waits = Vec::new();
        for turn in 0..15 {
            if ends.on_kill(at(turn)) {
                waits.push(ends.wait.as_secs());
            }
        }
        assert_eq!(waits, [5, 10, 20]);
        ends.problem = Some((LoopCause::BudgetIsFull, "full".to_owned()));
        assert!(ends.problem(at(15)).is_some());
        assert!(ends.problem(at(200)).is_none());
        assert!((0..5).any(|turn| ends.on_kill(at(500 + turn))));
        assert_eq!(ends.wait.as_secs(), 5);
    }
}
