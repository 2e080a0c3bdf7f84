//! During a stop, sockets that an application opens for itself stay open until all requests are
//! answered.

use std::{fs, net::TcpStream, thread, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    service::{Plan, free_port},
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(20);
const REQUESTS: usize = 4;

/// Stops the service while requests are in flight that will need a socket of the application.
#[track_caller]
fn assert_all_answered(inner: &str, port: u16, command: &[String]) {
    let _turn = turn::beside();
    let folder = tempfile::tempdir().unwrap();
    let refused = folder.path().join("refused");
    let mut service = Plan::supervise(&[], command)
        .env("INNER", inner)
        .env("REFUSED", refused.display())
        .start();
    let load = Load::on(port);
    service.wait("an answer", SOON, || load.once("/").ok());
    let asked: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let load = load.clone();
            thread::spawn(move || load.once("/inner"))
        })
        .collect();
    service.wait("all requests to be in flight", SOON, || {
        (service.file("begun").lines().count() == REQUESTS).then_some(())
    });
    service.signal(Signal::SIGTERM);
    service.wait("new connections to be refused", SOON, || {
        TcpStream::connect(("127.0.0.1", port))
            .is_err()
            .then_some(())
    });
    // Only now do the requests continue and use the inner socket.
    fs::write(&refused, "").unwrap();
    assert_eq!(service.ends(SOON).code(), Some(0));
    for asked in asked {
        let answer = asked.join().unwrap();
        assert!(answer.is_ok(), "{inner} {command:?}: {answer:?}");
    }
}

fn gunicorn(port: u16, options: &[&str]) -> Vec<String> {
    let bind = format!("127.0.0.1:{port}");
    let words = ["-w", "1", "--threads", "8", "-b", &bind];
    let words = words.iter().chain(options).chain(&["inner:wsgi"]);
    let program = NEWEST.bin("gunicorn");
    std::iter::once(program)
        .chain(words.map(ToString::to_string))
        .collect()
}

#[test]
fn a_helper_process_of_a_gunicorn_worker_stays_reachable_during_a_stop() {
    let port = free_port();
    assert_all_answered("process", port, &gunicorn(port, &[]));
}

#[test]
fn a_multiprocessing_manager_stays_reachable_during_a_stop() {
    let port = free_port();
    assert_all_answered("manager", port, &gunicorn(port, &["--preload"]));
}

/// The socket of the thread is open in the master and in the workers, like those of gunicorn.
#[test]
fn a_thread_of_a_preloaded_application_stays_reachable_during_a_stop() {
    let port = free_port();
    assert_all_answered("thread", port, &gunicorn(port, &["--preload"]));
}

#[test]
fn a_thread_of_a_single_program_stays_reachable_during_a_stop() {
    let port = free_port();
    let port_word = port.to_string();
    let command = [&*NEWEST.bin("uvicorn"), "inner:asgi", "--port", &port_word];
    assert_all_answered("thread", port, &command.map(str::to_owned));
}
