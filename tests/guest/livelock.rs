//! A worker that takes and gives back memory in a tight loop around its ceiling, where no swap
//! could make room: the wire trips again and again, and must never hold the worker.

use std::time::Duration;

use super::{
    book::Book,
    cgroup,
    client::{Load, Outcome},
    clock,
    http::Connection,
    machine::{LONG, figure, sh},
    shop::{PLAN, Plan, Shop, load, workers},
};

const AROUND_MB: u32 = 60;
const SWING_MB: u32 = 8;

/// What came of the loop.
struct Churned {
    rounds: f64,
    worst_ms: f64,
    /// Of the others' requests.
    outcome: Outcome,
    /// For how long all its tasks stood still for memory.
    stalled: f64,
    /// How often the kernel saw its group above the wire.
    high: u64,
    seconds: f64,
}

pub(crate) fn run(book: &mut Book) {
    let seconds = figure("CHURN_S", 15);
    book.same(
        "swap",
        sh("awk '/SwapTotal/ {print $2}' /proc/meminfo"),
        "0".to_owned(),
    );
    // So many looks in a row above the ceiling there will not be: the worker is never due.
    let wired = Plan {
        more: "[memory]\nceiling = \"60M\"\ncap = \"200M\"\nstrikes = 10000\n\
               [recycle]\njitter = 0\n[leaks]\nask = \"off\"\n",
        ..PLAN
    };
    let bare = Plan {
        more: "[memory]\nceiling = \"60M\"\ncap = \"200M\"\nstrikes = 10000\nwire = \"off\"\n\
               [recycle]\njitter = 0\n[leaks]\nask = \"off\"\n",
        ..PLAN
    };
    let shop = wired.start();
    shop.ready();
    let before = quiet();
    let with = churn(&shop, seconds);
    let status = shop.ready();
    drop(shop);
    let shop = bare.start();
    shop.ready();
    let without = churn(&shop, seconds.min(15));

    let rate = |churned: &Churned| churned.rounds / churned.seconds;
    book.check(
        "the looping worker goes on",
        with.high > 0 && rate(&with) > rate(&without) / 4.0,
        format_args!(
            "{:.0} rounds in {:.0} s with {} trips of the wire: {:.2} of the pace without one; \
             its worst round {:.1} times the worst without one, stalled for {:.2} % of the time",
            with.rounds,
            with.seconds,
            with.high,
            rate(&with) / rate(&without),
            with.worst_ms / without.worst_ms,
            with.stalled / with.seconds * 100.0
        ),
    );
    let p99 = |outcome: &Outcome| outcome.quantile(0.99).as_secs_f64();
    book.check(
        "the other worker answers",
        with.outcome.failed() == 0 && with.outcome.ok > 0,
        format_args!(
            "p99 {:.2} times that before the loop, {:.2} times that beside an unwired loop; {}",
            p99(&with.outcome) / p99(&before),
            p99(&with.outcome) / p99(&without.outcome),
            with.outcome
        ),
    );
    let recycles = status["totals"]["recycles"].to_string();
    book.check(
        "nobody was ended for it",
        workers(&status).len() == 2 && recycles == "{}",
        recycles,
    );
}

/// The service by itself.
fn quiet() -> Outcome {
    Load {
        lasts: Duration::from_secs(5),
        ..others()
    }
    .run()
}

fn others() -> Load {
    Load {
        path: "/pid".to_owned(),
        connections: 1,
        ..load(10.0)
    }
}

fn churn(shop: &Shop, seconds: u32) -> Churned {
    let lasts = 2 * LONG + Duration::from_secs(u64::from(seconds));
    let mut connection = Connection::new(load(1.0).address, lasts);
    let running = others().start();
    let path = format!("/churn?around={AROUND_MB}&swing={SWING_MB}&s={seconds}");
    let begun = clock::now();
    let answer = connection
        .get(&path, false)
        .unwrap_or_else(|failure| panic!("{failure}"));
    let took = (clock::now() - begun).as_secs_f64();
    let outcome = running.finish();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (rounds, worst) = text.trim().split_once(' ').expect("two figures");
    // The group with the most trips is that of the loop.
    let groups = super::shop::pids(&shop.ready()).into_iter().map(cgroup::of);
    let high =
        |group: &std::path::PathBuf| cgroup::entry(group, "memory.events", "high").unwrap_or(0);
    let group = groups.max_by_key(high).expect("two workers");
    let full = full_stall(&group);
    Churned {
        rounds: rounds.parse().unwrap(),
        worst_ms: worst.parse().unwrap(),
        outcome,
        stalled: full,
        high: high(&group),
        seconds: took,
    }
}

/// `full … total=MICROSECONDS` of `memory.pressure`.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a test")]
fn full_stall(group: &std::path::Path) -> f64 {
    let text = super::machine::read(group.join("memory.pressure"));
    let line = text.lines().find(|line| line.starts_with("full"));
    let total = line.and_then(|line| line.rsplit_once('=')?.1.parse::<u64>().ok());
    total.unwrap_or(0) as f64 / 1e6
}
