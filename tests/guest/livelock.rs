//! A worker that allocates and frees memory in a tight loop around its ceiling, without swap: the
//! memory threshold is reached again and again, and must never block the worker.

use std::time::Duration;

use super::{
    cgroup,
    checks::Checks,
    client::{Load, Outcome},
    clock,
    http::Connection,
    machine::{LONG, figure, sh},
    shop::{PLAN, Plan, Shop, load, workers},
};

const AROUND_MB: u32 = 60;
const SWING_MB: u32 = 8;

/// The result of the loop.
struct Churned {
    rounds: f64,
    worst_ms: f64,
    /// The result of the requests to the other worker.
    outcome: Outcome,
    /// How long all its tasks were stalled for memory.
    stalled: f64,
    /// How often the kernel saw its group above the threshold.
    high: u64,
    seconds: f64,
}

pub(crate) fn run(checks: &mut Checks) {
    let seconds = figure("CHURN_S", 15);
    checks.equal(
        "swap",
        sh("awk '/SwapTotal/ {print $2}' /proc/meminfo"),
        "0".to_owned(),
    );
    // There are never that many consecutive samples above the ceiling, so the worker is not due.
    let with_threshold = Plan {
        more: "[memory]\nceiling = \"60M\"\ncap = \"200M\"\nstrikes = 10000\n\
               [recycle]\njitter = 0\n[leaks]\nask = \"off\"\n",
        ..PLAN
    };
    let without_threshold = Plan {
        more: "[memory]\nceiling = \"60M\"\ncap = \"200M\"\nstrikes = 10000\nwire = \"off\"\n\
               [recycle]\njitter = 0\n[leaks]\nask = \"off\"\n",
        ..PLAN
    };
    let shop = with_threshold.start();
    shop.ready();
    let before = quiet();
    let with = churn(&shop, seconds);
    let status = shop.ready();
    drop(shop);
    let shop = without_threshold.start();
    shop.ready();
    let without = churn(&shop, seconds.min(15));

    let rate = |churned: &Churned| churned.rounds / churned.seconds;
    checks.check(
        "the looping worker continues",
        with.high > 0 && rate(&with) > rate(&without) / 4.0,
        format_args!(
            "{:.0} rounds in {:.0} s with {} times above the threshold: {:.2} of the rate without \
             it; the worst round {:.1} times the worst without it, stalled for {:.2} % of the time",
            with.rounds,
            with.seconds,
            with.high,
            rate(&with) / rate(&without),
            with.worst_ms / without.worst_ms,
            with.stalled / with.seconds * 100.0
        ),
    );
    let p99 = |outcome: &Outcome| outcome.quantile(0.99).as_secs_f64();
    checks.check(
        "the other worker answers",
        with.outcome.failed() == 0 && with.outcome.ok > 0,
        format_args!(
            "p99 {:.2} times that before the loop, {:.2} times that of a loop without it; {}",
            p99(&with.outcome) / p99(&before),
            p99(&with.outcome) / p99(&without.outcome),
            with.outcome
        ),
    );
    let recycles = status["totals"]["recycles"].to_string();
    checks.check(
        "no worker was recycled for it",
        workers(&status).len() == 2 && recycles == "{}",
        recycles,
    );
}

/// The load without the loop.
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
    // The group that was above the threshold most often is that of the loop.
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

/// The seconds in `full … total=MICROSECONDS` of `memory.pressure`.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a test")]
fn full_stall(group: &std::path::Path) -> f64 {
    let text = super::machine::read(group.join("memory.pressure"));
    let line = text.lines().find(|line| line.starts_with("full"));
    let total = line.and_then(|line| line.rsplit_once('=')?.1.parse::<u64>().ok());
    total.unwrap_or(0) as f64 / 1e6
}
