//! What workers are asked, and what follows from their answers.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::{Action, AgentAsk},
        event::{Agent, Event, Said},
        report::{Cause, Report, Who},
        spec::Leaks,
    },
    units::{Bytes, ReportId, Timestamp, WorkerId},
};

use super::{Checker, promises::would_die};
use crate::{
    books::{Books, Seen, Turn},
    world::World,
};

/// A worker is asked one thing at a time, and only if it has an agent.
#[derive(Default)]
pub(super) struct OneQuestion {
    loaded: BTreeMap<WorkerId, bool>,
    /// With the moment until which it is the only one.
    open: BTreeMap<WorkerId, Timestamp>,
}

impl Checker for OneQuestion {
    fn name(&self) -> &'static str {
        "one-question"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Books, _: &World) -> Result<(), String> {
        match &turn.event {
            Some(Event::AgentFound { worker, agent, .. }) => {
                self.loaded.insert(*worker, *agent == Agent::Loaded);
            }
            Some(Event::Said { worker, .. }) => {
                self.open.remove(worker);
            }
            _ => {}
        }
        for action in &turn.actions {
            let Action::AskAgent { worker, ask } = action else {
                continue;
            };
            if self.loaded.get(worker) != Some(&true) {
                return Err(format!("{worker} is asked, and has no agent"));
            }
            let within = match ask {
                AgentAsk::Report { time_box, .. } => *time_box,
                AgentAsk::Collect | AgentAsk::Open { .. } | AgentAsk::Close => {
                    Duration::from_secs(1)
                }
            };
            let until = turn.at.later(within);
            if self
                .open
                .insert(*worker, until)
                .is_some_and(|at| turn.at < at)
            {
                return Err(format!("{worker} is asked again before it has answered"));
            }
        }
        Ok(())
    }
}

/// A worker that gave enough back stays until it is seen over its ceiling again.
#[derive(Default)]
pub(super) struct RescuedStay {
    /// Nobody has looked at them since.
    rescued: BTreeMap<WorkerId, Timestamp>,
    collected: BTreeMap<WorkerId, Timestamp>,
}

impl Checker for RescuedStay {
    fn name(&self) -> &'static str {
        "rescued-stay"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Books, _: &World) -> Result<(), String> {
        match &turn.event {
            Some(Event::Sampled { worker, sample }) => {
                let since = self.rescued.get(worker);
                if since.is_some_and(|since| sample.at >= *since) {
                    self.rescued.remove(worker);
                }
            }
            Some(Event::Said {
                worker,
                said: Said::Collected { before, after, .. },
            }) if after < before => {
                self.collected.insert(*worker, turn.at);
            }
            _ => {}
        }
        for report in &turn.reports {
            if let Report::Rescued { worker, .. } = report {
                if self.collected.get(worker) != Some(&turn.at) {
                    return Err(format!(
                        "{worker} is said to be rescued, and gave nothing back"
                    ));
                }
                self.rescued.insert(*worker, turn.at);
            }
        }
        for (worker, cause) in turn.drains() {
            if cause == Cause::Ceiling && self.rescued.contains_key(&worker) {
                return Err(format!("{worker} goes for its ceiling, and was rescued"));
            }
        }
        Ok(())
    }
}

/// Before the first worker goes for its ceiling it has collected garbage and said why it is fat,
/// unless there was no time; and each report is told once.
#[derive(Default)]
pub(super) struct Explained {
    asked: BTreeMap<WorkerId, (bool, bool)>,
    loaded: BTreeMap<WorkerId, bool>,
    told: BTreeMap<ReportId, u32>,
    /// Whoever is asked in vain often enough is asked less: from then on nothing is promised.
    collects: u32,
    reports: u32,
}

impl Checker for Explained {
    fn name(&self) -> &'static str {
        "explained"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        if let Some(Event::AgentFound { worker, agent, .. }) = &turn.event {
            self.loaded.insert(*worker, *agent == Agent::Loaded);
        }
        for action in &turn.actions {
            if let Action::AskAgent { worker, ask } = action {
                let (collected, reported) = self.asked.entry(*worker).or_default();
                *collected |= matches!(ask, AgentAsk::Collect);
                *reported |= matches!(ask, AgentAsk::Report { .. });
                self.collects += u32::from(matches!(ask, AgentAsk::Collect));
                self.reports += u32::from(matches!(ask, AgentAsk::Report { .. }));
            }
        }
        for report in &turn.reports {
            if let Report::Reported { report, .. } = report {
                let times = self.told.entry(*report).or_default();
                *times += 1;
                if *times > 1 {
                    return Err(format!("{report} is told twice"));
                }
            }
            if let Report::Ended(end) = report
                && let (Some(report), Who::Worker(_)) = (end.report, end.who)
                && books.spec.leaks.ask == Leaks::Off
                && end.cause != Cause::Request
                && !self.told.contains_key(&report)
            {
                return Err(format!("{report} is named, and nobody wanted reports"));
            }
        }
        for (worker, cause) in turn.drains() {
            let loaded = self.loaded.get(&worker) == Some(&true);
            let seen = books.workers.get(&worker);
            let hurry = seen.is_none_or(|seen| {
                would_die(seen, books, Duration::from_secs(3)) || shares(seen, books, 0.25)
            });
            if cause != Cause::Ceiling || !loaded || hurry || !world.agents.is_sound() {
                continue;
            }
            let (collected, reported) = self.asked.get(&worker).copied().unwrap_or_default();
            if books.spec.memory.gc_first && !collected && self.collects < 3 {
                return Err(format!(
                    "{worker} goes, and was not asked to collect garbage"
                ));
            }
            let asks = matches!(books.spec.leaks.ask, Leaks::On | Leaks::Always);
            if asks && !reported && self.reports == 0 {
                return Err(format!("{worker} goes, and was not asked why it is fat"));
            }
        }
        Ok(())
    }
}

/// Whether a worker shares more than this part of the room it has.
fn shares(seen: &Seen, books: &Books, part: f64) -> bool {
    let (shared, private) = seen.shared();
    let others = books.alive().map(|(_, seen)| seen.shared().1);
    let total = others.fold(books.server, Bytes::plus);
    let cap = books.limits.cap.bytes.map(|cap| cap.minus(private));
    let budget = books.limits.budget.bytes;
    let budget = budget.map(|budget| budget.minus(total.scaled(1.2)));
    let room = cap.into_iter().chain(budget).min();
    room.is_some_and(|room| shared > room.scaled(part))
}

/// A worker that serves is asked only what the configuration or an operator wants. It is not traced
/// before its ceiling is in sight, and not asked while answering would copy more than it has room
/// for.
pub(super) struct Undisturbed;

impl Undisturbed {
    fn check(asked: (WorkerId, &AgentAsk), books: &Books) -> Result<(), String> {
        let (worker, ask) = asked;
        let automatic = match ask {
            AgentAsk::Open { .. } => true,
            AgentAsk::Report { about, .. } => about.cause != Cause::Request,
            AgentAsk::Collect | AgentAsk::Close => false,
        };
        let wished = match books.spec.leaks.ask {
            Leaks::Off => false,
            Leaks::Auto => books.is_job(),
            Leaks::On | Leaks::Always => true,
        };
        if automatic && !wished {
            return Err(format!(
                "{worker} is asked {ask:?}, which is not configured"
            ));
        }
        let Some(seen) = books.workers.get(&worker) else {
            return Ok(());
        };
        let (shared, private) = seen.shared();
        let cap = books.cap();
        let full = cap.is_some_and(|cap| private.plus(shared) > cap);
        if full && shared > Bytes::ZERO && !matches!(ask, AgentAsk::Close) {
            return Err(format!(
                "{worker} is asked {ask:?}, and would copy {shared} beside its {private}, cap {cap:?}"
            ));
        }
        Ok(())
    }

    /// The room below the ceiling is used up within two minutes at the steepest pace that was seen,
    /// or half of it is used up.
    fn in_sight(worker: WorkerId, books: &Books) -> Result<(), String> {
        let Some(seen) = books.workers.get(&worker) else {
            return Ok(());
        };
        let limits = &books.limits;
        let (Some(limit), Some(value)) = (limits.ceiling.bytes.or(limits.cap.bytes), seen.value())
        else {
            // They are told a second after the last worker has come.
            return Ok(());
        };
        let pairs = seen.values.iter().zip(seen.values.iter().skip(1));
        let recent = pairs.filter(|((at, _), _)| books.now.since(*at) < Duration::from_secs(62));
        let steepest = recent
            .map(|((from, low), (to, high))| {
                high.minus(*low).as_f64() / to.since(*from).as_secs_f64().max(1e-6)
            })
            .fold(0.0, f64::max);
        let lowest = seen.values.iter().map(|(_, value)| *value).min();
        let lowest = lowest.unwrap_or(value);
        let half = value >= lowest.plus(limit.minus(lowest).scaled(0.45 * 0.6));
        let soon = value.as_f64() + steepest * 120.0 >= limit.as_f64() * 0.6;
        if value < lowest.plus(Bytes::mib(4)) || !(half || soon) {
            return Err(format!(
                "{worker} is traced with {value} of {limit}, which it is far from"
            ));
        }
        Ok(())
    }
}

impl Checker for Undisturbed {
    fn name(&self) -> &'static str {
        "undisturbed"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        for action in &turn.actions {
            if let Action::AskAgent { worker, ask } = action {
                Self::check((*worker, ask), books)?;
            }
        }
        for report in &turn.reports {
            if let Report::Armed { worker, .. } = report
                && books.spec.leaks.ask != Leaks::Always
            {
                Self::in_sight(*worker, books)?;
            }
        }
        Ok(())
    }
}

/// Whoever has done his number of tasks goes, and nobody goes for it before.
#[derive(Default)]
pub(super) struct Tasks {
    done: BTreeMap<WorkerId, (Timestamp, u64)>,
}

impl Checker for Tasks {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        let max = books.spec.recycle.max_tasks;
        if let Some(Event::Counted { worker, counts }) = &turn.event {
            let since = self.done.get(worker).map(|(since, _)| *since);
            let enough = max.is_some_and(|max| counts.done >= max);
            let since = since.filter(|_| enough).unwrap_or(turn.at);
            self.done.insert(*worker, (since, counts.done));
        }
        for (worker, cause) in turn.drains() {
            if cause != Cause::Tasks {
                continue;
            }
            let done = self.done.get(&worker).map_or(0, |(_, done)| *done);
            let least =
                supervise::units::scaled(max.unwrap_or(u64::MAX), 1.0 - books.spec.recycle.jitter);
            if done < least {
                return Err(format!("{worker} goes after {done} tasks, of {max:?}"));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, world: &World) -> Result<(), String> {
        let Some(max) = books.spec.recycle.max_tasks else {
            return Ok(());
        };
        let serve = books.alive().filter(|(_, seen)| seen.serves()).count();
        let whole = serve >= usize::try_from(world.wish).unwrap_or(0);
        let goes = books.exit.is_none() && books.stopping.is_none() && !books.spec.dry_run;
        if !whole || !goes || books.is_job() {
            return Ok(());
        }
        let longest = Duration::from_secs(120);
        for (worker, seen) in books.alive().filter(|(_, seen)| seen.serves()) {
            let Some((since, done)) = self.done.get(worker) else {
                continue;
            };
            let grown_up = seen.at.later(books.spec.recycle.min_age);
            if *done >= max && books.now.since((*since).max(grown_up)) > longest {
                return Err(format!(
                    "{worker} has done {done} tasks and serves on; {max} are enough"
                ));
            }
        }
        Ok(())
    }
}

/// No tracing window stays open.
#[derive(Default)]
pub(super) struct Windows {
    open: BTreeMap<WorkerId, Timestamp>,
}

impl Checker for Windows {
    fn name(&self) -> &'static str {
        "windows"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        match &turn.event {
            Some(Event::Said {
                worker,
                said: Said::Opened,
            }) => {
                self.open.insert(*worker, turn.at);
            }
            Some(Event::Said {
                worker,
                said: Said::Closed | Said::Reported { .. },
            }) => {
                self.open.remove(worker);
            }
            _ => {}
        }
        for (worker, since) in &self.open {
            let seen = books.workers.get(worker);
            let serves = seen.is_some_and(|seen| seen.is_alive() && seen.draining.is_none());
            // A question that is not answered holds up the one that closes it.
            if serves && turn.at.since(*since) > Duration::from_secs(15) {
                return Err(format!(
                    "{worker} is traced since {:?}",
                    turn.at.since(*since)
                ));
            }
        }
        Ok(())
    }
}
