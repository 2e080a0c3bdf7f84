//! The promises that every recycle keeps, whatever its cause.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        cause::Cause,
        cause::Class,
        event::{Event, Who},
        spec::RestartWhen,
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    record::{Record, Seen, Turn},
    world::World,
};

/// At most `max_unavailable` workers are unavailable at a time, and every stop signal to a worker
/// comes with an event.
pub(super) struct MaxUnavailable;

impl Checker for MaxUnavailable {
    fn name(&self) -> &'static str {
        "max-unavailable"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        let most = usize::try_from(record.spec.recycle.max_unavailable).unwrap_or(usize::MAX);
        let away = record.away();
        if away > most {
            return Err(format!(
                "{away} workers are unavailable, the maximum is {most}"
            ));
        }
        for action in &turn.actions {
            let Action::SignalWorker { worker, signal } = action else {
                continue;
            };
            if *signal == Signal::TERM && !turn.drains().any(|(one, _)| one == *worker) {
                return Err(format!("{worker} was asked to stop without an event"));
            }
        }
        let planned = turn.drains().any(|(_, cause)| cause.is_recycle());
        // The decider learns late what an operator has just asked of the server.
        let known = record.now.since(record.moved) > Duration::from_secs(30);
        // gunicorn replaces no worker while one that it stopped has not ended, or once it stops.
        let lingers =
            record.alive().any(|(worker, _)| world.lingers(*worker)) || world.is_stopping();
        if !planned
            || !record.is_server()
            || !known
            || lingers
            || world.scenario.faults.mistaken > 0.0
        {
            return Ok(());
        }
        let serve = record.alive().filter(|(_, seen)| seen.serves()).count();
        let wanted = usize::try_from(world.wanted).unwrap_or(0);
        if serve + most < wanted {
            return Err(format!(
                "after this drain only {serve} of {wanted} serve; the maximum unavailable is {most}"
            ));
        }
        Ok(())
    }
}

/// A worker is not recycled before `min_age`, unless it would reach its cap before then.
pub(super) struct MinAge;

/// Whether a worker grew by more than a tenth of the growth that would reach its cap in time. The
/// margin is wide because the decider may estimate a steeper slope than the record shows.
pub(super) fn would_die(seen: &Seen, record: &Record, within: Duration) -> bool {
    // Before the limits are announced, the cap under which workers were adopted is in force.
    let Some(cap) = record.cap() else {
        return false;
    };
    let Some(now) = seen.value() else {
        return false;
    };
    let lowest = seen.values.iter().map(|(_, value)| *value).min();
    let grown = now.minus(lowest.unwrap_or(now)).as_f64();
    now >= cap || grown * 10.0 * within.as_secs_f64().max(1.0) > cap.minus(now).as_f64()
}

impl Checker for MinAge {
    fn name(&self) -> &'static str {
        "min-age"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        let min_age = record.spec.recycle.min_age;
        for (worker, cause) in turn.drains() {
            let Some(seen) = record.workers.get(&worker) else {
                continue;
            };
            let age = record.now.since(seen.at);
            let by_us = matches!(
                cause,
                Cause::Ceiling | Cause::Age | Cause::Budget | Cause::Tasks
            );
            if !by_us || age >= min_age {
                continue;
            }
            let within = (min_age - age) + record.spec.stop.grace;
            if cause != Cause::Ceiling || !would_die(seen, record, within) {
                return Err(format!(
                    "{worker} drains by {cause} at {age:?} of {min_age:?}, far from its cap"
                ));
            }
        }
        Ok(())
    }
}

/// No surge worker is started if it does not fit into the budget.
pub(super) struct Room;

impl Checker for Room {
    fn name(&self) -> &'static str {
        "room"
    }

    /// The memory in use is a lower bound: a worker without a sample counts as nothing, and a new
    /// worker as the smallest that was seen at its start.
    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        if !turn.own_signals().any(|signal| signal == Signal::TTIN) {
            return Ok(());
        }
        let Some(budget) = record.limits.budget.bytes else {
            return Ok(());
        };
        let held = record
            .alive()
            .filter_map(|(_, seen)| seen.value())
            .fold(record.server, Bytes::plus);
        let at_start = record.workers.values().filter_map(|seen| seen.birth);
        let smallest = at_start.min().unwrap_or(Bytes::ZERO);
        if held.plus(smallest) > budget.plus(Bytes::mib(1)) {
            return Err(format!(
                "a surge worker was started at {held}, a worker needs {smallest}, and the budget \
                 is {budget}"
            ));
        }
        Ok(())
    }
}

/// Jitter lowers a limit by at most the configured part, and never raises it.
pub(super) struct Jitter;

/// Deadlines come late, and the decider waits for an exact sample.
const SLACK: Duration = Duration::from_secs(2);
/// A worker far over its ceiling is recycled within this time after the sample that shows it.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

impl Jitter {
    fn check_age(
        record: &Record,
        worker: &impl std::fmt::Display,
        age: Duration,
    ) -> Result<(), String> {
        let recycle = record.spec.recycle;
        let Some(max_age) = recycle.max_age else {
            return Err(format!("{worker} is due by age without a max_age"));
        };
        let least = max_age.mul_f64(1.0 - recycle.jitter).max(recycle.min_age);
        if age + Duration::from_millis(1) < least {
            return Err(format!(
                "{worker} is due at {age:?}, before the earliest {least:?}"
            ));
        }
        Ok(())
    }

    /// A worker older than the limit without jitter is due.
    fn check_overdue(record: &Record, now: Timestamp) -> Result<(), String> {
        let recycle = record.spec.recycle;
        let job = record.spec.restart.when == RestartWhen::Never;
        let (Some(max_age), true, None, false) = (recycle.max_age, record.up, record.stopping, job)
        else {
            return Ok(());
        };
        // An operator had workers stop: they may take their grace period.
        if now.since(record.moved) < record.spec.stop.grace + SLACK {
            return Ok(());
        }
        let most = max_age.max(recycle.min_age) + SLACK;
        for (worker, seen) in record.alive().filter(|(_, seen)| seen.serves()) {
            let since = seen.ready.unwrap_or(now).later(SLACK);
            // A worker that was over its ceiling first may still be making its report.
            let asked = now <= seen.asked_until.later(SLACK);
            if now.since(seen.at) > most && now > since && !asked && seen.due.is_none() {
                return Err(format!("{worker} is older than {max_age:?} and not due"));
            }
        }
        Ok(())
    }
}

impl Checker for Jitter {
    fn name(&self) -> &'static str {
        "jitter"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        for event in &turn.events {
            let Event::Due {
                worker,
                cause,
                memory,
                limit,
                ..
            } = event
            else {
                continue;
            };
            let Some(seen) = record.workers.get(worker) else {
                return Err(format!("{worker} is due, and is unknown"));
            };
            match (cause, limit, record.limits.ceiling.bytes) {
                (Cause::Age, ..) => Self::check_age(record, worker, record.now.since(seen.at))?,
                (Cause::Ceiling, Some(limit), Some(full)) => {
                    // A worker that is prepared for a report leaves earlier.
                    let room = Bytes::mib(10).min(full.scaled(1.0 / 16.0));
                    let least = full
                        .scaled(1.0 - record.spec.recycle.jitter - 1e-9)
                        .minus(room);
                    if *limit > full || limit.plus(Bytes(1)) < least || memory < limit {
                        return Err(format!(
                            "{worker} at {memory} was compared with {limit}; the ceiling is \
                             {full}, with jitter at least {least}"
                        ));
                    }
                }
                // The limits are announced once all workers are up.
                (Cause::Ceiling, ..) if record.limits.available != Bytes::ZERO => {
                    return Err(format!("{worker} is due by ceiling without a ceiling"));
                }
                _ => {}
            }
        }
        Self::check_overdue(record, turn.at)
    }
}

/// A worker is due by its ceiling after the configured number of consecutive samples over it, not
/// sooner and not later.
pub(super) struct ConsecutiveSamples;

impl Checker for ConsecutiveSamples {
    fn name(&self) -> &'static str {
        "consecutive-samples"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        let needed = usize::try_from(record.spec.memory.consecutive_samples).unwrap_or(1);
        // Samples before a change of limits were compared with the old ones.
        if record.now.since(record.limits_at) < Duration::from_secs(20) {
            return Ok(());
        }
        for event in &turn.events {
            let Event::Due {
                worker,
                cause: Cause::Ceiling,
                limit: Some(limit),
                ..
            } = event
            else {
                continue;
            };
            let over = record.workers.get(worker).map_or(0, |seen| {
                let newest = seen.values.iter().rev();
                newest.take_while(|(_, value)| value >= limit).count()
            });
            if over < needed {
                return Err(format!(
                    "{worker} is due after {over} samples over {limit}, {needed} are needed"
                ));
            }
        }
        Self::check_missed(record, needed)
    }
}

impl ConsecutiveSamples {
    /// A worker of `min_age` with twice the needed samples over the full ceiling is due.
    fn check_missed(record: &Record, needed: usize) -> Result<(), String> {
        let job = record.spec.restart.when == RestartWhen::Never;
        let (Some(ceiling), true, None, false) =
            (record.limits.ceiling.bytes, record.up, record.stopping, job)
        else {
            return Ok(());
        };
        if record.now.since(record.moved) < record.spec.stop.grace + SLACK {
            return Ok(());
        }
        for (worker, seen) in record.alive().filter(|(_, seen)| seen.serves()) {
            let newest = seen.values.iter().rev();
            let counts =
                |(at, value): &&(Timestamp, Bytes)| *at > seen.asked_until && *value >= ceiling;
            let over = newest.take_while(counts).count();
            let old = record.now.since(seen.at) > record.spec.recycle.min_age + SLACK;
            let born_below = seen.birth.is_some_and(|birth| birth < ceiling);
            let stays = record.no_help;
            if old && born_below && over > 2 * needed + 2 && seen.due.is_none() && !stays {
                return Err(format!(
                    "{worker} is not due after {over} samples over {ceiling}"
                ));
            }
        }
        Ok(())
    }
}

/// When workers are over their ceiling from the start, the decider warns once and stops recycling
/// them. It still recycles workers that leak.
#[derive(Default)]
pub(super) struct OverAtStart {
    has_warned: bool,
    /// Consecutive recycles at the ceiling of workers that had not grown.
    ungrown: u32,
    /// No worker is recycled while the application cannot start.
    suspended: bool,
    /// Workers that leak and use too much, and since when.
    leaking: BTreeMap<WorkerId, Timestamp>,
}

impl OverAtStart {
    /// A worker that started well below the ceiling, leaks and is far over it must not stay while
    /// all other workers serve.
    fn check_leaks(&mut self, record: &Record, world: &World) -> Result<(), String> {
        let ceiling = record.limits.ceiling.bytes.unwrap_or(Bytes(u64::MAX));
        let calm = record.up && record.stopping.is_none() && !record.spec.dry_run;
        let whole = record.alive().all(|(_, seen)| {
            let patience = Duration::from_secs(10);
            seen.ready.is_some_and(|at| record.now.since(at) > patience) && seen.draining.is_none()
        });
        let went = |gone| record.now.since(gone) < Duration::from_secs(10);
        let went = |seen: &Seen| seen.gone.is_some_and(went);
        let whole = whole && !record.workers.values().any(went);
        if !calm || !whole || record.spec.restart.when == RestartWhen::Never {
            self.leaking.clear();
            return Ok(());
        }
        for (worker, seen) in record.alive() {
            let leaks = world
                .process(*worker)
                .is_some_and(|process| process.rate() > 1e6);
            let low = seen.birth.is_some_and(|birth| birth < ceiling.scaled(0.8));
            // A worker that exceeded its ceiling early stays until it is close to its cap.
            let cap = record.limits.cap.bytes.unwrap_or(ceiling.scaled(2.0));
            let near = ceiling.plus(cap.minus(ceiling).scaled(0.8));
            let high = near.max(ceiling.scaled(1.5));
            let high = seen.value().filter(|value| *value > high);
            let old = record.now.since(seen.at) > record.spec.recycle.min_age.mul_f64(2.0);
            let Some(value) = high.filter(|_| leaks && low && old) else {
                self.leaking.remove(worker);
                continue;
            };
            // Answering a request copies shared pages: one sample may be below the ceiling and the
            // next far above it.
            let since = *self.leaking.entry(*worker).or_insert(record.now);
            if record.now.since(since) > SEEN_WITHIN {
                return Err(format!("{worker} leaks, uses {value}, and is not recycled"));
            }
        }
        Ok(())
    }
}

impl Checker for OverAtStart {
    fn name(&self) -> &'static str {
        "over-at-start"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        // After a lost SIGTTIN the decider waits for a worker that does not come.
        if self.has_warned && !self.suspended && world.lost == 0 {
            self.check_leaks(record, world)?;
        }
        for (worker, _) in turn.drains().filter(|(_, cause)| *cause == Cause::Budget) {
            let seen = record.workers.get(&worker);
            let birth = seen.and_then(|seen| seen.birth);
            if birth.is_some() && seen.and_then(Seen::value) <= birth {
                return Err(format!("{worker} drains by budget, and that frees nothing"));
            }
        }
        for event in &turn.events {
            match event {
                Event::Warning(text)
                    if text.contains("recycling cannot help") && self.has_warned =>
                {
                    return Err("the warning that recycling cannot help came twice".to_owned());
                }
                Event::Warning(text) => self.has_warned |= text.contains("recycling cannot help"),
                Event::Suspended { .. } => self.suspended = true,
                Event::Resumed { .. } => self.suspended = false,
                Event::Ended(end) if end.cause == Cause::Ceiling => {
                    let Who::Worker(worker) = end.who else {
                        continue;
                    };
                    // A worker that counts as ready while it still boots grows as well.
                    let birth = record.workers.get(&worker).and_then(|seen| seen.birth);
                    let grew = world.fates.get(&worker).is_none_or(|fate| fate.grew)
                        || birth.is_none_or(|birth| end.peak > birth.scaled(1.05));
                    self.ungrown = if grew { 0 } else { self.ungrown + 1 };
                    if self.ungrown > 6 {
                        return Err(format!(
                            "{} consecutive workers drained by ceiling, and none had grown",
                            self.ungrown
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// With `--dry-run` the decider announces its recycles and does not carry them out. Requests of an
/// operator are carried out.
pub(super) struct DryRun;

impl Checker for DryRun {
    fn name(&self) -> &'static str {
        "dry-run"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        if !record.spec.dry_run {
            return Ok(());
        }
        let by_operator = |cause: Cause| cause.class() == Class::Operator;
        for (worker, cause) in turn.drains() {
            if cause.class() == Class::Planned {
                return Err(format!("{worker} drains by {cause} in a dry run"));
            }
        }
        for event in &turn.events {
            if let Event::Due { cause, dry_run, .. } = event
                && *dry_run == by_operator(*cause)
            {
                return Err(format!(
                    "due by {cause} is announced with dry_run {dry_run}"
                ));
            }
        }
        let raised = turn.own_signals().any(|signal| signal == Signal::TTIN);
        let due = |seen: &Seen| seen.due.is_some_and(|(_, cause)| by_operator(cause));
        if raised && !record.alive().any(|(_, seen)| due(seen)) {
            return Err("a surge worker was started in a dry run without a request".to_owned());
        }
        Ok(())
    }
}
