//! The race: 150 requests a second that leak 30 MB a second in all, against a ceiling of 150 MB;
//! three times 32 s, alternating with the same server with no leak and no supervisor.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    house::{Plan, free_port, recycles},
    venv::{FLASK, NEWEST},
    watch::{Watch, settled},
};

const ROUNDS: usize = 3;
const GRACE: Duration = Duration::from_secs(20);
const CEILING: u64 = 150 << 20;
/// Each worker leaks 15 MB a second and so is at its ceiling in 8 s, before the usual minimum age:
/// it is recycled all the same, for it would be at its cap before a later drain is over.
const OPTIONS: [&str; 2] = ["--ceiling", "150M"];

struct Round {
    outcome: Outcome,
    recycles: u64,
    private: u64,
    rss: u64,
}

/// Runs the race. A word, if there is one, is the length of a round in seconds.
pub(crate) fn run(words: &[String]) {
    let seconds = words
        .first()
        .and_then(|word| word.parse().ok())
        .unwrap_or(32);
    let lasts = Duration::from_secs(seconds);
    println!(
        "| round | run | requests | failed | recycles | overshoot MB | max RSS MB | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let (mut failed, mut over, mut ratios) = (0, f64::MIN, Vec::new());
    for number in 1..=ROUNDS {
        let plain = round(false, lasts);
        show(number, "plain", &plain);
        let leaking = round(true, lasts);
        show(number, "leaking", &leaking);
        failed += leaking.outcome.failed();
        over = over.max(overshoot(&leaking));
        ratios.push(p99(&leaking) / p99(&plain));
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "\nfailed {failed} (0 wanted), worst overshoot {over:.1} MB (under 10), p99 {:.2} times \
         that of no leak (median of {ROUNDS}, at most 1.2)",
        ratios[ROUNDS / 2]
    );
}

fn round(leaks: bool, lasts: Duration) -> Round {
    let port = free_port();
    let command = NEWEST.gunicorn(port, FLASK);
    let plan = if leaks {
        Plan::supervise(&OPTIONS, &command).env("LEAK_KB", 200)
    } else {
        Plan::bare(&command)
    };
    let house = plan.start();
    let load = Load {
        connections: 16,
        rate: Some(150.0),
        lasts,
        ..Load::on(port)
    };
    settled(&house, &load);
    let watch = Watch::on(&house);
    let outcome = load.run();
    let lives = watch.end();
    let status = house.status();
    house.stop(GRACE);
    Round {
        outcome,
        recycles: status.map_or(0, |status| recycles(&status, "ceiling")),
        private: lives.iter().map(|life| life.private).max().unwrap_or(0),
        rss: lives.iter().map(|life| life.rss).max().unwrap_or(0),
    }
}

fn show(number: usize, name: &str, round: &Round) {
    println!(
        "| {number} | {name} | {} | {} | {} | {} | {:.1} | {:.2} | {:.2} |",
        round.outcome.ok,
        round.outcome.failed(),
        round.recycles,
        if name == "leaking" {
            format!("{:.1}", overshoot(round))
        } else {
            "–".to_owned()
        },
        megabytes(round.rss),
        round.outcome.quantile(0.5).as_secs_f64() * 1e3,
        p99(round),
    );
    for (failure, count) in &round.outcome.failures {
        println!("  {failure} {count}");
    }
}

fn overshoot(round: &Round) -> f64 {
    megabytes(round.private) - megabytes(CEILING)
}

fn p99(round: &Round) -> f64 {
    round.outcome.quantile(0.99).as_secs_f64() * 1e3
}

#[expect(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^53"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
