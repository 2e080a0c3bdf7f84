//! The decider on a simulated machine, by random seed: hours of simulated time in a second.
//!
//! `SIM_SEEDS=100000 cargo test --test simulation` runs more seeds. `SIM_SEED=17` runs one and
//! prints all inputs, actions and events. A failure names its seed. `SIM_DIGEST=1` prints a digest
//! of all decisions without warnings: it stays the same when a change only moves code.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy's leave for tests does not reach helper functions of an integration test"
)]

extern crate decider as supervise;

mod agents;
mod arbiter;
mod chance;
mod characters;
mod checkers;
mod crossings;
mod lives;
mod masters;
mod moments;
mod mutants;
mod mutants_agents;
mod operator;
mod pool;
mod process;
mod record;
mod run;
mod scenario;
mod strays;
mod world;

use std::{env, sync::atomic::Ordering, thread};

use run::{NoTamper, Run, Tally};

const SEEDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Runs one thread's share of the seeds. Continues after a failure, so that a rare failure is not
/// hidden by a frequent one.
fn share(seeds: u64, first: u64, step: usize) -> Vec<String> {
    (first..seeds)
        .step_by(step)
        .filter_map(|seed| {
            let failure = Run::new(seed).play(&mut NoTamper).err()?;
            Some(format!(
                "seed {seed}: {failure}; rerun: SIM_SEED={seed} cargo test --test simulation promises"
            ))
        })
        .collect()
}

#[test]
fn all_seeds_keep_all_promises() {
    if let Some(seed) = number("SIM_SEED") {
        let result = Run::new(seed).traced().play(&mut NoTamper);
        println!("{result:?}");
        assert_eq!(result.err(), None, "seed {seed}");
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let shares: Vec<_> = (0..threads)
        .map(|first| {
            let first = u64::try_from(first).unwrap();
            thread::spawn(move || share(seeds, first, threads))
        })
        .collect();
    let failures: Vec<_> = shares
        .into_iter()
        .flat_map(|share| share.join().unwrap())
        .collect();
    if env::var_os("SIM_DIGEST").is_some() {
        println!("digest {:016x}", run::DIGEST.load(Ordering::Relaxed));
    }
    let some = failures.iter().take(20).cloned().collect::<Vec<_>>();
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds:\n{}",
        failures.len(),
        some.join("\n")
    );
}

/// What must happen on the simulated machine for each promise to be tested.
const MUST_HAPPEN: [&str; 34] = [
    "raised",
    "lowered",
    "upgraded",
    "killed",
    "suspended",
    "suspended, down",
    "resumed",
    "restarting",
    "gave up",
    "due in a dry run",
    "over at start",
    "no room",
    "ceiling",
    "cap",
    "oom",
    "budget",
    "budget-kill",
    "tasks",
    "rescued",
    "armed",
    "reported",
    "age",
    "request",
    "reload",
    "scale",
    "exit:0",
    "exit:1",
    "exit:3",
    "exit:255",
    "exit:unseen",
    "signal:SEGV",
    "signal:KILL",
    "start-failed",
    "stop",
];
/// The least number of times.
const TIMES: u32 = 3;
/// The rarest, such as a recycle by the budget, needs a thousand seeds.
const SEEDS_FOR_ALL: u64 = 4000;

/// A checker whose promise is never tested proves nothing.
#[test]
fn the_seeds_test_every_promise() {
    let mut all = Tally::new();
    let missing = |all: &Tally| {
        let often = |what: &str| all.get(what).is_some_and(|times| *times >= TIMES);
        MUST_HAPPEN.into_iter().find(|what| !often(what))
    };
    for seed in 0..SEEDS_FOR_ALL {
        for (what, times) in Run::new(seed).play(&mut NoTamper).unwrap() {
            *all.entry(what).or_default() += times;
        }
        if missing(&all).is_none() {
            break;
        }
    }
    assert_eq!(missing(&all), None, "{all:?}");
    println!("{all:?}");
}
