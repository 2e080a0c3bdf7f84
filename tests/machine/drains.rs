//! Servers that lose requests when a worker gets SIGTERM lose none with the agent. The control
//! without the agent's drain does lose some, so the agent makes the difference.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    service::{Plan, free_port, recycles},
    turn,
    venv::{G23, Gunicorn, NEWEST, UVICORN, Venv},
};

/// How many times all workers are replaced.
const ROUNDS: u64 = 4;

/// Replaces all workers repeatedly under load.
fn replace_under_load(venv: Venv, class: &'static str, keep_alive: bool, drain: &str) -> Outcome {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--ceiling", "400M", "--drain", drain, "--surge-idle", "0s"];
    let service = Plan::supervise(&options, &venv.gunicorn(port, Gunicorn::of(class))).start();
    service.ready(2);
    let running = Load {
        path: "/pid".to_owned(),
        keep_alive,
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    for _ in 0..ROUNDS {
        let answer = service.client(&["recycle", "--all"]);
        assert!(answer.status.success(), "{answer:?}");
    }
    let outcome = running.finish();
    let status = service.status().unwrap();
    assert!(
        recycles(&status, "request") >= 2 * ROUNDS,
        "{outcome}\n{status:#}\n{}",
        service.log()
    );
    outcome
}

#[track_caller]
fn assert_nothing_lost(venv: Venv, class: &'static str) {
    for keep_alive in [true, false] {
        let outcome = replace_under_load(venv, class, keep_alive, "2s");
        assert_eq!(outcome.failed(), 0, "keep-alive {keep_alive}: {outcome}");
    }
}

#[test]
fn uvicorn_workers_lose_no_request_when_replaced() {
    assert_nothing_lost(NEWEST, UVICORN);
}

#[test]
fn gunicorn_asgi_workers_lose_no_request_when_replaced() {
    assert_nothing_lost(NEWEST, "asgi");
}

#[test]
fn gthread_workers_of_gunicorn_23_lose_no_request_when_replaced() {
    assert_nothing_lost(G23, "gthread");
}

#[test]
fn uvicorn_workers_without_a_drain_lose_requests_when_replaced() {
    let outcome = replace_under_load(NEWEST, UVICORN, true, "0s");
    assert!(outcome.failed() > 0, "{outcome}");
}
