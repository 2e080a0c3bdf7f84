//! When a process of a service is killed, the service is restarted or leaves no process behind.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::Load,
    clock, proc,
    service::{Plan, Service, free_port, send},
    status::pids,
    turn,
    venv::{FLASK, NEWEST, python},
};

const SOON: Duration = Duration::from_secs(20);

/// Starts `supervise -- python3 PROGRAM` and waits until the program prints that it is ready.
fn program(options: &[&str], words: &[&str]) -> Service {
    let mut command = vec![python()];
    command.extend(words.iter().map(ToString::to_string));
    let service = Plan::supervise(options, &command).start();
    service.wait_for_output("ready", SOON);
    service
}

#[test]
fn a_killed_master_is_restarted_and_its_workers_end() {
    let _turn = turn::beside();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    let old = pids(&service.ready(2));
    let master = proc::parent(old[0]).expect("a worker has a parent");
    send(master, Signal::SIGKILL);
    let load = Load::on(port);
    service.wait("an answer by a new worker", SOON, || {
        load.once("/pid").ok().filter(|pid| !old.contains(pid))
    });
    let status = service.ready(2);
    assert!(old.iter().all(|pid| !proc::is_alive(*pid)), "{status:#}");
    assert_eq!(status["totals"]["restarts"], 1, "{status:#}");
    let ends = status["ends"].as_array().expect("ends");
    assert!(
        ends.iter().any(|end| end["cause"] == "signal:KILL"),
        "{status:#}"
    );
}

#[test]
fn a_killed_worker_ends_with_cause_signal_kill() {
    let _turn = turn::beside();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    let victim = pids(&service.ready(2))[0];
    send(victim, Signal::SIGKILL);
    let end = service.wait("its end", SOON, || {
        let status = service.status()?;
        let ends = status["ends"].as_array()?.clone();
        ends.into_iter().find(|end| end["pid"] == victim)
    });
    assert_eq!(end["cause"], "signal:KILL", "{end:#}");
    service.ready(2);
}

#[test]
fn no_process_outlives_a_killed_supervise() {
    let _turn = turn::beside();
    let port = free_port();
    let mut service =
        Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    assert_killed_completely(&mut service);
}

#[test]
fn a_daemonized_grandchild_ends_with_a_killed_supervise() {
    let _turn = turn::beside();
    let mut service = program(&["--restart", "never"], &["daemonizes.py"]);
    assert!(service.processes().len() >= 3);
    assert_killed_completely(&mut service);
}

#[test]
fn a_daemonized_grandchild_ends_with_a_stop() {
    let _turn = turn::beside();
    let mut service = program(&["--restart", "never", "--grace", "1s"], &["daemonizes.py"]);
    service.signal(Signal::SIGTERM);
    service.ends(Duration::from_secs(5));
    assert!(service.left_after(Duration::from_secs(1)).is_empty());
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_after_its_grace_period() {
    let _turn = turn::beside();
    let mut service = program(
        &["--restart", "never", "--grace", "1s"],
        &["ignores_term.py"],
    );
    let asked = clock::now();
    service.signal(Signal::SIGTERM);
    service.ends(Duration::from_secs(5));
    let took = clock::now() - asked;
    assert!(took >= Duration::from_millis(900), "{took:?}");
}

#[test]
fn the_memory_of_child_processes_counts_for_their_worker() {
    let _turn = turn::beside();
    let service = program(&["--ceiling", "400M"], &["spawns_helpers.py"]);
    let private = service.wait("a worker of over 40 MB", SOON, || {
        let status = service.status()?;
        let private = status["workers"][0]["memory"]["private"].as_u64()?;
        (private > 40 << 20).then_some(private)
    });
    assert!(private < 100 << 20, "{private}");
}

#[track_caller]
fn assert_killed_completely(service: &mut Service) {
    service.signal(Signal::SIGKILL);
    service.ends(Duration::from_secs(1));
    let left = service.left_after(Duration::from_secs(2));
    let names: Vec<_> = left.iter().map(|pid| proc::command_line(*pid)).collect();
    assert!(left.is_empty(), "{names:?}");
}
