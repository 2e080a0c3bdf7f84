//! One seed from its start to its end: the decider, the world, and the checkers between them.

use std::{
    collections::BTreeMap,
    env, fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use supervise::{
    supervisor::{
        Supervisor,
        event::Event,
        input::Input,
        spec::{Leaks, Spec},
    },
    units::{Bytes, Timestamp},
};

use crate::{
    chance::Chance,
    checkers::{self, Checker},
    record::{Record, Turn},
    scenario::Scenario,
    world::World,
};

/// The length of the calm phase, in which everything that is due must be done.
const CALM: Duration = Duration::from_secs(240);
/// The time of a stop beyond the grace periods of the service and the server.
const STOP: Duration = Duration::from_secs(10);
/// The maximum number of turns: about 400 s with seven workers and a sample every few milliseconds.
const TURNS_MAX: u32 = 400_000;
/// The probability per turn that another binary takes over.
const UPGRADES: f64 = 0.0005;

/// The sum of the digests of all runs so far: the order of runs does not matter.
pub(crate) static DIGEST: AtomicU64 = AtomicU64::new(0);

/// A promise that was broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) checker: &'static str,
    pub(crate) after: Duration,
    pub(crate) what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[{}] after {:?}: {}",
            self.checker, self.after, self.what
        )
    }
}

/// Changes the output of the decider, to show that a checker detects it.
pub(crate) trait Tamper {
    /// Changes a turn before the checkers and the world get it.
    fn tamper(&mut self, turn: &mut Turn, record: &Record);
}

/// Changes nothing.
pub(crate) struct NoTamper;

impl Tamper for NoTamper {
    fn tamper(&mut self, _: &mut Turn, _: &Record) {}
}

/// How often each kind of event came.
pub(crate) type Tally = BTreeMap<String, u32>;

pub(crate) struct Run {
    supervisor: Supervisor,
    world: World,
    record: Record,
    checkers: Vec<Box<dyn Checker>>,
    begun: Timestamp,
    lag: Chance,
    upgrades: Chance,
    available: Option<Bytes>,
    turns: u32,
    tally: Tally,
    traced: bool,
    /// The digest of all decisions. A change that only moves code does not change it.
    digest: Option<DefaultHasher>,
}

impl Run {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let scenario = Scenario::new(&mut chance);
        Self::of(scenario, chance)
    }

    fn of(scenario: Scenario, mut chance: Chance) -> Self {
        let (seed, lag) = (chance.bits(), Chance::new(chance.bits()));
        let upgrades = Chance::new(seed.rotate_left(17));
        let mut world = World::new(scenario, chance);
        world.plan_asks();
        let spec = world.scenario.spec.clone();
        let record = Record::new(spec.clone(), world.now);
        Self {
            supervisor: Supervisor::new(spec, seed, world.now),
            checkers: checkers::all(),
            begun: world.now,
            world,
            record,
            lag,
            upgrades,
            available: None,
            turns: 0,
            tally: Tally::new(),
            traced: false,
            digest: env::var_os("SIM_DIGEST").map(|_| DefaultHasher::new()),
        }
    }

    /// Gives the decider other settings than the checkers.
    pub(crate) fn misconfigured(mut self, misconfigure: impl Fn(&mut Spec)) -> Self {
        let mut spec = self.record.spec.clone();
        misconfigure(&mut spec);
        self.supervisor = Supervisor::new(spec, self.lag.bits(), self.world.now);
        self
    }

    pub(crate) fn traced(mut self) -> Self {
        self.traced = true;
        println!("{:#?}", self.world.scenario);
        self
    }

    /// Runs the phase with faults, the calm phase, and for some seeds a stop. Returns how often
    /// each kind of event came.
    pub(crate) fn play(mut self, tamper: &mut dyn Tamper) -> Result<Tally, Failure> {
        self.run_for(self.world.scenario.turmoil, tamper)?;
        self.world.calm_down();
        let spec = &self.world.scenario.spec;
        let calm = CALM + spec.recycle.surge_idle + spec.ready.timeout;
        self.run_for(calm, tamper)?;
        self.check_snapshot()?;
        if self.world.chance.yes(0.5) && self.record.exit.is_none() {
            self.check_end()?;
            self.world.ask_to_stop();
            let graces = self.world.scenario.graceful_timeout + self.record.spec.stop.grace;
            self.run_for(graces + STOP, tamper)?;
        }
        self.check_end()?;
        if let Some(digest) = self.digest {
            DIGEST.fetch_add(digest.finish(), Ordering::Relaxed);
        }
        Ok(self.tally)
    }

    fn run_for(&mut self, length: Duration, tamper: &mut dyn Tamper) -> Result<(), Failure> {
        let end = self.world.now.later(length);
        while self.record.exit.is_none() {
            let lag = self.world.scenario.faults.lag;
            let lag = lag.mul_f64(self.lag.part());
            let deadline = self
                .supervisor
                .poll_deadline()
                .map(|at| at.later(lag).max(self.world.now));
            let next = self.world.next_time();
            let Some(at) = deadline
                .into_iter()
                .chain(next)
                .min()
                .filter(|at| *at <= end)
            else {
                self.world.now = end;
                return Ok(());
            };
            // The world goes first: a worker that ended in time must not be killed by a late
            // deadline.
            let input = if next.is_some_and(|next| next <= at) {
                self.world.step()
            } else {
                self.world.now = at;
                Some(Input::Deadline)
            };
            if let Some(input) = input {
                if let Input::Available(available) = input {
                    self.available = Some(available);
                }
                self.turn(input, tamper)?;
                self.upgrade();
            }
        }
        Ok(())
    }

    /// Changes the configuration that the other binary reads.
    fn change_spec(&mut self, spec: &mut Spec) {
        const ASKS: [Leaks; 4] = [Leaks::Auto, Leaks::On, Leaks::Always, Leaks::Off];
        let chance = &mut self.upgrades;
        if chance.yes(0.5) {
            spec.leaks.ask = chance.pick(&ASKS);
        }
        if chance.yes(0.5) {
            spec.memory.gc_first = chance.yes(0.5);
            spec.memory.threshold = chance.yes(0.5);
            spec.recycle.surge = chance.yes(0.5);
        }
    }

    /// Sometimes another binary takes over, from the serialized state that it would read.
    fn upgrade(&mut self) {
        let due = self.upgrades.yes(UPGRADES);
        if !due || self.supervisor.holds_up_upgrade().is_some() {
            return;
        }
        let Some(available) = self.available else {
            return;
        };
        let text = serde_json::to_string(&self.supervisor.hand_over()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let mut spec = self.supervisor.spec().clone();
        self.change_spec(&mut spec);
        self.record.spec = spec.clone();
        self.supervisor = Supervisor::take_over(spec, self.world.now, state);
        self.world.on_taken_over(available);
        *self.tally.entry("upgraded".to_owned()).or_default() += 1;
        if self.traced {
            println!("{:10} = upgraded", "");
        }
    }

    fn turn(&mut self, input: Input, tamper: &mut dyn Tamper) -> Result<(), Failure> {
        let at = self.world.now;
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Err(self.failure("chatter", format!("{} turns", self.turns)));
        }
        self.supervisor.handle_input(at, input.clone());
        if let Some(deadline) = self.supervisor.poll_deadline().filter(|due| *due <= at) {
            let late = at.since(deadline);
            return Err(self.failure("deadline", format!("in the past by {late:?}: a busy loop")));
        }
        let mut turn = Turn {
            at,
            input: Some(input),
            ..Turn::default()
        };
        while let Some(action) = self.supervisor.poll_action() {
            turn.actions.push(action);
        }
        while let Some(event) = self.supervisor.poll_event() {
            turn.events.push(event);
        }
        if let Some(digest) = &mut self.digest {
            turn.at.hash(digest);
            format!("{:?}", turn.actions).hash(digest);
            let is_decision = |event: &&Event| !matches!(event, Event::Warning(_));
            let decisions: Vec<_> = turn.events.iter().filter(is_decision).collect();
            format!("{decisions:?}").hash(digest);
        }
        tamper.tamper(&mut turn, &self.record);
        if self.traced {
            self.print(&turn);
        }
        for what in turn.events.iter().filter_map(tally_name) {
            *self.tally.entry(what).or_default() += 1;
        }
        self.record.take(&turn);
        for checker in &mut self.checkers {
            if let Err(what) = checker.on_turn(&turn, &self.record, &self.world) {
                let checker = checker.name();
                return Err(self.failure(checker, what));
            }
        }
        let by_operator = turn.by_operator();
        for action in turn.actions {
            self.world.perform(action, by_operator);
        }
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), Failure> {
        self.record.now = self.world.now;
        for checker in &mut self.checkers {
            if let Err(what) = checker.at_end(&self.record, &self.world) {
                let checker = checker.name();
                return Err(self.failure(checker, what));
            }
        }
        Ok(())
    }

    /// The snapshot for operators lists the workers that are alive by the record.
    fn check_snapshot(&self) -> Result<(), Failure> {
        let shown = self.supervisor.snapshot(self.world.now).workers;
        let shown: Vec<_> = shown.iter().map(|worker| worker.id).collect();
        let seen: Vec<_> = self.record.alive().map(|(worker, _)| *worker).collect();
        if shown == seen {
            return Ok(());
        }
        Err(self.failure(
            "settles",
            format!("status shows {shown:?}, alive are {seen:?}"),
        ))
    }

    fn failure(&self, checker: &'static str, what: String) -> Failure {
        Failure {
            checker,
            after: self.world.now.since(self.begun),
            what,
        }
    }

    fn print(&self, turn: &Turn) {
        let quiet = turn.actions.is_empty() && turn.events.is_empty();
        let sampled = matches!(turn.input, Some(Input::Sampled { .. } | Input::Deadline));
        if quiet && sampled {
            return;
        }
        let at = turn.at.since(self.begun).as_secs_f64();
        println!("{at:10.4} < {:?}", turn.input.as_ref().unwrap());
        for action in &turn.actions {
            println!("{:10} > {action:?}", "");
        }
        for event in &turn.events {
            println!("{:10} # {event:?}", "");
        }
    }
}

/// The name under which an event is counted.
fn tally_name(event: &Event) -> Option<String> {
    match event {
        Event::Ended(end) => Some(end.cause.to_string()),
        Event::Rescued { .. } => Some("rescued".to_owned()),
        Event::Armed { .. } => Some("armed".to_owned()),
        Event::Reported { .. } => Some("reported".to_owned()),
        Event::Suspended { down: false, .. } => Some("suspended".to_owned()),
        Event::Suspended { down: true, .. } => Some("suspended, down".to_owned()),
        Event::Resumed { .. } => Some("resumed".to_owned()),
        Event::Raised => Some("raised".to_owned()),
        Event::Lowered => Some("lowered".to_owned()),
        Event::Killed { .. } => Some("killed".to_owned()),
        Event::Restarting { .. } => Some("restarting".to_owned()),
        Event::GaveUp { .. } => Some("gave up".to_owned()),
        Event::Due { dry_run: true, .. } => Some("due in a dry run".to_owned()),
        Event::Warning(text) if text.contains("cannot help") => Some("over at start".to_owned()),
        Event::Warning(text) if text.contains("no room") => Some("no room".to_owned()),
        _ => None,
    }
}
