//! A server whose child processes are the workers. The server starts them and owns their number,
//! which is observed from outside. Its profile says how one of them is replaced.

use std::time::Duration;

use crate::{
    servers::profile::{Profile, Retires},
    supervisor::{
        Supervisor,
        action::{Action, Priority},
        cause::Cause,
        event::Event,
        policy::{candidates::Candidate, surge::Patience},
        worker::{
            Worker,
            lifecycle::{By, Step},
        },
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

/// A replacement is started early by this many times its expected boot time ...
const LEAD_FACTOR: f64 = 1.5;
/// ... and by this much more.
const LEAD_MIN: Duration = Duration::from_millis(300);
/// The replacement of a worker below this part of its ceiling is not started early.
const NEAR_CEILING: f64 = 0.6;
/// A replacement boots with a low priority at most for this long ...
const LOW_BOOT_MAX: Duration = Duration::from_secs(2);
/// ... and at most until the worker that it replaces has grown by this much.
const LOW_BOOT_GROWTH: Bytes = Bytes::mib(4);

impl Supervisor {
    /// Updates the number of workers that the server wants from what is observed.
    pub(super) fn observe_number(&mut self, now: Timestamp) {
        self.end_notices(now);
        if self.state.surge.has_failed(now) {
            self.state.surge.on_failed(now);
            self.emit(Event::Warning(
                "the server was asked for one more worker and did not fork it; continuing without"
                    .to_owned(),
            ));
            self.plan.touch();
        }
        let (count, patience) = (self.count(), self.patience());
        if self.state.surge.observe(now, count, patience) {
            self.derive_limits();
            self.plan.touch();
        }
    }

    fn patience(&self) -> Patience {
        // A server without a signal that changes its number of workers keeps that number, and may
        // take long to start another worker: huey looks every 10 s.
        let keeps_number = self.profile().is_some_and(|one| one.raise().is_none());
        let boot = self.spec.ready.timeout;
        let fewer = keeps_number.then_some(boot);
        Patience {
            boot,
            fewer,
            // Our own parent of copies does so.
            keeps_surge: self.is_fleet(),
        }
    }

    pub(super) fn observe_number_at(&self) -> Option<Timestamp> {
        let patience = self.patience();
        let settles = self.state.surge.deadline(self.count(), patience);
        let workers = self.state.workers.values();
        let notices = workers.filter_map(|worker| worker.life().leaves_by());
        notices.chain(settles).min()
    }

    /// Handles workers that were expected to exit because of what their server was told, and that
    /// have not exited within the grace period. The supervisor asks them to exit and kills them
    /// like any other worker, because their server replaces no worker until they exit. But the
    /// server may never have received the signal. Then no new worker has started, there is no
    /// worker too many, and they stay.
    fn end_notices(&mut self, now: Timestamp) {
        let late = |worker: &&Worker| worker.life().leaves_by().is_some_and(|by| by <= now);
        let late = self.state.workers.values().filter(late);
        let late: Vec<_> = late.map(Worker::id).collect();
        if late.is_empty() {
            return;
        }
        let mut workers = self.state.workers.values();
        let reloaded = workers.any(|one| one.life().expected().is_none());
        let workers = self.state.workers.values();
        let stay = workers.filter(|one| one.drain().is_none()).count();
        let wanted = self.state.surge.wanted().unwrap_or(u32::MAX);
        let too_many = stay.saturating_sub(usize::try_from(wanted).unwrap_or(usize::MAX));
        for (place, id) in late.into_iter().enumerate() {
            let Some(worker) = self.state.workers.get_mut(&id) else {
                continue;
            };
            worker.step(now, Step::NoticeOver);
            let cause = worker.life().expected().unwrap_or(Cause::Scale);
            if place < too_many || (reloaded && cause == Cause::Reload) {
                let until = now.later(self.spec.stop.grace);
                self.drain_by_signal(now, id, cause, until);
            }
            self.state.surge.on_change(now);
            self.plan.touch();
        }
    }

    /// An operator has sent a signal to the server through the supervisor.
    pub(crate) fn on_server_signal(&mut self, now: Timestamp, signal: Signal) {
        let Some(profile) = self.profile() else {
            return;
        };
        let signals = profile.signals;
        if Some(signal) == signals.quit {
            self.on_quit_signal(now);
        } else if Some(signal) == signals.reload {
            self.withdraw_last_reports();
            let until = now.later(self.spec.stop.grace);
            let cause = Cause::Reload;
            for worker in self.state.workers.values_mut() {
                worker.step(now, Step::Noticed { cause, until });
            }
            self.state.surge.on_reload(now);
            self.state.agents.on_reload();
        } else if Some(signal) == signals.second_master {
            self.state.surge.unsettle(now);
        } else if Some(signal) == profile.raise() {
            self.state.surge.on_request(now, true);
        } else if Some(signal) == profile.lower() {
            self.expect_retirement(now, profile);
            self.state.surge.on_request(now, false);
        }
    }

    /// An operator told the server to retire one worker. Expects the exit of the worker that comes
    /// next in the server's order.
    fn expect_retirement(&mut self, now: Timestamp, profile: &Profile) {
        let until = now.later(self.spec.stop.grace);
        let surge = &self.state.surge;
        let last_one = surge.wanted() == Some(1) && surge.raised().is_none();
        let leaves = |worker: &Worker| {
            let lowered = worker.drain();
            let lowered = lowered.is_some_and(|drain| drain.leave().by == By::Server);
            worker.life().leaves_by().is_some() || lowered
        };
        let mut stay = self.state.workers.values_mut().filter(|one| !leaves(one));
        let retired = match profile.retires() {
            Some(Retires::Oldest) => stay.next(),
            Some(Retires::Newest) => stay.last(),
            None => None,
        };
        if let Some(retired) = retired.filter(|_| !last_one) {
            let cause = Cause::Scale;
            retired.step(now, Step::Noticed { cause, until });
        }
    }

    /// Gives workers that boot a low CPU priority, so that requests do not wait for them. If
    /// candidates wait for a new worker, it has the low priority only for as long as they may wait:
    /// on a machine without a free processor, it would boot very slowly.
    pub(super) fn set_boot_priority(&mut self, now: Timestamp, candidates: &[Candidate]) {
        let machine = self.here.machine.as_ref();
        let can = machine.is_some_and(|machine| machine.priority);
        let (Some(wanted), true) = (self.state.surge.wanted(), can) else {
            return;
        };
        let patience = if self.count().ready < wanted || self.state.starts.is_suspended() {
            Some(Duration::ZERO)
        } else {
            let waits = candidates.iter().map(|one| self.patience_for_boot(one));
            waits.min()
        };
        let mut ends = None;
        for (&worker, one) in self
            .state
            .workers
            .iter_mut()
            .filter(|(_, one)| one.is_starting())
        {
            let until = patience.map(|patience| one.seen().later(patience));
            let priority = if until.is_none_or(|until| now < until) {
                ends = ends.max(until);
                Priority::Low
            } else {
                Priority::Normal
            };
            if one.kernel_mut().set_priority(priority) {
                self.out.act(Action::Prioritize { worker, priority });
            }
        }
        if let Some(until) = ends {
            self.wake_at(now, until);
        }
    }

    /// How long the replacement of a candidate may boot with a low priority.
    fn patience_for_boot(&self, candidate: &Candidate) -> Duration {
        let worker = self.state.workers.get(&candidate.worker);
        let slope = worker.and_then(|worker| worker.memory().slope());
        let wait = slope
            .filter(|slope| *slope > 0.0)
            .and_then(|slope| Duration::try_from_secs_f64(LOW_BOOT_GROWTH.as_f64() / slope).ok());
        wait.unwrap_or(LOW_BOOT_MAX).min(LOW_BOOT_MAX)
    }

    /// Gives all workers the normal priority, because a stop waits for workers that boot.
    pub(crate) fn end_low_priority(&mut self) {
        let priority = Priority::Normal;
        for (&worker, one) in self.state.workers.iter_mut() {
            if one.kernel_mut().set_priority(priority) {
                self.out.act(Action::Prioritize { worker, priority });
            }
        }
    }

    /// Takes one step towards replacing the candidates.
    pub(super) fn replace_worker(
        &mut self,
        now: Timestamp,
        profile: &Profile,
        candidates: &[Candidate],
    ) {
        let count = self.count();
        let surge = &self.state.surge;
        if surge.is_first_number_open() {
            self.replace_unsettled(now, candidates);
            return;
        }
        let Some(wanted) = surge.wanted().filter(|_| surge.is_calm()) else {
            self.explain_first(candidates, "waits until the number of workers has settled");
            return;
        };
        if count.draining >= self.spec.recycle.max_unavailable {
            if !candidates.is_empty() {
                self.withdraw_last_reports();
            }
            self.explain_first(candidates, "waits for a worker that is draining");
            return;
        }
        if candidates.is_empty() && self.state.starts.is_suspended() {
            return;
        }
        let raised = surge.raised().is_some();
        match candidates.first() {
            None if raised => self.retire_surge(now, profile, wanted),
            None => self.raise_early(now, profile),
            Some(_) if raised => self.replace_with_surge(now, profile, wanted, candidates),
            Some(first) => {
                let can_raise = self.can_raise(now, profile);
                if can_raise && self.has_room() {
                    self.raise(now, profile);
                    return;
                }
                if can_raise {
                    self.warn_of_no_room();
                }
                self.replace_without_surge(now, wanted, first);
            }
        }
    }

    /// Replaces a worker without a surge worker: one worker is missing until the replacement is
    /// ready.
    fn replace_without_surge(&mut self, now: Timestamp, wanted: u32, candidate: &Candidate) {
        let count = self.count();
        let away_after = wanted.saturating_sub(count.ready.saturating_sub(1));
        // The last worker that serves is not recycled before another one is ready.
        let last = count.ready < 2 && wanted > 1;
        if away_after <= self.spec.recycle.max_unavailable && !last {
            self.begin_drain(now, candidate, By::Signal);
        } else {
            self.explain(candidate, "waits until enough other workers are ready");
        }
    }

    /// Replaces a worker while the number of workers has not settled yet. It may never settle:
    /// workers that leak fast reach their cap before the number has been unchanged for a second,
    /// and then another worker boots. So a worker over its ceiling is replaced while others serve.
    fn replace_unsettled(&mut self, now: Timestamp, candidates: &[Candidate]) {
        let (count, surge) = (self.count(), &self.state.surge);
        let for_ceiling = |one: &&Candidate| one.cause == Cause::Ceiling;
        let away_after = surge
            .most_seen()
            .saturating_sub(count.ready.saturating_sub(1));
        if count.ready > 1
            && away_after <= self.spec.recycle.max_unavailable
            && let Some(first) = candidates.iter().find(for_ceiling)
        {
            self.begin_drain(now, first, By::Signal);
        }
    }

    fn explain_first(&mut self, candidates: &[Candidate], decision: &'static str) {
        if let Some(first) = candidates.first() {
            self.explain(first, decision);
        }
    }

    fn can_raise(&self, now: Timestamp, profile: &Profile) -> bool {
        let can = profile.raise().is_some() && self.spec.recycle.surge;
        can && self.state.surge.can_raise(now, self.count())
    }

    fn warn_of_no_room(&mut self) {
        let (total, needed) = (self.total(), self.state.workers.expected_memory());
        self.warn_once("no room", || {
            format!(
                "the budget has no room for one more worker ({needed}); the service holds \
                 {total}: a worker is stopped before its replacement starts"
            )
        });
    }

    fn raise(&mut self, now: Timestamp, profile: &Profile) {
        let Some(signal) = profile.raise() else {
            return;
        };
        self.out.act(Action::SignalCommand {
            run: self.state.service.run(),
            signal,
        });
        self.state.surge.on_raise(now);
        self.emit(Event::Raised);
    }

    /// Replaces a candidate once the surge worker is ready.
    fn replace_with_surge(
        &mut self,
        now: Timestamp,
        profile: &Profile,
        wanted: u32,
        candidates: &[Candidate],
    ) {
        let count = self.count();
        // With `max_unavailable` 1, a candidate is not asked to exit before the other workers are
        // as many as wanted.
        let missing = self.spec.recycle.max_unavailable.saturating_sub(1);
        let last = count.ready < 2;
        if last || count.ready.saturating_sub(1).saturating_add(missing) < wanted {
            self.explain_first(candidates, "waits until its replacement is ready");
            return;
        }
        let retired = self.retired_next(profile);
        let to_lower = candidates.iter().find(|one| {
            Some(one.worker) == retired
                && count.draining == 0
                && count.live() == wanted.saturating_add(1)
        });
        // A worker that the kernel would kill does not wait for workers that are only old or that
        // an operator wants replaced.
        let urgent = candidates.first().is_some_and(Candidate::is_urgent);
        let other = candidates
            .iter()
            .filter(|one| one.is_urgent() == urgent)
            .find(|one| Some(one.worker) != retired || self.is_in_danger(one));
        // The worker that the server would retire comes last: the surge ends with it, and no other
        // worker has to be retired to end the surge.
        match (other, to_lower, candidates.first()) {
            (Some(other), ..) => self.begin_drain(now, other, By::Signal),
            (None, Some(retired), _) => self.begin_drain(now, retired, By::Server),
            (None, None, Some(first)) => self.begin_drain(now, first, By::Signal),
            (None, None, None) => {}
        }
    }

    /// Ends the surge if no worker had to be replaced for `surge_idle`.
    fn retire_surge(&mut self, now: Timestamp, profile: &Profile, wanted: u32) {
        let surge = &self.state.surge;
        let since = surge.raised().unwrap_or(now).max(surge.last_recycle());
        let settled = since.later(self.spec.recycle.surge_idle);
        if now < settled {
            self.wake_at(now, settled);
            return;
        }
        let count = self.count();
        let whole = count.starting == 0 && count.draining == 0;
        let (true, true, Some(retired)) = (
            whole,
            count.live() == wanted.saturating_add(1),
            self.retired_next(profile),
        ) else {
            return;
        };
        let worker = self.state.workers.get(&retired);
        let candidate = Candidate {
            worker: retired,
            cause: Cause::Scale,
            memory: worker.map_or(Bytes::ZERO, |worker| worker.memory().value()),
            limit: None,
        };
        self.begin_drain(now, &candidate, By::Server);
    }

    /// The worker that the server retires when it is asked for one worker fewer.
    fn retired_next(&self, profile: &Profile) -> Option<WorkerId> {
        let mut workers = self.state.workers.keys();
        match profile.retires()? {
            Retires::Oldest => workers.next(),
            Retires::Newest => workers.next_back(),
        }
        .copied()
    }

    /// Starts a surge worker early, if a worker will reach its ceiling about when a replacement
    /// started now would be ready.
    fn raise_early(&mut self, now: Timestamp, profile: &Profile) {
        let Some(boot) = self.state.workers.boot_time() else {
            return;
        };
        let can = !self.spec.dry_run && self.can_raise(now, profile);
        if !can || self.state.limits.ceiling.bytes.is_none() || self.count().starting > 0 {
            return;
        }
        // Collecting garbage may make the replacement unnecessary. Then a healthy worker would be
        // retired to end the surge.
        if self.may_be_rescued() {
            return;
        }
        let lead = boot.mul_f64(LEAD_FACTOR).saturating_add(LEAD_MIN);
        let mut workers = self.state.workers.values();
        if workers.any(|worker| self.crosses_within(now, worker, lead)) && self.has_room() {
            self.raise(now, profile);
        }
    }

    fn crosses_within(&self, now: Timestamp, worker: &Worker, lead: Duration) -> bool {
        let Some(ceiling) = self.ceiling_of(worker).filter(|_| worker.is_ready()) else {
            return false;
        };
        let near = worker.memory().value() >= ceiling.scaled(NEAR_CEILING);
        let too_young_for = if self.would_reach_cap(now, worker) {
            Duration::ZERO
        } else {
            self.spec.recycle.min_age.saturating_sub(worker.age(now))
        };
        let left = worker.memory().time_to(ceiling);
        near && left.is_some_and(|left| left.max(too_young_for) <= lead)
    }

    pub(super) fn ask_worker_to_exit(
        &mut self,
        now: Timestamp,
        profile: &Profile,
        worker: WorkerId,
        by: By,
    ) {
        match (by, profile.lower()) {
            (By::Server, Some(signal)) => {
                let run = self.state.service.run();
                self.out.act(Action::SignalCommand { run, signal });
                self.state.surge.on_lower(now);
                self.emit(Event::Lowered);
            }
            (By::Signal, _) | (By::Server, None) => {
                let signal = self.retire_signal();
                self.out.act(Action::SignalWorker { worker, signal });
            }
        }
    }

    pub(super) fn server_has_all_workers(&self) -> bool {
        let (count, wanted) = (self.count(), self.state.surge.wanted());
        count.draining == 0 && wanted.is_some_and(|wanted| count.ready >= wanted)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
