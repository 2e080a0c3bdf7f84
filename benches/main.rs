//! `cargo bench -- NAME`: what is promised of `supervise`, measured. See `benches/README.md`.
#![expect(
    clippy::panic,
    reason = "a measurement that cannot be made ends where it stands"
)]
#![expect(clippy::print_stdout, reason = "a table is what a measurement is for")]

mod agent;
#[path = "../tests/machine/client.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod client;
#[path = "../tests/machine/clock.rs"]
mod clock;
mod dip;
#[path = "../tests/machine/house.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod house;
#[path = "../tests/machine/http.rs"]
mod http;
mod latency;
mod matrix;
mod overhead;
#[path = "../tests/machine/proc.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod proc;
mod race;
mod reports;
mod thousand;
#[path = "../tests/machine/venv.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod venv;
mod watch;

/// A name, what it measures, and how. It is given the words that follow its name.
type Bench = (&'static str, &'static str, fn(&[String]));

const BENCHES: [Bench; 8] = [
    (
        "race",
        "a fast leak against its ceiling, and against no leak",
        race::run,
    ),
    (
        "matrix",
        "gunicorns, classes and keep-alive; words choose rows",
        matrix::run,
    ),
    (
        "overhead",
        "wrapped against bare, and the supervisor at rest",
        overhead::run,
    ),
    ("agent", "no agent, counting, armed, in turn", agent::run),
    (
        "reports",
        "a thousand reports asked of workers under load",
        reports::run,
    ),
    (
        "dip",
        "throughput while slow starters are recycled",
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
    // `cargo bench` adds this for its own harness.
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
