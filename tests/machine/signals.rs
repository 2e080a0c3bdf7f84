//! The signals that operators of gunicorn use still work, and SIGTERM stops the service.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    proc,
    service::{Plan, Service, free_port, send},
    status::pids,
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(15);

/// Starts a gunicorn and waits until its two gthread workers are ready.
fn start_gunicorn() -> (Service, Load) {
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    (service, Load::on(port))
}

/// The pid of the gunicorn master.
fn master(service: &Service) -> i32 {
    let status = service.ready(2);
    proc::parent(pids(&status)[0]).expect("a worker has a parent")
}

#[test]
fn sigterm_finishes_requests_in_flight() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn();
    let asked = thread::spawn(move || load.once("/sleep?s=2"));
    service.wait("the request to be taken", SOON, || {
        has_connection(&service).then_some(())
    });
    let status = service.stop(SOON);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(asked.join().unwrap().is_ok());
}

#[test]
fn a_second_sigterm_kills_the_service_immediately() {
    let _turn = turn::beside();
    let (mut service, load) = start_gunicorn();
    let asked = thread::spawn(move || load.once("/sleep?s=60"));
    service.wait("the request to be taken", SOON, || {
        has_connection(&service).then_some(())
    });
    service.signal(Signal::SIGTERM);
    service.wait("the stop to be noted", SOON, || {
        service.log().contains("stopping").then_some(())
    });
    service.signal(Signal::SIGTERM);
    service.ends(Duration::from_secs(3));
    assert!(service.left_after(Duration::from_secs(2)).is_empty());
    assert!(asked.join().unwrap().is_err());
}

#[test]
fn sighup_replaces_all_workers() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn();
    let before = pids(&service.ready(2));
    service.signal(Signal::SIGHUP);
    service.wait("two other workers", SOON, || {
        let now = pids(&service.ready(2));
        now.iter().all(|pid| !before.contains(pid)).then_some(())
    });
    assert!(load.once("/pid").is_ok());
}

#[test]
fn sigttin_and_sigttou_change_the_number_of_workers() {
    let _turn = turn::beside();
    let (service, _) = start_gunicorn();
    service.signal(Signal::SIGTTIN);
    service.ready(3);
    service.signal(Signal::SIGTTOU);
    service.ready(2);
}

#[test]
fn sigusr2_and_the_end_of_the_old_master_keep_the_service_running() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn();
    let old = master(&service);
    service.signal(Signal::SIGUSR2);
    service.ready(4);
    send(old, Signal::SIGTERM);
    service.wait("the old master to go", SOON, || {
        (!proc::is_alive(old)).then_some(())
    });
    service.ready(2);
    assert_ne!(master(&service), old);
    assert!(load.once("/pid").is_ok());
    let status = service.stop(SOON);
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn sigusr1_ends_no_worker() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn();
    let before = pids(&service.ready(2));
    service.signal(Signal::SIGUSR1);
    assert!(load.once("/pid").is_ok());
    assert_eq!(pids(&service.ready(2)), before);
}

/// Whether one of its processes has an established TCP connection (proc(5), `/proc/PID/net/tcp`:
/// state 01).
fn has_connection(service: &Service) -> bool {
    let own = |line: &str| -> Option<String> {
        let fields: Vec<_> = line.split_whitespace().collect();
        (*fields.get(3)? == "01").then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    };
    let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let sockets: Vec<_> = text.lines().filter_map(own).collect();
    service.processes().into_iter().any(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|entries| {
            entries
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .any(|link| {
                    sockets
                        .iter()
                        .any(|socket| link.as_os_str() == socket.as_str())
                })
        })
    })
}
