//! Servers that lose requests by themselves when a worker gets TERM lose none with the agent in
//! them; without it they do, so that it is the agent that helps.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    house::{Plan, free_port, recycles},
    turn,
    venv::{G23, Gunicorn, NEWEST, UVICORN, Venv},
};

/// So many times all workers are replaced.
const ROUNDS: u64 = 4;

/// All workers are replaced again and again under load.
fn replaced(venv: Venv, class: &'static str, keep_alive: bool, drain: &str) -> Outcome {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--ceiling", "400M", "--drain", drain, "--settle", "0s"];
    let house = Plan::supervise(&options, &venv.gunicorn(port, Gunicorn::of(class))).start();
    house.ready(2);
    let running = Load {
        path: "/pid".to_owned(),
        keep_alive,
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    for _ in 0..ROUNDS {
        let answer = house.client(&["recycle", "--all"]);
        assert!(answer.status.success(), "{answer:?}");
    }
    let outcome = running.finish();
    let status = house.status().unwrap();
    assert!(recycles(&status, "request") >= 2 * ROUNDS, "{status:#}");
    outcome
}

#[track_caller]
fn nothing_is_lost(venv: Venv, class: &'static str) {
    for keep_alive in [true, false] {
        let outcome = replaced(venv, class, keep_alive, "2s");
        assert_eq!(outcome.failed(), 0, "keep-alive {keep_alive}: {outcome}");
    }
}

#[test]
fn uvicorn_workers_lose_nothing() {
    nothing_is_lost(NEWEST, UVICORN);
}

#[test]
fn gunicorns_asgi_workers_lose_nothing() {
    nothing_is_lost(NEWEST, "asgi");
}

#[test]
fn the_threads_of_an_old_gunicorn_lose_nothing() {
    nothing_is_lost(G23, "gthread");
}

#[test]
fn without_the_drain_uvicorn_workers_do_lose() {
    let outcome = replaced(NEWEST, UVICORN, true, "0s");
    assert!(outcome.failed() > 0, "{outcome}");
}
