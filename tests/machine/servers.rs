//! Servers with several workers, other than gunicorn and uvicorn, as they are: each of their
//! workers is supervised and recycled by itself.

use std::time::Duration;

use super::{
    client::Load,
    service::{Plan, free_port, recycles},
    status::{pids, workers},
    turn,
    venv::OTHERS,
};

const SOON: Duration = Duration::from_secs(30);

/// The command line of a hypercorn with two workers.
fn hypercorn(port: u16) -> Vec<String> {
    let address = format!("127.0.0.1:{port}");
    let words = ["-w", "2", "-b", &address, "leaky_asgi:app"].map(str::to_owned);
    [vec![OTHERS.bin("hypercorn")], words.to_vec()].concat()
}

/// The command line of a uWSGI with two workers. `bind`: its option for the address.
fn uwsgi(port: u16, bind: &str) -> Vec<String> {
    let address = format!("127.0.0.1:{port}");
    let fixed = [
        "--master",
        "--processes",
        "2",
        "--module",
        "leaky_flask:app",
    ];
    let words = [&fixed[..], &[bind, &address]].concat();
    let words = words.into_iter().map(str::to_owned);
    [OTHERS.bin("pyuwsgi")].into_iter().chain(words).collect()
}

/// Recycles all of two workers this many times under load, with kept-alive connections or without,
/// and asserts that no request has failed and that the server itself stays. `plan`: the service at
/// a port.
#[track_caller]
pub(crate) fn recycled_without_loss(
    mode: &str,
    plan: impl Fn(u16) -> Plan,
    rounds: u64,
    keep_alive: &[bool],
) {
    let _turn = turn::loaded();
    for &keep_alive in keep_alive {
        let port = free_port();
        let service = plan(port).start();
        let before = service.ready(2);
        assert_eq!(before["mode"], mode, "{before:#}");
        let running = Load {
            rate: Some(100.0),
            keep_alive,
            lasts: Duration::from_secs(3600),
            ..Load::on(port)
        }
        .start();
        for _ in 0..rounds {
            let answer = service.client(&["recycle", "--all"]);
            assert!(answer.status.success(), "{answer:?}\n{}", service.log());
        }
        let outcome = running.finish();
        assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
        let after = service.ready(2);
        assert_eq!(recycles(&after, "request"), rounds * 2, "{}", service.log());
        assert!(pids(&after).iter().all(|pid| !pids(&before).contains(pid)));
        assert_eq!(before["command_pid"], after["command_pid"]);
        assert_eq!(service.stop(SOON).code(), Some(0));
    }
}

/// The same for a server with two workers of its own.
#[track_caller]
fn workers_recycled_without_loss(command: fn(u16) -> Vec<String>, keep_alive: &[bool]) {
    let plan = |port| {
        let plan = Plan::supervise(&["--ceiling", "300M"], &command(port));
        plan.env("LEAK_KB", 16)
    };
    recycled_without_loss("server", plan, 3, keep_alive);
}

#[test]
fn workers_of_hypercorn_are_recycled_without_loss() {
    workers_recycled_without_loss(hypercorn, &[true, false]);
}

#[test]
fn workers_of_uwsgi_behind_its_http_router_are_recycled_without_loss() {
    let command = |port| {
        let mut words = uwsgi(port, "--http");
        words.push("--http-keepalive".to_owned());
        words
    };
    workers_recycled_without_loss(command, &[true, false]);
}

#[test]
fn workers_of_uwsgi_at_a_socket_are_recycled_without_loss() {
    // It closes each connection after the answer, and does not say so to clients.
    workers_recycled_without_loss(|port| uwsgi(port, "--http-socket"), &[false]);
}

#[test]
fn a_worker_of_hypercorn_without_the_agent_stays_and_the_reason_is_told() {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--agent", "off", "--ceiling", "60M", "--cap", "1G"];
    let service = Plan::supervise(
        &[&options[..], &["--min-age", "1s"]].concat(),
        &hypercorn(port),
    )
    .env("LEAK_KB", 512)
    .start();
    let before = service.ready(2);
    let running = Load {
        rate: Some(100.0),
        lasts: Duration::from_secs(3600),
        ..Load::on(port)
    }
    .start();
    service.wait("the warning", SOON, || {
        service.warnings("without the agent").pop()
    });
    let first = workers(&before)[0]["id"].as_str().unwrap().to_owned();
    let answer = service.client(&["recycle", &first]);
    let stderr = String::from_utf8_lossy(&answer.stderr);
    assert!(stderr.contains("without the agent"), "{answer:?}");
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    assert_eq!(pids(&service.ready(2)), pids(&before));
}

/// The command line of a granian with two workers.
fn granian(port: u16, interface: &str) -> Vec<String> {
    let app = match interface {
        "wsgi" => "leaky_flask:app",
        _ => "leaky_asgi:app",
    };
    let number = port.to_string();
    let words = [
        "--interface",
        interface,
        "--workers",
        "2",
        "--port",
        &number,
        app,
    ];
    let words = words.map(str::to_owned);
    [vec![OTHERS.bin("granian")], words.to_vec()].concat()
}

#[test]
fn workers_of_granian_are_recycled_without_loss() {
    for interface in ["asgi", "wsgi"] {
        let command = |port| Plan::supervise(&["--ceiling", "300M"], &granian(port, interface));
        let plan = |port| command(port).env("LEAK_KB", 16);
        recycled_without_loss("server", plan, 2, &[true, false]);
    }
}

/// The number of sockets that listen at this port (proc(5), `/proc/net/tcp`: state 0A).
fn listeners(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listens = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (own, state) = (fields.next().unwrap_or_default(), fields.nth(1));
        own.ends_with(&format!(":{port:04X}")) && state == Some("0A")
    };
    table.lines().filter(listens).count()
}

/// With a listener each, the connections in the queue of one are reset when its worker exits.
#[test]
fn workers_of_granian_share_one_listener() {
    let _turn = turn::beside();
    for (agent, expected) in [("auto", 1), ("off", 2)] {
        let port = free_port();
        let options = ["--ceiling", "300M", "--agent", agent];
        let service = Plan::supervise(&options, &granian(port, "asgi")).start();
        service.ready(2);
        service.wait("its listeners", SOON, || {
            (listeners(port) == expected).then_some(())
        });
        assert_eq!(service.stop(SOON).code(), Some(0));
    }
}

#[test]
fn workers_of_granian_without_the_agent_stay_and_the_reason_and_the_switch_are_told() {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--ceiling", "300M", "--agent", "off"];
    let service = Plan::supervise(&options, &granian(port, "asgi")).start();
    let before = service.ready(2);
    assert_eq!(before["mode"], "server", "{before:#}");
    let answer = service.client(&["recycle", "--all"]);
    let stderr = String::from_utf8_lossy(&answer.stderr);
    assert!(
        stderr.contains("without the agent") && stderr.contains("--server none"),
        "{stderr}"
    );
    let load = Load::on(port);
    load.once("/").unwrap();
    assert_eq!(pids(&service.ready(2)), pids(&before));
    assert_eq!(service.stop(SOON).code(), Some(0));
}
