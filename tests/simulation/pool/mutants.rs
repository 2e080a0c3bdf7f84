//! Breaks each promise about the ends of a pool's workers and expects its checker to fail.

use supervise::supervisor::{
    cause::Cause,
    event::{Event, Who},
};

use super::{
    checkers::{Tamper, Turn},
    world::World,
};

/// A broken promise must show within this number of seeds.
const SEEDS: u64 = 300;

fn fires(checker: &str, tamper: Tamper) {
    let fired = (0..SEEDS).any(|seed| {
        let mut world = World::new(seed);
        world.tamper = Some(tamper);
        world.play();
        world.watch.failure.is_some_and(|(name, _)| name == checker)
    });
    assert!(fired, "{checker} saw nothing in {SEEDS} seeds");
}

/// Gives the ends with one cause another cause.
fn recast(turn: &mut Turn, is: fn(Cause) -> bool, cause: Cause) {
    for event in &mut turn.events {
        if let Event::Ended(end) = event
            && is(end.cause)
        {
            end.cause = cause;
        }
    }
}

#[test]
fn a_missing_end_event_is_detected() {
    fires("pool-one-end", |turn| {
        turn.events.retain(|it| !matches!(it, Event::Ended(_)));
    });
}

#[test]
fn a_second_end_event_is_detected() {
    fires("pool-one-end", |turn| {
        let ends: Vec<_> = turn
            .events
            .iter()
            .filter(|it| matches!(it, Event::Ended(_)))
            .cloned()
            .collect();
        turn.events.extend(ends);
    });
}

#[test]
fn the_end_of_an_unknown_worker_is_detected() {
    fires("pool-one-end", |turn| {
        for event in &mut turn.events {
            if let Event::Ended(end) = event
                && let Who::Worker(worker) = &mut end.who
            {
                for _ in 0..1000 {
                    *worker = worker.next();
                }
            }
        }
    });
}

#[test]
fn a_kernel_kill_announced_as_an_exit_is_detected() {
    fires("pool-one-class", |turn| {
        recast(turn, |it| it == Cause::Cap, Cause::Exit(1));
    });
}

#[test]
fn an_exit_announced_as_a_kernel_kill_is_detected() {
    fires("pool-one-class", |turn| {
        recast(turn, |it| matches!(it, Cause::Signal(_)), Cause::Oom);
    });
}

#[test]
fn an_exit_announced_as_a_recycle_is_detected() {
    fires("pool-one-class", |turn| {
        recast(turn, |it| matches!(it, Cause::Signal(_)), Cause::Tasks);
    });
}

#[test]
fn a_recycle_with_the_cause_of_another_is_detected() {
    fires("pool-one-class", |turn| {
        recast(turn, |it| it == Cause::Request, Cause::Age);
    });
}

#[test]
fn a_kill_by_the_pool_announced_as_an_exit_is_detected() {
    fires("pool-one-class", |turn| {
        let signal = supervise::units::Signal::KILL;
        recast(turn, |it| it == Cause::Budget, Cause::Signal(signal));
    });
}

#[test]
fn an_end_that_is_not_counted_is_detected() {
    fires("pool-counts", |turn| {
        if let Some(snapshot) = &mut turn.snapshot {
            snapshot.recycles.clear();
        }
    });
}

#[test]
fn a_worker_missing_from_the_snapshot_is_detected() {
    fires("pool-alive", |turn| {
        if let Some(snapshot) = &mut turn.snapshot {
            snapshot.workers.pop();
        }
    });
}

#[test]
fn a_draining_worker_shown_as_ready_is_detected() {
    fires("pool-alive", |turn| {
        let views = turn.snapshot.iter_mut().flat_map(|it| &mut it.workers);
        views.for_each(|view| view.state = "ready".to_owned());
    });
}

#[test]
fn a_task_counted_twice_is_detected() {
    fires("pool-tasks", |turn| {
        let pool = turn.snapshot.as_mut().and_then(|it| it.pool.as_mut());
        if let Some(pool) = pool.filter(|pool| pool.failed > 0) {
            pool.done += 1;
        }
    });
}
