//! What one seed is about: the wishes, the machine, and which things go wrong.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    servers::gunicorn,
    supervisor::{
        event::{CapMechanism, Machine},
        spec::{
            AgentLoad, AgentSpec, CgroupSpec, CommandSpec, ControlSpec, Kind, Leaks, LeaksSpec,
            Leftovers, Limit, LogFormat, LogSpec, Measure, MemorySpec, ReadySpec, ReadyWhen,
            RecycleSpec, RestartSpec, RestartWhen, Spec, StopSpec, TerminationLog,
        },
    },
    units::{Bytes, Signal, Size},
};

use crate::{chance::Chance, characters::Program};

/// How likely each thing is to go wrong; a swarm: most are 0 in most seeds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) start: f64,
    pub(crate) cap: f64,
    pub(crate) budget: f64,
    pub(crate) wire: f64,
    pub(crate) look: f64,
    pub(crate) signal: f64,
    /// A look is answered late, perhaps after the worker's end.
    pub(crate) late: f64,
    /// News comes twice, long after.
    pub(crate) twice: f64,
    /// The master gets a signal and loses it: its queue of five is full.
    pub(crate) lost: f64,
    /// The master cannot fork.
    pub(crate) fork: f64,
    /// A helper of the server is taken for a worker.
    pub(crate) mistaken: f64,
    /// The kernel does not say how a worker ended.
    pub(crate) unseen: bool,
    /// The master dies, so often in a run.
    pub(crate) master: u32,
    /// The machine runs out of memory elsewhere, so often in a run.
    pub(crate) oom: u32,
    /// What the service may have changes, so often in a run.
    pub(crate) available: u32,
    /// The application cannot start, from when and for how long: its database is away.
    pub(crate) away: Option<(Duration, Duration)>,
    /// Deadlines are handed in late by up to that much.
    pub(crate) lag: Duration,
}

/// One seed's world.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) spec: Spec,
    pub(crate) machine: Machine,
    pub(crate) available: Bytes,
    pub(crate) program: Program,
    pub(crate) faults: Faults,
    pub(crate) workers: u32,
    /// The agent is in the workers: one that cannot boot while another serves does not stop the
    /// master.
    pub(crate) guarded: bool,
    /// gunicorn's own `--graceful-timeout`.
    pub(crate) graceful_timeout: Duration,
    /// Things go wrong and operators ask for so long.
    pub(crate) turmoil: Duration,
    /// So many things are asked by operators.
    pub(crate) asks: u32,
    /// A job is done after that long.
    pub(crate) job_length: Duration,
    /// The end of a single program is told before or after that of its worker.
    pub(crate) command_first: bool,
}

impl Scenario {
    pub(crate) fn new(chance: &mut Chance) -> Self {
        let program = Program::new(chance);
        let single = chance.yes(0.2);
        let workers = if single { 1 } else { chance.small(1, 6) };
        let (memory, available) = memory(chance, &program, workers);
        let caps = chance.pick(&[
            CapMechanism::CgroupV2,
            CapMechanism::CgroupV1,
            CapMechanism::CgroupV1,
            CapMechanism::Rlimit,
        ]);
        let group = caps != CapMechanism::Rlimit;
        let mut scenario = Self {
            spec: spec(chance, single, memory),
            machine: Machine {
                caps,
                why_not: (!group).then(|| "no cgroup here".to_owned()),
                wire: group && chance.yes(0.8),
                budget: group && chance.yes(0.8),
                priority: chance.yes(0.7),
            },
            available,
            program,
            faults: faults(chance),
            workers,
            guarded: true,
            graceful_timeout: chance.millis(2_000, 30_000),
            turmoil: chance.millis(30_000, 150_000),
            asks: if chance.yes(0.6) {
                chance.small(1, 8)
            } else {
                0
            },
            job_length: chance.millis(500, 100_000),
            command_first: chance.yes(0.5),
        };
        scenario.guarded = chance.yes(0.7);
        if chance.yes(0.25) {
            let whole = scenario.turmoil;
            let (begins, lasts) = (whole.mul_f64(chance.part()), chance.millis(500, 60_000));
            scenario.faults.away = Some((begins, lasts));
        }
        scenario
    }
}

fn memory(chance: &mut Chance, program: &Program, workers: u32) -> (MemorySpec, Bytes) {
    let ceiling = program.base.scaled(1.3 + 2.7 * chance.part());
    let cap = ceiling.scaled(1.2 + 1.8 * chance.part());
    // From no room for one more to plenty of it.
    let all = f64::from(workers) * (0.8 + 1.4 * chance.part()) + 0.6;
    let budget = cap.scaled(all.max(1.0)).plus(Bytes::mib(40));
    let at = |bytes| Limit::At(Size::Bytes(bytes));
    let memory = MemorySpec {
        ceiling: match chance.between(0, 9) {
            0 => Limit::Off,
            1 | 2 => Limit::Auto,
            _ => at(ceiling),
        },
        cap: match chance.between(0, 5) {
            0 => Limit::Off,
            1..=3 => Limit::Auto,
            _ => at(cap),
        },
        budget: match chance.between(0, 5) {
            0 => Limit::Off,
            1..=3 => Limit::Auto,
            _ => at(budget),
        },
        measure: chance.pick(&[
            Measure::Private,
            Measure::Private,
            Measure::Private,
            Measure::Rss,
            Measure::Pss,
            Measure::Cgroup,
        ]),
        strikes: chance.small(1, 4),
        swap: Limit::Off,
        wire: chance.yes(0.8),
        gc_first: true,
    };
    (memory, budget.scaled(1.0 / 0.9))
}

fn spec(chance: &mut Chance, single: bool, memory: MemorySpec) -> Spec {
    let seconds =
        |chance: &mut Chance, low, high| Duration::from_secs_f64(chance.spread(low, high));
    let when = match chance.between(0, 9) {
        0 => ReadyWhen::Tcp("localhost:1".to_owned()),
        1 => ReadyWhen::Notify,
        2 => ReadyWhen::Delay(seconds(chance, 0.1, 5.0)),
        _ => ReadyWhen::Auto,
    };
    Spec {
        kind_is_guessed: false,
        name: "simulated".to_owned(),
        command: CommandSpec {
            program: "/bin/true".into(),
            argv: vec!["true".into()],
            env: BTreeMap::new(),
            directory: None,
            user: None,
            listen: Vec::new(),
        },
        kind: if single {
            Kind::Single
        } else {
            Kind::Server(gunicorn::HABITS)
        },
        memory,
        rlimits: BTreeMap::new(),
        cgroup: CgroupSpec::default(),
        recycle: RecycleSpec {
            at_once: chance.small(1, 3),
            min_age: if chance.yes(0.1) {
                Duration::ZERO
            } else {
                seconds(chance, 1.0, 20.0)
            },
            max_age: chance.yes(0.3).then(|| seconds(chance, 15.0, 100.0)),
            max_tasks: None,
            jitter: if chance.yes(0.3) {
                0.0
            } else {
                0.4 * chance.part()
            },
            settle: seconds(chance, 1.0, 60.0),
            capacity_first: chance.yes(0.8),
            leftovers: leftovers(chance),
        },
        agent: agent(),
        leaks: leaks(),
        restart: restart(chance),
        stop: StopSpec {
            signal: Signal::TERM,
            grace: seconds(chance, 1.0, 30.0),
        },
        ready: ReadySpec {
            when,
            timeout: seconds(chance, 5.0, 40.0),
        },
        dry_run: chance.yes(0.1),
        control: ControlSpec {
            hosts: Vec::new(),
            token_file: None,
            socket: "/nowhere".into(),
            metrics: None,
            termination_log: TerminationLog::Off,
            history: 20,
        },
        log: LogSpec {
            format: LogFormat::Text,
            verbose: false,
        },
    }
}

/// Its wishes come from the seed's agents ([`crate::agents`]).
const fn agent() -> AgentSpec {
    AgentSpec {
        load: AgentLoad::Auto,
        drain: Duration::ZERO,
        ignore_paths: Vec::new(),
    }
}

const fn leaks() -> LeaksSpec {
    LeaksSpec {
        ask: Leaks::Auto,
        time_box: Duration::from_secs(2),
        kept: 8,
        directory: None,
        service: String::new(),
    }
}

fn restart(chance: &mut Chance) -> RestartSpec {
    let seconds =
        |chance: &mut Chance, low, high| Duration::from_secs_f64(chance.spread(low, high));
    RestartSpec {
        when: match chance.between(0, 9) {
            0 => RestartWhen::Never,
            1 | 2 => RestartWhen::OnFailure,
            _ => RestartWhen::Always,
        },
        delay_min: seconds(chance, 0.1, 2.0),
        delay_max: seconds(chance, 2.0, 20.0),
        limit: chance.small(1, 6),
        window: seconds(chance, 10.0, 120.0),
    }
}

fn faults(chance: &mut Chance) -> Faults {
    if chance.yes(0.15) {
        return Faults::default();
    }
    let mut some = |most: f64| {
        if chance.yes(0.3) {
            chance.spread(most / 20.0, most)
        } else {
            0.0
        }
    };
    Faults {
        start: some(0.3),
        cap: some(0.5),
        budget: some(0.9),
        wire: some(0.9),
        look: some(0.3),
        signal: some(0.3),
        late: some(0.3),
        twice: some(0.2),
        lost: some(0.3),
        fork: some(0.2),
        mistaken: some(0.3),
        unseen: chance.yes(0.3),
        master: if chance.yes(0.2) {
            chance.small(1, 4)
        } else {
            0
        },
        oom: if chance.yes(0.2) {
            chance.small(1, 3)
        } else {
            0
        },
        available: if chance.yes(0.2) {
            chance.small(1, 3)
        } else {
            0
        },
        away: None,
        lag: if chance.yes(0.5) {
            chance.micros(100, 20_000)
        } else {
            Duration::ZERO
        },
    }
}

fn leftovers(chance: &mut Chance) -> Leftovers {
    if chance.yes(0.8) {
        Leftovers::End
    } else {
        Leftovers::Tell
    }
}
