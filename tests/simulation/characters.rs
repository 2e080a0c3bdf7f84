//! How workers behave: what they hold, how long they boot, and how they go.

use std::time::Duration;

use supervise::{
    supervisor::event::Ended,
    units::{Bytes, Signal},
};

use crate::chance::Chance;

/// What a worker is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Character {
    /// Grows no more once it serves.
    Steady,
    /// Grows for ever, slowly or fast.
    Leaky,
    /// Takes a lot for a moment, at 1 GB/s, and gives it back.
    Spiky,
    /// Ignores every request to go.
    Deaf,
    /// Ends by itself.
    Crashing,
    /// Has a helper process that grows.
    Forking,
    /// Boots for long.
    Slow,
    /// Holds more than others from its birth.
    BornFat,
    /// Its import fails: exit status 3, which stops a gunicorn.
    BootFails,
    /// Its import exits with a status for which the server starts the next one at once.
    EndsAtBoot,
}

pub(crate) const ALL: [Character; 10] = [
    Character::Steady,
    Character::Leaky,
    Character::Spiky,
    Character::Deaf,
    Character::Crashing,
    Character::Forking,
    Character::Slow,
    Character::BornFat,
    Character::BootFails,
    Character::EndsAtBoot,
];

/// One life, as it will go if nobody interferes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) boot: Duration,
    /// Private memory when it begins to serve.
    pub(crate) base: Bytes,
    /// Bytes a second from then on.
    pub(crate) rate: f64,
    /// Pages it shares with others; those of them that are anonymous.
    pub(crate) shared: Bytes,
    pub(crate) cow: Bytes,
    /// Between being asked to go and its end; `None` is deaf.
    pub(crate) drain: Option<Duration>,
    /// How it ends when it was asked to.
    pub(crate) goes: Ended,
    /// It ends by itself so long after its boot.
    pub(crate) crash: Option<(Duration, Ended)>,
    /// Takes so much, every so often, for so long.
    pub(crate) spike: Option<(Duration, Bytes, Duration)>,
    /// Its helper holds so much, so long after its boot.
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
    /// UvicornWorker raises the signal again once it has finished.
    pub(crate) reraises: bool,
    /// Who comes up, each as often as it is listed.
    pub(crate) cast: Vec<Character>,
    /// The fastest leak, bytes a second.
    pub(crate) rate_max: f64,
    /// A fat one is born with so many times the base.
    pub(crate) fat: f64,
    /// Anonymous pages that workers share with their master, beside the interpreter's.
    pub(crate) preloaded: Bytes,
}

impl Program {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        // Swarm: each seed has a few characters, and most of its workers are one of two.
        let mut cast = vec![chance.pick(&[Character::Steady, Character::Leaky]); 4];
        for _ in 0..chance.small(0, 3) {
            let one = chance.pick(&ALL);
            // Bad boots stop the server each time: rare, or nothing else is ever seen.
            if one != Character::BootFails || chance.yes(0.2) {
                let times = if one == Character::BootFails { 1 } else { 2 };
                cast.extend(vec![one; times]);
            }
        }
        if chance.yes(0.05) {
            cast = vec![Character::BornFat];
        }
        if chance.yes(0.05) {
            cast = vec![Character::EndsAtBoot];
        }
        Self {
            base: Bytes::mib(chance.between(20, 120)),
            boot: Duration::from_secs_f64(chance.spread(0.1, 3.0)),
            reraises: chance.yes(0.2),
            cast,
            rate_max: chance.spread(2.0, 50.0) * Bytes::mib(1).as_f64(),
            fat: 1.2 + chance.part() * 4.0,
            preloaded: Bytes::ZERO,
        }
    }

    /// A life of a worker of this program; in calm times all are steady.
    pub(crate) fn plan(&self, chance: &mut Chance, calm: bool) -> Plan {
        let character = if calm {
            Character::Steady
        } else {
            chance.pick(&self.cast)
        };
        let is = |one| character == one;
        let mib = Bytes::mib(1).as_f64();
        let base = self.base.scaled(0.95 + 0.1 * chance.part());
        let boot = self.boot.mul_f64(0.7 + 0.6 * chance.part());
        let after = |chance: &mut Chance| Duration::from_secs_f64(chance.spread(0.05, 120.0));
        let odd = [
            Ended::Exit(1),
            Ended::Exit(0),
            Ended::Signal(Signal(11)),
            Ended::Signal(Signal(6)),
            Ended::Signal(Signal::KILL),
        ];
        let asked = if self.reraises {
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
            base: if is(Character::BornFat) {
                base.scaled(self.fat)
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
            drain: (!is(Character::Deaf)).then_some(drain),
            goes: asked,
            crash: match character {
                Character::Crashing => Some((after(chance), chance.pick(&odd))),
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
