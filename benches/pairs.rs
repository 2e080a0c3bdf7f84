//! Ten pairs of services, each alternating every second: CPU time of the workers for each request,
//! and p99. The agent compared with none while it counts and while it traces a leak by default; and
//! an application that warms up, supervised compared with bare.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    proc,
    service::{Plan, Service, free_port},
    venv::{FLASK, Gunicorn, NEWEST},
    watch::{settled, workers_below},
};

const PAIRS: usize = 10;
/// The seconds of each side of a pair. An armed worker is traced for 50 ms every ten seconds.
const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(20);

/// A comparison: its name, the application, the options of both sides (`None`: bare), their
/// ceiling, and how much each request leaks.
struct Comparison {
    name: &'static str,
    app: &'static str,
    options: [Option<&'static [&'static str]>; 2],
    ceiling: &'static str,
    leak_kb: u32,
    goal: &'static str,
}

const COMPARISONS: [Comparison; 3] = [
    Comparison {
        name: "counting, with growth by route",
        app: "leaky_flask:app",
        options: [Some(&["--agent", "off"]), Some(&[])],
        ceiling: "500M",
        leak_kb: 0,
        goal: "at least 0.99",
    },
    Comparison {
        name: "armed by a leak",
        app: "leaky_flask:app",
        options: [Some(&["--agent", "off"]), Some(&[])],
        // Its workers grow by 50 MB, and would reach the ceiling within half a minute.
        ceiling: "150M",
        leak_kb: 4,
        goal: "at least 0.95",
    },
    Comparison {
        name: "an application that warms up",
        app: "warms_up:app",
        options: [None, Some(&[])],
        ceiling: "500M",
        leak_kb: 0,
        goal: "at least 0.98, p99 within the range of bare",
    },
];

/// Prints a row for each comparison, or for those with the argument in their name.
pub(crate) fn run(words: &[String]) {
    println!(
        "| what | requests | failed | CPU a request, µs: before, after | throughput: median (range) | goal | p99 ms: before, after | traced |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let is_wanted = |name: &str| {
        words
            .first()
            .is_none_or(|word| name.contains(word.as_str()))
    };
    for comparison in COMPARISONS.iter().filter(|one| is_wanted(one.name)) {
        compare(comparison);
    }
}

/// What one side did in one pair.
#[derive(Default)]
struct Side {
    outcome: Outcome,
    cpu_nanos: u64,
}

impl Side {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn micros_a_request(&self) -> f64 {
        self.cpu_nanos as f64 / self.outcome.ok as f64 / 1e3
    }

    fn p99(&self) -> f64 {
        self.outcome.quantile(0.99).as_secs_f64() * 1e3
    }
}

fn compare(comparison: &Comparison) {
    let (mut requests, mut failed, mut traced) = (0, 0, 0);
    let mut ratios = Vec::new();
    let mut costs = [Vec::new(), Vec::new()];
    let mut slowest = [Vec::new(), Vec::new()];
    for _ in 0..PAIRS {
        let (sides, armed) = pair(comparison);
        traced += armed;
        ratios.push(sides[0].micros_a_request() / sides[1].micros_a_request());
        for (number, side) in sides.iter().enumerate() {
            costs[number].push(side.micros_a_request());
            slowest[number].push(side.p99());
            requests += side.outcome.ok;
            failed += side.outcome.failed();
        }
    }
    let [before, after] = costs.map(spread);
    let [p99_before, p99_after] = slowest.map(spread);
    println!(
        "| {} | {requests} | **{failed}** | {before}, {after} | {} | {} | {p99_before}, {p99_after} | {traced} |",
        comparison.name,
        spread(ratios),
        comparison.goal,
    );
}

/// Runs one pair. Also returns how many workers were traced.
fn pair(comparison: &Comparison) -> ([Side; 2], usize) {
    let both = comparison.options.map(|options| start(comparison, options));
    let mut sides = [Side::default(), Side::default()];
    for round in 0..ROUNDS {
        // The order alternates.
        for number in [round % 2, (round + 1) % 2] {
            let (service, port) = &both[number];
            let before = cpu_nanos(service);
            sides[number].outcome.then(load(*port).run());
            sides[number].cpu_nanos += cpu_nanos(service) - before;
        }
    }
    let armed = both[1].0.events_of("armed").len();
    for (service, _) in both {
        service.stop(GRACE);
    }
    (sides, armed)
}

fn start(comparison: &Comparison, options: Option<&[&str]>) -> (Service, u16) {
    let port = free_port();
    let command = NEWEST.gunicorn(
        port,
        Gunicorn {
            app: comparison.app,
            ..FLASK
        },
    );
    let plan = match options {
        None => Plan::bare(&command),
        Some(options) => Plan::supervise(
            &[&["--ceiling", comparison.ceiling], options].concat(),
            &command,
        ),
    };
    let service = plan.env("LEAK_KB", comparison.leak_kb).start();
    settled(&service, &load(port));
    (service, port)
}

fn cpu_nanos(service: &Service) -> u64 {
    let workers = workers_below(service.pid());
    workers.into_iter().map(proc::cpu_nanos).sum()
}

fn load(port: u16) -> Load {
    Load {
        // With keep-alive, connections are distributed to the workers by chance.
        keep_alive: false,
        lasts: SLICE,
        ..Load::on(port)
    }
}

/// `1.00 (0.98-1.02)`: the median and the range.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (first, last) = (values[0], values[values.len() - 1]);
    format!("{:.3} ({first:.3}–{last:.3})", values[values.len() / 2])
}
