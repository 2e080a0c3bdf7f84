//! Simulated agents: which workers have one, what it counts, and how it answers. They draw from
//! their own random numbers, so that the rest of a seed is the same with and without them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use supervise::{
    supervisor::{
        action::{About, AgentAsk, ReportWhen},
        input::{Agent, AgentAnswer, Counts, Input},
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

/// The agents of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    chance: Chance,
    /// The part of workers that have an agent.
    loaded: f64,
    /// The part of agents that are stuck in C code and never answer.
    mute: f64,
    /// The probability that an agent answers that it failed.
    pub(crate) fails: f64,
    /// The part of workers that grow by garbage, not by live objects.
    garbage: f64,
    /// Requests a second.
    rate: f64,
    known: BTreeMap<i32, Traits>,
    /// Workers with a request for a report after their drain.
    asked_last: BTreeSet<WorkerId>,
}

/// The agent of one process.
#[derive(Clone, Copy, Debug)]
struct Traits {
    loaded: bool,
    mute: bool,
    garbage: bool,
}

impl Agents {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut sometimes = |likely: f64, most: f64| {
            if chance.yes(likely) {
                most * chance.part()
            } else {
                0.0
            }
        };
        let (mute, fails) = (sometimes(0.3, 0.5), sometimes(0.3, 0.5));
        let garbage = sometimes(0.4, 1.5);
        Self {
            loaded: chance.pick(&[0.0, 0.7, 1.0, 1.0]),
            mute,
            fails,
            garbage,
            rate: chance.spread(0.5, 200.0),
            known: BTreeMap::new(),
            asked_last: BTreeSet::new(),
            chance,
        }
    }

    /// Draws the settings that concern agents.
    pub(crate) fn configure(&mut self, spec: &mut Spec) {
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

    fn traits(&mut self, pid: i32) -> Traits {
        if let Some(known) = self.known.get(&pid) {
            return *known;
        }
        let drawn = Traits {
            loaded: self.chance.yes(self.loaded),
            mute: self.chance.yes(self.mute),
            garbage: self.chance.yes(self.garbage),
        };
        self.known.insert(pid, drawn);
        drawn
    }

    /// Every agent answers every request.
    pub(crate) const fn is_sound(&self) -> bool {
        self.mute == 0.0 && self.fails == 0.0
    }
}

impl Scenario {
    /// The agents of this seed. Changes the settings to fit them.
    pub(crate) fn agents(&mut self) -> Agents {
        let mut agents =
            Agents::new(self.available.get() ^ self.program.base.get().rotate_left(17));
        agents.configure(&mut self.spec);
        // Measured by resident memory, such a worker would start over its ceiling.
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
        let agent = if self.agents.traits(pid).loaded {
            Agent::Loaded
        } else {
            Agent::Absent("it is no Python".to_owned())
        };
        let wait = self.agents.chance.micros(5, 300);
        let expected = self.chance.yes(0.5);
        self.deliver(
            wait,
            Input::AgentFound {
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
        let traits = self.agents.traits(pid);
        let fails = !self.calm && self.agents.chance.yes(self.agents.fails);
        // An interpreter that is exiting no longer handles signals.
        let exits = |process: &Process| process.phase == Phase::Leaving;
        let exits = self.processes.get(&pid).is_some_and(exits);
        if !traits.loaded || fails || exits {
            let answer = AgentAnswer::Failed("it could not".to_owned());
            let wait = self.agents.chance.micros(5, 300);
            self.deliver(wait, Input::AgentAnswered { worker, answer });
            return;
        }
        if traits.mute {
            return;
        }
        let wait = match &ask {
            AgentAsk::Collect | AgentAsk::Base | AgentAsk::Open { .. } | AgentAsk::Close => {
                self.agents.chance.millis(1, 200)
            }
            // Sometimes the report comes after the time limit.
            AgentAsk::Report { time_box, .. } => {
                time_box.mul_f64(self.agents.chance.part() * 1.2) + Duration::from_millis(1)
            }
        };
        if ask.waits_for_drain() {
            self.agents.asked_last.insert(worker);
        }
        self.after(wait, Happening::AgentAnswers(worker, Box::new(ask)));
    }

    pub(crate) fn withdraw_report(&mut self, worker: WorkerId) {
        self.agents.asked_last.remove(&worker);
    }

    /// The agent of a worker answers a request, if the worker still exists.
    pub(crate) fn agent_answers(&mut self, worker: WorkerId, ask: &AgentAsk) -> Option<Input> {
        let now = self.now;
        let pid = self.names.get(&worker).copied()?;
        let traits = self.agents.traits(pid);
        // The answer to a request that was withdrawn may come nevertheless.
        if ask.waits_for_drain()
            && self.agents.asked_last.contains(&worker)
            && self.process_of(worker)?.phase != Phase::Leaving
        {
            let again = Happening::AgentAnswers(worker, Box::new(ask.clone()));
            self.after(Duration::from_millis(50), again);
            return None;
        }
        let idle = self.agents.chance.yes(0.5);
        let process = self.process_of(worker)?;
        if !matches!(ask, AgentAsk::Close) {
            process.copy_shared(now);
        }
        let answer = match ask {
            AgentAsk::Collect if !idle => AgentAnswer::Busy,
            AgentAsk::Collect => {
                let before = process.private(now);
                let grown = (process.held(now) - process.plan.base.as_f64()).max(0.0);
                if traits.garbage {
                    process.free(now, grown * 0.95);
                }
                AgentAnswer::Collected {
                    before: bytes(before),
                    after: bytes(process.private(now)),
                }
            }
            AgentAsk::Base => AgentAnswer::Base { taken: idle },
            AgentAsk::Open { .. } => AgentAnswer::Opened,
            AgentAsk::Close => AgentAnswer::Closed,
            AgentAsk::Report {
                when: ReportWhen::Idle,
                ..
            } if !idle => AgentAnswer::Busy,
            AgentAsk::Report { about, .. } => reported(about),
        };
        Some(Input::AgentAnswered { worker, answer })
    }

    pub(crate) fn keep_report(&mut self, about: &About) {
        let wait = self.agents.chance.micros(5, 2000);
        let answer = reported(about);
        self.deliver(
            wait,
            Input::AgentAnswered {
                worker: about.worker,
                answer,
            },
        );
    }

    /// Hands in each agent's counts. In the calm phase no more requests come, and the counts stay.
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
            self.deliver(Duration::ZERO, Input::Counted { worker, counts });
        }
    }
}

fn done(rate: f64, since: Timestamp, now: Timestamp) -> u64 {
    let micros = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
    scaled(micros, rate / 1e6)
}

fn reported(about: &About) -> AgentAnswer {
    AgentAnswer::Reported {
        report: about.report,
        cause: about.cause,
        summary: "python".to_owned(),
    }
}
