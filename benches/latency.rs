//! Fifty crossings of a ceiling at 20 MB a second: the time until the decision to recycle, and how
//! far the worker is over its ceiling then; with the memory threshold and with the forecast alone.

use std::{fs, time::Duration};

use serde_json::Value;

use super::{
    service::{Plan, Service},
    venv::python,
};

const CROSSINGS: usize = 50;
const CEILING: i64 = 60 << 20;
const RATE_MB: f64 = 20.0;

/// The decision about one crossing.
struct Decision {
    /// The time after the crossing. Negative if the forecast was early.
    late_ns: i64,
    /// The memory in the decision minus the ceiling.
    over: i64,
}

/// Prints both. The optional argument is the number of crossings.
pub(crate) fn run(words: &[String]) {
    let wanted = words
        .first()
        .and_then(|word| word.parse().ok())
        .unwrap_or(CROSSINGS);
    println!("| by | crossings | median ms | p99 ms | worst ms | worst overshoot MB | mechanism |");
    println!("|---|---|---|---|---|---|---|");
    for with_threshold in [true, false] {
        measure(wanted, with_threshold);
    }
}

fn measure(wanted: usize, with_threshold: bool) {
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let crossings = dir.path().join("crossings");
    let ceiling = CEILING.to_string();
    let threshold = if with_threshold { "auto" } else { "off" };
    let mut options = vec!["--ceiling", &ceiling, "--threshold", threshold];
    options.extend(["--min-age", "0s", "--jitter", "0"]);
    let service = Plan::supervise(&options, &[python().as_str(), "grows.py"])
        .env("CEILING", CEILING)
        .env("RATE_MB", RATE_MB)
        .env("CROSSINGS", crossings.display())
        .start();
    let limit = Duration::from_secs(30 + 6 * u64::try_from(wanted).unwrap_or(0));
    let seen = service.wait("the crossings", limit, || {
        let seen = lines(&fs::read_to_string(&crossings).unwrap_or_default());
        (seen.len() > wanted).then_some(seen)
    });
    show(&service, with_threshold, &seen[..wanted]);
    service.stop(Duration::from_secs(10));
}

/// The times in lines of the form `PID MONOTONIC_NS PRIVATE`.
fn lines(text: &str) -> Vec<i64> {
    text.lines()
        .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
        .collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds and bytes of small things"
)]
fn show(service: &Service, with_threshold: bool, crossings: &[i64]) {
    let due: Vec<_> = service
        .events()
        .into_iter()
        .filter(|event| event["event"] == "due")
        .collect();
    let mut decisions: Vec<_> = crossings
        .iter()
        .map(|moment| decision(*moment, &due))
        .collect();
    decisions.sort_by_key(|decision| decision.late_ns);
    let at = |part: usize| decisions[(decisions.len() - 1) * part / 100].late_ns as f64 / 1e6;
    let over = decisions
        .iter()
        .map(|decision| decision.over)
        .max()
        .unwrap_or(0);
    let status = service.status().unwrap_or_default();
    println!(
        "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        if with_threshold {
            "threshold"
        } else {
            "forecast"
        },
        decisions.len(),
        at(50),
        at(99),
        at(100),
        over as f64 / f64::from(1 << 20),
        status["caps"]["mechanism"].as_str().unwrap_or("?"),
    );
}

/// The decision nearest to a crossing. Crossings are seconds apart.
#[track_caller]
fn decision(crossing: i64, due: &[Value]) -> Decision {
    let nearest = due
        .iter()
        .filter_map(|event| Some((event["mono_ns"].as_i64()? - crossing, event)))
        .min_by_key(|(late, _)| late.abs());
    let Some((late_ns, event)) = nearest else {
        panic!("no `due` event with its time `mono_ns`");
    };
    Decision {
        late_ns,
        over: event["memory"].as_i64().unwrap_or(i64::MAX) - CEILING,
    }
}
