//! Supervised gunicorn compared with bare gunicorn, alternating every second; then the memory and
//! CPU time of a supervisor with four idle workers.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    proc,
    service::{Plan, free_port},
    venv::{FLASK, Gunicorn, NEWEST},
    watch::{cost_at_rest, settled},
};

const ROUNDS: usize = 40;
const GRACE: Duration = Duration::from_secs(20);
const SLICE: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_secs(30);

/// Prints both.
pub(crate) fn run(_: &[String]) {
    let command = |port| NEWEST.gunicorn(port, FLASK);
    let (bare, supervised) = (free_port(), free_port());
    let options = ["--ceiling", "500M"];
    let services = [
        Plan::bare(&command(bare)).start(),
        Plan::supervise(&options, &command(supervised)).start(),
    ];
    for (service, port) in services.iter().zip([bare, supervised]) {
        settled(service, &load(port));
    }
    let mut ratios = Vec::new();
    let mut sums = [Outcome::default(), Outcome::default()];
    for number in 0..ROUNDS {
        // The slices are short, so that other load on the machine affects both. The order
        // alternates.
        let (first, second) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        let mut pair = [Outcome::default(), Outcome::default()];
        for kind in [first, second] {
            pair[kind] = load([bare, supervised][kind]).run();
        }
        ratios.push(pair[1].rate() / pair[0].rate());
        for (sum, outcome) in sums.iter_mut().zip(pair) {
            sum.then(outcome);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("| run | requests | failed | req/s | p50 ms | p99 ms |");
    println!("|---|---|---|---|---|---|");
    for (name, sum) in ["bare", "supervised"].iter().zip(&sums) {
        println!(
            "| {name} | {} | {} | {:.0} | {:.2} | {:.2} |",
            sum.ok,
            sum.failed(),
            sum.rate(),
            sum.quantile(0.5).as_secs_f64() * 1e3,
            sum.quantile(0.99).as_secs_f64() * 1e3,
        );
    }
    println!(
        "\nratio of throughput: median {:.3} (at least 0.99), quartiles {:.3} and {:.3}, {ROUNDS} pairs",
        ratios[ROUNDS / 2],
        ratios[ROUNDS / 4],
        ratios[ROUNDS * 3 / 4],
    );
    for service in services {
        service.stop(GRACE);
    }
    at_rest();
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

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and nanoseconds of small things"
)]
fn at_rest() {
    let four = Gunicorn {
        workers: 4,
        ..FLASK
    };
    let service =
        Plan::supervise(&["--ceiling", "500M"], &NEWEST.gunicorn(free_port(), four)).start();
    service.ready(4);
    let (ours, part) = cost_at_rest(&service, REST);
    for pid in &ours {
        let (rss, _) = proc::resident(*pid).unwrap_or_default();
        let (private, pss) = proc::exact(*pid).unwrap_or_default();
        println!(
            "process {pid} {}: RSS {:.1} MB, PSS {:.1} MB, private {:.1} MB",
            proc::command_line(*pid)
                .split(' ')
                .next()
                .unwrap_or_default(),
            rss as f64 / 1e6,
            pss as f64 / 1e6,
            private as f64 / 1e6,
        );
    }
    println!(
        "idle with 4 workers: {:.3} % of a core over {} s (at most 0.1)",
        part * 100.0,
        REST.as_secs()
    );
    service.stop(GRACE);
}
