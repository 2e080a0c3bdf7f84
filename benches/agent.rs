//! What the agent costs: a Flask hello under gunicorn with no agent, with one that counts, and with
//! one that is armed, second by second in turn.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    house::{Plan, free_port},
    venv::{FLASK, NEWEST},
    watch::settled,
};

/// Started anew so often: an agent is armed for a bounded time only.
const STARTS: usize = 6;
/// So many seconds each, while the third one is armed.
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
        let houses = KINDS.map(|(_, options)| {
            let port = free_port();
            let all = [&["--ceiling", "500M"], options].concat();
            let house = Plan::supervise(&all, &NEWEST.gunicorn(port, FLASK)).start();
            (house, port)
        });
        for (house, port) in &houses {
            settled(house, &load(*port));
        }
        for round in 0..ROUNDS {
            let mut rates = [0.0; 3];
            for turn in 0..KINDS.len() {
                // Who is first changes.
                let who = (turn + round) % KINDS.len();
                let outcome = load(houses[who].1).run();
                rates[who] = outcome.rate();
                sums[who].then(outcome);
            }
            for (ratio, rate) in ratios.iter_mut().zip(rates) {
                ratio.push(rate / rates[0]);
            }
        }
        for (house, _) in houses {
            house.stop(GRACE);
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
        // Kept connections fall to the workers by chance, and half the throughput with them.
        keep_alive: false,
        lasts: SLICE,
        ..Load::on(port)
    }
}
