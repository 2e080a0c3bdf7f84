//! `cargo bench -- NAME` measures the promises of `supervise`. See `benches/README.md`.
#![expect(
    clippy::panic,
    reason = "a measurement that cannot be made ends in place"
)]
#![expect(clippy::print_stdout, reason = "a measurement prints a table")]

mod agent;
#[path = "../tests/machine/client.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod client;
#[path = "../tests/machine/clock.rs"]
mod clock;
mod dip;
#[path = "../tests/machine/http.rs"]
mod http;
mod latency;
mod matrix;
mod overhead;
mod pairs;
#[path = "../tests/machine/proc.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod proc;
mod race;
mod reloads;
mod reports;
mod servers;
#[path = "../tests/machine/service.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod service;
#[path = "../tests/machine/status.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod status;
mod thousand;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/machine/venv.rs"]
mod venv;
mod watch;

/// The name, a description, and the function, which gets the arguments after the name.
type Bench = (&'static str, &'static str, fn(&[String]));

const BENCHES: [Bench; 11] = [
    (
        "race",
        "a fast leak against its ceiling, and against no leak",
        race::run,
    ),
    (
        "matrix",
        "gunicorn versions, classes and keep-alive; arguments choose rows",
        matrix::run,
    ),
    (
        "servers",
        "other servers and fleets under a leak; arguments choose rows",
        servers::run,
    ),
    (
        "reloads",
        "reloads under load behind a held socket, and plain restarts; arguments choose rows",
        reloads::run,
    ),
    (
        "overhead",
        "supervised compared with bare, and the idle supervisor",
        overhead::run,
    ),
    ("agent", "no agent, counting, tracing", agent::run),
    (
        "pairs",
        "CPU time and p99 in ten pairs: counting, tracing, warming up",
        pairs::run,
    ),
    (
        "reports",
        "reports by workers under load that build objects in C",
        reports::run,
    ),
    (
        "dip",
        "throughput while workers with a slow import are recycled",
        dip::run,
    ),
    (
        "latency",
        "from crossing the ceiling to the decision",
        latency::run,
    ),
    (
        "thousand",
        "the cost of watching a thousand processes",
        thousand::run,
    ),
];

fn main() {
    // `cargo bench` adds this option for its own harness.
    let words: Vec<_> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let chosen = words
        .first()
        .and_then(|name| BENCHES.iter().find(|(known, _, _)| known == name));
    match chosen {
        Some((_, _, run)) => run(&words[1..]),
        None => {
            println!("choose one: cargo bench -- NAME");
            for (name, what, _) in BENCHES {
                println!("  {name:10} {what}");
            }
        }
    }
}
