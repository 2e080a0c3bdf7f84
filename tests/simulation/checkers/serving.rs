//! A recycle never takes down a service that was serving.

use std::{collections::BTreeSet, time::Duration};

use supervise::{
    supervisor::{
        cause::Cause,
        cause::Class,
        event::Event,
        input::{Ended, Input},
    },
    units::{Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    process::Asker,
    record::{Record, Turn},
    world::World,
};

/// The time between a failed start and the next recycle. If the failed start took the service down,
/// the time counts from when the service is ready again.
const WAITS: Duration = Duration::from_secs(40);
/// A worker that ended this long before the service did not cause the end of the service.
const APART: Duration = Duration::from_secs(60);

/// Whether the decider replaces a worker for this cause, of its own accord or for an operator.
fn is_replacement(cause: Cause) -> bool {
    cause.class() == Class::Planned || matches!(cause, Cause::Request | Cause::Reload)
}

/// After a failed start no worker is replaced until a start succeeds or [`WAITS`] has passed.
#[derive(Default)]
pub(super) struct Suspended {
    /// A worker could not start while others served.
    failed: Option<Timestamp>,
    /// A recycle took a single program down.
    down: bool,
    /// Since when it is ready again.
    up: Option<Timestamp>,
    /// The last end of the single program was a recycle.
    recycled: bool,
    /// The last start of the single program followed a recycle.
    after_recycle: bool,
    /// The last time an operator sent HUP.
    reloaded: Option<Timestamp>,
}

impl Suspended {
    /// On SIGHUP gunicorn stops all its workers itself, whether new ones can start or not. The
    /// decider stops and kills a worker that is still alive when the grace period is over.
    fn is_of_hup(&self, turn: &Turn, worker: WorkerId, cause: Cause, record: &Record) -> bool {
        let seen = record.workers.get(&worker);
        self.reloaded.is_some_and(|at| {
            cause == Cause::Reload
                && seen.is_some_and(|seen| seen.at <= at)
                && turn.at.since(at) >= record.spec.stop.grace
        })
    }

    fn note(&mut self, turn: &Turn, record: &Record, world: &World) {
        if turn.by_operator() == Some(Signal::HUP) {
            self.reloaded = Some(turn.at);
        }
        match &turn.input {
            Some(Input::WorkerReady { worker }) => {
                let seen = record.workers.get(worker);
                if seen.is_some_and(|seen| seen.ready == Some(turn.at)) {
                    self.failed = None;
                }
            }
            Some(Input::WorkerEnded { worker, ended, .. }) if record.is_server() => {
                let Some(seen) = record.workers.get(worker) else {
                    return;
                };
                let fate = world.fates.get(worker);
                let alone = fate.is_some_and(|fate| fate.asked == Asker::None);
                let failed = match ended {
                    Ended::Exit(status) => *status != 0,
                    Ended::Signal(signal) => *signal != Signal::TERM,
                    Ended::Unseen => false,
                };
                let fresh = seen.gone == Some(turn.at) && seen.ready.is_none();
                let others = record.alive().any(|(_, seen)| seen.serves());
                let runs = record.up && record.stopping.is_none() && self.reloaded.is_none();
                if fresh && alone && failed && others && runs && seen.draining.is_none() {
                    self.failed = Some(turn.at);
                }
            }
            Some(Input::CommandEnded { .. })
                if record.ended == Some(turn.at) && !record.is_server() =>
            {
                let last = record.workers.last_key_value();
                let drained = last.and_then(|(_, seen)| seen.draining);
                self.recycled = drained.is_some_and(|(_, cause)| is_replacement(cause));
                let ready = last.is_some_and(|(_, seen)| seen.ready.is_some());
                let planned = drained.is_some() || record.stopping.is_some() || record.is_job();
                if self.after_recycle && !ready && !planned {
                    (self.down, self.up) = (true, None);
                }
            }
            Some(Input::Started { .. }) => {
                self.after_recycle = std::mem::take(&mut self.recycled);
            }
            _ => {}
        }
        let ready = |one: &Event| matches!(one, Event::Ready { .. });
        if self.down && turn.events.iter().any(ready) {
            self.up.get_or_insert(turn.at);
        }
    }
}

impl Checker for Suspended {
    fn name(&self) -> &'static str {
        "suspended"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        self.note(turn, record, world);
        let failed = self.failed.filter(|at| turn.at.since(*at) < WAITS);
        let held = self.down && self.up.is_none_or(|up| turn.at.since(up) < WAITS);
        for (worker, cause) in turn.drains() {
            if let Some(failed) = failed
                && is_replacement(cause)
                && !self.is_of_hup(turn, worker, cause, record)
            {
                let since = turn.at.since(failed);
                return Err(format!(
                    "{worker} drains by {cause}, {since:?} after a worker could not start"
                ));
            }
            if held && cause.class() == Class::Planned {
                return Err(format!(
                    "{worker} drains by {cause}, and the last recycle took the program down"
                ));
            }
        }
        if !held && self.up.is_some() {
            (self.down, self.up) = (false, None);
        }
        Ok(())
    }
}

/// A server that survives failed boots while another worker serves must not stop because recycles
/// ended all its serving workers.
#[derive(Default)]
pub(super) struct ServesOn {
    /// The ended workers that had served, oldest first, with the cause of their drain.
    gone: Vec<(Timestamp, WorkerId, Option<Cause>)>,
    counted: BTreeSet<WorkerId>,
}

impl Checker for ServesOn {
    fn name(&self) -> &'static str {
        "serves-on"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        if let Some(Input::WorkerEnded { worker, .. }) = &turn.input
            && let Some(seen) = record.workers.get(worker)
            && seen.ready.is_some()
            && self.counted.insert(*worker)
        {
            let recycled = seen.draining.map(|(_, cause)| cause);
            self.gone.push((turn.at, *worker, recycled));
        }
        let halted = matches!(
            turn.input,
            Some(Input::CommandEnded {
                ended: Ended::Exit(3 | 4),
                ..
            })
        );
        let single = world.wanted < 2 || !record.is_server();
        let moved = record.now.since(record.moved) < APART;
        let fresh = record.ended == Some(turn.at);
        if !halted || !fresh || single || moved || !world.scenario.guarded || world.lost > 0 {
            return Ok(());
        }
        let recent = |(at, ..): &&(Timestamp, WorkerId, Option<Cause>)| turn.at.since(*at) < APART;
        let recent: Vec<_> = self.gone.iter().filter(recent).collect();
        let by_us = |(_, _, cause): &&(_, _, Option<Cause>)| cause.is_some_and(is_replacement);
        if !recent.is_empty() && recent.iter().all(by_us) {
            return Err(format!("recycles ended all serving workers: {recent:?}"));
        }
        Ok(())
    }
}
