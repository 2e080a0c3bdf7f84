//! Who is replaced, why, and when: the promises of DESIGN §3.
//!
//! Never more than `at_once` away; never before `min_age`, unless a worker would die of its growth;
//! never an overlap that the budget has no room for.

use std::time::Duration;

use super::{
    Supervisor,
    action::{Action, Priority},
    due::Due,
    report::{Cause, Report},
    spare::Count,
    spec::Kind,
    worker::{By, Leave, Worker},
};
use crate::units::{Bytes, Habits, Timestamp, WorkerId};

/// A replacement is raised that much earlier than its boot needs.
const LEAD_FACTOR: f64 = 1.5;
const LEAD_MIN: Duration = Duration::from_millis(300);
/// A worker below this part of its ceiling is not forecast to cross it.
const NEAR: f64 = 0.6;
impl Supervisor {
    /// All that recycling needs now. Cheap when nothing has changed.
    pub(super) fn mind_recycling(&mut self, now: Timestamp) {
        if matches!(self.spec.kind, Kind::Server(_)) {
            self.mind_leaving(now);
            if self.spare.raise_failed(now) {
                self.tell(Report::Warning(
                    "the server was asked for one more worker and forked none; going on without"
                        .to_owned(),
                ));
                self.replan = true;
            }
            let count = self.count();
            if self.spare.observe(now, count, self.spec.ready.timeout) {
                self.derive_limits();
                self.replan = true;
            }
        }
        if self.replan || self.next_plan.is_some_and(|at| at <= now) {
            self.replan = false;
            self.next_plan = None;
            if self.service.pid().is_some() && !self.service.is_stopping() {
                self.plan(now);
            }
            self.mind_asks(now);
        }
    }

    /// Who was to go for its server's sake and is still there after the grace is asked by us, and
    /// killed like any other: as long as it lingers, its server replaces nobody. But the server may
    /// never have heard what it was told: then nobody new has come, and nobody is too many.
    fn mind_leaving(&mut self, now: Timestamp) {
        let late = |worker: &&Worker| worker.leaves_by.is_some_and(|by| by <= now);
        let late: Vec<_> = self.workers.values().filter(late).map(|w| w.id).collect();
        if late.is_empty() {
            return;
        }
        let reloaded = self.workers.values().any(|one| one.expected.is_none());
        let stay = self.workers.values().filter(|one| one.drain().is_none());
        let wanted = self.spare.wanted().unwrap_or(u32::MAX);
        let too_many = stay
            .count()
            .saturating_sub(usize::try_from(wanted).unwrap_or(usize::MAX));
        for (place, id) in late.into_iter().enumerate() {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            worker.leaves_by = None;
            let cause = worker.expected.unwrap_or(Cause::Scale);
            if place < too_many || (reloaded && cause == Cause::Reload) {
                let until = now.later(self.spec.stop.grace);
                self.send_away(now, id, cause, until);
            }
            self.spare.on_change(now);
            self.replan = true;
        }
    }

    pub(super) fn recycle_deadline(&self) -> Option<Timestamp> {
        let settles = match self.spec.kind {
            Kind::Server(_) => self.spare.deadline(self.count(), self.spec.ready.timeout),
            Kind::Single => None,
        };
        let leaving = self.workers.values().filter_map(|worker| worker.leaves_by);
        self.next_plan
            .into_iter()
            .chain(settles)
            .chain(leaving)
            .min()
    }

    pub(super) fn count(&self) -> Count {
        let mut count = Count::default();
        for worker in self.workers.values() {
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

    fn plan(&mut self, now: Timestamp) {
        let mut due = self.all_due(now);
        for one in &due {
            self.tell_due(*one);
        }
        if self.spec.dry_run {
            let wished = [Cause::Request, Cause::Reload];
            due.retain(|one| wished.contains(&one.cause));
        }
        let awaited = !due.is_empty() || self.starts.is_suspended();
        due.retain(|one| self.starts.allows(one.cause));
        match self.spec.kind {
            Kind::Single => {
                if let Some(one) = due.first() {
                    self.recycle_single(now, *one);
                }
            }
            Kind::Server(habits) => {
                self.mind_boots(awaited);
                self.mind_unready(now);
                self.recycle_worker(now, habits, &due);
            }
        }
    }

    /// The program itself is the worker: it stops and starts again, and that is a gap.
    fn recycle_single(&mut self, now: Timestamp, due: Due) {
        self.warn_once("single", || {
            "this program is one worker: it is recycled as a whole, and nothing answers between \
             its stop and its next start"
                .to_owned()
        });
        self.let_go(now, due, By::Signal);
    }

    /// A booting worker takes what the others leave, as long as nobody waits for it.
    fn mind_boots(&mut self, awaited: bool) {
        let can = self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.priority);
        let (Some(wanted), true) = (self.spare.wanted(), can) else {
            return;
        };
        let priority = if self.count().ready >= wanted && !awaited {
            Priority::Low
        } else {
            Priority::Normal
        };
        let mut changed = Vec::new();
        for worker in self
            .workers
            .values_mut()
            .filter(|worker| worker.is_starting())
        {
            if worker.priority != priority {
                worker.priority = priority;
                changed.push(worker.id);
            }
        }
        for worker in changed {
            self.act(Action::Prioritize { worker, priority });
        }
    }

    /// Gives workers that boot at low priority the normal one: a stop waits for them.
    pub(super) fn end_low_priority(&mut self) {
        let priority = Priority::Normal;
        let mut low = Vec::new();
        for worker in self.workers.values_mut() {
            if worker.priority != priority {
                worker.priority = priority;
                low.push(worker.id);
            }
        }
        for worker in low {
            self.act(Action::Prioritize { worker, priority });
        }
    }

    /// A worker that boots for ever holds up whoever waits for it.
    fn mind_unready(&mut self, now: Timestamp) {
        let timeout = self.spec.ready.timeout;
        let starting: Vec<_> = self
            .workers
            .values()
            .filter(|worker| worker.is_starting())
            .collect();
        let booting: Vec<_> = starting
            .iter()
            .map(|worker| (worker.id, worker.seen))
            .collect();
        for (id, seen) in booting {
            if now < seen.later(timeout) {
                self.wake_at(now, seen.later(timeout));
            } else {
                self.warn_once(format!("{id} is not ready"), || {
                    format!(
                        "{id} is not ready after {}s; nobody goes for it",
                        timeout.as_secs()
                    )
                });
            }
        }
    }

    /// One step towards replacing who is due; the next one follows from what comes of it.
    fn recycle_worker(&mut self, now: Timestamp, habits: Habits, due: &[Due]) {
        let count = self.count();
        let Some(wanted) = self.spare.wanted().filter(|_| self.spare.is_calm()) else {
            return;
        };
        if count.draining >= self.spec.recycle.at_once {
            return;
        }
        if due.is_empty() && self.starts.is_suspended() {
            return;
        }
        let raised = self.spare.raised().is_some();
        match due.first() {
            None if raised => self.give_back(now, wanted),
            None => self.raise_early(now, habits),
            Some(_) if raised => self.replace(now, wanted, due),
            Some(_) if self.may_raise(now) => self.raise(now, habits),
            Some(first) => {
                // Without a spare, the one that goes is missing until its replacement is up.
                let away_after = wanted.saturating_sub(count.ready.saturating_sub(1));
                // The last worker that serves is not recycled before another one has started.
                let last = count.ready < 2 && wanted > 1;
                if away_after <= self.spec.recycle.at_once && !last {
                    self.let_go(now, *first, By::Signal);
                }
            }
        }
    }

    fn may_raise(&mut self, now: Timestamp) -> bool {
        if !self.spec.recycle.capacity_first || !self.spare.can_raise(now, self.count()) {
            return false;
        }
        let room = self.has_room();
        if !room {
            let (total, newborn) = (self.total(), self.newborn);
            self.warn_once("no room", || {
                format!(
                    "the budget has no room for a new worker ({newborn}) beside all that live \
                     ({total}): one stops first, its replacement starts after"
                )
            });
        }
        room
    }

    fn raise(&mut self, now: Timestamp, habits: Habits) {
        self.act(Action::SignalCommand {
            run: self.service.run(),
            signal: habits.raise,
        });
        self.spare.on_raise(now);
        self.tell(Report::Raised);
    }

    /// A spare is there, or on its way: somebody may go once it is ready.
    fn replace(&mut self, now: Timestamp, wanted: u32, due: &[Due]) {
        let count = self.count();
        // With `at_once` 1 nobody goes before all that are wanted would be ready without it.
        let missing = self.spec.recycle.at_once.saturating_sub(1);
        let last = count.ready < 2;
        if last || count.ready.saturating_sub(1).saturating_add(missing) < wanted {
            return;
        }
        let oldest = self.oldest();
        let to_lower = due.iter().find(|one| {
            Some(one.worker) == oldest
                && count.draining == 0
                && count.live() == wanted.saturating_add(1)
        });
        // Who would be ended by the kernel does not wait for those who are only old or unwanted.
        let urgent = due.first().is_some_and(Due::is_urgent);
        let as_urgent = |one: &&Due| one.is_urgent() == urgent;
        let other = due
            .iter()
            .filter(as_urgent)
            .find(|one| Some(one.worker) != oldest);
        match (other, to_lower) {
            // The oldest goes last: the spare is given back with it, and no innocent goes.
            (Some(other), _) => self.let_go(now, *other, By::Signal),
            (None, Some(oldest)) => self.let_go(now, *oldest, By::Server),
            (None, None) => {
                if let Some(first) = due.first() {
                    self.let_go(now, *first, By::Signal);
                }
            }
        }
    }

    /// Nobody is due: the spare goes back when nobody has been for a while.
    fn give_back(&mut self, now: Timestamp, wanted: u32) {
        let since = self
            .spare
            .raised()
            .unwrap_or(now)
            .max(self.spare.last_recycle());
        let settled = since.later(self.spec.recycle.settle);
        if now < settled {
            self.wake_at(now, settled);
            return;
        }
        let count = self.count();
        let whole = count.starting == 0 && count.draining == 0;
        let (true, true, Some(oldest)) = (
            whole,
            count.live() == wanted.saturating_add(1),
            self.oldest(),
        ) else {
            return;
        };
        let memory = self
            .workers
            .get(&oldest)
            .map_or(Bytes::ZERO, |worker| worker.memory.value());
        let due = Due {
            worker: oldest,
            cause: Cause::Scale,
            memory,
            limit: None,
        };
        self.let_go(now, due, By::Server);
    }

    fn oldest(&self) -> Option<WorkerId> {
        self.workers.keys().next().copied()
    }

    /// A worker will cross its ceiling about when a replacement raised now would be ready.
    fn raise_early(&mut self, now: Timestamp, habits: Habits) {
        let Some(boot) = self.boot_time else { return };
        let recycle = self.spec.recycle;
        let can =
            recycle.capacity_first && !self.spec.dry_run && self.spare.can_raise(now, self.count());
        if !can || self.limits.ceiling.bytes.is_none() || self.count().starting > 0 {
            return;
        }
        // Nobody may have to go: the spare would be given back with an innocent oldest.
        if self.may_be_rescued() {
            return;
        }
        let lead = boot.mul_f64(LEAD_FACTOR).saturating_add(LEAD_MIN);
        let crosses = |worker: &&Worker| {
            let Some(ceiling) = self.ceiling_of(worker).filter(|_| worker.is_ready()) else {
                return false;
            };
            let near = worker.memory.value() >= ceiling.scaled(NEAR);
            let held = if self.would_die(now, worker) {
                Duration::ZERO
            } else {
                recycle.min_age.saturating_sub(worker.age(now))
            };
            let left = worker.memory.time_to(ceiling).map(|left| left.max(held));
            near && left.is_some_and(|left| left <= lead)
        };
        if self.workers.values().any(|worker| crosses(&worker)) && self.has_room() {
            self.raise(now, habits);
        }
    }

    /// Lets a worker go, and asks it to if its server does not.
    fn let_go(&mut self, now: Timestamp, due: Due, by: By) {
        if due.cause == Cause::Ceiling && !self.is_worth_it(now, due) {
            return;
        }
        let until = now.later(self.spec.stop.grace);
        let leave = Leave {
            cause: due.cause,
            limit: due.limit,
            until,
            by,
        };
        if !self.note_drain(now, due.worker, leave) {
            return;
        }
        self.on_let_go(now, due);
        let run = self.service.run();
        match (self.spec.kind, by) {
            (Kind::Server(habits), By::Signal) => {
                self.act(Action::SignalWorker {
                    worker: due.worker,
                    signal: habits.retire,
                });
            }
            (Kind::Server(habits), By::Server) => {
                self.act(Action::SignalCommand {
                    run,
                    signal: habits.lower,
                });
                self.spare.on_lower(now);
                self.tell(Report::Lowered);
            }
            (Kind::Single, _) => {
                self.act(Action::SignalCommand {
                    run,
                    signal: self.spec.stop.signal,
                });
            }
        }
    }

    pub(super) fn wake_at(&mut self, now: Timestamp, at: Timestamp) {
        // What is over already was looked at in this very turn.
        if at > now {
            self.next_plan = Some(self.next_plan.map_or(at, |next| next.min(at)));
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
