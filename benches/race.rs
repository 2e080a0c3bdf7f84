//! The race: 150 requests a second leak 30 MB a second in total, with a ceiling of 150 MB; three
//! rounds of 32 s, alternating with the same leaking server without a supervisor, and with
//! gunicorn's own `--max-requests`, which shows what the boots cost by themselves.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    service::{Plan, free_port, recycles},
    venv::{FLASK, NEWEST},
    watch::{Watch, settled},
};

const ROUNDS: usize = 3;
const GRACE: Duration = Duration::from_secs(20);
const CEILING: u64 = 150 << 20;
/// Each worker leaks 15 MB a second and reaches its ceiling in 8 s, before the default minimum age.
/// It is still recycled, because it would reach its cap before a later drain is over.
const OPTIONS: [&str; 2] = ["--ceiling", "150M"];

/// As many requests as a worker with that ceiling answers.
const MAX_REQUESTS: [&str; 2] = ["--max-requests", "600"];

/// What recycles the workers.
#[derive(Clone, Copy, PartialEq)]
enum Recycler {
    Nothing,
    Gunicorn,
    Supervise,
}

struct Round {
    outcome: Outcome,
    recycles: u64,
    private: u64,
    rss: u64,
}

/// Runs the race. The optional argument is the length of a round in seconds.
pub(crate) fn run(words: &[String]) {
    let seconds = words
        .first()
        .and_then(|word| word.parse().ok())
        .unwrap_or(32);
    let lasts = Duration::from_secs(seconds);
    println!(
        "| round | run | requests | failed | recycles | overshoot MB | max RSS MB | p50 ms | p99 ms | p999 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (mut failed, mut over) = (0, f64::MIN);
    let mut ratios = [0.99, 0.999].map(|part| (part, Vec::new()));
    for number in 1..=ROUNDS {
        let bare = round(Recycler::Nothing, lasts);
        show(number, Recycler::Nothing, &bare);
        show(
            number,
            Recycler::Gunicorn,
            &round(Recycler::Gunicorn, lasts),
        );
        let supervised = round(Recycler::Supervise, lasts);
        show(number, Recycler::Supervise, &supervised);
        failed += supervised.outcome.failed();
        over = over.max(overshoot(&supervised));
        for (part, ratios) in &mut ratios {
            ratios.push(slowest(&supervised, *part) / slowest(&bare, *part));
        }
    }
    let [p99, p999] = ratios.map(|(_, mut ratios)| {
        ratios.sort_by(f64::total_cmp);
        ratios[ROUNDS / 2]
    });
    println!(
        "\nfailed {failed} (goal: 0), worst overshoot {over:.1} MB (goal: under 5), p99 {p99:.2} \
         and p999 {p999:.2} times that of the bare server (median of {ROUNDS}; goals: at most 1.2 \
         and 2)"
    );
}

fn round(recycler: Recycler, lasts: Duration) -> Round {
    let port = free_port();
    let mut command = NEWEST.gunicorn(port, FLASK);
    let plan = match recycler {
        Recycler::Nothing => Plan::bare(&command),
        Recycler::Gunicorn => {
            command.extend(MAX_REQUESTS.map(str::to_owned));
            Plan::bare(&command)
        }
        Recycler::Supervise => Plan::supervise(&OPTIONS, &command),
    };
    let service = plan.env("LEAK_KB", 200).start();
    let load = Load {
        connections: 16,
        rate: Some(150.0),
        lasts,
        ..Load::on(port)
    };
    settled(&service, &load);
    let watch = Watch::on(&service);
    let outcome = load.run();
    let lives = watch.end();
    let status = service.status();
    service.stop(GRACE);
    Round {
        outcome,
        recycles: status.map_or(0, |status| recycles(&status, "ceiling")),
        private: lives.iter().map(|life| life.private).max().unwrap_or(0),
        rss: lives.iter().map(|life| life.rss).max().unwrap_or(0),
    }
}

fn show(number: usize, recycler: Recycler, round: &Round) {
    let name = match recycler {
        Recycler::Nothing => "bare",
        Recycler::Gunicorn => "bare, `--max-requests 600`",
        Recycler::Supervise => "supervised",
    };
    println!(
        "| {number} | {name} | {} | {} | {} | {} | {:.1} | {:.2} | {:.2} | {:.2} |",
        round.outcome.ok,
        round.outcome.failed(),
        round.recycles,
        if recycler == Recycler::Supervise {
            format!("{:.1}", overshoot(round))
        } else {
            "–".to_owned()
        },
        megabytes(round.rss),
        round.outcome.quantile(0.5).as_secs_f64() * 1e3,
        slowest(round, 0.99),
        slowest(round, 0.999),
    );
    for (failure, count) in &round.outcome.failures {
        println!("  {failure} {count}");
    }
}

fn overshoot(round: &Round) -> f64 {
    megabytes(round.private) - megabytes(CEILING)
}

/// The latency in milliseconds that this part of the requests does not exceed.
fn slowest(round: &Round, part: f64) -> f64 {
    round.outcome.quantile(part).as_secs_f64() * 1e3
}

#[expect(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^53"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
