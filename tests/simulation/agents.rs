//! Pretend agents: who has one, what it counts, and how it answers. Their chance is their own, so
//! that a seed's other fortunes are the same with and without them.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::{About, AgentAsk},
        event::{Agent, Counts, Event, Said},
        spec::{AgentLoad, Leaks, Measure, Spec},
    },
    units::{Timestamp, WorkerId, scaled},
};

use crate::{
    chance::Chance,
    process::{Phase, Process, bytes},
    scenario::Scenario,
    world::{Happening, World},
};

/// What the agents of one seed are like.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    chance: Chance,
    loaded: f64,
    /// Loaded, and stuck in C: it never answers.
    mute: f64,
    /// It answers that it could not.
    pub(crate) fails: f64,
    /// Workers grow by garbage, not by live objects.
    garbage: f64,
    /// Requests a second.
    rate: f64,
    known: BTreeMap<i32, One>,
}

/// The agent of one process.
#[derive(Clone, Copy, Debug)]
struct One {
    loaded: bool,
    mute: bool,
    garbage: bool,
}

impl Agents {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut some = |likely: f64, most: f64| {
            if chance.yes(likely) {
                most * chance.part()
            } else {
                0.0
            }
        };
        let (mute, fails, garbage) = (some(0.3, 0.5), some(0.3, 0.5), some(0.4, 1.5));
        Self {
            loaded: chance.pick(&[0.0, 0.7, 1.0, 1.0]),
            mute,
            fails,
            garbage,
            rate: chance.spread(0.5, 200.0),
            known: BTreeMap::new(),
            chance,
        }
    }

    /// What is wished for that concerns them.
    pub(crate) fn wish(&mut self, spec: &mut Spec) {
        let chance = &mut self.chance;
        spec.agent.load = chance.pick(&[AgentLoad::Auto, AgentLoad::Auto, AgentLoad::On]);
        if chance.yes(0.1) {
            spec.agent.load = AgentLoad::Off;
        }
        spec.memory.gc_first = chance.yes(0.8);
        spec.leaks.ask = chance.pick(&[Leaks::Auto, Leaks::On, Leaks::Always, Leaks::Off]);
        spec.leaks.time_box = chance.millis(200, 4000);
        spec.recycle.max_tasks = chance.yes(0.3).then(|| chance.between(50, 20_000));
    }

    fn one(&mut self, pid: i32) -> One {
        if let Some(known) = self.known.get(&pid) {
            return *known;
        }
        let one = One {
            loaded: self.chance.yes(self.loaded),
            mute: self.chance.yes(self.mute),
            garbage: self.chance.yes(self.garbage),
        };
        self.known.insert(pid, one);
        one
    }

    /// Every agent answers what it is asked.
    pub(crate) const fn is_sound(&self) -> bool {
        self.mute == 0.0 && self.fails == 0.0
    }
}

impl Scenario {
    /// The agents of this seed; the wishes are changed to fit.
    pub(crate) fn agents(&mut self) -> Agents {
        let mut agents =
            Agents::new(self.available.get() ^ self.program.base.get().rotate_left(17));
        agents.wish(&mut self.spec);
        // Measured by resident memory, such a worker would be born over its ceiling.
        let private = matches!(self.spec.memory.measure, Measure::Private);
        if private && agents.chance.yes(0.2) {
            let times = agents.chance.spread(0.5, 8.0);
            self.program.preloaded = self.program.base.scaled(times);
        }
        agents
    }
}

impl World {
    pub(crate) fn find_agent(&mut self, worker: WorkerId) {
        let Some(pid) = self.names.get(&worker).copied() else {
            return;
        };
        let agent = if self.agents.one(pid).loaded {
            Agent::Loaded
        } else {
            Agent::Absent("it is no Python".to_owned())
        };
        let wait = self.agents.chance.micros(5, 300);
        let expected = self.chance.yes(0.5);
        self.tell(
            wait,
            Event::AgentFound {
                worker,
                agent,
                expected,
            },
        );
    }

    pub(crate) fn ask_agent(&mut self, worker: WorkerId, ask: AgentAsk) {
        let Some(pid) = self.names.get(&worker).copied() else {
            return;
        };
        let one = self.agents.one(pid);
        let fails = !self.calm && self.agents.chance.yes(self.agents.fails);
        // An interpreter that ends catches no signal any more.
        let ends = |process: &Process| process.phase == Phase::Leaving;
        let ends = self.processes.get(&pid).is_some_and(ends);
        if !one.loaded || fails || ends {
            let said = Said::Failed("it could not".to_owned());
            let wait = self.agents.chance.micros(5, 300);
            self.tell(wait, Event::Said { worker, said });
            return;
        }
        if one.mute {
            return;
        }
        let wait = match &ask {
            AgentAsk::Collect | AgentAsk::Open { .. } | AgentAsk::Close => {
                self.agents.chance.millis(1, 200)
            }
            // Now and then later than it is waited for.
            AgentAsk::Report { time_box, .. } => {
                time_box.mul_f64(self.agents.chance.part() * 1.2) + Duration::from_millis(1)
            }
        };
        self.after(wait, Happening::Says(worker, Box::new(ask)));
    }

    /// A process that was asked answers, if it still can.
    pub(crate) fn says(&mut self, worker: WorkerId, ask: &AgentAsk) -> Option<Event> {
        let now = self.now;
        let pid = self.names.get(&worker).copied()?;
        let one = self.agents.one(pid);
        let process = self.process_of(worker)?;
        if !matches!(ask, AgentAsk::Close) {
            process.copy_shared(now);
        }
        let said = match ask {
            AgentAsk::Collect => {
                let before = process.private(now);
                let grown = (process.held(now) - process.plan.base.as_f64()).max(0.0);
                if one.garbage {
                    process.give_back(now, grown * 0.95);
                }
                Said::Collected {
                    before: bytes(before),
                    after: bytes(process.private(now)),
                }
            }
            AgentAsk::Open { .. } => Said::Opened,
            AgentAsk::Close => Said::Closed,
            AgentAsk::Report { about, .. } => reported(about),
        };
        Some(Event::Said { worker, said })
    }

    pub(crate) fn keep_report(&mut self, about: &About) {
        let wait = self.agents.chance.micros(5, 2000);
        let said = reported(about);
        self.tell(
            wait,
            Event::Said {
                worker: about.worker,
                said,
            },
        );
    }

    /// In calm times nobody asks for anything any more, and figures stay.
    pub(crate) fn read_counts(&mut self) {
        let now = self.calm_since.unwrap_or(self.now);
        let rate = self.agents.rate;
        let mut all = Vec::new();
        for (&worker, pid) in &self.names {
            if let Some(process) = self.processes.get(pid)
                && process.phase != Phase::Booting
                && self.agents.known.get(pid).is_some_and(|one| one.loaded)
            {
                all.push((worker, done(rate, process.boots_until, now)));
            }
        }
        for (worker, done) in all {
            let counts = Counts {
                done,
                ..Counts::default()
            };
            self.tell(Duration::ZERO, Event::Counted { worker, counts });
        }
    }
}

fn done(rate: f64, since: Timestamp, now: Timestamp) -> u64 {
    let micros = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
    scaled(micros, rate / 1e6)
}

fn reported(about: &About) -> Said {
    Said::Reported {
        report: about.report,
        cause: about.cause,
        summary: "python".to_owned(),
    }
}
