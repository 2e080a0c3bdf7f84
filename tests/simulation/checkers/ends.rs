//! Ends of workers and runs: each end has one cause, no kill comes before the grace period is over,
//! and no action names a worker that has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{Action, Answer},
        cause::Cause,
        cause::Class,
        event::{End, Event, Who},
        input::{Ask, Ended, Input, Oom},
        spec::RestartWhen,
    },
    units::{RequestId, RunId, Signal, Timestamp, WorkerId},
};

use super::{
    Checker,
    reached_cap::{ReachedBy, reached_cap_by},
};
use crate::{
    process::Asker,
    record::{Record, Turn, by_kernel},
    world::World,
};

/// The maximum grace period of workers whose server has ended.
const ORPHANS: Duration = Duration::from_secs(2);

/// No action names a worker that has ended, or a run that is over.
pub(super) struct GoneTargets;

impl Checker for GoneTargets {
    fn name(&self) -> &'static str {
        "gone-targets"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        for action in &turn.actions {
            let (worker, run) = match action {
                Action::Cap { worker, .. }
                | Action::SetThreshold { worker, .. }
                | Action::ListProcesses { worker }
                | Action::Sample { worker, .. }
                | Action::SignalWorker { worker, .. }
                | Action::KillWorker { worker }
                | Action::Prioritize { worker, .. } => (Some(*worker), None),
                Action::Adopt { run, .. } => (None, Some((*run, record.run_over))),
                Action::SignalCommand { run, .. } | Action::DrainBacklog { run } => {
                    (None, Some((*run, !record.up)))
                }
                Action::KillRun { run } => (None, Some((*run, record.run_over))),
                _ => (None, None),
            };
            let alive = |worker| {
                record
                    .workers
                    .get(&worker)
                    .is_some_and(|seen| seen.is_alive())
            };
            if worker.is_some_and(|worker| !alive(worker)) {
                return Err(format!("{action:?}: the worker has ended"));
            }
            if run.is_some_and(|(run, over)| over || run != record.run) {
                return Err(format!("{action:?}: the run is over"));
            }
        }
        Ok(())
    }
}

/// Every worker has exactly one `Ended` event, in the turn in which it ends, and its cause is what
/// happened in the world.
#[derive(Default)]
pub(super) struct OneCause {
    ended: BTreeSet<WorkerId>,
    drained: BTreeMap<WorkerId, Cause>,
    /// When an operator last had the server reload.
    reloaded: Option<Timestamp>,
}

impl Checker for OneCause {
    fn name(&self) -> &'static str {
        "one-cause"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        self.drained.extend(turn.drains());
        if turn.by_operator() == Some(Signal::HUP) {
            self.reloaded = Some(turn.at);
        }
        let mut ended_events = Vec::new();
        for event in &turn.events {
            if let Event::Ended(end) = event
                && let Who::Worker(worker) = end.who
            {
                if !self.ended.insert(worker) {
                    return Err(format!("{worker} ended twice"));
                }
                ended_events.push(worker);
                self.check_cause(worker, end, turn, (record, world))?;
            }
        }
        let Some(Input::WorkerEnded { worker, .. }) = &turn.input else {
            return Ok(());
        };
        let known = record.workers.contains_key(worker);
        if known && !self.ended.contains(worker) {
            return Err(format!("{worker} ended without an event"));
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, _: &World) -> Result<(), String> {
        for (worker, seen) in &record.workers {
            let helper = !seen.is_alive() && seen.ready.is_none();
            if !seen.is_alive() && !helper && !self.ended.contains(worker) {
                return Err(format!("{worker} is gone, and has no `Ended` event"));
            }
        }
        Ok(())
    }
}

impl OneCause {
    fn check_cause(
        &self,
        worker: WorkerId,
        end: &End,
        turn: &Turn,
        (record, world): (&Record, &World),
    ) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("{worker} ended by {}: {why}", end.cause));
        let (ended, oom) = match &turn.input {
            Some(Input::WorkerEnded { ended, oom, .. }) => (*ended, *oom),
            // It could not be started, or its run is over and its own end was not reported.
            Some(Input::StartFailed { .. } | Input::RunOver { .. }) => return Ok(()),
            _ => return wrong("nothing ended"),
        };
        let drained = self.drained.get(&worker).copied();
        if let Some(cause) = by_kernel(oom) {
            let by = match oom {
                Oom::Cap => reached_cap_by(worker, turn.at, (record, world)),
                Oom::No | Oom::Budget | Oom::Elsewhere => ReachedBy::Growth,
            };
            let left = match drained {
                Some(cause) => end.cause == cause,
                None => matches!(end.cause, Cause::Stop | Cause::Scale | Cause::Reload),
            };
            let same = match by {
                ReachedBy::Growth => end.cause == cause,
                ReachedBy::Copying => left || end.cause == cause && drained.is_none(),
                ReachedBy::Either => left || end.cause == cause,
            };
            return if same {
                Ok(())
            } else {
                wrong(&format!("the kernel ended it, reached by {by:?}"))
            };
        }
        let orphaned = record.is_server() && record.ended.is_some();
        let stopping = record.stopping.is_some() || orphaned || record.looped;
        match end.cause {
            cause if cause.class() == Class::Kernel => return wrong("the kernel did not end it"),
            Cause::Exit(status) if ended != Ended::Exit(status) => return wrong("it did not"),
            Cause::Signal(signal) if ended != Ended::Signal(signal) => return wrong("it did not"),
            Cause::Unseen if ended != Ended::Unseen => return wrong("its end was seen"),
            Cause::Stop if !stopping => return wrong("nothing was stopping"),
            Cause::Reload if drained != Some(Cause::Reload) && self.reloaded.is_none() => {
                return wrong("there was no reload");
            }
            Cause::Ceiling | Cause::Budget | Cause::Age | Cause::Request
                if drained != Some(end.cause) =>
            {
                return wrong("it did not drain for that");
            }
            _ => {}
        }
        // It got no stop signal, and did not end in the way of a stopped worker.
        let unplanned = !matches!(
            ended,
            Ended::Exit(0) | Ended::Unseen | Ended::Signal(Signal::TERM)
        );
        let alone = world
            .fates
            .get(&worker)
            .is_some_and(|fate| fate.asked == Asker::None);
        if alone
            && unplanned
            && drained.is_none()
            && !stopping
            && end.cause != Cause::of(ended, Oom::No)
        {
            return wrong("it ended by itself");
        }
        Ok(())
    }
}

/// No worker is killed before its grace period is over, unless an immediate stop was requested.
#[derive(Default)]
pub(super) struct Grace {
    killed: BTreeSet<WorkerId>,
    /// The last run that was ended because its workers could not start.
    looped: Option<RunId>,
}

impl Checker for Grace {
    fn name(&self) -> &'static str {
        "grace"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        let grace = record.spec.stop.grace;
        let gave_up = turn
            .events
            .iter()
            .any(|one| matches!(one, Event::GaveUp { .. }));
        let orphaned = record.ended.map(|at| turn.at.since(at));
        for action in &turn.actions {
            match action {
                Action::KillWorker { worker } => {
                    let asked = record.workers.get(worker).and_then(|seen| seen.draining);
                    let Some((since, cause)) = asked else {
                        return Err(format!("{worker} is killed, and was never asked to stop"));
                    };
                    let waited = turn.at.since(since);
                    let least = if cause == Cause::Stop && !record.up {
                        grace.min(ORPHANS)
                    } else {
                        grace
                    };
                    if waited < least {
                        return Err(format!("{worker} is killed after {waited:?} of {least:?}"));
                    }
                    if !self.killed.insert(*worker) {
                        return Err(format!("{worker} is killed twice"));
                    }
                }
                Action::KillRun { run } => {
                    let stopped = record.stopping.is_some_and(|at| turn.at.since(at) >= grace);
                    // The end of a single program comes twice: for the command and for its worker.
                    let left = record.is_server() && record.alive().next().is_some();
                    let cleared =
                        orphaned.is_some_and(|waited| !left || waited >= grace.min(ORPHANS));
                    let looped = record.looped && !self.looped.replace(*run).eq(&Some(*run));
                    if !stopped && !cleared && !record.stop_now && !gave_up && !looped {
                        return Err(format!("{run} is killed before its grace period is over"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// When the service stops, the command gets its stop signal as soon as the backlog is empty, and at
/// the latest after half of the grace period.
#[derive(Default)]
pub(super) struct StopSignal {
    /// Since when the backlog drains.
    waits: Option<Timestamp>,
}

impl Checker for StopSignal {
    fn name(&self) -> &'static str {
        "stop-signal"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        let stop = record.spec.stop.signal;
        let ended_events = |action: &Action| match action {
            Action::SignalCommand { signal, .. } => *signal == stop,
            Action::KillRun { .. } => true,
            _ => false,
        };
        if !record.up || turn.actions.iter().any(ended_events) {
            self.waits = None;
        } else if (turn.actions.iter()).any(|action| matches!(action, Action::DrainBacklog { .. }))
        {
            self.waits = Some(turn.at);
        }
        let Some(since) = self.waits else {
            return Ok(());
        };
        if turn.input == Some(Input::BacklogEmpty { run: record.run }) {
            return Err("the backlog is empty, and the command gets no stop signal".to_owned());
        }
        let waited = turn.at.since(since);
        if waited > record.spec.stop.grace / 2 + world.scenario.faults.lag {
            return Err(format!("the command gets no stop signal for {waited:?}"));
        }
        Ok(())
    }
}

/// Every request of an operator is answered exactly once, and the answer is true.
#[derive(Default)]
pub(super) struct Replies {
    open: BTreeMap<RequestId, (Timestamp, Ask)>,
}

impl Checker for Replies {
    fn name(&self) -> &'static str {
        "replies"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        if let Some(Input::Asked { request, ask }) = &turn.input {
            self.open.insert(*request, (turn.at, ask.clone()));
        }
        for action in &turn.actions {
            let Action::Reply { request, answer } = action else {
                continue;
            };
            let Some((_, ask)) = self.open.remove(request) else {
                return Err(format!("{request:?} is answered, and is not open"));
            };
            let gone = |worker| {
                !record
                    .workers
                    .get(&worker)
                    .is_some_and(|seen| seen.is_alive())
            };
            let is_true = match (answer, ask) {
                (Answer::Done(_) | Answer::Unknown(_), Ask::Recycle(worker))
                | (Answer::Unknown(_), Ask::Report(worker)) => gone(worker),
                (Answer::Reported(_), Ask::Report(_)) => true,
                (Answer::Reported(_), _) | (Answer::Done(_), Ask::Report(_)) => false,
                (Answer::Done(_), Ask::Stop(_)) => record.exit.is_some(),
                (Answer::Unknown(_), _) | (Answer::Refused(_), Ask::Stop(_)) => false,
                (Answer::Done(_) | Answer::Refused(_), _) => true,
            };
            if !is_true {
                return Err(format!(
                    "{request:?} is answered with {answer:?}: that is not true"
                ));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, world: &World) -> Result<(), String> {
        // A service without all its workers may have requests that are not done yet.
        let serve = record.alive().filter(|(_, seen)| seen.serves()).count();
        if record.exit.is_none() && serve < usize::try_from(world.wanted).unwrap_or(0) {
            return Ok(());
        }
        match self.open.first_key_value() {
            Some((request, ask)) => Err(format!("{request:?} {ask:?} has no answer")),
            None => Ok(()),
        }
    }
}

/// A command that ends by itself is restarted as configured: not too soon, and not too often.
#[derive(Default)]
pub(super) struct Restarts {
    /// Unplanned ends, oldest first.
    ends: Vec<Timestamp>,
    /// The last end, if it was unplanned and no start has followed yet.
    restart_due: Option<Timestamp>,
    drained: bool,
    final_status: Option<i32>,
}

impl Restarts {
    fn on_end(&mut self, at: Timestamp, record: &Record, ended: Option<Ended>) {
        let spec = &record.spec;
        let status = ended.map(|ended| match ended {
            Ended::Exit(status) => status,
            Ended::Signal(signal) => 128 + signal.0,
            Ended::Unseen => 70,
        });
        let job = spec.restart.when == RestartWhen::Never;
        let clean = spec.restart.when == RestartWhen::OnFailure && status == Some(0);
        let planned = !record.is_server() && self.drained;
        if job {
            self.final_status = status;
        } else if record.stopping.is_some() || planned {
            self.restart_due = None;
        } else if clean {
            self.final_status = Some(0);
        } else {
            self.ends.push(at);
            self.restart_due = Some(at);
        }
    }

    fn check_start(&mut self, turn: &Turn, record: &Record) -> Result<(), String> {
        let rule = record.spec.restart;
        if record.stopping.is_some() || self.final_status.is_some() {
            return Err("the command is started after the service stopped".to_owned());
        }
        let Some(end) = self.restart_due.take() else {
            return Ok(());
        };
        let since = |one: &&Timestamp| end.since(**one) < rule.window;
        let recent = u32::try_from(self.ends.iter().filter(since).count()).unwrap_or(u32::MAX);
        if recent > rule.limit {
            return Err(format!(
                "{recent} ends in the window, the limit is {}",
                rule.limit
            ));
        }
        let doubled = 2_u32.saturating_pow(recent.saturating_sub(1));
        let least = rule.delay_min.saturating_mul(doubled).min(rule.delay_max);
        if turn.at.since(end) < least {
            return Err(format!(
                "started {:?} after end {recent}, least {least:?}",
                turn.at.since(end)
            ));
        }
        Ok(())
    }
}

impl Checker for Restarts {
    fn name(&self) -> &'static str {
        "restarts"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, _: &World) -> Result<(), String> {
        match &turn.input {
            Some(Input::CommandEnded { ended, .. }) if record.ended == Some(turn.at) => {
                self.drained = record.workers.last_key_value().is_some_and(|(_, seen)| {
                    seen.draining.is_some_and(|(_, cause)| cause != Cause::Stop)
                });
                self.on_end(turn.at, record, Some(*ended));
            }
            Some(Input::StartFailed { errno, .. }) if record.ended == Some(turn.at) => {
                self.drained = false;
                if !matches!(errno, 2 | 13) {
                    self.on_end(turn.at, record, None);
                }
            }
            _ => {}
        }
        let ended_events = |one: &Event| matches!(one, Event::Restarting { .. });
        if self.restart_due.is_none() && turn.events.iter().any(ended_events) {
            return Err("a planned end is announced as a restart".to_owned());
        }
        for action in &turn.actions {
            match action {
                Action::Start { .. } => self.check_start(turn, record)?,
                Action::Exit { status } => {
                    let wanted = self.final_status.filter(|_| record.stopping.is_none());
                    if wanted.is_some_and(|wanted| wanted != *status) {
                        return Err(format!("exit {status}, the command's was {wanted:?}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
