//! The kernel's part: which process exceeds its threshold, its cap or the budget next, and when.

use std::time::Duration;

use supervise::{
    supervisor::input::{CapMechanism, Ended, Input, Oom},
    units::{Signal, Timestamp},
};

use crate::{
    process::Process,
    world::{MASTER, World},
};

impl World {
    /// The next process whose memory reaches a limit: its threshold, its cap, or the budget of all.
    pub(crate) fn next_crossing(&self) -> Option<(Timestamp, i32)> {
        let now = self.now;
        let limits = self.processes.values().filter_map(|process| {
            let limits = process.cap.into_iter().chain(process.threshold);
            let limit = limits.fold(f64::INFINITY, f64::min);
            Some((process.charged_at(now, limit)?, process.pid))
        });
        limits.chain(self.budget_crossing()).min()
    }

    fn budget_crossing(&self) -> Option<(Timestamp, i32)> {
        let budget = self.budget?;
        let rate: f64 = self.processes.values().map(Process::rate).sum();
        let room = budget - self.total();
        let largest = self
            .processes
            .values()
            .max_by(|a, b| a.private(self.now).total_cmp(&b.private(self.now)))?;
        if room <= 0.0 {
            return Some((self.now, largest.pid));
        }
        let left = Duration::try_from_secs_f64(room / rate).ok()?;
        let at = self.now.later(left + Duration::from_micros(1));
        (rate > 0.0).then_some((at, largest.pid))
    }

    pub(crate) fn total(&self) -> f64 {
        let workers: f64 = self.processes.values().map(|p| p.private(self.now)).sum();
        workers + MASTER.as_f64()
    }

    pub(crate) fn on_crossing(&mut self, pid: i32) {
        let (now, total) = (self.now, self.total());
        let rlimit = self.scenario.machine.caps == CapMechanism::Rlimit;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let charge = process.charge(now);
        let Some(worker) = process.worker else {
            // It is in no worker's group yet: only the budget can be exceeded.
            self.end(pid, Ended::Signal(Signal::KILL), Oom::Budget);
            return;
        };
        if process.threshold.is_some_and(|limit| charge >= limit) {
            process.threshold = None;
            let wait = self.chance.micros(20, 900);
            self.deliver(wait, Input::ThresholdReached { worker });
        } else if process.cap.is_some_and(|limit| charge >= limit) {
            if rlimit {
                process.cap = None;
                process.grow(now, 0.0);
                if self.chance.yes(0.5) {
                    self.end(pid, Ended::Exit(1), Oom::No);
                }
            } else if process.helper > process.held(now) {
                process.helper = 0.0;
                let (oom, whole) = (Oom::Cap, self.chance.yes(0.5));
                self.deliver(
                    Duration::from_millis(1),
                    Input::HelperKilled { worker, oom, whole },
                );
                if whole {
                    self.end(pid, Ended::Signal(Signal::KILL), oom);
                }
            } else {
                self.end(pid, Ended::Signal(Signal::KILL), Oom::Cap);
            }
        } else if self.budget.is_some_and(|budget| total >= budget) {
            self.end(pid, Ended::Signal(Signal::KILL), Oom::Budget);
        }
    }
}
