//! The decider against a pretend machine, by seed: hours of pretend time in a second.
//!
//! `SIM_SEEDS=100000 cargo test --test simulation` runs more seeds; `SIM_SEED=17` runs one and
//! prints all that passes. A failure names its seed.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy's leave for tests does not reach helper functions of an integration test"
)]

mod agents;
mod arbiter;
mod books;
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
mod pool_budget;
mod pool_moments;
mod process;
mod run;
mod scenario;
mod strays;
mod world;

use std::{env, thread};

use run::{NoTamper, Run, Tally};

const SEEDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Runs one thread's share of the seeds. Goes on after a failure: one that is rare hides behind one
/// that is not.
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
fn all_promises_hold_in_all_seeds() {
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
    let some = failures.iter().take(20).cloned().collect::<Vec<_>>();
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds:\n{}",
        failures.len(),
        some.join("\n")
    );
}

/// What has to happen in the pretend machine so that each promise is tested at all.
const HAPPENS: [&str; 34] = [
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
    "born fat",
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
/// At least this often.
const TIMES: u32 = 3;
/// The rarest, such as a recycle for the budget, takes a thousand seeds.
const SEEDS_FOR_ALL: u64 = 4000;

/// A checker that never sees its promise put to the test proves nothing.
#[test]
fn the_world_puts_every_promise_to_the_test() {
    let mut all = Tally::new();
    let missing = |all: &Tally| {
        let often = |what: &str| all.get(what).is_some_and(|times| *times >= TIMES);
        HAPPENS.into_iter().find(|what| !often(what))
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
