//! A stop under load: connected clients are answered, and later ones are refused.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    http::Failure,
    service::{Plan, free_port},
    turn,
    venv::{Gunicorn, NEWEST, UVICORN},
};

const SOON: Duration = Duration::from_secs(20);

/// Stops it under a load of more connections than it can serve at once, so that some always wait.
fn stop_under_load(plan: Plan, port: u16, keep_alive: bool) -> Outcome {
    let _turn = turn::loaded();
    let service = plan.start();
    let running = Load {
        path: "/pid".to_owned(),
        keep_alive,
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    };
    service.wait("an answer", SOON, || running.once("/pid").ok());
    let running = running.start();
    running.wait_for_answers(100);
    assert_eq!(service.stop(SOON).code(), Some(0));
    running.finish()
}

/// Asserts that requests fail only because a late connection is refused.
#[track_caller]
fn assert_none_reset(command: &[String], port: u16) {
    for keep_alive in [false, true] {
        let outcome = stop_under_load(Plan::supervise(&[], command), port, keep_alive);
        let refused = outcome.failures.get(&Failure::Refused).copied();
        assert_eq!(Some(outcome.failed()), refused, "{outcome}");
    }
}

#[test]
fn a_stopped_sync_gunicorn_answers_all_connected_clients() {
    let port = free_port();
    assert_none_reset(&NEWEST.gunicorn(port, Gunicorn::of("sync")), port);
}

/// The control: the other tests do not pass because of gunicorn itself.
#[test]
fn a_stopped_bare_gunicorn_resets_waiting_connections() {
    let port = free_port();
    let plan = Plan::bare(&NEWEST.gunicorn(port, Gunicorn::of("sync")));
    let outcome = stop_under_load(plan, port, false);
    assert!(
        outcome.failures.contains_key(&Failure::FreshReset),
        "{outcome}"
    );
}

#[test]
fn a_stopped_gthread_gunicorn_answers_all_connected_clients() {
    let port = free_port();
    assert_none_reset(&NEWEST.gunicorn(port, Gunicorn::of("gthread")), port);
}

#[test]
fn a_stopped_gevent_gunicorn_answers_all_connected_clients() {
    let port = free_port();
    assert_none_reset(&NEWEST.gunicorn(port, Gunicorn::of("gevent")), port);
}

#[test]
fn stopped_uvicorn_workers_answer_all_connected_clients() {
    let port = free_port();
    assert_none_reset(&NEWEST.gunicorn(port, Gunicorn::of(UVICORN)), port);
}

#[test]
fn a_stopped_uvicorn_answers_all_connected_clients() {
    let port = free_port();
    let words = ["leaky_asgi:app", "--port", &port.to_string()].map(str::to_owned);
    let command = [&[NEWEST.bin("uvicorn")][..], &words].concat();
    assert_none_reset(&command, port);
}

/// `supervise` holds the socket itself.
#[test]
fn a_stop_with_a_held_socket_resets_no_connection() {
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let listen = format!("127.0.0.1:{port}");
    let plan = Plan::supervise(&["--listen", &listen], &command);
    let outcome = stop_under_load(plan, port, false);
    let refused = outcome.failures.get(&Failure::Refused).copied();
    assert_eq!(Some(outcome.failed()), refused, "{outcome}");
}
