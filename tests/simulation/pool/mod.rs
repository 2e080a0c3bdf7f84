//! A pool on a simulated machine, by random seed: each task gets one result, whatever process dies.

mod budget;
mod checkers;
mod moments;
mod mutants;
mod world;

use std::collections::BTreeSet;

use supervise::supervisor::pool::input::{Input, Over, Seq};

use world::World;

const SEEDS: u64 = 2_000;
/// The causes of ends that the seeds must reach.
const CAUSES: [&str; 12] = [
    "cap",
    "budget-kill",
    "budget",
    "tasks",
    "age",
    "request",
    "scale",
    "hung",
    "start-failed",
    "signal:KILL",
    "ceiling",
    "stop",
];

#[test]
fn each_task_gets_one_result_in_all_seeds() {
    let (mut fates, mut causes) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.play();
        assert_eq!(world.watch.failure, None, "seed {seed}");
        let all: Vec<Seq> = (1..=world.given).collect();
        let have: Vec<Seq> = world.results.keys().copied().collect();
        assert_eq!(have, all, "seed {seed}: {:?}", world.over);
        if world.deadly == 0 {
            assert_eq!(world.over, Some(Over::Done), "seed {seed}");
            assert_eq!(world.given, world.tasks, "seed {seed}");
        }
        causes.append(&mut world.watch.causes);
        fates.extend(world.results.into_values());
    }
    // The seeds reach every way in which a task can end.
    let all = [
        "delivered",
        "Cap",
        "CapReceiving",
        "Timeout",
        "Died(Signal(Signal(9)))",
    ];
    for fate in all {
        assert!(fates.contains(fate), "{fate} is not among {fates:?}");
    }
    for cause in CAUSES {
        assert!(causes.contains(cause), "{cause} is not among {causes:?}");
    }
}

#[test]
fn tasks_lost_with_the_template_are_run_again() {
    let mut deaths = 0;
    for seed in 0..500 {
        // With this budget, no task is put back to save memory, which would count as an attempt.
        let mut world = World::with(seed, "64G");
        (world.deadly, world.oom_every, world.fragile) = (0, 0, 0.002);
        world.play();
        assert_eq!(world.watch.failure, None, "seed {seed}");
        deaths += world.templates.saturating_sub(1);
        let blamed = world.results.values().find(|it| it.starts_with("Died"));
        assert_eq!(blamed, None, "seed {seed}");
        assert_eq!(world.results.len() as u64, world.tasks, "seed {seed}");
    }
    assert!(deaths > 100, "{deaths} templates have ended");
}

/// Runs pools that are stopped in a random turn. Returns those that had not ended before.
fn play_until_stopped(stop: &Input) -> Vec<World> {
    let mut worlds = Vec::new();
    for seed in 0..500 {
        // With this budget, no task is put back to save memory, which would count as an attempt.
        let is_roomy = u64::is_multiple_of(seed, 2);
        let mut world = World::with(seed, if is_roomy { "64G" } else { "400M" });
        let turn = world.chance.between(0, 400);
        world.stop_at = Some((turn, stop.clone()));
        world.play();
        assert_eq!(world.watch.failure, None, "seed {seed}");
        let is_known =
            |seq: &&Seq| world.results.contains_key(seq) || world.abandoned.contains(seq);
        let forgotten = world.begun.iter().find(|seq| !is_known(seq));
        assert_eq!(
            forgotten, None,
            "seed {seed}: begun, without a result and not abandoned"
        );
        if is_roomy && world.deadly == 0 && world.oom_every == 0 {
            let died = world.results.values().find(|it| it.starts_with("Died"));
            assert_eq!(died, None, "seed {seed}");
        }
        worlds.push(world);
    }
    worlds.retain(|world| world.over == Some(Over::Stopped));
    assert!(worlds.len() > 200, "{} were stopped in time", worlds.len());
    worlds
}

#[test]
fn a_pool_that_stops_finishes_running_tasks_and_begins_no_others() {
    let worlds = play_until_stopped(&Input::Stop);
    let finished: u64 = worlds.iter().map(|it| it.results.len() as u64).sum();
    let given: u64 = worlds.iter().map(|it| it.given).sum();
    let left = given - finished;
    assert!(finished > 1000 && left > 1000, "{finished} {left}");
}

#[test]
fn a_pool_that_stops_immediately_abandons_running_tasks() {
    let worlds = play_until_stopped(&Input::StopAtOnce);
    let abandoned: usize = worlds.iter().map(|it| it.abandoned.len()).sum();
    assert!(abandoned > 200, "{abandoned} were abandoned");
}
