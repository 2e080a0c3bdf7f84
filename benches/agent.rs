//! The cost of the agent: a minimal Flask application under gunicorn without the agent, with an
//! agent that counts, and with an agent that traces, alternating every second.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    service::{Plan, free_port},
    venv::{FLASK, NEWEST},
    watch::settled,
};

/// How often all three are started. An agent traces for a limited time only.
const STARTS: usize = 6;
/// How many slices each of them runs in a start.
const ROUNDS: usize = 6;
const SLICE: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(20);

const KINDS: [(&str, &[&str]); 3] = [
    ("no agent", &["--agent", "off"]),
    ("counting", &["--leaks", "off"]),
    ("armed", &["--leaks", "always"]),
];

/// Prints the table.
pub(crate) fn run(_: &[String]) {
    let mut sums = KINDS.map(|_| Outcome::default());
    let mut ratios = KINDS.map(|_| Vec::new());
    for _ in 0..STARTS {
        let services = KINDS.map(|(_, options)| {
            let port = free_port();
            let all = [&["--ceiling", "500M"], options].concat();
            let service = Plan::supervise(&all, &NEWEST.gunicorn(port, FLASK)).start();
            (service, port)
        });
        for (service, port) in &services {
            settled(service, &load(*port));
        }
        for round in 0..ROUNDS {
            let mut rates = [0.0; 3];
            for turn in 0..KINDS.len() {
                // The order rotates.
                let kind = (turn + round) % KINDS.len();
                let outcome = load(services[kind].1).run();
                rates[kind] = outcome.rate();
                sums[kind].then(outcome);
            }
            for (ratio, rate) in ratios.iter_mut().zip(rates) {
                ratio.push(rate / rates[0]);
            }
        }
        for (service, _) in services {
            service.stop(GRACE);
        }
    }
    println!("| agent | requests | failed | req/s | of no agent: median | quartiles | p99 ms |");
    println!("|---|---|---|---|---|---|---|");
    for (((name, _), sum), ratio) in KINDS.iter().zip(&sums).zip(&mut ratios) {
        ratio.sort_by(f64::total_cmp);
        println!(
            "| {name} | {} | {} | {:.0} | {:.3} | {:.3}, {:.3} | {:.2} |",
            sum.ok,
            sum.failed(),
            sum.rate(),
            ratio[ratio.len() / 2],
            ratio[ratio.len() / 4],
            ratio[ratio.len() * 3 / 4],
            sum.quantile(0.99).as_secs_f64() * 1e3,
        );
    }
}

fn load(port: u16) -> Load {
    Load {
        path: "/pid".to_owned(),
        // With keep-alive, connections are distributed to the workers by chance, which affects the
        // throughput by up to half.
        keep_alive: false,
        lasts: SLICE,
        ..Load::on(port)
    }
}
