//! Whoever is killed, the service comes back or nothing is left of it.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock,
    house::{House, Plan, free_port, pids, send},
    proc, turn,
    venv::{FLASK, NEWEST, python},
};

const SOON: Duration = Duration::from_secs(20);

/// `supervise -- python3 PROGRAM`, when the program says that it is ready.
fn program(options: &[&str], words: &[&str]) -> House {
    let mut command = vec![python()];
    command.extend(words.iter().map(ToString::to_string));
    let house = Plan::supervise(options, &command).start();
    house.wait_for_output("ready", SOON);
    house
}

#[test]
fn a_killed_master_is_replaced_and_its_workers_go() {
    let _turn = turn::beside();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    let old = pids(&house.ready(2));
    let master = proc::parent(old[0]).expect("a worker has a parent");
    send(master, Signal::SIGKILL);
    let load = Load::on(port);
    house.wait("an answer by a new worker", SOON, || {
        load.once("/pid").ok().filter(|pid| !old.contains(pid))
    });
    let status = house.ready(2);
    assert!(old.iter().all(|pid| !proc::is_alive(*pid)), "{status:#}");
    assert_eq!(status["totals"]["restarts"], 1, "{status:#}");
    let ends = status["ends"].as_array().expect("ends");
    assert!(
        ends.iter().any(|end| end["cause"] == "signal:KILL"),
        "{status:#}"
    );
}

#[test]
fn a_killed_worker_has_its_cause() {
    let _turn = turn::beside();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    let victim = pids(&house.ready(2))[0];
    send(victim, Signal::SIGKILL);
    let end = house.wait("its end", SOON, || {
        let status = house.status()?;
        let ends = status["ends"].as_array()?.clone();
        ends.into_iter().find(|end| end["pid"] == victim)
    });
    assert_eq!(end["cause"], "signal:KILL", "{end:#}");
    house.ready(2);
}

#[test]
fn nothing_outlives_a_killed_supervise() {
    let _turn = turn::beside();
    let port = free_port();
    let mut house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    house.ready(2);
    killed(&mut house);
}

#[test]
fn a_daemonized_grandchild_does_not_outlive_a_killed_supervise() {
    let _turn = turn::beside();
    let mut house = program(&["--restart", "never"], &["daemonizes.py"]);
    assert!(house.everybody().len() >= 3);
    killed(&mut house);
}

#[test]
fn a_daemonized_grandchild_does_not_outlive_a_stop() {
    let _turn = turn::beside();
    let mut house = program(&["--restart", "never", "--grace", "1s"], &["daemonizes.py"]);
    house.signal(Signal::SIGTERM);
    house.ends(Duration::from_secs(5));
    assert!(house.left_after(Duration::from_secs(1)).is_empty());
}

#[test]
fn a_deaf_program_is_killed_after_its_grace() {
    let _turn = turn::beside();
    let mut house = program(&["--restart", "never", "--grace", "1s"], &["deaf.py"]);
    let asked = clock::now();
    house.signal(Signal::SIGTERM);
    house.ends(Duration::from_secs(5));
    let took = clock::now() - asked;
    assert!(took >= Duration::from_millis(900), "{took:?}");
}

#[test]
fn helpers_count_towards_their_worker() {
    let _turn = turn::beside();
    let house = program(&["--ceiling", "400M"], &["spawns_helpers.py"]);
    let private = house.wait("a worker of over 40 MB", SOON, || {
        let status = house.status()?;
        let private = status["workers"][0]["memory"]["private"].as_u64()?;
        (private > 40 << 20).then_some(private)
    });
    assert!(private < 100 << 20, "{private}");
}

#[track_caller]
fn killed(house: &mut House) {
    house.signal(Signal::SIGKILL);
    house.ends(Duration::from_secs(1));
    let left = house.left_after(Duration::from_secs(2));
    let names: Vec<_> = left.iter().map(|pid| proc::command_line(*pid)).collect();
    assert!(left.is_empty(), "{names:?}");
}
