//! Ends: each has one cause, none comes before its grace, and nothing is asked of the dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{Action, Answer},
        cause::Class,
        event::{Ask, Ended, Event, Oom},
        report::{Cause, End, Report, Who},
        spec::RestartWhen,
    },
    units::{RequestId, RunId, Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    books::{Books, Turn, by_kernel},
    process::Asker,
    world::World,
};

/// The workers of a dead server get no more than this.
const ORPHANS: Duration = Duration::from_secs(2);

/// No action names a worker that is gone, or a run that is over.
pub(super) struct TheDead;

impl Checker for TheDead {
    fn name(&self) -> &'static str {
        "the-dead"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        for action in &turn.actions {
            let (worker, run) = match action {
                Action::Cap { worker, .. }
                | Action::ArmWire { worker, .. }
                | Action::Look { worker, .. }
                | Action::SignalWorker { worker, .. }
                | Action::KillWorker { worker }
                | Action::Prioritize { worker, .. } => (Some(*worker), None),
                Action::Adopt { run, .. } => (None, Some((*run, books.run_over))),
                Action::SignalCommand { run, .. } | Action::DrainBacklog { run } => {
                    (None, Some((*run, !books.up)))
                }
                Action::KillRun { run } => (None, Some((*run, books.run_over))),
                _ => (None, None),
            };
            let alive = |worker| {
                books
                    .workers
                    .get(&worker)
                    .is_some_and(|seen| seen.is_alive())
            };
            if worker.is_some_and(|worker| !alive(worker)) {
                return Err(format!("{action:?}: it is gone"));
            }
            if run.is_some_and(|(run, over)| over || run != books.run) {
                return Err(format!("{action:?}: it is over"));
            }
        }
        Ok(())
    }
}

/// Every worker has exactly one end, told at once, and its cause is what the world did.
#[derive(Default)]
pub(super) struct OneCause {
    ended: BTreeSet<WorkerId>,
    drained: BTreeMap<WorkerId, Cause>,
    /// An operator had the server reload, or lower its number.
    reloaded: Option<Timestamp>,
}

impl Checker for OneCause {
    fn name(&self) -> &'static str {
        "one-cause"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        self.drained.extend(turn.drains());
        if turn.by_operator() == Some(Signal::HUP) {
            self.reloaded = Some(turn.at);
        }
        let mut told = Vec::new();
        for report in &turn.reports {
            if let Report::Ended(end) = report
                && let Who::Worker(worker) = end.who
            {
                if !self.ended.insert(worker) {
                    return Err(format!("{worker} ended twice"));
                }
                told.push(worker);
                self.check_cause(worker, end, turn, (books, world))?;
            }
        }
        let Some(Event::WorkerEnded { worker, .. }) = &turn.event else {
            return Ok(());
        };
        let known = books.workers.contains_key(worker);
        if known && !self.ended.contains(worker) {
            return Err(format!("{worker} ended, and nothing was told"));
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, _: &World) -> Result<(), String> {
        for (worker, seen) in &books.workers {
            let helper = !seen.is_alive() && seen.ready.is_none();
            if !seen.is_alive() && !helper && !self.ended.contains(worker) {
                return Err(format!("{worker} is gone without an end"));
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
        (books, world): (&Books, &World),
    ) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("{worker} ended by {}: {why}", end.cause));
        let (ended, oom) = match &turn.event {
            Some(Event::WorkerEnded { ended, oom, .. }) => (*ended, *oom),
            // It could not be started, or its run is over and nobody heard of it.
            Some(Event::StartFailed { .. } | Event::RunOver { .. }) => return Ok(()),
            _ => return wrong("nothing ended"),
        };
        let drained = self.drained.get(&worker).copied();
        if let Some(cause) = by_kernel(oom) {
            // A worker that reached its cap because its interpreter exited, and copied what it
            // shared, has the cause for which it was leaving.
            let copied = books.workers.get(&worker).is_some_and(|seen| {
                let (shared, private) = seen.shared();
                let cap = books.cap();
                cap.is_some_and(|cap| private < cap && private.plus(shared) >= cap)
            });
            let copied = copied && oom == Oom::Cap;
            let left = match drained {
                Some(cause) => end.cause == cause,
                None => matches!(end.cause, Cause::Stop | Cause::Scale | Cause::Reload),
            };
            let same = end.cause == cause && !(copied && drained.is_some()) || copied && left;
            return if same {
                Ok(())
            } else {
                wrong("the kernel ended it")
            };
        }
        let orphaned = books.is_server() && books.ended.is_some();
        let stopping = books.stopping.is_some() || orphaned || books.looped;
        match end.cause {
            cause if cause.class() == Class::Kernel => return wrong("the kernel did not end it"),
            Cause::Exit(status) if ended != Ended::Exit(status) => return wrong("it did not"),
            Cause::Signal(signal) if ended != Ended::Signal(signal) => return wrong("it did not"),
            Cause::Unseen if ended != Ended::Unseen => return wrong("it was seen"),
            Cause::Stop if !stopping => return wrong("nobody stopped"),
            Cause::Reload if drained != Some(Cause::Reload) && self.reloaded.is_none() => {
                return wrong("nobody reloaded");
            }
            Cause::Ceiling | Cause::Budget | Cause::Age | Cause::Request
                if drained != Some(end.cause) =>
            {
                return wrong("it was not asked to go for that");
            }
            _ => {}
        }
        // Nobody had asked, and it did not go as those go who are asked.
        let odd = !matches!(
            ended,
            Ended::Exit(0) | Ended::Unseen | Ended::Signal(Signal::TERM)
        );
        let alone = world
            .fates
            .get(&worker)
            .is_some_and(|fate| fate.asked == Asker::Nobody);
        if alone && odd && drained.is_none() && !stopping && end.cause != Cause::of(ended, Oom::No)
        {
            return wrong("it ended by itself");
        }
        Ok(())
    }
}

/// Nobody is killed before the grace is over, unless at once was asked for.
#[derive(Default)]
pub(super) struct Grace {
    killed: BTreeSet<WorkerId>,
    /// This run was ended because its workers could not start, once.
    looped: Option<RunId>,
}

impl Checker for Grace {
    fn name(&self) -> &'static str {
        "grace"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        let grace = books.spec.stop.grace;
        let gave_up = turn
            .reports
            .iter()
            .any(|one| matches!(one, Report::GaveUp { .. }));
        let orphaned = books.ended.map(|at| turn.at.since(at));
        for action in &turn.actions {
            match action {
                Action::KillWorker { worker } => {
                    let asked = books.workers.get(worker).and_then(|seen| seen.draining);
                    let Some((since, cause)) = asked else {
                        return Err(format!("{worker} is killed and was never asked to go"));
                    };
                    let waited = turn.at.since(since);
                    let least = if cause == Cause::Stop && !books.up {
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
                    let stopped = books.stopping.is_some_and(|at| turn.at.since(at) >= grace);
                    // A single program's end is told twice: as the command's and as its worker's.
                    let left = books.is_server() && books.alive().next().is_some();
                    let cleared =
                        orphaned.is_some_and(|waited| !left || waited >= grace.min(ORPHANS));
                    let looped = books.looped && !self.looped.replace(*run).eq(&Some(*run));
                    if !stopped && !cleared && !books.stop_now && !gave_up && !looped {
                        return Err(format!("{run} is killed before its time"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A command whose service stops is told so as soon as nobody waits to be accepted, and in any case
/// before half of the grace is over.
#[derive(Default)]
pub(super) struct Told {
    waits: Option<Timestamp>,
}

impl Checker for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        let stop = books.spec.stop.signal;
        let told = |action: &Action| match action {
            Action::SignalCommand { signal, .. } => *signal == stop,
            Action::KillRun { .. } => true,
            _ => false,
        };
        if !books.up || turn.actions.iter().any(told) {
            self.waits = None;
        } else if (turn.actions.iter()).any(|action| matches!(action, Action::DrainBacklog { .. }))
        {
            self.waits = Some(turn.at);
        }
        let Some(since) = self.waits else {
            return Ok(());
        };
        if turn.event == Some(Event::BacklogEmpty { run: books.run }) {
            return Err("nobody waits any more, and the command is not told to stop".to_owned());
        }
        let waited = turn.at.since(since);
        if waited > books.spec.stop.grace / 2 + world.scenario.faults.lag {
            return Err(format!("the command is not told to stop for {waited:?}"));
        }
        Ok(())
    }
}

/// Every question is answered exactly once, and the answer is true.
#[derive(Default)]
pub(super) struct Replies {
    open: BTreeMap<RequestId, (Timestamp, Ask)>,
}

impl Checker for Replies {
    fn name(&self) -> &'static str {
        "replies"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        if let Some(Event::Asked { request, ask }) = &turn.event {
            self.open.insert(*request, (turn.at, ask.clone()));
        }
        for action in &turn.actions {
            let Action::Reply { request, answer } = action else {
                continue;
            };
            let Some((_, ask)) = self.open.remove(request) else {
                return Err(format!("{request:?} is answered, and nobody asks"));
            };
            let gone = |worker| {
                !books
                    .workers
                    .get(&worker)
                    .is_some_and(|seen| seen.is_alive())
            };
            let is_true = match (answer, ask) {
                (Answer::Done(_) | Answer::Unknown(_), Ask::Recycle(worker))
                | (Answer::Unknown(_), Ask::Report(worker)) => gone(worker),
                (Answer::Reported(_), Ask::Report(_)) => true,
                (Answer::Reported(_), _) | (Answer::Done(_), Ask::Report(_)) => false,
                (Answer::Done(_), Ask::Stop(_)) => books.exit.is_some(),
                (Answer::Unknown(_), _) | (Answer::Refused(_), Ask::Stop(_)) => false,
                (Answer::Done(_) | Answer::Refused(_), _) => true,
            };
            if !is_true {
                return Err(format!(
                    "{request:?} is answered with {answer:?}: that is not so"
                ));
            }
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, world: &World) -> Result<(), String> {
        // A service that is never whole again has not done what was asked.
        let serve = books.alive().filter(|(_, seen)| seen.serves()).count();
        if books.exit.is_none() && serve < usize::try_from(world.wish).unwrap_or(0) {
            return Ok(());
        }
        match self.open.first_key_value() {
            Some((request, ask)) => Err(format!("{request:?} {ask:?} has no answer")),
            None => Ok(()),
        }
    }
}

/// A command that ends unasked is started again by rule: not too soon, not too often.
#[derive(Default)]
pub(super) struct Restarts {
    /// Unplanned ends, oldest first.
    ends: Vec<Timestamp>,
    /// The last end was one of those.
    owed: Option<Timestamp>,
    drained: bool,
    final_status: Option<i32>,
}

impl Restarts {
    fn on_end(&mut self, at: Timestamp, books: &Books, ended: Option<Ended>) {
        let spec = &books.spec;
        let status = ended.map(|ended| match ended {
            Ended::Exit(status) => status,
            Ended::Signal(signal) => 128 + signal.0,
            Ended::Unseen => 70,
        });
        let job = spec.restart.when == RestartWhen::Never;
        let clean = spec.restart.when == RestartWhen::OnFailure && status == Some(0);
        let planned = !books.is_server() && self.drained;
        if job {
            self.final_status = status;
        } else if books.stopping.is_some() || planned {
            self.owed = None;
        } else if clean {
            self.final_status = Some(0);
        } else {
            self.ends.push(at);
            self.owed = Some(at);
        }
    }

    fn check_start(&mut self, turn: &Turn, books: &Books) -> Result<(), String> {
        let rule = books.spec.restart;
        if books.stopping.is_some() || self.final_status.is_some() {
            return Err("the command is started, and nobody wants it".to_owned());
        }
        let Some(end) = self.owed.take() else {
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

    fn on_turn(&mut self, turn: &Turn, books: &Books, _: &World) -> Result<(), String> {
        match &turn.event {
            Some(Event::CommandEnded { ended, .. }) if books.ended == Some(turn.at) => {
                self.drained = books.workers.last_key_value().is_some_and(|(_, seen)| {
                    seen.draining.is_some_and(|(_, cause)| cause != Cause::Stop)
                });
                self.on_end(turn.at, books, Some(*ended));
            }
            Some(Event::StartFailed { errno, .. }) if books.ended == Some(turn.at) => {
                self.drained = false;
                if !matches!(errno, 2 | 13) {
                    self.on_end(turn.at, books, None);
                }
            }
            _ => {}
        }
        let told = |one: &Report| matches!(one, Report::Restarting { .. });
        if self.owed.is_none() && turn.reports.iter().any(told) {
            return Err("an end that was planned is told as a restart".to_owned());
        }
        for action in &turn.actions {
            match action {
                Action::Start { .. } => self.check_start(turn, books)?,
                Action::Exit { status } => {
                    let wanted = self.final_status.filter(|_| books.stopping.is_none());
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
