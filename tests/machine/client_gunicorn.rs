//! Known behaviour of bare gunicorn, checked with the strict client: the client distinguishes a
//! server that loses requests when a worker ends from one that does not.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::{Load, Outcome},
    proc,
    service::{Plan, Service, free_port, send},
    turn,
    venv::{G23, Gunicorn, NEWEST, Venv},
};

/// Stops three workers, one after the other, under a load of 16 connections.
fn stop_three_workers(venv: Venv, class: &'static str, keep_alive: bool) -> Outcome {
    let _turn = turn::loaded();
    let port = free_port();
    let gunicorn = Gunicorn {
        workers: 3,
        ..Gunicorn::of(class)
    };
    let service = Plan::bare(&venv.gunicorn(port, gunicorn)).start();
    let load = Load {
        connections: 16,
        keep_alive,
        lasts: Duration::from_secs(9),
        ..Load::on(port)
    };
    service.wait("an answer", Duration::from_secs(20), || load.once("/").ok());
    let mut known = new_workers(&service, &[], 3);
    let probe = Load::on(port);
    let running = load.start();
    for number in 0..3 {
        send(known[number], Signal::SIGTERM);
        let new = new_workers(&service, &known, 1);
        // Once the new worker serves, the next one can be stopped.
        service.wait(
            "an answer of the new worker",
            Duration::from_secs(10),
            || probe.once("/pid").ok().filter(|pid| new.contains(pid)),
        );
        known.extend(new);
    }
    running.finish()
}

/// Waits for `count` children of gunicorn that are not among `known`.
fn new_workers(service: &Service, known: &[i32], count: usize) -> Vec<i32> {
    service.wait("a new worker", Duration::from_secs(10), || {
        let new: Vec<_> = proc::children(service.pid())
            .into_iter()
            .filter(|pid| !known.contains(pid) && proc::is_alive(*pid))
            .collect();
        (new.len() >= count).then_some(new)
    })
}

#[test]
fn sync_workers_of_the_newest_gunicorn_lose_no_request_at_sigterm() {
    let outcome = stop_three_workers(NEWEST, "sync", false);
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(outcome.pids.len() > 3, "{outcome}");
}

#[test]
fn gthread_workers_of_gunicorn_23_lose_requests_at_sigterm() {
    let outcome = stop_three_workers(G23, "gthread", true);
    assert!(outcome.failed() > 0, "{outcome}");
    assert!(outcome.ok > 100, "{outcome}");
}
