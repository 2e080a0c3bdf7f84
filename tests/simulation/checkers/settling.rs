//! In the end all is as it was wished, and on the way nobody talks without end.

use std::{collections::VecDeque, time::Duration};

use supervise::{
    supervisor::{
        action::Action,
        event::{Effect, Event},
        report::{Cause, Report},
    },
    units::{Bytes, Signal, Timestamp, WorkerId},
};

use super::Checker;
use crate::{
    books::{Books, Turn},
    world::{Command, World},
};

/// The server is never asked for fewer workers than it had been asked for more; in the end as many
/// serve as the operator wants.
#[derive(Default)]
pub(super) struct NeverShrinks {
    /// Raised by us and not lowered again, in this run.
    raised: u32,
    /// Asked for one fewer once more, where the first had merged with an operator's.
    again: u32,
    /// Our last signal to the server asked for one fewer.
    lowered: bool,
}

impl Checker for NeverShrinks {
    fn name(&self) -> &'static str {
        "never-shrinks"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        let started = turn
            .actions
            .iter()
            .any(|one| matches!(one, Action::Start { .. }));
        if started || turn.by_operator() == Some(Signal::HUP) {
            (self.raised, self.again) = (0, 0);
        }
        if !books.is_server() {
            return Ok(());
        }
        let merged = match &world.command {
            Some(Command::Server(arbiter)) => arbiter.merged,
            Some(Command::Single { .. }) | None => 0,
        };
        let failed = matches!(
            turn.event,
            Some(Event::Failed {
                effect: Effect::Signal,
                worker: None,
                ..
            })
        );
        if failed && std::mem::take(&mut self.lowered) {
            // The server never heard of it.
            self.raised += 1;
        }
        for signal in turn.own_signals() {
            self.lowered = signal == Signal::TTOU;
            if signal == Signal::TTIN {
                self.raised += 1;
            } else if signal == Signal::TTOU && self.raised == 0 && self.again < merged {
                // Two were sent and one arrived: the other is still due.
                self.again += 1;
            } else if signal == Signal::TTOU {
                self.raised = self.raised.checked_sub(1).ok_or(
                    "the server was asked for one fewer, and not for one more before".to_owned(),
                )?;
            }
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, world: &World) -> Result<(), String> {
        let Some(Command::Server(arbiter)) = &world.command else {
            return Ok(());
        };
        if books.stopping.is_some() || !books.up {
            return Ok(());
        }
        // One that still boots is on its way; one that its server asked to go in vain is not the
        // decider's to end, and gunicorn replaces nobody for it.
        let stay = |one: &&WorkerId| !world.lingers(**one);
        let here: Vec<_> = books
            .alive()
            .filter(|(_, seen)| seen.draining.is_none())
            .map(|(worker, _)| worker)
            .collect();
        let serve = here.iter().filter(|one| stay(one)).count();
        let lingering = here.len() - serve;
        let wish = usize::try_from(world.wish).unwrap_or(0);
        // A signal that never arrived is not known to anybody: one worker more or fewer each.
        let lost = usize::try_from(world.lost).unwrap_or(0);
        let spare = usize::from(self.raised > 0) + lost;
        let away = books.away() + lost;
        // Whoever went in the last second has a successor that nobody has seen yet.
        let went = |gone| books.now.since(gone) < Duration::from_secs(1);
        let went = books
            .workers
            .values()
            .filter(|seen| seen.gone.is_some_and(went));
        let away = away + went.count();
        if serve + lingering + away < wish || serve > wish + spare {
            return Err(format!(
                "{serve} serve, {away} are away, the operator wants {wish}, the server wants {}, \
                 raised {}",
                arbiter.target, self.raised
            ));
        }
        Ok(())
    }
}

/// What was begun comes to an end.
#[derive(Default)]
pub(super) struct Settles {
    warnings: u32,
    /// It was said that recycling cannot help.
    hopeless: bool,
    /// Recycling is suspended; the service is up again since then.
    suspended: Option<Timestamp>,
}

/// Recycling resumes within this, however many starts had failed.
const RESUMES: Duration = Duration::from_secs(200);

impl Checker for Settles {
    fn name(&self) -> &'static str {
        "settles"
    }

    fn on_turn(&mut self, turn: &Turn, books: &Books, world: &World) -> Result<(), String> {
        for report in &turn.reports {
            match report {
                Report::Warning(_) => {
                    self.warnings += 1;
                    self.hopeless |= books.no_help;
                }
                Report::Suspended { .. } => self.suspended = Some(turn.at),
                Report::Ready { .. } => self.suspended = self.suspended.map(|_| turn.at),
                Report::Resumed { .. } => self.suspended = None,
                _ => {}
            }
        }
        // A drain ends with its grace, whatever the worker does; the news takes a moment.
        let most = books.spec.stop.grace + Duration::from_secs(1);
        for (worker, seen) in books.alive() {
            if let Some((since, cause)) = seen.draining
                && turn.at.since(since) > most
            {
                return Err(format!(
                    "{worker} drains since {:?} by {cause}",
                    turn.at.since(since)
                ));
            }
        }
        let Some(status) = books.exit else {
            return Ok(());
        };
        if !world.processes.is_empty() || world.command.is_some() {
            return Err(format!("exit {status}, and something of the run is left"));
        }
        Ok(())
    }

    fn at_end(&mut self, books: &Books, world: &World) -> Result<(), String> {
        if books.exit.is_some() {
            return Ok(());
        }
        if books.stopping.is_some() {
            return Err("the service was to stop, and has not".to_owned());
        }
        if self.warnings > 5000 {
            return Err(format!("{} warnings", self.warnings));
        }
        if books.ended.is_some() && world.command.is_some() {
            return Err("the command runs, and the decider does not know".to_owned());
        }
        if let Some(since) = self.suspended {
            let lasts = books.now.since(since);
            if lasts > RESUMES && books.up {
                return Err(format!("recycling is suspended for {lasts:?}"));
            }
            return Ok(());
        }
        for (worker, seen) in books.alive().filter(|(_, seen)| seen.serves()) {
            let Some((since, cause)) = seen.due else {
                continue;
            };
            let ceiling = books.limits.ceiling.bytes.unwrap_or_default();
            let below = |value: Bytes| value < ceiling;
            // What all together hold is seen by nobody from outside.
            let fell = cause == Cause::Budget
                || cause == Cause::Ceiling && (self.hopeless || seen.value().is_some_and(below));
            let waits = books.now.since(since);
            if fell {
                continue;
            }
            let done = matches!(cause, Cause::Request | Cause::Reload) || !books.spec.dry_run;
            if done && waits > Duration::from_secs(120) {
                return Err(format!("{worker} is due by {cause} since {waits:?}"));
            }
        }
        Ok(())
    }
}

/// Bounded talk: so many actions a second, and no deadline that is over again and again.
#[derive(Default)]
pub(super) struct Chatter {
    /// Actions in the last second, with how many at once.
    recent: VecDeque<(Timestamp, usize)>,
    spins: u32,
}

const ACTIONS_MAX: usize = 2000;
const SPINS_MAX: u32 = 20;

impl Checker for Chatter {
    fn name(&self) -> &'static str {
        "chatter"
    }

    fn on_turn(&mut self, turn: &Turn, _: &Books, _: &World) -> Result<(), String> {
        let same = self.recent.back().is_some_and(|(at, _)| *at == turn.at);
        let idle = turn.event == Some(Event::Deadline);
        self.spins = if same && idle { self.spins + 1 } else { 0 };
        if self.spins > SPINS_MAX {
            return Err("a deadline is over, again and again".to_owned());
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
