//! The simulated machine. Its clock jumps to the next event. It answers the actions of the decider
//! with inputs, some of them late, repeated or failed.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    supervisor::{
        action::{Action, AgentAsk, SampleKind},
        input::{Effect, Ended, Input, Oom},
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

/// What happens next, without the decider.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// The decider gets an input.
    Deliver(Input),
    MasterUp(i32),
    MasterWakes(i32),
    MasterDies,
    Ready(i32),
    Exit(i32, Ended),
    Retire(i32),
    Spike(i32),
    Rate(i32, f64),
    GiveBack(i32, f64),
    /// An agent answers a request.
    AgentAnswers(WorkerId, Box<AgentAsk>),
    Helper(i32),
    Answer(WorkerId, SampleKind),
    OomElsewhere,
    /// The decider gets the list of processes that have outlived their worker.
    Leftovers,
}

/// The running command: the master of a server, or a single program.
#[derive(Debug)]
pub(crate) enum Command {
    Server(Arbiter),
    Single { run: RunId, pid: i32 },
}

/// What a checker may know of a worker that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    pub(crate) asked: Asker,
    /// It used clearly more memory than at its start.
    pub(crate) grew: bool,
    /// Its interpreter copied what it shared while it exited, and reached the cap by that.
    pub(crate) copied: bool,
    /// Its last growth, in bytes a second, and since when.
    pub(crate) growth: (Timestamp, f64),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) scenario: Scenario,
    began: Timestamp,
    /// Consecutive workers that could not boot.
    pub(crate) failed_boots: u32,
    pub(crate) calm: bool,
    pub(crate) calm_since: Option<Timestamp>,
    pub(crate) agents: Agents,
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) names: BTreeMap<WorkerId, i32>,
    pub(crate) fates: BTreeMap<WorkerId, Fate>,
    pub(crate) command: Option<Command>,
    /// The number of workers that the operator wants.
    pub(crate) wanted: u32,
    pub(crate) chance: Chance,
    /// How many signals to the master were lost, from the decider or from an operator.
    pub(crate) lost: u32,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    /// The run that is ending, until the decider gets `RunOver`.
    pub(crate) ending: Option<RunId>,
    /// Processes that outlived their worker.
    pub(crate) strays: Vec<Stray>,
    pub(crate) budget: Option<f64>,
    last_pid: i32,
    count: u64,
    /// The times of the latest inputs that announce a worker and an end. A later one must not
    /// arrive before them.
    pub(crate) seen_at: Timestamp,
    pub(crate) delivered_at: Timestamp,
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
            wanted: scenario.workers,
            lost: 0,
            queue: BTreeMap::new(),
            ending: None,
            strays: Vec::new(),
            budget: None,
            last_pid: 100,
            count: 0,
            seen_at: now,
            delivered_at: now,
            chance,
            scenario,
        };
        let first = Input::Machine(world.scenario.machine.clone());
        world.deliver(Duration::ZERO, first);
        let available = world.scenario.available;
        world.deliver(Duration::ZERO, Input::Available(available));
        world.plan_faults();
        world
    }

    /// The time of the next event of the world.
    pub(crate) fn next_time(&self) -> Option<Timestamp> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let crossed = self.next_crossing().map(|(at, _)| at);
        queued.into_iter().chain(crossed).min()
    }

    /// Runs the next event of the world. Returns the input for the decider, if there is one.
    pub(crate) fn step(&mut self) -> Option<Input> {
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

    /// Begins the calm phase: no more faults, no growth, and no worker ends by itself.
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
                    one.failed || one.asked != Asker::None && one.plan.goes == *ended
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

    pub(crate) fn deliver(&mut self, wait: Duration, input: Input) {
        self.after(wait, Happening::Deliver(input));
    }

    /// Whether the application cannot start now.
    pub(crate) fn cannot_start(&self) -> bool {
        let passed = self.now.since(self.began);
        let away = self.scenario.faults.away.filter(|_| !self.calm);
        away.is_some_and(|(begins, lasts)| (begins..begins + lasts).contains(&passed))
    }

    /// Whether its server has stopped it and it is still alive.
    pub(crate) fn lingers(&self, worker: WorkerId) -> bool {
        let process = self
            .names
            .get(&worker)
            .and_then(|pid| self.processes.get(pid));
        process.is_some_and(|process| process.asked == Asker::Server)
    }

    /// Whether the server is stopping, known to the decider or not.
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
            self.deliver(at, Input::Available(less));
        }
    }

    /// Another binary takes over: the old memory thresholds are gone, and it gets the machine's
    /// properties as its first inputs.
    pub(crate) fn on_taken_over(&mut self, available: Bytes) {
        for process in self.processes.values_mut() {
            process.threshold = None;
        }
        let machine = self.scenario.machine.clone();
        self.deliver(Duration::ZERO, Input::Machine(machine));
        self.deliver(Duration::ZERO, Input::Available(available));
    }

    /// Carries out an action. `by_operator` is the signal that an operator sent in this turn.
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
            Action::SetThreshold { worker, room } => {
                if self.yes(self.scenario.faults.threshold) {
                    self.fail("set the threshold", Some(worker), Effect::Threshold);
                } else if self.scenario.machine.threshold {
                    let now = self.now;
                    if let Some(process) = self.process_of(worker).filter(|one| one.grouped) {
                        process.threshold = Some(process.charge(now) + room.as_f64());
                    }
                }
            }
            Action::Sample { worker, how } => {
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
                self.deliver(wait, Input::BacklogEmpty { run });
            }
            Action::KillRun { .. } => self.kill_all(),
            Action::FindAgent { worker } => self.find_agent(worker),
            Action::AskAgent { worker, ask } => self.ask_agent(worker, ask),
            Action::WithdrawReport { worker } => self.withdraw_report(worker),
            Action::KeepReport { about, .. } => self.keep_report(&about),
            Action::ReadCounts => self.read_counts(),
            // No command of this world hides a server.
            Action::TreatAsServer { .. }
            | Action::NoteStack { .. }
            | Action::ReadRoutes
            | Action::CheckUpgrade { .. }
            | Action::Upgrade
            | Action::Prioritize { .. }
            | Action::ListProcesses { .. }
            | Action::Notify(_)
            | Action::TerminationMessage { .. }
            | Action::Reply { .. }
            | Action::Exit { .. } => {}
        }
    }

    pub(crate) fn fail(&mut self, what: &str, worker: Option<WorkerId>, effect: Effect) {
        let what = what.to_owned();
        let input = Input::Failed {
            what,
            worker,
            effect,
        };
        let wait = self.chance.micros(5, 2000);
        self.deliver(wait, input);
    }

    pub(crate) fn next_pid(&mut self) -> i32 {
        self.last_pid += 1;
        self.last_pid
    }

    fn happen(&mut self, what: Happening) -> Option<Input> {
        match what {
            Happening::Deliver(input) => {
                self.maybe_repeat(&input);
                return Some(input);
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
            Happening::Retire(pid) => self.request_stop(pid, Asker::Server),
            Happening::Spike(pid) => self.on_spike(pid),
            Happening::Rate(pid, rate) => self.change(pid, |one, now| one.grow(now, rate)),
            Happening::GiveBack(pid, size) => self.change(pid, |one, now| one.free(now, size)),
            Happening::Helper(pid) => self.change(pid, |one, now| {
                one.helper = one.plan.helper.map_or(0.0, |(_, size)| size.as_f64());
                one.grow(now, one.rate());
            }),
            Happening::Answer(worker, how) => self.answer(worker, how),
            Happening::AgentAnswers(worker, ask) => return self.agent_answers(worker, &ask),
            Happening::Leftovers => self.deliver_leftovers(),
            Happening::OomElsewhere => {
                if let Some(pid) = self.processes.keys().next().copied() {
                    self.end(pid, Ended::Signal(Signal::KILL), Oom::Elsewhere);
                }
            }
        }
        None
    }

    /// Sometimes repeats an input later, when what it is about may be over.
    fn maybe_repeat(&mut self, input: &Input) {
        let is_repeatable = matches!(
            input,
            Input::WorkerEnded { .. }
                | Input::WorkerReady { .. }
                | Input::ThresholdReached { .. }
                | Input::Sampled { .. }
                | Input::CommandEnded { .. }
                | Input::RunOver { .. }
        );
        if is_repeatable && self.yes(self.scenario.faults.twice / 10.0) {
            let wait = self.chance.millis(0, 20_000);
            self.deliver(wait, input.clone());
        }
    }
}
