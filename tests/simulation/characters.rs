//! How workers behave: how much memory they use, how long they boot, and how they exit.

use std::time::Duration;

use supervise::{
    supervisor::input::Ended,
    units::{Bytes, Signal},
};

use crate::chance::Chance;

/// How a worker behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Character {
    /// Stops growing once it is ready.
    Steady,
    /// Grows without end, slowly or fast.
    Leaky,
    /// Allocates much memory for a short time, at 1 GB/s, and frees it again.
    Spiky,
    /// Ignores every stop signal.
    IgnoresStop,
    /// Ends by itself.
    Crashing,
    /// Has a child process that grows.
    Forking,
    /// Boots slowly.
    Slow,
    /// Uses more memory than the others from its start.
    OverAtStart,
    /// Its import fails: exit status 3 or 4, which stops gunicorn.
    BootFails,
    /// Its import exits with a status after which the server starts the next worker immediately.
    EndsAtBoot,
}

pub(crate) const ALL: [Character; 10] = [
    Character::Steady,
    Character::Leaky,
    Character::Spiky,
    Character::IgnoresStop,
    Character::Crashing,
    Character::Forking,
    Character::Slow,
    Character::OverAtStart,
    Character::BootFails,
    Character::EndsAtBoot,
];

/// The life of one worker, unless the decider or a fault changes it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) boot: Duration,
    /// Private memory when it becomes ready.
    pub(crate) base: Bytes,
    /// Growth in bytes a second from then on.
    pub(crate) rate: f64,
    /// File pages that it shares with others.
    pub(crate) shared: Bytes,
    /// Anonymous pages that it shares with others.
    pub(crate) cow: Bytes,
    /// The time between a stop signal and its end. `None`: it ignores the signal.
    pub(crate) drain: Option<Duration>,
    /// How it ends after a stop signal.
    pub(crate) goes: Ended,
    /// It ends by itself: when, counted from the end of its boot, and how.
    pub(crate) crash: Option<(Duration, Ended)>,
    /// A repeated spike: its interval, its size and how long it lasts.
    pub(crate) spike: Option<(Duration, Bytes, Duration)>,
    /// Its child process: when it appears, counted from the end of the boot, and its memory.
    pub(crate) helper: Option<(Duration, Bytes)>,
}

impl Plan {
    /// Its import fails.
    pub(crate) fn fails_to_boot(&self) -> bool {
        self.crash.is_some_and(|(wait, _)| wait == Duration::ZERO)
    }
}

/// The program that all workers of one seed run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) base: Bytes,
    pub(crate) boot: Duration,
    /// It raises the stop signal again once it has finished, as `UvicornWorker` does.
    pub(crate) reraises: bool,
    /// The characters of new workers. One that is listed twice is drawn twice as often.
    pub(crate) characters: Vec<Character>,
    /// The fastest leak in bytes a second.
    pub(crate) rate_max: f64,
    /// How many times `base` a worker uses that is over at its start.
    pub(crate) oversize: f64,
    /// Anonymous pages that workers share with their master, besides the interpreter's.
    pub(crate) preloaded: Bytes,
}

impl Program {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        // Swarm testing: each seed has a few characters, and most of its workers have one of two.
        let mut characters = vec![chance.pick(&[Character::Steady, Character::Leaky]); 4];
        for _ in 0..chance.small(0, 3) {
            let one = chance.pick(&ALL);
            // A failed boot stops the server, so it must be rare for anything else to be tested.
            if one != Character::BootFails || chance.yes(0.2) {
                let times = if one == Character::BootFails { 1 } else { 2 };
                characters.extend(vec![one; times]);
            }
        }
        if chance.yes(0.05) {
            characters = vec![Character::OverAtStart];
        }
        if chance.yes(0.05) {
            characters = vec![Character::EndsAtBoot];
        }
        Self {
            base: Bytes::mib(chance.between(20, 120)),
            boot: Duration::from_secs_f64(chance.spread(0.1, 3.0)),
            reraises: chance.yes(0.2),
            characters,
            rate_max: chance.spread(2.0, 50.0) * Bytes::mib(1).as_f64(),
            oversize: 1.2 + chance.part() * 4.0,
            preloaded: Bytes::ZERO,
        }
    }

    /// The life of a new worker of this program. In the calm phase all are steady.
    pub(crate) fn plan(&self, chance: &mut Chance, calm: bool) -> Plan {
        let character = if calm {
            Character::Steady
        } else {
            chance.pick(&self.characters)
        };
        let is = |one| character == one;
        let mib = Bytes::mib(1).as_f64();
        let base = self.base.scaled(0.95 + 0.1 * chance.part());
        let boot = self.boot.mul_f64(0.7 + 0.6 * chance.part());
        let after = |chance: &mut Chance| Duration::from_secs_f64(chance.spread(0.05, 120.0));
        let unplanned = [
            Ended::Exit(1),
            Ended::Exit(0),
            Ended::Signal(Signal(11)),
            Ended::Signal(Signal(6)),
            Ended::Signal(Signal::KILL),
        ];
        let goes = if self.reraises {
            Ended::Signal(Signal::TERM)
        } else {
            Ended::Exit(0)
        };
        let drain = Duration::from_secs_f64(chance.spread(0.005, 8.0));
        Plan {
            boot: if is(Character::Slow) {
                Duration::from_secs_f64(chance.spread(1.0, 20.0))
            } else {
                boot
            },
            base: if is(Character::OverAtStart) {
                base.scaled(self.oversize)
            } else {
                base
            },
            rate: if is(Character::Leaky) {
                chance.spread((0.1 * mib).max(self.rate_max / 20.0), self.rate_max)
            } else {
                0.0
            },
            shared: Bytes::mib(25),
            cow: Bytes::mib(chance.between(1, 15)).plus(self.preloaded),
            drain: (!is(Character::IgnoresStop)).then_some(drain),
            goes,
            crash: match character {
                Character::Crashing => Some((after(chance), chance.pick(&unplanned))),
                Character::EndsAtBoot => {
                    Some((Duration::ZERO, Ended::Exit(chance.pick(&[0, 0, 1, 7]))))
                }
                Character::BootFails => Some((Duration::ZERO, Ended::Exit(chance.pick(&[3, 4])))),
                _ => None,
            },
            spike: is(Character::Spiky).then(|| {
                let size = base.scaled(chance.spread(0.2, 8.0));
                (after(chance), size, chance.millis(20, 3000))
            }),
            helper: is(Character::Forking)
                .then(|| (after(chance), base.scaled(chance.spread(0.2, 6.0)))),
        }
    }
}
