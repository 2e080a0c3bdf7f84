//! A single program at a socket that `supervise` holds: its replacement serves before it is
//! stopped.

use std::{fs, net::TcpStream, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port, recycles, send},
    status::{pids, workers},
    turn,
    venv::{NEWEST, python},
};

const SOON: Duration = Duration::from_secs(60);

/// A uvicorn without workers of its own.
fn uvicorn(port: u16, options: &[&str]) -> Plan {
    let address = format!("127.0.0.1:{port}");
    let fixed = ["--listen", &address];
    let command = [NEWEST.bin("uvicorn"), "leaky_asgi:app".to_owned()];
    Plan::supervise(&[&fixed, options].concat(), &command)
}

/// Waits until the program was seen to accept connections and is ready.
#[track_caller]
fn overlaps(service: &Service) -> Value {
    service.wait("the program to be seen to accept", SOON, || {
        service.events_of("server-found").pop()
    });
    service.ready(1)
}

fn load(port: u16, keep_alive: bool) -> Load {
    Load {
        rate: Some(100.0),
        keep_alive,
        lasts: Duration::from_secs(3600),
        ..Load::on(port)
    }
}

#[track_caller]
fn recycle(service: &Service) {
    let answer = service.client(&["recycle", "--all"]);
    assert!(answer.status.success(), "{answer:?}\n{}", service.log());
}

#[test]
fn a_single_program_is_replaced_without_loss_and_its_replacement_serves_first() {
    let _turn = turn::loaded();
    for keep_alive in [true, false] {
        let port = free_port();
        let service = uvicorn(port, &["--ceiling", "300M"]).start();
        let before = overlaps(&service);
        assert_eq!(before["mode"], "fleet", "{before:#}");
        let running = load(port, keep_alive).start();
        for _ in 0..3 {
            recycle(&service);
        }
        let outcome = running.finish();
        assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
        let after = service.ready(1);
        assert_eq!(recycles(&after, "request"), 3, "{}", service.log());
        assert_eq!(before["command_pid"], after["command_pid"]);
        let kinds: Vec<_> = service
            .events()
            .iter()
            .filter_map(|event| event["event"].as_str().map(str::to_owned))
            .filter(|kind| ["raised", "worker-ended"].contains(&kind.as_str()))
            .collect();
        assert_eq!(kinds, ["raised", "worker-ended"].repeat(3));
        assert_eq!(service.stop(SOON).code(), Some(0));
    }
}

#[test]
fn a_single_program_over_its_ceiling_is_replaced_without_loss() {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--ceiling", "70M", "--cap", "400M", "--min-age", "1s"];
    let service = uvicorn(port, &options).env("LEAK_KB", 256).start();
    overlaps(&service);
    let running = load(port, true).start();
    service.wait("three recycles for the ceiling", SOON, || {
        let status = service.status()?;
        (recycles(&status, "ceiling") >= 3).then_some(())
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    service.ready(1);
}

#[test]
fn without_room_for_two_copies_a_single_program_is_stopped_and_connections_wait() {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--budget", "40M", "--cap", "none", "--ceiling", "none"];
    let service = uvicorn(port, &options).start();
    overlaps(&service);
    let running = load(port, false).start();
    running.wait_for_answers(10);
    recycle(&service);
    running.wait_for_answers(10);
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    assert!(!service.warnings("has no room").is_empty());
    assert!(service.events_of("raised").is_empty());
    let status = overlaps(&service);
    assert_eq!(recycles(&status, "request"), 1, "{status:#}");
}

#[test]
fn a_program_that_binds_an_address_of_its_own_is_never_run_twice() {
    let _turn = turn::beside();
    let (own, held) = (free_port(), free_port());
    let (address, own_word) = (format!("127.0.0.1:{held}"), own.to_string());
    let bind = ["--bind", "127.0.0.1"];
    let command = [&*python(), "-m", "http.server", &own_word];
    let command = [&command[..], &bind].concat();
    let service = Plan::supervise(&["--listen", &address], &command).start();
    service.wait("the warning", SOON, || {
        service.warnings("was not seen to accept").pop()
    });
    let before = pids(&service.ready(1));
    recycle(&service);
    service.wait("its own address", SOON, || {
        TcpStream::connect(("127.0.0.1", own)).ok()
    });
    assert_ne!(pids(&service.ready(1)), before);
    assert!(service.events_of("raised").is_empty());
    assert!(service.events_of("server-found").is_empty());
}

#[test]
fn a_single_program_that_is_killed_is_started_again() {
    let _turn = turn::beside();
    let service = uvicorn(free_port(), &[]).start();
    let killed = pids(&overlaps(&service))[0];
    send(killed, Signal::SIGKILL);
    service.wait("another start", SOON, || {
        (service.status()?["totals"]["restarts"] == 1).then_some(())
    });
    service.wait("the program to be seen to accept again", SOON, || {
        (service.events_of("server-found").len() == 2).then_some(())
    });
    let ends = service.events_of("worker-ended");
    assert_eq!(ends.len(), 1, "{ends:#?}");
    assert_eq!(ends[0]["cause"], "signal:KILL", "{ends:#?}");
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn a_single_program_that_exits_with_0_ends_the_service() {
    let _turn = turn::beside();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let uvicorn = NEWEST.bin("uvicorn");
    let command = [&*uvicorn, "--limit-max-requests", "1", "leaky_asgi:app"];
    let mut service = Plan::supervise(&["--listen", &address], &command).start();
    overlaps(&service);
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(service.ends(SOON).code(), Some(0), "{}", service.log());
}

#[test]
fn a_server_with_workers_behind_a_script_stays_a_server_at_a_held_socket() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("start.sh");
    let port = free_port();
    let gunicorn = NEWEST.bin("gunicorn");
    // `sh start.sh` does not show what it executes.
    fs::write(
        &script,
        format!("{gunicorn} -w 2 leaky_flask:app\nexit $?\n"),
    )
    .unwrap();
    let address = format!("127.0.0.1:{port}");
    let command = ["sh", script.to_str().unwrap()];
    let service = Plan::supervise(&["--listen", &address], &command)
        // `sh` passes the sockets on with its own pid in LISTEN_PID.
        .env("GUNICORN_CMD_ARGS", "--bind=fd://3")
        .start();
    let status = service.ready(2);
    assert_eq!(status["mode"], "server", "{status:#}");
    assert_eq!(workers(&status).len(), 2);
    recycle(&service);
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn an_upgrade_keeps_a_single_program_that_is_replaced_first() {
    let _turn = turn::beside();
    let service = uvicorn(free_port(), &[]).start();
    let before = overlaps(&service);
    let upgraded = service.client(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    assert_eq!(pids(&service.ready(1)), pids(&before));
    recycle(&service);
    assert_eq!(service.events_of("raised").len(), 1, "{}", service.log());
    assert_ne!(pids(&service.ready(1)), pids(&before));
}
