//! The promises that every recycle keeps, whatever it is for.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        cause::Class,
        report::{Cause, Report, Who},
        spec::RestartWhen,
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    books::{Books, Seen, Turn},
    world::World,
};

/// Never more than `at_once` workers away at a time; and whoever is asked to go is said to.
pub(super) struct AtOnce;

impl Checker for AtOnce {
    fn name(&self) -> &'static str {
        "at-once"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        let at_once = usize::try_from(books.spec.recycle.at_once).unwrap_or(usize::MAX);
        let away = books.away();
        if away > at_once {
            return Err(format!("{away} workers are away, at_once is {at_once}"));
        }
        for action in &turn.actions {
            let Action::SignalWorker { worker, signal } = action else {
                continue;
            };
            if *signal == Signal::TERM && !turn.drains().any(|(one, _)| one == *worker) {
                return Err(format!("{worker} was asked to go, and nothing was said"));
            }
        }
        let planned = turn.drains().any(|(_, cause)| cause.is_recycle());
        // What an operator has just asked of the server is not known at once.
        let known = books.now.since(books.moved) > Duration::from_secs(30);
        // gunicorn replaces nobody while one that it asked to go lingers, or once it stops.
        let lingers =
            books.alive().any(|(worker, _)| world.lingers(*worker)) || world.is_stopping();
        if !planned
            || !books.is_server()
            || !known
            || lingers
            || world.scenario.faults.mistaken > 0.0
        {
            return Ok(());
        }
        let serve = books.alive().filter(|(_, seen)| seen.serves()).count();
        let wish = usize::try_from(world.wish).unwrap_or(0);
        if serve + at_once < wish {
            return Err(format!(
                "somebody goes, and only {serve} of {wish} serve from then on; at_once is {at_once}"
            ));
        }
        Ok(())
    }
}

/// Never before `min_age`, unless its own growth would carry it to its cap sooner.
pub(super) struct MinAge;

/// It grew in the last minute at more than a tenth of what would carry it to its cap in time: the
/// decider may see a steeper slope than an outsider.
pub(super) fn would_die(seen: &Seen, books: &Books, within: Duration) -> bool {
    let Some(cap) = books.limits.cap.bytes else {
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

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        let min_age = books.spec.recycle.min_age;
        for (worker, cause) in turn.drains() {
            let Some(seen) = books.workers.get(&worker) else {
                continue;
            };
            let age = books.now.since(seen.at);
            let by_us = matches!(
                cause,
                Cause::Ceiling | Cause::Age | Cause::Budget | Cause::Tasks
            );
            if !by_us || age >= min_age {
                continue;
            }
            let within = (min_age - age) + books.spec.stop.grace;
            if cause != Cause::Ceiling || !would_die(seen, books, within) {
                return Err(format!(
                    "{worker} goes by {cause} at {age:?}, min_age is {min_age:?}, and it would live"
                ));
            }
        }
        Ok(())
    }
}

/// Never an overlap that the budget has no room for.
pub(super) struct Room;

impl Checker for Room {
    fn name(&self) -> &'static str {
        "room"
    }

    /// The room is estimated from below: by the samples that were handed in, a worker not yet
    /// looked at counting nothing, and by the smallest newborn that was seen.
    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        if !turn.own_signals().any(|signal| signal == Signal::TTIN) {
            return Ok(());
        }
        let Some(budget) = books.limits.budget.bytes else {
            return Ok(());
        };
        let held = books
            .alive()
            .filter_map(|(_, seen)| seen.value())
            .fold(books.server, Bytes::plus);
        let births = books.workers.values().filter_map(|seen| seen.birth);
        let newborn = births.min().unwrap_or(Bytes::ZERO);
        if held.plus(newborn) > budget.plus(Bytes::mib(1)) {
            return Err(format!(
                "one more was raised where {held} are held, {newborn} would come, and the budget \
                 is {budget}"
            ));
        }
        Ok(())
    }
}

/// Jitter lowers a limit by up to its part, and never raises it.
pub(super) struct Jitter;

/// Deadlines come late, and an exact look is waited for.
const SLACK: Duration = Duration::from_secs(2);
/// A worker that is over its ceiling by much is recycled so soon after that was seen.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

impl Jitter {
    fn check_age(
        books: &Books,
        worker: &impl std::fmt::Display,
        age: Duration,
    ) -> Result<(), String> {
        let recycle = books.spec.recycle;
        let Some(max_age) = recycle.max_age else {
            return Err(format!("{worker} is due by age, and there is no max_age"));
        };
        let least = max_age.mul_f64(1.0 - recycle.jitter).max(recycle.min_age);
        if age + Duration::from_millis(1) < least {
            return Err(format!(
                "{worker} is due at {age:?}, the least is {least:?}"
            ));
        }
        Ok(())
    }

    /// Whoever is old enough by the whole limit has been said to be due.
    fn check_overdue(books: &Books, now: Timestamp) -> Result<(), String> {
        let recycle = books.spec.recycle;
        let job = books.spec.restart.when == RestartWhen::Never;
        let (Some(max_age), true, None, false) = (recycle.max_age, books.up, books.stopping, job)
        else {
            return Ok(());
        };
        // An operator had workers go: they get their time.
        if now.since(books.moved) < books.spec.stop.grace + SLACK {
            return Ok(());
        }
        let most = max_age.max(recycle.min_age) + SLACK;
        for (worker, seen) in books.alive().filter(|(_, seen)| seen.serves()) {
            let since = seen.ready.unwrap_or(now).later(SLACK);
            // One that was over its ceiling first may still be asked why.
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

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        for report in &turn.reports {
            let Report::Due {
                worker,
                cause,
                memory,
                limit,
                ..
            } = report
            else {
                continue;
            };
            let Some(seen) = books.workers.get(worker) else {
                return Err(format!("{worker} is due, and nobody knows it"));
            };
            match (cause, limit, books.limits.ceiling.bytes) {
                (Cause::Age, ..) => Self::check_age(books, worker, books.now.since(seen.at))?,
                (Cause::Ceiling, Some(limit), Some(full)) => {
                    let least = full.scaled(1.0 - books.spec.recycle.jitter - 1e-9);
                    if *limit > full || limit.plus(Bytes(1)) < least || memory < limit {
                        return Err(format!(
                            "{worker} with {memory} was held against {limit}; the ceiling is \
                             {full}, with jitter at least {least}"
                        ));
                    }
                }
                // The limits are told once all workers are up.
                (Cause::Ceiling, ..) if books.limits.available != Bytes::ZERO => {
                    return Err(format!("{worker} is over a ceiling that there is not"));
                }
                _ => {}
            }
        }
        Self::check_overdue(books, turn.at)
    }
}

/// So many samples in a row are over the limit before anybody is due by it; and then it is due.
pub(super) struct Strikes;

impl Checker for Strikes {
    fn name(&self) -> &'static str {
        "strikes"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        let strikes = usize::try_from(books.spec.memory.strikes).unwrap_or(1);
        // Samples before a change of limits were held against another one.
        if books.now.since(books.limits_at) < Duration::from_secs(20) {
            return Ok(());
        }
        for report in &turn.reports {
            let Report::Due {
                worker,
                cause: Cause::Ceiling,
                limit: Some(limit),
                ..
            } = report
            else {
                continue;
            };
            let over = books.workers.get(worker).map_or(0, |seen| {
                let newest = seen.values.iter().rev();
                newest.take_while(|(_, value)| value >= limit).count()
            });
            if over < strikes {
                return Err(format!(
                    "{worker} is due after {over} samples over {limit}, strikes is {strikes}"
                ));
            }
        }
        Self::check_missed(books, strikes)
    }
}

impl Strikes {
    /// Twice as many samples over the whole ceiling as are needed, and old enough: it is due.
    fn check_missed(books: &Books, strikes: usize) -> Result<(), String> {
        let job = books.spec.restart.when == RestartWhen::Never;
        let (Some(ceiling), true, None, false) =
            (books.limits.ceiling.bytes, books.up, books.stopping, job)
        else {
            return Ok(());
        };
        if books.now.since(books.moved) < books.spec.stop.grace + SLACK {
            return Ok(());
        }
        for (worker, seen) in books.alive().filter(|(_, seen)| seen.serves()) {
            let newest = seen.values.iter().rev();
            let counts =
                |(at, value): &&(Timestamp, Bytes)| *at > seen.asked_until && *value >= ceiling;
            let over = newest.take_while(counts).count();
            let old = books.now.since(seen.at) > books.spec.recycle.min_age + SLACK;
            let born_below = seen.birth.is_some_and(|birth| birth < ceiling);
            let stays = books.no_help;
            if old && born_below && over > 2 * strikes + 2 && seen.due.is_none() && !stays {
                return Err(format!(
                    "{worker}: {over} samples over {ceiling}, and it is not due"
                ));
            }
        }
        Ok(())
    }
}

/// Over the ceiling at birth is said once, and the loop stops; but no leak is taken for that.
#[derive(Default)]
pub(super) struct BornFat {
    said: bool,
    in_vain: u32,
    /// No worker is recycled while the application cannot start.
    suspended: bool,
    /// Workers that leak and hold too much, and since when.
    fat: BTreeMap<WorkerId, Timestamp>,
}

impl BornFat {
    /// A worker born well below the ceiling leaks, and nobody minds: the fleet was whole since it
    /// was due.
    fn check_leaks(&mut self, books: &Books, world: &World) -> Result<(), String> {
        let ceiling = books.limits.ceiling.bytes.unwrap_or(Bytes(u64::MAX));
        let calm = books.up && books.stopping.is_none() && !books.spec.dry_run;
        let whole = books.alive().all(|(_, seen)| {
            let patience = Duration::from_secs(10);
            seen.ready.is_some_and(|at| books.now.since(at) > patience) && seen.draining.is_none()
        });
        let went = |gone| books.now.since(gone) < Duration::from_secs(10);
        let went = |seen: &Seen| seen.gone.is_some_and(went);
        let whole = whole && !books.workers.values().any(went);
        if !calm || !whole || books.spec.restart.when == RestartWhen::Never {
            self.fat.clear();
            return Ok(());
        }
        for (worker, seen) in books.alive() {
            let leaks = world
                .process(*worker)
                .is_some_and(|process| process.rate() > 1e6);
            let low = seen.birth.is_some_and(|birth| birth < ceiling.scaled(0.8));
            // One that passed its ceiling early stays until it is close to its cap.
            let cap = books.limits.cap.bytes.unwrap_or(ceiling.scaled(2.0));
            let near = ceiling.plus(cap.minus(ceiling).scaled(0.8));
            let high = near.max(ceiling.scaled(1.5));
            let high = seen.value().filter(|value| *value > high);
            let old = books.now.since(seen.at) > books.spec.recycle.min_age.mul_f64(2.0);
            let Some(value) = high.filter(|_| leaks && low && old) else {
                self.fat.remove(worker);
                continue;
            };
            // An answer copies what it shares: it may be seen below its ceiling, and next at once
            // far above it.
            let since = *self.fat.entry(*worker).or_insert(books.now);
            if books.now.since(since) > SEEN_WITHIN {
                return Err(format!("{worker} leaks, holds {value} and stays"));
            }
        }
        Ok(())
    }
}

impl Checker for BornFat {
    fn name(&self) -> &'static str {
        "born-fat"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        // A raise that the server never heard is waited for in vain.
        if self.said && !self.suspended && world.lost == 0 {
            self.check_leaks(books, world)?;
        }
        for (worker, _) in turn.drains().filter(|(_, cause)| *cause == Cause::Budget) {
            let seen = books.workers.get(&worker);
            let birth = seen.and_then(|seen| seen.birth);
            if birth.is_some() && seen.and_then(Seen::value) <= birth {
                return Err(format!(
                    "{worker} goes for the budget, and gives nothing back"
                ));
            }
        }
        for report in &turn.reports {
            match report {
                Report::Warning(text) if text.contains("recycling cannot help") && self.said => {
                    return Err("a worker born over the ceiling was warned of twice".to_owned());
                }
                Report::Warning(text) => self.said |= text.contains("recycling cannot help"),
                Report::Suspended { .. } => self.suspended = true,
                Report::Resumed { .. } => self.suspended = false,
                Report::Ended(end) if end.cause == Cause::Ceiling => {
                    let Who::Worker(worker) = end.who else {
                        continue;
                    };
                    // Whoever is taken for ready while it still boots grows as well.
                    let birth = books.workers.get(&worker).and_then(|seen| seen.birth);
                    let grew = world.fates.get(&worker).is_none_or(|fate| fate.grew)
                        || birth.is_none_or(|birth| end.peak > birth.scaled(1.05));
                    self.in_vain = if grew { 0 } else { self.in_vain + 1 };
                    if self.in_vain > 6 {
                        return Err(format!(
                            "{} workers in a row went by the ceiling, and none had grown",
                            self.in_vain
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `--dry-run` says what it would have done, and does nothing that nobody asked for.
pub(super) struct DryRun;

impl Checker for DryRun {
    fn name(&self) -> &'static str {
        "dry-run"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        if !books.spec.dry_run {
            return Ok(());
        }
        let wished = |cause: Cause| cause.class() == Class::Operator;
        for (worker, cause) in turn.drains() {
            if cause.class() == Class::Planned {
                return Err(format!("{worker} goes by {cause} in a dry run"));
            }
        }
        for report in &turn.reports {
            if let Report::Due { cause, dry_run, .. } = report
                && *dry_run == wished(*cause)
            {
                return Err(format!("due by {cause} is told with dry_run {dry_run}"));
            }
        }
        let raised = turn.own_signals().any(|signal| signal == Signal::TTIN);
        let due = |seen: &Seen| seen.due.is_some_and(|(_, cause)| wished(cause));
        if raised && !books.alive().any(|(_, seen)| due(seen)) {
            return Err("one more was raised in a dry run, and nobody had asked".to_owned());
        }
        Ok(())
    }
}
