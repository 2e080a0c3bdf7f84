//! Requests to agents, and what follows from the answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{Action, AgentAsk, ReportWhen},
        cause::Cause,
        event::{Event, Who},
        input::{Agent, AgentAnswer, Input},
        spec::Leaks,
    },
    units::{Bytes, ReportId, Timestamp, WorkerId},
};

use super::{Checker, promises::would_die};
use crate::{
    record::{Record, Seen, Turn},
    world::World,
};

/// A worker has one open request at a time, and only if it has an agent. A request for a report
/// after the drain may follow any other that is no report.
#[derive(Default)]
pub(super) struct OneRequest {
    loaded: BTreeMap<WorkerId, bool>,
    /// Open requests: the time until which no other may be sent, and whether it is a report.
    open: BTreeMap<WorkerId, (Timestamp, bool)>,
}

impl Checker for OneRequest {
    fn name(&self) -> &'static str {
        "one-request"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Record, _: &World) -> Result<(), String> {
        match &turn.input {
            Some(Input::AgentFound { worker, agent, .. }) => {
                self.loaded.insert(*worker, *agent == Agent::Loaded);
            }
            Some(Input::AgentAnswered { worker, .. }) => {
                self.open.remove(worker);
            }
            _ => {}
        }
        for action in &turn.actions {
            let Action::AskAgent { worker, ask } = action else {
                continue;
            };
            if self.loaded.get(worker) != Some(&true) {
                return Err(format!("{worker} has no agent, and got a request"));
            }
            let within = match ask {
                AgentAsk::Report { time_box, .. } => *time_box,
                AgentAsk::Collect | AgentAsk::Base | AgentAsk::Open { .. } | AgentAsk::Close => {
                    Duration::from_secs(1)
                }
            };
            let until = turn.at.later(within);
            let is_report = matches!(ask, AgentAsk::Report { .. });
            let open = self.open.insert(*worker, (until, is_report));
            let is_open = open.is_some_and(|(until, is_report)| {
                turn.at < until && (is_report || !ask.waits_for_drain())
            });
            if is_open {
                return Err(format!("{worker} got a second request before it answered"));
            }
        }
        Ok(())
    }
}

/// A worker that freed enough memory is not recycled until a new sample is over its ceiling.
#[derive(Default)]
pub(super) struct RescuedStays {
    /// Rescued workers that were not sampled since.
    rescued: BTreeMap<WorkerId, Timestamp>,
    collected: BTreeMap<WorkerId, Timestamp>,
}

impl Checker for RescuedStays {
    fn name(&self) -> &'static str {
        "rescued-stays"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Record, _: &World) -> Result<(), String> {
        match &turn.input {
            Some(Input::Sampled { worker, sample }) => {
                let since = self.rescued.get(worker);
                if since.is_some_and(|since| sample.at >= *since) {
                    self.rescued.remove(worker);
                }
            }
            Some(Input::AgentAnswered {
                worker,
                answer: AgentAnswer::Collected { before, after, .. },
            }) if after < before => {
                self.collected.insert(*worker, turn.at);
            }
            _ => {}
        }
        for event in &turn.events {
            if let Event::Rescued { worker, .. } = event {
                if self.collected.get(worker) != Some(&turn.at) {
                    return Err(format!(
                        "{worker} is reported as rescued, and freed nothing"
                    ));
                }
                self.rescued.insert(*worker, turn.at);
            }
        }
        for (worker, cause) in turn.drains() {
            if cause == Cause::Ceiling && self.rescued.contains_key(&worker) {
                return Err(format!("{worker} drains by ceiling, and was rescued"));
            }
        }
        Ok(())
    }
}

/// Before the first worker is recycled at its ceiling, it collects garbage, unless there is no
/// time, and gets a request for a report after its drain. Each report is announced once.
#[derive(Default)]
pub(super) struct Explained {
    collected: BTreeSet<WorkerId>,
    loaded: BTreeMap<WorkerId, bool>,
    announced: BTreeMap<ReportId, u32>,
    /// After enough requests without effect the decider sends fewer, so the promise ends there.
    collects: u32,
    reports: u32,
    /// The workers that were prepared for a report. If one of them is alive, it reports instead of
    /// others.
    prepared: BTreeSet<WorkerId>,
}

impl Checker for Explained {
    fn name(&self) -> &'static str {
        "explained"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        if let Some(Input::AgentFound { worker, agent, .. }) = &turn.input {
            self.loaded.insert(*worker, *agent == Agent::Loaded);
        }
        for action in &turn.actions {
            if let Action::AskAgent { worker, ask } = action {
                if matches!(ask, AgentAsk::Collect) {
                    self.collected.insert(*worker);
                    self.collects += 1;
                }
                self.reports += u32::from(matches!(ask, AgentAsk::Report { .. }));
                if matches!(ask, AgentAsk::Base | AgentAsk::Open { .. }) {
                    self.prepared.insert(*worker);
                }
            }
        }
        for event in &turn.events {
            if let Event::Reported { report, .. } = event {
                let times = self.announced.entry(*report).or_default();
                *times += 1;
                if *times > 1 {
                    return Err(format!("{report} is announced twice"));
                }
            }
            if let Event::Ended(end) = event
                && let (Some(report), Who::Worker(_)) = (end.report, end.who)
                && record.spec.leaks.ask == Leaks::Off
                && end.cause != Cause::Request
                && !self.announced.contains_key(&report)
            {
                return Err(format!("{report} is named, and reports are off"));
            }
        }
        for (worker, cause) in turn.drains() {
            let loaded = self.loaded.get(&worker) == Some(&true);
            let seen = record.workers.get(&worker);
            let hurry = seen.is_none_or(|seen| {
                would_die(seen, record, Duration::from_secs(3)) || shares(seen, record, 0.25)
            });
            if cause != Cause::Ceiling || !loaded || hurry || !world.agents.is_sound() {
                continue;
            }
            if record.spec.memory.gc_first && !self.collected.contains(&worker) && self.collects < 2
            {
                return Err(format!(
                    "{worker} drains, and was not asked to collect garbage"
                ));
            }
            let mut alive = record.alive().map(|(id, _)| *id);
            let other = alive.any(|id| id != worker && self.prepared.contains(&id));
            let waits = other && !self.prepared.contains(&worker);
            if record.spec.leaks.ask != Leaks::Off && self.reports == 0 && !waits {
                return Err(format!("{worker} drains, and was not asked for a report"));
            }
        }
        Ok(())
    }
}

/// Whether a worker shares more memory than this part of the room it has left.
fn shares(seen: &Seen, record: &Record, part: f64) -> bool {
    let (shared, private) = seen.shared();
    let others = record.alive().map(|(_, seen)| seen.shared().1);
    let total = others.fold(record.server, Bytes::plus);
    let cap = record.limits.cap.bytes.map(|cap| cap.minus(private));
    let budget = record.limits.budget.bytes;
    let budget = budget.map(|budget| budget.minus(total.scaled(1.2)));
    let room = cap.into_iter().chain(budget).min();
    room.is_some_and(|room| shared > room.scaled(part))
}

/// No worker waits for the last report of another one: such a report is withdrawn, and so are all
/// when the service stops.
#[derive(Default)]
pub(super) struct NoWorkerWaits {
    open: BTreeSet<WorkerId>,
}

impl Checker for NoWorkerWaits {
    fn name(&self) -> &'static str {
        "no-worker-waits"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        if let Some(Input::AgentAnswered { worker, .. } | Input::WorkerEnded { worker, .. }) =
            &turn.input
        {
            self.open.remove(worker);
        }
        for action in &turn.actions {
            match action {
                Action::AskAgent { worker, ask } if ask.waits_for_drain() => {
                    self.open.insert(*worker);
                }
                Action::WithdrawReport { worker } => {
                    self.open.remove(worker);
                }
                _ => {}
            }
        }
        let waits = |event: &Event| {
            let text = "waits for a worker that is draining";
            matches!(event, Event::Reason { text: it, .. } if it.contains(text))
        };
        let waits = turn.events.iter().any(waits);
        match self.open.first() {
            Some(worker) if waits || record.stopping.is_some() => Err(format!(
                "{worker} may still make a report, and another worker or a stop waits"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// A worker that serves gets only requests that the configuration or an operator wants, and none
/// that interrupts it for long: it makes a report only for an operator or after its drain, never
/// during a stop. It is not traced before it is near its ceiling, and gets no request whose answer
/// would copy more shared pages than it has room for.
pub(super) struct Undisturbed;

impl Undisturbed {
    fn check(asked: (WorkerId, &AgentAsk), record: &Record) -> Result<(), String> {
        let (worker, ask) = asked;
        let (automatic, interrupts) = match ask {
            AgentAsk::Base => (true, false),
            AgentAsk::Open { base, .. } => (true, *base),
            AgentAsk::Report { about, when, .. } => {
                let automatic = about.cause != Cause::Request;
                (automatic, automatic && *when == ReportWhen::Now)
            }
            AgentAsk::Collect | AgentAsk::Close => (false, false),
        };
        if automatic && record.spec.leaks.ask == Leaks::Off {
            return Err(format!("{worker} got {ask:?}, and reports are off"));
        }
        if interrupts && !record.is_job() {
            return Err(format!("{worker} serves, and got {ask:?}"));
        }
        if ask.waits_for_drain() && record.stopping.is_some() {
            return Err(format!("{worker} got {ask:?} during a stop"));
        }
        let Some(seen) = record.workers.get(&worker) else {
            return Ok(());
        };
        let (shared, private) = seen.shared();
        let cap = record.cap();
        let full = cap.is_some_and(|cap| private.plus(shared) > cap);
        if full && shared > Bytes::ZERO && !matches!(ask, AgentAsk::Close) {
            return Err(format!(
                "{worker} at {private} got {ask:?}, which would copy {shared}; the cap is {cap:?}"
            ));
        }
        Ok(())
    }

    /// Checks that at the steepest recent growth the worker reaches its ceiling within two minutes,
    /// or that it has used half of the room below it.
    fn check_near_limit(worker: WorkerId, record: &Record) -> Result<(), String> {
        let Some(seen) = record.workers.get(&worker) else {
            return Ok(());
        };
        let limits = &record.limits;
        let (Some(limit), Some(value)) = (limits.ceiling.bytes.or(limits.cap.bytes), seen.value())
        else {
            // The limits are announced a second after the last worker has started.
            return Ok(());
        };
        let pairs = seen.values.iter().zip(seen.values.iter().skip(1));
        let recent = pairs.filter(|((at, _), _)| record.now.since(*at) < Duration::from_secs(62));
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
                "{worker} is traced at {value}, far below its limit of {limit}"
            ));
        }
        Ok(())
    }
}

impl Checker for Undisturbed {
    fn name(&self) -> &'static str {
        "undisturbed"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        for action in &turn.actions {
            if let Action::AskAgent { worker, ask } = action {
                Self::check((*worker, ask), record)?;
            }
        }
        for event in &turn.events {
            if let Event::Armed { worker, .. } = event
                && record.spec.leaks.ask != Leaks::Always
            {
                Self::check_near_limit(*worker, record)?;
            }
        }
        Ok(())
    }
}

/// A worker is recycled when it has done its number of tasks, and not before.
#[derive(Default)]
pub(super) struct Tasks {
    done: BTreeMap<WorkerId, (Timestamp, u64)>,
}

impl Checker for Tasks {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        let max = record.spec.recycle.max_tasks;
        if let Some(Input::Counted { worker, counts }) = &turn.input {
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
                supervise::units::scaled(max.unwrap_or(u64::MAX), 1.0 - record.spec.recycle.jitter);
            if done < least {
                return Err(format!("{worker} drains after {done} tasks of {max:?}"));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, world: &World) -> Result<(), String> {
        let Some(max) = record.spec.recycle.max_tasks else {
            return Ok(());
        };
        let serve = record.alive().filter(|(_, seen)| seen.serves()).count();
        let whole = serve >= usize::try_from(world.wanted).unwrap_or(0);
        let goes = record.exit.is_none() && record.stopping.is_none() && !record.spec.dry_run;
        if !whole || !goes || record.is_job() {
            return Ok(());
        }
        let longest = Duration::from_secs(120);
        for (worker, seen) in record.alive().filter(|(_, seen)| seen.serves()) {
            let Some((since, done)) = self.done.get(worker) else {
                continue;
            };
            let grown_up = seen.at.later(record.spec.recycle.min_age);
            if *done >= max && record.now.since((*since).max(grown_up)) > longest {
                return Err(format!(
                    "{worker} has done {done} tasks of {max}, and still serves"
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

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        match &turn.input {
            Some(Input::AgentAnswered {
                worker,
                answer: AgentAnswer::Opened,
            }) => {
                self.open.insert(*worker, turn.at);
            }
            Some(Input::AgentAnswered {
                worker,
                answer: AgentAnswer::Closed | AgentAnswer::Reported { .. },
            }) => {
                self.open.remove(worker);
            }
            _ => {}
        }
        for (worker, since) in &self.open {
            let seen = record.workers.get(worker);
            let serves = seen.is_some_and(|seen| seen.is_alive() && seen.draining.is_none());
            // An unanswered request delays the request that closes the window.
            if serves && turn.at.since(*since) > Duration::from_secs(15) {
                return Err(format!(
                    "{worker} has been traced for {:?}",
                    turn.at.since(*since)
                ));
            }
        }
        Ok(())
    }
}
