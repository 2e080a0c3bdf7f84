//! What is known of bare gunicorn, seen with the strict client: it tells a server that loses
//! requests at a worker's end from one that does not.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::{Load, Outcome},
    house::{House, Plan, free_port, send},
    proc, turn,
    venv::{G23, Gunicorn, NEWEST, Venv},
};

/// Three workers are asked to end, one after the other, under a load of 16 connections.
fn three_ends(venv: Venv, class: &'static str, keep_alive: bool) -> Outcome {
    let _turn = turn::alone();
    let port = free_port();
    let gunicorn = Gunicorn {
        workers: 3,
        ..Gunicorn::of(class)
    };
    let house = Plan::bare(&venv.gunicorn(port, gunicorn)).start();
    let load = Load {
        connections: 16,
        keep_alive,
        lasts: Duration::from_secs(9),
        ..Load::on(port)
    };
    house.wait("an answer", Duration::from_secs(20), || load.once("/").ok());
    let mut known = new_workers(&house, &[], 3);
    let probe = Load::on(port);
    let running = load.start();
    for number in 0..3 {
        send(known[number], Signal::SIGTERM);
        let new = new_workers(&house, &known, 1);
        // It serves: the next one goes from a whole server again.
        house.wait(
            "an answer of the new worker",
            Duration::from_secs(10),
            || probe.once("/pid").ok().filter(|pid| new.contains(pid)),
        );
        known.extend(new);
    }
    running.finish()
}

/// Waits for `count` children of gunicorn that are not among `known`.
fn new_workers(house: &House, known: &[i32], count: usize) -> Vec<i32> {
    house.wait("a new worker", Duration::from_secs(10), || {
        let new: Vec<_> = proc::children(house.pid())
            .into_iter()
            .filter(|pid| !known.contains(pid) && proc::is_alive(*pid))
            .collect();
        (new.len() >= count).then_some(new)
    })
}

#[test]
fn the_newest_sync_workers_lose_nothing_at_term() {
    let outcome = three_ends(NEWEST, "sync", false);
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(outcome.pids.len() > 3, "{outcome}");
}

#[test]
fn gthread_workers_of_gunicorn_23_lose_requests_at_term() {
    let outcome = three_ends(G23, "gthread", true);
    assert!(outcome.failed() > 0, "{outcome}");
    assert!(outcome.ok > 100, "{outcome}");
}
