//! One seed from its start to its end: the decider, the world, and the checkers between them.

use std::{collections::BTreeMap, fmt, time::Duration};

use supervise::{
    supervisor::{
        Supervisor,
        event::Event,
        report::Report,
        spec::{Leaks, Spec},
    },
    units::{Bytes, Timestamp},
};

use crate::{
    books::{Books, Turn},
    chance::Chance,
    checkers::{self, Checker},
    scenario::Scenario,
    world::World,
};

/// All that is due gets so long to be done when nothing goes wrong any more.
const CALM: Duration = Duration::from_secs(240);
/// A stop takes its grace, the orphans' grace and a little.
const STOP: Duration = Duration::from_secs(10);
/// No run takes more turns: about 400 s with seven workers and looks every few milliseconds.
const TURNS_MAX: u32 = 400_000;
/// After so many turns, on average, another binary takes over.
const UPGRADES: f64 = 0.0005;

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

/// Changes what passes, to show that a checker sees it.
pub(crate) trait Tamper {
    /// What the decider said, before checkers and world get it.
    fn tamper(&mut self, turn: &mut Turn, books: &Books);
}

/// Leaves all as it is.
pub(crate) struct NoTamper;

impl Tamper for NoTamper {
    fn tamper(&mut self, _: &mut Turn, _: &Books) {}
}

/// How often each thing was told.
pub(crate) type Tally = BTreeMap<String, u32>;

pub(crate) struct Run {
    supervisor: Supervisor,
    world: World,
    books: Books,
    checkers: Vec<Box<dyn Checker>>,
    begun: Timestamp,
    lag: Chance,
    upgrades: Chance,
    available: Option<Bytes>,
    turns: u32,
    tally: Tally,
    traced: bool,
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
        let books = Books::new(spec.clone(), world.now);
        Self {
            supervisor: Supervisor::new(spec, seed, world.now),
            checkers: checkers::all(),
            begun: world.now,
            world,
            books,
            lag,
            upgrades,
            available: None,
            turns: 0,
            tally: Tally::new(),
            traced: false,
        }
    }

    /// The decider goes by other wishes than those the checkers hold it to.
    pub(crate) fn misled(mut self, mislead: impl Fn(&mut Spec)) -> Self {
        let mut spec = self.books.spec.clone();
        mislead(&mut spec);
        self.supervisor = Supervisor::new(spec, self.lag.bits(), self.world.now);
        self
    }

    pub(crate) fn traced(mut self) -> Self {
        self.traced = true;
        println!("{:#?}", self.world.scenario);
        self
    }

    /// Turmoil, then calm; then some are stopped. How often each thing was told comes back.
    pub(crate) fn play(mut self, tamper: &mut dyn Tamper) -> Result<Tally, Failure> {
        self.until(self.world.scenario.turmoil, tamper)?;
        self.world.calm_down();
        let spec = &self.world.scenario.spec;
        let calm = CALM + spec.recycle.settle + spec.ready.timeout;
        self.until(calm, tamper)?;
        self.check_snapshot()?;
        if self.world.chance.yes(0.5) && self.books.exit.is_none() {
            self.check_end()?;
            self.world.ask_to_stop();
            let graces = self.world.scenario.graceful_timeout + self.books.spec.stop.grace;
            self.until(graces + STOP, tamper)?;
        }
        self.check_end()?;
        Ok(self.tally)
    }

    fn until(&mut self, length: Duration, tamper: &mut dyn Tamper) -> Result<(), Failure> {
        let end = self.world.now.later(length);
        while self.books.exit.is_none() {
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
            // What has happened comes before what is late: a worker that went in time is not
            // killed.
            let event = if next.is_some_and(|next| next <= at) {
                self.world.step()
            } else {
                self.world.now = at;
                Some(Event::Deadline)
            };
            if let Some(event) = event {
                if let Event::Available(available) = event {
                    self.available = Some(available);
                }
                self.turn(event, tamper)?;
                self.upgrade();
            }
        }
        Ok(())
    }

    /// The other binary reads the configuration, which may have changed.
    fn change(&mut self, spec: &mut Spec) {
        const ASKS: [Leaks; 4] = [Leaks::Auto, Leaks::On, Leaks::Always, Leaks::Off];
        let chance = &mut self.upgrades;
        if chance.yes(0.5) {
            spec.leaks.ask = chance.pick(&ASKS);
        }
        if chance.yes(0.5) {
            spec.memory.gc_first = chance.yes(0.5);
            spec.memory.wire = chance.yes(0.5);
            spec.recycle.capacity_first = chance.yes(0.5);
        }
    }

    /// Now and then another binary takes over, by way of the text that it would read.
    fn upgrade(&mut self) {
        let due = self.upgrades.yes(UPGRADES);
        if !due || self.supervisor.holds_up_upgrade().is_some() {
            return;
        }
        let Some(available) = self.available else {
            return;
        };
        let text = serde_json::to_string(&self.supervisor.hand_over()).unwrap();
        let handed = serde_json::from_str(&text).unwrap();
        let mut spec = self.supervisor.spec().clone();
        self.change(&mut spec);
        self.books.spec = spec.clone();
        self.supervisor = Supervisor::take_over(spec, self.world.now, handed);
        self.world.on_taken_over(available);
        *self.tally.entry("upgraded".to_owned()).or_default() += 1;
        if self.traced {
            println!("{:10} = upgraded", "");
        }
    }

    fn turn(&mut self, event: Event, tamper: &mut dyn Tamper) -> Result<(), Failure> {
        let at = self.world.now;
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Err(self.failure("chatter", format!("{} turns", self.turns)));
        }
        self.supervisor.handle_event(at, event.clone());
        if let Some(deadline) = self.supervisor.poll_deadline().filter(|due| *due <= at) {
            let late = at.since(deadline);
            return Err(self.failure("deadline", format!("in the past by {late:?}: a busy loop")));
        }
        let mut turn = Turn {
            at,
            event: Some(event),
            ..Turn::default()
        };
        while let Some(action) = self.supervisor.poll_action() {
            turn.actions.push(action);
        }
        while let Some(report) = self.supervisor.poll_report() {
            turn.reports.push(report);
        }
        tamper.tamper(&mut turn, &self.books);
        if self.traced {
            self.print(&turn);
        }
        for what in turn.reports.iter().filter_map(named) {
            *self.tally.entry(what).or_default() += 1;
        }
        self.books.take(&turn);
        for checker in &mut self.checkers {
            if let Err(what) = checker.on_turn(&turn, &self.books, &self.world) {
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
        self.books.now = self.world.now;
        for checker in &mut self.checkers {
            if let Err(what) = checker.at_end(&self.books, &self.world) {
                let checker = checker.name();
                return Err(self.failure(checker, what));
            }
        }
        Ok(())
    }

    /// The picture that operators get is what an outsider has seen.
    fn check_snapshot(&self) -> Result<(), Failure> {
        let shown = self.supervisor.snapshot(self.world.now).workers;
        let shown: Vec<_> = shown.iter().map(|worker| worker.id).collect();
        let seen: Vec<_> = self.books.alive().map(|(worker, _)| *worker).collect();
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
        let quiet = turn.actions.is_empty() && turn.reports.is_empty();
        let sampled = matches!(turn.event, Some(Event::Sampled { .. } | Event::Deadline));
        if quiet && sampled {
            return;
        }
        let at = turn.at.since(self.begun).as_secs_f64();
        println!("{at:10.4} < {:?}", turn.event.as_ref().unwrap());
        for action in &turn.actions {
            println!("{:10} > {action:?}", "");
        }
        for report in &turn.reports {
            println!("{:10} # {report:?}", "");
        }
    }
}

/// What a report is counted as.
fn named(report: &Report) -> Option<String> {
    match report {
        Report::Ended(end) => Some(end.cause.to_string()),
        Report::Rescued { .. } => Some("rescued".to_owned()),
        Report::Armed { .. } => Some("armed".to_owned()),
        Report::Reported { .. } => Some("reported".to_owned()),
        Report::Suspended { down: false, .. } => Some("suspended".to_owned()),
        Report::Suspended { down: true, .. } => Some("suspended, down".to_owned()),
        Report::Resumed { .. } => Some("resumed".to_owned()),
        Report::Raised => Some("raised".to_owned()),
        Report::Lowered => Some("lowered".to_owned()),
        Report::Killed { .. } => Some("killed".to_owned()),
        Report::Restarting { .. } => Some("restarting".to_owned()),
        Report::GaveUp { .. } => Some("gave up".to_owned()),
        Report::Due { dry_run: true, .. } => Some("due in a dry run".to_owned()),
        Report::Warning(text) if text.contains("cannot help") => Some("born fat".to_owned()),
        Report::Warning(text) if text.contains("no room") => Some("no room".to_owned()),
        _ => None,
    }
}
