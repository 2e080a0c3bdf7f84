//! A service that was serving never ends by a recycle.

use std::{collections::BTreeSet, time::Duration};

use supervise::{
    supervisor::{
        cause::Class,
        event::{Ended, Event},
        report::{Cause, Report},
    },
    units::{Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    books::{Books, Turn},
    process::Asker,
    world::World,
};

/// A recycle may be tried again this long after a failed start. A service that a failed start took
/// down is not recycled before it has run for this long again.
const WAITS: Duration = Duration::from_secs(40);
/// A worker that ended this long ago has nothing to do with the end of the service.
const APART: Duration = Duration::from_secs(60);

/// The decider has a worker replaced, by itself or for an operator.
fn is_replacement(cause: Cause) -> bool {
    cause.class() == Class::Planned || matches!(cause, Cause::Request | Cause::Reload)
}

/// After a failed start no worker is replaced until a start works or a while has passed.
#[derive(Default)]
pub(super) struct Suspended {
    /// A worker could not start while others served.
    failed: Option<Timestamp>,
    /// A recycle took a single program down: it is not recycled before it has run for a while.
    down: bool,
    up: Option<Timestamp>,
    /// The last worker of a single program was recycled, and so is its next start.
    recycled: bool,
    after_recycle: bool,
    /// The last time an operator sent HUP.
    reloaded: Option<Timestamp>,
}

impl Suspended {
    /// On HUP gunicorn itself asks all its workers to go, whether others can start or not. A worker
    /// that is still there when the grace is over is asked and killed by the decider.
    fn is_of_hup(&self, turn: &Turn, worker: WorkerId, cause: Cause, books: &Books) -> bool {
        let seen = books.workers.get(&worker);
        self.reloaded.is_some_and(|at| {
            cause == Cause::Reload
                && seen.is_some_and(|seen| seen.at <= at)
                && turn.at.since(at) >= books.spec.stop.grace
        })
    }

    fn note(&mut self, turn: &Turn, books: &Books, world: &World) {
        if turn.by_operator() == Some(Signal::HUP) {
            self.reloaded = Some(turn.at);
        }
        match &turn.event {
            Some(Event::WorkerReady { worker }) => {
                let seen = books.workers.get(worker);
                if seen.is_some_and(|seen| seen.ready == Some(turn.at)) {
                    self.failed = None;
                }
            }
            Some(Event::WorkerEnded { worker, ended, .. }) if books.is_server() => {
                let Some(seen) = books.workers.get(worker) else {
                    return;
                };
                let fate = world.fates.get(worker);
                let alone = fate.is_some_and(|fate| fate.asked == Asker::Nobody);
                let failed = match ended {
                    Ended::Exit(status) => *status != 0,
                    Ended::Signal(signal) => *signal != Signal::TERM,
                    Ended::Unseen => false,
                };
                let fresh = seen.gone == Some(turn.at) && seen.ready.is_none();
                let others = books.alive().any(|(_, seen)| seen.serves());
                let runs = books.up && books.stopping.is_none() && self.reloaded.is_none();
                if fresh && alone && failed && others && runs && seen.draining.is_none() {
                    self.failed = Some(turn.at);
                }
            }
            Some(Event::CommandEnded { .. })
                if books.ended == Some(turn.at) && !books.is_server() =>
            {
                let last = books.workers.last_key_value();
                let drained = last.and_then(|(_, seen)| seen.draining);
                self.recycled = drained.is_some_and(|(_, cause)| is_replacement(cause));
                let ready = last.is_some_and(|(_, seen)| seen.ready.is_some());
                let planned = drained.is_some() || books.stopping.is_some() || books.is_job();
                if self.after_recycle && !ready && !planned {
                    (self.down, self.up) = (true, None);
                }
            }
            Some(Event::Started { .. }) => {
                self.after_recycle = std::mem::take(&mut self.recycled);
            }
            _ => {}
        }
        let ready = |one: &Report| matches!(one, Report::Ready { .. });
        if self.down && turn.reports.iter().any(ready) {
            self.up.get_or_insert(turn.at);
        }
    }
}

impl Checker for Suspended {
    fn name(&self) -> &'static str {
        "suspended"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        self.note(turn, books, world);
        let failed = self.failed.filter(|at| turn.at.since(*at) < WAITS);
        let held = self.down && self.up.is_none_or(|up| turn.at.since(up) < WAITS);
        for (worker, cause) in turn.drains() {
            if let Some(failed) = failed
                && is_replacement(cause)
                && !self.is_of_hup(turn, worker, cause, books)
            {
                let since = turn.at.since(failed);
                return Err(format!(
                    "{worker} goes by {cause}, and {since:?} before a worker could not start"
                ));
            }
            if held && cause.class() == Class::Planned {
                return Err(format!(
                    "{worker} goes by {cause}, and its last recycle took the program down"
                ));
            }
        }
        if !held && self.up.is_some() {
            (self.down, self.up) = (false, None);
        }
        Ok(())
    }
}

/// A server that goes on when a worker cannot boot stops only if something other than recycles took
/// away the workers that served.
#[derive(Default)]
pub(super) struct ServesOn {
    /// The workers that had served, in the order of their ends.
    gone: Vec<(Timestamp, WorkerId, Option<Cause>)>,
    told: BTreeSet<WorkerId>,
}

impl Checker for ServesOn {
    fn name(&self) -> &'static str {
        "serves-on"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        if let Some(Event::WorkerEnded { worker, .. }) = &turn.event
            && let Some(seen) = books.workers.get(worker)
            && seen.ready.is_some()
            && self.told.insert(*worker)
        {
            let recycled = seen.draining.map(|(_, cause)| cause);
            self.gone.push((turn.at, *worker, recycled));
        }
        let halted = matches!(
            turn.event,
            Some(Event::CommandEnded {
                ended: Ended::Exit(3 | 4),
                ..
            })
        );
        let single = world.wish < 2 || !books.is_server();
        let moved = books.now.since(books.moved) < APART;
        let fresh = books.ended == Some(turn.at);
        if !halted || !fresh || single || moved || !world.scenario.guarded || world.lost > 0 {
            return Ok(());
        }
        let recent = |(at, ..): &&(Timestamp, WorkerId, Option<Cause>)| turn.at.since(*at) < APART;
        let recent: Vec<_> = self.gone.iter().filter(recent).collect();
        let by_us = |(_, _, cause): &&(_, _, Option<Cause>)| cause.is_some_and(is_replacement);
        if !recent.is_empty() && recent.iter().all(by_us) {
            return Err(format!("recycles took away all that served: {recent:?}"));
        }
        Ok(())
    }
}
