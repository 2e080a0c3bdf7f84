//! At the end the service is as configured and requested, and on the way the decider does not act
//! without end.

use std::{collections::VecDeque, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        cause::Cause,
        event::Event,
        input::{Effect, Input},
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    record::{Record, Turn},
    world::{Command, World},
};

/// The decider never lowers the number of workers more often than it raised it, and at the end as
/// many workers serve as the operator wants.
#[derive(Default)]
pub(super) struct NeverShrinks {
    /// How many SIGTTIN of the decider in this run have had no SIGTTOU since.
    raised: u32,
    /// How many SIGTTOU were sent again because the first had merged with one of an operator.
    again: u32,
    /// The last signal of the decider to the server was SIGTTOU.
    lowered: bool,
}

impl Checker for NeverShrinks {
    fn name(&self) -> &'static str {
        "never-shrinks"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        let started = turn
            .actions
            .iter()
            .any(|one| matches!(one, Action::Start { .. }));
        if started || turn.by_operator() == Some(Signal::HUP) {
            (self.raised, self.again) = (0, 0);
        }
        if !record.is_server() {
            return Ok(());
        }
        let merged = match &world.command {
            Some(Command::Server(arbiter)) => arbiter.merged,
            Some(Command::Single { .. }) | None => 0,
        };
        let failed = matches!(
            turn.input,
            Some(Input::Failed {
                effect: Effect::Signal,
                worker: None,
                ..
            })
        );
        if failed && std::mem::take(&mut self.lowered) {
            // The signal was not sent.
            self.raised += 1;
        }
        for signal in turn.own_signals() {
            self.lowered = signal == Signal::TTOU;
            if signal == Signal::TTIN {
                self.raised += 1;
            } else if signal == Signal::TTOU && self.raised == 0 && self.again < merged {
                // Two were sent and one arrived, so the decider sends another.
                self.again += 1;
            } else if signal == Signal::TTOU {
                self.raised = self.raised.checked_sub(1).ok_or(
                    "the server was asked for one worker fewer without one more before".to_owned(),
                )?;
            }
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, world: &World) -> Result<(), String> {
        let Some(Command::Server(arbiter)) = &world.command else {
            return Ok(());
        };
        if record.stopping.is_some() || !record.up {
            return Ok(());
        }
        // A booting worker counts as here. The decider does not end a worker that ignores the stop
        // signal of its server, and gunicorn does not replace it.
        let stay = |one: &&WorkerId| !world.lingers(**one);
        let here: Vec<_> = record
            .alive()
            .filter(|(_, seen)| seen.draining.is_none())
            .map(|(worker, _)| worker)
            .collect();
        let serve = here.iter().filter(|one| stay(one)).count();
        let lingering = here.len() - serve;
        let wanted = usize::try_from(world.wanted).unwrap_or(0);
        // Each lost signal may mean one worker more or fewer.
        let lost = usize::try_from(world.lost).unwrap_or(0);
        let surplus = usize::from(self.raised > 0) + lost;
        let away = record.away() + lost;
        // The successor of a worker that ended in the last second is not seen yet.
        let went = |gone| record.now.since(gone) < Duration::from_secs(1);
        let went = record
            .workers
            .values()
            .filter(|seen| seen.gone.is_some_and(went));
        let away = away + went.count();
        if serve + lingering + away < wanted || serve > wanted + surplus {
            return Err(format!(
                "{serve} serve, {away} are away, the operator wants {wanted}, the server wants {}, \
                 raised {}",
                arbiter.target, self.raised
            ));
        }
        Ok(())
    }
}

/// Whatever the decider starts comes to an end.
#[derive(Default)]
pub(super) struct Settles {
    warnings: u32,
    /// The decider has warned that recycling cannot help.
    cannot_help: bool,
    /// Since when recycling is suspended, or since when the service is ready again.
    suspended: Option<Timestamp>,
}

/// Recycling resumes within this time, however many starts have failed.
const RESUMES: Duration = Duration::from_secs(200);

impl Checker for Settles {
    fn name(&self) -> &'static str {
        "settles"
    }

    fn on_turn(&mut self, turn: &Turn, record: &Record, world: &World) -> Result<(), String> {
        for event in &turn.events {
            match event {
                Event::Warning(_) => {
                    self.warnings += 1;
                    self.cannot_help |= record.no_help;
                }
                Event::Suspended { .. } => self.suspended = Some(turn.at),
                Event::Ready { .. } => self.suspended = self.suspended.map(|_| turn.at),
                Event::Resumed { .. } => self.suspended = None,
                _ => {}
            }
        }
        // A drain ends with the grace period, whatever the worker does. The input that says so may
        // come a moment later.
        let most = record.spec.stop.grace + Duration::from_secs(1);
        for (worker, seen) in record.alive() {
            if let Some((since, cause)) = seen.draining
                && turn.at.since(since) > most
            {
                return Err(format!(
                    "{worker} has drained by {cause} for {:?}",
                    turn.at.since(since)
                ));
            }
        }
        let Some(status) = record.exit else {
            return Ok(());
        };
        if !world.processes.is_empty() || world.command.is_some() {
            return Err(format!("exit {status}, and processes of the run are left"));
        }
        Ok(())
    }

    fn at_end(&mut self, record: &Record, world: &World) -> Result<(), String> {
        if record.exit.is_some() {
            return Ok(());
        }
        if record.stopping.is_some() {
            return Err("the service was asked to stop, and has not".to_owned());
        }
        if self.warnings > 5000 {
            return Err(format!("{} warnings", self.warnings));
        }
        if record.ended.is_some() && world.command.is_some() {
            return Err("the command runs, and the decider does not know it".to_owned());
        }
        if let Some(since) = self.suspended {
            let lasts = record.now.since(since);
            if lasts > RESUMES && record.up {
                return Err(format!("recycling has been suspended for {lasts:?}"));
            }
            return Ok(());
        }
        for (worker, seen) in record.alive().filter(|(_, seen)| seen.serves()) {
            let Some((since, cause)) = seen.due else {
                continue;
            };
            let ceiling = record.limits.ceiling.bytes.unwrap_or_default();
            let below = |value: Bytes| value < ceiling;
            // The memory of all workers together cannot be checked from here.
            let fell = cause == Cause::Budget
                || cause == Cause::Ceiling && (self.cannot_help || seen.value().is_some_and(below));
            let waits = record.now.since(since);
            if fell {
                continue;
            }
            let done = matches!(cause, Cause::Request | Cause::Reload) || !record.spec.dry_run;
            if done && waits > Duration::from_secs(120) {
                return Err(format!("{worker} has been due by {cause} for {waits:?}"));
            }
        }
        Ok(())
    }
}

/// The decider is quiet enough: a limited number of actions a second, and no deadline that stays in
/// the past.
#[derive(Default)]
pub(super) struct Chatter {
    /// The turns of the last second, each with its number of actions.
    recent: VecDeque<(Timestamp, usize)>,
    spins: u32,
}

const ACTIONS_MAX: usize = 2000;
const SPINS_MAX: u32 = 20;

impl Checker for Chatter {
    fn name(&self) -> &'static str {
        "chatter"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Record, _: &World) -> Result<(), String> {
        let same = self.recent.back().is_some_and(|(at, _)| *at == turn.at);
        let idle = turn.input == Some(Input::Deadline);
        self.spins = if same && idle { self.spins + 1 } else { 0 };
        if self.spins > SPINS_MAX {
            return Err("the deadline stays in the past".to_owned());
        }
        self.recent.push_back((turn.at, turn.actions.len()));
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| turn.at.since(*at) > Duration::from_secs(1))
        {
            self.recent.pop_front();
        }
        let count: usize = self.recent.iter().map(|(_, count)| count).sum();
        if count > ACTIONS_MAX {
            return Err(format!("{count} actions in one second"));
        }
        Ok(())
    }
}
