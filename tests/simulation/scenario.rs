//! The scenario of one seed: the settings, the machine and the faults.

use std::{collections::BTreeMap, time::Duration};

use supervise::{
    servers::gunicorn,
    supervisor::{
        input::{CapMechanism, Machine},
        spec::{
            AgentLoad, AgentSpec, CommandSpec, ControlSpec, Kind, Leaks, LeaksSpec, Leftovers,
            Limit, Measure, MemorySpec, ReadySpec, ReadyWhen, RecycleSpec, RestartSpec,
            RestartWhen, Spec, StopSpec,
        },
    },
    units::{Bytes, Signal, Size},
};

use crate::{chance::Chance, characters::Program};

/// The probability of each fault. Swarm testing: most are 0 in most seeds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) start: f64,
    pub(crate) cap: f64,
    pub(crate) budget: f64,
    pub(crate) threshold: f64,
    pub(crate) look: f64,
    pub(crate) signal: f64,
    /// A sample comes late, possibly after the worker's end.
    pub(crate) late: f64,
    /// An input comes twice, the second time much later.
    pub(crate) twice: f64,
    /// The master gets a signal and loses it: its queue of five is full.
    pub(crate) lost: f64,
    /// The master cannot fork.
    pub(crate) fork: f64,
    /// A helper of the server is taken for a worker.
    pub(crate) mistaken: f64,
    /// The kernel does not say how a worker ended.
    pub(crate) unseen: bool,
    /// How often the master dies in a run.
    pub(crate) master: u32,
    /// How often another service exhausts the machine's memory in a run.
    pub(crate) oom: u32,
    /// How often the memory available to the service changes in a run.
    pub(crate) available: u32,
    /// From when and for how long the application cannot start, because its database is away.
    pub(crate) away: Option<(Duration, Duration)>,
    /// The maximum delay of a deadline.
    pub(crate) lag: Duration,
}

/// The world of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) spec: Spec,
    pub(crate) machine: Machine,
    pub(crate) available: Bytes,
    pub(crate) program: Program,
    pub(crate) faults: Faults,
    pub(crate) workers: u32,
    /// The workers have the agent: a worker that cannot boot while another serves does not stop
    /// the master.
    pub(crate) guarded: bool,
    /// gunicorn's own `--graceful-timeout`.
    pub(crate) graceful_timeout: Duration,
    /// The length of the phase with faults and requests of operators.
    pub(crate) turmoil: Duration,
    /// The number of requests of operators.
    pub(crate) asks: u32,
    /// The running time of a job.
    pub(crate) job_length: Duration,
    /// The end of a single program is reported before that of its worker.
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
                threshold: group && chance.yes(0.8),
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
    // From no room for a surge worker to plenty.
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
        consecutive_samples: chance.small(1, 4),
        threshold: chance.yes(0.8),
        gc_first: true,
        ..MemorySpec::plain()
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
    let command = CommandSpec {
        program: "/bin/true".into(),
        argv: vec!["true".into()],
        env: BTreeMap::new(),
        directory: None,
        user: None,
        listen: Vec::new(),
    };
    let base = Spec::base("simulated".to_owned(), memory, command, "/nowhere".into());
    Spec {
        kind: if single {
            Kind::Single
        } else {
            Kind::Server(&gunicorn::PROFILE)
        },
        recycle: RecycleSpec {
            max_unavailable: chance.small(1, 3),
            min_age: if chance.yes(0.1) {
                Duration::ZERO
            } else {
                seconds(chance, 1.0, 20.0)
            },
            max_age: chance.yes(0.3).then(|| seconds(chance, 15.0, 100.0)),
            jitter: if chance.yes(0.3) {
                0.0
            } else {
                0.4 * chance.part()
            },
            surge_idle: seconds(chance, 1.0, 60.0),
            surge: chance.yes(0.8),
            leftovers: leftovers(chance),
            ..base.recycle
        },
        // [`crate::agents`] changes these settings to fit the agents of the seed.
        agent: AgentSpec {
            load: AgentLoad::Auto,
            ..base.agent
        },
        leaks: LeaksSpec {
            ask: Leaks::Auto,
            time_box: Duration::from_secs(2),
            kept: 8,
            ..base.leaks
        },
        restart: restart(chance),
        stop: StopSpec {
            signal: Signal::TERM,
            grace: seconds(chance, 1.0, 30.0),
            ..base.stop
        },
        ready: ReadySpec {
            when,
            timeout: seconds(chance, 5.0, 40.0),
        },
        dry_run: chance.yes(0.1),
        control: ControlSpec {
            history: 20,
            ..base.control
        },
        ..base
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
        threshold: some(0.9),
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
