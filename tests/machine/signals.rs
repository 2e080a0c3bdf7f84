//! The habits of gunicorn's operators go on working, and a stop is a stop.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    house::{House, Plan, free_port, pids, send},
    proc, turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(15);

/// Two gthread workers behind a port, both ready.
fn served() -> (House, Load) {
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    house.ready(2);
    (house, Load::on(port))
}

/// The gunicorn master of the workers that a status shows.
fn master(house: &House) -> i32 {
    let status = house.ready(2);
    proc::parent(pids(&status)[0]).expect("a worker has a parent")
}

#[test]
fn a_stop_finishes_what_is_in_flight() {
    let _turn = turn::beside();
    let (house, load) = served();
    let asked = thread::spawn(move || load.once("/sleep?s=2"));
    house.wait("the request to be taken", SOON, || {
        has_connection(&house).then_some(())
    });
    let status = house.stop(SOON);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(asked.join().unwrap().is_ok());
}

#[test]
fn the_second_term_ends_at_once() {
    let _turn = turn::beside();
    let (mut house, load) = served();
    let asked = thread::spawn(move || load.once("/sleep?s=60"));
    house.wait("the request to be taken", SOON, || {
        has_connection(&house).then_some(())
    });
    house.signal(Signal::SIGTERM);
    house.wait("the stop to be noted", SOON, || {
        house.log().contains("stopping").then_some(())
    });
    house.signal(Signal::SIGTERM);
    house.ends(Duration::from_secs(3));
    assert!(house.left_after(Duration::from_secs(2)).is_empty());
    assert!(asked.join().unwrap().is_err());
}

#[test]
fn hup_reloads_gunicorn() {
    let _turn = turn::beside();
    let (house, load) = served();
    let before = pids(&house.ready(2));
    house.signal(Signal::SIGHUP);
    house.wait("two other workers", SOON, || {
        let now = pids(&house.ready(2));
        now.iter().all(|pid| !before.contains(pid)).then_some(())
    });
    assert!(load.once("/pid").is_ok());
}

#[test]
fn ttin_and_ttou_change_the_number_of_workers() {
    let _turn = turn::beside();
    let (house, _) = served();
    house.signal(Signal::SIGTTIN);
    house.ready(3);
    house.signal(Signal::SIGTTOU);
    house.ready(2);
}

#[test]
fn usr2_and_the_end_of_the_old_master_keep_the_service() {
    let _turn = turn::beside();
    let (house, load) = served();
    let old = master(&house);
    house.signal(Signal::SIGUSR2);
    house.ready(4);
    send(old, Signal::SIGTERM);
    house.wait("the old master to go", SOON, || {
        (!proc::is_alive(old)).then_some(())
    });
    house.ready(2);
    assert_ne!(master(&house), old);
    assert!(load.once("/pid").is_ok());
    let status = house.stop(SOON);
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn usr1_reopens_the_logs_and_ends_nobody() {
    let _turn = turn::beside();
    let (house, load) = served();
    let before = pids(&house.ready(2));
    house.signal(Signal::SIGUSR1);
    assert!(load.once("/pid").is_ok());
    assert_eq!(pids(&house.ready(2)), before);
}

/// One of its processes has an established TCP connection (proc(5), `/proc/PID/net/tcp`: state 01).
fn has_connection(house: &House) -> bool {
    let own = |line: &str| -> Option<String> {
        let fields: Vec<_> = line.split_whitespace().collect();
        (*fields.get(3)? == "01").then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    };
    let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let sockets: Vec<_> = text.lines().filter_map(own).collect();
    house.everybody().into_iter().any(|pid| {
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
