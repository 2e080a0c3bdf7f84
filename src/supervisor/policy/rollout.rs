//! The promises of every recycle, for all kinds of workers (DESIGN §3).
//!
//! At most `max_unavailable` workers are unavailable at once. A worker is not replaced before
//! `min_age`, unless its growth would carry it to its cap. A surge worker is started only if the
//! budget has room for it. Recycles never come in a loop, and never while the application cannot
//! start.

use crate::supervisor::{
    Supervisor,
    agents::Step,
    cause::{Cause, Class},
    event::Event,
    policy::{
        candidates::{Candidate, Candidates},
        in_vain::Outlook,
        surge::Count,
    },
    worker::lifecycle::{By, Leave},
};
use crate::units::Timestamp;

impl Supervisor {
    /// Decides which workers should be replaced, and takes one step towards that.
    pub(crate) fn replan(&mut self, now: Timestamp) {
        self.plan.begin();
        if self.state.service.pid().is_some() && !self.state.service.is_stopping() {
            self.continue_scaling(now);
            self.recycle(now);
        }
        self.answer_recycles();
    }

    /// When to decide again: at once if something has changed.
    pub(crate) const fn replan_at(&self) -> Option<Timestamp> {
        self.plan.next()
    }

    /// Decides about recycling again at this time, even if nothing happens until then.
    pub(crate) fn wake_at(&mut self, now: Timestamp, at: Timestamp) {
        // A time that has passed was already considered in this turn.
        if at > now {
            self.plan.wake_at(at);
        }
    }

    fn recycle(&mut self, now: Timestamp) {
        let Candidates { now: found, later } = self.candidates(now);
        for at in later {
            self.wake_at(now, at);
        }
        let mut candidates = Vec::new();
        for candidate in found {
            candidates.extend(self.confirm(now, candidate));
        }
        self.keep_those_that_must_stay(&mut candidates);
        // Workers that the kernel would kill come first, the soonest before all, then the oldest.
        candidates.sort_by_key(|one| (!self.is_in_danger(one), !one.is_urgent(), one.worker));
        for candidate in &candidates {
            self.announce(candidate);
        }
        if self.spec.dry_run {
            candidates.retain(|one| one.cause.class() == Class::Operator);
        }
        for candidate in &candidates {
            if !self.state.starts.allows(candidate.cause) {
                self.explain(candidate, "waits until the application can start");
            }
        }
        candidates.retain(|one| self.state.starts.allows(one.cause));
        self.replace_next(now, &candidates);
    }

    /// Collects garbage, which may make the replacement unnecessary, and holds the replacement back
    /// if it would not help. Returns the candidate if it should be replaced now.
    fn confirm(&mut self, now: Timestamp, candidate: Candidate) -> Option<Candidate> {
        match self.next_step(now, &candidate) {
            Step::Replace => {}
            Step::ReplaceUnasked(why) => self.warn_unasked(candidate.worker, &why),
            Step::Collect => {
                self.explain(&candidate, "collecting garbage first");
                self.collect_garbage(now, candidate.worker);
                return None;
            }
            Step::WaitUntil(at) => {
                self.explain(&candidate, "waits for a moment without a request");
                self.wake_at(now, at);
                return None;
            }
            Step::Wait => {
                self.explain(&candidate, "waits for its agent's answer");
                return None;
            }
        }
        match self.outlook(now, &candidate) {
            Outlook::Helps => Some(candidate),
            other @ (Outlook::TooSoon(_) | Outlook::Never | Outlook::BudgetWait(_)) => {
                self.explain(&candidate, other.in_words());
                self.hold_back(now, &candidate, other);
                // The worker may stay over its ceiling. Its limits on tasks and age still apply.
                let worker = self.state.workers.get(&candidate.worker)?;
                self.candidate_by_use(now, worker)
            }
        }
    }

    /// Writes an event that says why a candidate is or is not replaced now, if the reason has
    /// changed. Shown with `--verbose`.
    pub(crate) fn explain(&mut self, candidate: &Candidate, decision: &'static str) {
        let id = candidate.worker;
        if !self.plan.note(id, decision) {
            return;
        }
        let Candidate { memory, cause, .. } = candidate;
        let figures = match candidate.limit {
            Some(limit) => format!("{memory} of {limit}"),
            None => memory.to_string(),
        };
        self.emit(Event::Reason {
            worker: Some(id),
            text: format!("{id}: {figures} ({cause}): {decision}"),
        });
    }

    /// Writes one event that a worker has passed a limit.
    fn announce(&mut self, candidate: &Candidate) {
        let by_operator = candidate.cause.class() == Class::Operator;
        let worker = self.state.workers.get_mut(&candidate.worker);
        if !worker.is_some_and(|worker| worker.announce(candidate.cause)) {
            return;
        }
        let configured = if candidate.cause == Cause::Ceiling {
            self.state.limits.ceiling.bytes
        } else {
            candidate.limit
        };
        self.emit(Event::Due {
            worker: candidate.worker,
            cause: candidate.cause,
            memory: candidate.memory,
            limit: candidate.limit,
            configured,
            dry_run: self.spec.dry_run && !by_operator,
        });
    }

    /// Marks a worker as draining, and asks it to exit.
    pub(crate) fn begin_drain(&mut self, now: Timestamp, candidate: &Candidate, by: By) {
        if self.waits_for_last_window(now, candidate) {
            self.explain(candidate, "its last requests are traced");
            return;
        }
        if candidate.cause == Cause::Ceiling && !self.may_recycle_without_growth(now, candidate) {
            return;
        }
        let leave = Leave {
            cause: candidate.cause,
            limit: candidate.limit,
            until: now.later(self.spec.stop.grace),
            by,
        };
        if self.note_drain(now, candidate.worker, leave) {
            let how = match by {
                By::Signal => "asking it to exit",
                By::Server => "asking its server to retire one worker",
            };
            self.explain(candidate, how);
            self.on_replaced(now, candidate);
            self.note_vain_wait(candidate.worker);
            self.ask_last_report(now, candidate, leave.until);
            self.ask_to_exit(now, candidate.worker, by);
        }
    }

    /// Counts the workers in each state.
    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        for worker in self.state.workers.values() {
            let state = if worker.is_leaving() {
                &mut count.draining
            } else if worker.is_starting() {
                &mut count.starting
            } else {
                &mut count.ready
            };
            *state = state.saturating_add(1);
        }
        count
    }
}
