//! A pretend machine. Its clock jumps to the next thing; what is asked of it is answered with
//! events, some of them late, twice, or with a failure.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::{Action, AgentAsk, Look},
        event::{Effect, Ended, Event, Oom},
        spec::Kind,
    },
    units::{Bytes, RunId, Signal, Timestamp, WorkerId},
};

use crate::{
    agents::Agents,
    arbiter::Arbiter,
    chance::Chance,
    process::{Asker, Phase, Process},
    scenario::Scenario,
    strays::Stray,
};

/// What happens by itself.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// The decider hears of it.
    Tell(Event),
    MasterUp(i32),
    MasterWakes(i32),
    MasterDies,
    Ready(i32),
    Exit(i32, Ended),
    Retire(i32),
    Spike(i32),
    Rate(i32, f64),
    GiveBack(i32, f64),
    /// An agent answers what it was asked.
    Says(WorkerId, Box<AgentAsk>),
    Helper(i32),
    Answer(WorkerId, Look),
    OomElsewhere,
    /// It is told which processes have outlived their worker.
    Leftovers,
}

/// What runs now: a server's master, or nothing but the one program.
#[derive(Debug)]
pub(crate) enum Command {
    Server(Arbiter),
    Single { run: RunId, pid: i32 },
}

/// What became of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    pub(crate) asked: Asker,
    /// It held clearly more than at its birth.
    pub(crate) grew: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) scenario: Scenario,
    began: Timestamp,
    /// Workers in a row that could not boot.
    pub(crate) failed_boots: u32,
    pub(crate) calm: bool,
    pub(crate) calm_since: Option<Timestamp>,
    pub(crate) agents: Agents,
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) names: BTreeMap<WorkerId, i32>,
    pub(crate) fates: BTreeMap<WorkerId, Fate>,
    pub(crate) command: Option<Command>,
    /// How many workers the operator wants.
    pub(crate) wish: u32,
    pub(crate) chance: Chance,
    /// So many signals to the master were lost, whoever sent them.
    pub(crate) lost: u32,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    /// Since the run's end was set in motion: the run, until it is told.
    pub(crate) ending: Option<RunId>,
    /// Processes that outlived their worker.
    pub(crate) strays: Vec<Stray>,
    pub(crate) budget: Option<f64>,
    last_pid: i32,
    count: u64,
    /// Nothing about a worker is told before what was told earlier.
    pub(crate) seen_at: Timestamp,
    pub(crate) told_at: Timestamp,
}

/// Private memory of the master.
pub(crate) const MASTER: Bytes = Bytes::mib(18);

impl World {
    pub(crate) fn new(mut scenario: Scenario, mut chance: Chance) -> Self {
        let agents = scenario.agents();
        let now = Timestamp::from_nanos(chance.between(1, 1 << 50));
        let mut world = Self {
            now,
            began: now,
            failed_boots: 0,
            calm: false,
            calm_since: None,
            agents,
            processes: BTreeMap::new(),
            names: BTreeMap::new(),
            fates: BTreeMap::new(),
            command: None,
            wish: scenario.workers,
            lost: 0,
            queue: BTreeMap::new(),
            ending: None,
            strays: Vec::new(),
            budget: None,
            last_pid: 100,
            count: 0,
            seen_at: now,
            told_at: now,
            chance,
            scenario,
        };
        let first = Event::Machine(world.scenario.machine.clone());
        world.tell(Duration::ZERO, first);
        let available = world.scenario.available;
        world.tell(Duration::ZERO, Event::Available(available));
        world.plan_faults();
        world
    }

    /// When the next thing happens by itself.
    pub(crate) fn next_time(&self) -> Option<Timestamp> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let crossed = self.next_crossing().map(|(at, _)| at);
        queued.into_iter().chain(crossed).min()
    }

    /// Lets the next thing happen. The event is for the decider.
    pub(crate) fn step(&mut self) -> Option<Event> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        if let Some((at, pid)) = self.next_crossing()
            && queued.is_none_or(|queued| at < queued)
        {
            self.now = self.now.max(at);
            self.on_crossing(pid);
            return None;
        }
        let ((at, _), what) = self.queue.pop_first()?;
        self.now = self.now.max(at);
        self.happen(what)
    }

    /// Nothing goes wrong any more: what grew stays as it is, and nobody ends by himself.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.calm_since = Some(self.now);
        let now = self.now;
        for process in self.processes.values_mut() {
            if process.phase != Phase::Booting {
                process.grow(now, 0.0);
            }
            process.plan.rate = 0.0;
            process.plan.crash = None;
            process.plan.helper = None;
        }
        let single = matches!(self.scenario.spec.kind, Kind::Single);
        self.queue.retain(|_, what| match what {
            Happening::Rate(..) | Happening::Helper(_) | Happening::Spike(_) => false,
            Happening::Exit(pid, ended) => {
                let asked = |one: &Process| {
                    one.failed || one.asked != Asker::Nobody && one.plan.goes == *ended
                };
                single || self.processes.get(pid).is_some_and(asked)
            }
            _ => true,
        });
        if let Some(Command::Server(arbiter)) = &mut self.command {
            arbiter.cannot_fork = false;
        }
    }

    pub(crate) fn after(&mut self, wait: Duration, what: Happening) {
        self.at(self.now.later(wait), what);
    }

    pub(crate) fn tell(&mut self, wait: Duration, event: Event) {
        self.after(wait, Happening::Tell(event));
    }

    /// The application cannot start at the moment.
    pub(crate) fn is_away(&self) -> bool {
        let passed = self.now.since(self.began);
        let away = self.scenario.faults.away.filter(|_| !self.calm);
        away.is_some_and(|(begins, lasts)| (begins..begins + lasts).contains(&passed))
    }

    /// Its server asked it to go, and it is still there.
    pub(crate) fn lingers(&self, worker: WorkerId) -> bool {
        let process = self
            .names
            .get(&worker)
            .and_then(|pid| self.processes.get(pid));
        process.is_some_and(|process| process.asked == Asker::Server)
    }

    /// Its server is about to end, whether the decider knows or not.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(&self.command, Some(Command::Server(arbiter)) if arbiter.is_stopping())
    }

    pub(crate) fn process(&self, worker: WorkerId) -> Option<&Process> {
        self.processes.get(self.names.get(&worker)?)
    }

    pub(crate) fn process_of(&mut self, worker: WorkerId) -> Option<&mut Process> {
        let pid = self.names.get(&worker)?;
        self.processes.get_mut(pid)
    }

    pub(crate) fn at(&mut self, at: Timestamp, what: Happening) {
        self.count += 1;
        self.queue.insert((at, self.count), what);
    }

    pub(crate) fn yes(&mut self, likely: f64) -> bool {
        !self.calm && self.chance.yes(likely)
    }

    fn plan_faults(&mut self) {
        let faults = self.scenario.faults.clone();
        let whole = u64::try_from(self.scenario.turmoil.as_millis()).unwrap_or(0);
        for _ in 0..faults.master {
            let at = self.chance.millis(0, whole);
            self.after(at, Happening::MasterDies);
        }
        for _ in 0..faults.oom {
            let at = self.chance.millis(0, whole);
            self.after(at, Happening::OomElsewhere);
        }
        for _ in 0..faults.available {
            let at = self.chance.millis(0, whole);
            let less = self
                .scenario
                .available
                .scaled(0.6 + 0.8 * self.chance.part());
            self.tell(at, Event::Available(less));
        }
    }

    /// Another binary takes over: nobody hears of the wires that were stretched, and what this
    /// machine is like is told anew.
    pub(crate) fn on_taken_over(&mut self, available: Bytes) {
        for process in self.processes.values_mut() {
            process.wire = None;
        }
        let machine = self.scenario.machine.clone();
        self.tell(Duration::ZERO, Event::Machine(machine));
        self.tell(Duration::ZERO, Event::Available(available));
    }

    /// Carries out what was asked. `by_operator` is the signal that an operator just sent us.
    pub(crate) fn perform(&mut self, action: Action, by_operator: Option<Signal>) {
        match action {
            Action::Start { run, worker } => self.start(run, worker),
            Action::Adopt {
                worker, pid, cap, ..
            } => self.adopt(worker, pid, cap),
            Action::Cap { worker, cap } => {
                let fails = self.yes(self.scenario.faults.cap);
                if fails {
                    self.fail("write the cap", Some(worker), Effect::Cap);
                } else if let Some(process) = self.process_of(worker) {
                    process.cap = cap.map(Bytes::as_f64);
                }
            }
            Action::Budget { budget } => {
                if self.yes(self.scenario.faults.budget) {
                    self.fail("write the budget", None, Effect::Budget);
                } else if self.scenario.machine.budget {
                    self.budget = budget.map(Bytes::as_f64);
                }
            }
            Action::ArmWire { worker, room } => {
                let fails = self.yes(self.scenario.faults.wire);
                if fails {
                    self.fail("arm the wire", Some(worker), Effect::Wire);
                } else if self.scenario.machine.wire {
                    let now = self.now;
                    if let Some(process) = self.process_of(worker).filter(|one| one.grouped) {
                        process.wire = Some(process.charge(now) + room.as_f64());
                    }
                }
            }
            Action::Look { worker, how } => {
                let late = self.yes(self.scenario.faults.late);
                let wait = if late {
                    self.chance.millis(1, 4000)
                } else {
                    self.chance.micros(5, 300)
                };
                self.after(wait, Happening::Answer(worker, how));
            }
            Action::SignalCommand { signal, .. } => self.signal_command(signal, by_operator),
            Action::SignalWorker { worker, signal } => self.signal_worker(worker, signal),
            Action::KillWorker { worker } => self.kill_worker(worker),
            Action::EndLeftover { process, signal } => self.end_leftover(process.0, signal),
            Action::DrainBacklog { run } => {
                let busy = self.yes(0.3);
                let wait = if busy {
                    self.chance.millis(1, 60_000)
                } else {
                    self.chance.micros(5, 300)
                };
                self.tell(wait, Event::BacklogEmpty { run });
            }
            Action::KillRun { .. } => self.kill_all(),
            Action::FindAgent { worker } => self.find_agent(worker),
            Action::AskAgent { worker, ask } => self.ask_agent(worker, ask),
            Action::KeepReport { about, .. } => self.keep_report(&about),
            Action::ReadCounts => self.read_counts(),
            Action::NoteStack { .. }
            | Action::CheckUpgrade { .. }
            | Action::Upgrade
            | Action::Prioritize { .. }
            | Action::Notify(_)
            | Action::LastWords { .. }
            | Action::Reply { .. }
            | Action::Exit { .. } => {}
        }
    }

    pub(crate) fn fail(&mut self, what: &str, worker: Option<WorkerId>, effect: Effect) {
        let what = what.to_owned();
        let event = Event::Failed {
            what,
            worker,
            effect,
        };
        let wait = self.chance.micros(5, 2000);
        self.tell(wait, event);
    }

    pub(crate) fn next_pid(&mut self) -> i32 {
        self.last_pid += 1;
        self.last_pid
    }

    fn happen(&mut self, what: Happening) -> Option<Event> {
        match what {
            Happening::Tell(event) => {
                self.maybe_twice(&event);
                return Some(event);
            }
            Happening::MasterUp(pid) => self.master_up(pid),
            Happening::MasterWakes(pid) => self.master_turn(pid),
            Happening::MasterDies => {
                if matches!(self.command, Some(Command::Server(_))) {
                    self.master_ends(Ended::Signal(Signal::KILL));
                }
            }
            Happening::Ready(pid) => self.on_ready(pid),
            Happening::Exit(pid, ended) => {
                let now = self.now;
                let one = self.processes.get(&pid);
                if one.is_some_and(|one| one.ends_at_cap(now)) {
                    self.end(pid, Ended::Signal(Signal::KILL), Oom::Cap);
                } else {
                    self.end(pid, ended, Oom::No);
                }
            }
            Happening::Retire(pid) => self.ask_to_go(pid, Asker::Server),
            Happening::Spike(pid) => self.on_spike(pid),
            Happening::Rate(pid, rate) => self.change(pid, |one, now| one.grow(now, rate)),
            Happening::GiveBack(pid, much) => self.change(pid, |one, now| one.give_back(now, much)),
            Happening::Helper(pid) => self.change(pid, |one, now| {
                one.helper = one.plan.helper.map_or(0.0, |(_, size)| size.as_f64());
                one.grow(now, one.rate());
            }),
            Happening::Answer(worker, how) => self.answer(worker, how),
            Happening::Says(worker, ask) => return self.says(worker, &ask),
            Happening::Leftovers => self.tell_leftovers(),
            Happening::OomElsewhere => {
                if let Some(pid) = self.processes.keys().next().copied() {
                    self.end(pid, Ended::Signal(Signal::KILL), Oom::Elsewhere);
                }
            }
        }
        None
    }

    /// Late news about what may be over by then.
    fn maybe_twice(&mut self, event: &Event) {
        let about_a_life = matches!(
            event,
            Event::WorkerEnded { .. }
                | Event::WorkerReady { .. }
                | Event::Tripped { .. }
                | Event::Sampled { .. }
                | Event::CommandEnded { .. }
                | Event::RunOver { .. }
        );
        if about_a_life && self.yes(self.scenario.faults.twice / 10.0) {
            let wait = self.chance.millis(0, 20_000);
            self.tell(wait, event.clone());
        }
    }
}
