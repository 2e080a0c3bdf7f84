//! A stop under load: whoever was connected is answered, whoever was not is refused.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    house::{Plan, free_port},
    http::Failure,
    turn,
    venv::{Gunicorn, NEWEST, UVICORN},
};

const SOON: Duration = Duration::from_secs(20);

/// Stopped while more connections ask than it has hands, so that some always wait.
fn stopped(plan: Plan, port: u16, keep_alive: bool) -> Outcome {
    let _turn = turn::alone();
    let house = plan.start();
    let running = Load {
        path: "/pid".to_owned(),
        keep_alive,
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    };
    house.wait("an answer", SOON, || running.once("/pid").ok());
    let running = running.start();
    running.meets(100);
    assert_eq!(house.stop(SOON).code(), Some(0));
    running.finish()
}

/// Those who came too late are refused, and nothing else happens to anybody.
#[track_caller]
fn nobody_is_reset(command: &[String], port: u16) {
    for keep_alive in [false, true] {
        let outcome = stopped(Plan::supervise(&[], command), port, keep_alive);
        let refused = outcome.failures.get(&Failure::Refused).copied();
        assert_eq!(Some(outcome.failed()), refused, "{outcome}");
    }
}

#[test]
fn a_sync_gunicorn_answers_all_that_were_connected() {
    let port = free_port();
    nobody_is_reset(&NEWEST.gunicorn(port, Gunicorn::of("sync")), port);
}

/// So that it is not gunicorn who sees to it.
#[test]
fn a_gunicorn_by_itself_resets_those_that_wait() {
    let port = free_port();
    let plan = Plan::bare(&NEWEST.gunicorn(port, Gunicorn::of("sync")));
    let outcome = stopped(plan, port, false);
    assert!(
        outcome.failures.contains_key(&Failure::FreshReset),
        "{outcome}"
    );
}

#[test]
fn threads_of_gunicorn_answer_all_that_were_connected() {
    let port = free_port();
    nobody_is_reset(&NEWEST.gunicorn(port, Gunicorn::of("gthread")), port);
}

#[test]
fn gevent_answers_all_that_were_connected() {
    let port = free_port();
    nobody_is_reset(&NEWEST.gunicorn(port, Gunicorn::of("gevent")), port);
}

#[test]
fn uvicorn_workers_answer_all_that_were_connected() {
    let port = free_port();
    nobody_is_reset(&NEWEST.gunicorn(port, Gunicorn::of(UVICORN)), port);
}

#[test]
fn uvicorn_answers_all_that_were_connected() {
    let port = free_port();
    let words = ["leaky_asgi:app", "--port", &port.to_string()].map(str::to_owned);
    let command = [&[NEWEST.bin("uvicorn")][..], &words].concat();
    nobody_is_reset(&command, port);
}

/// It is ours, and nobody has to be asked for it.
#[test]
fn a_socket_that_is_held_for_the_command_resets_nobody() {
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let listen = format!("127.0.0.1:{port}");
    let plan = Plan::supervise(&["--listen", &listen], &command);
    let outcome = stopped(plan, port, false);
    let refused = outcome.failures.get(&Failure::Refused).copied();
    assert_eq!(Some(outcome.failed()), refused, "{outcome}");
}
