//! Sockets that `supervise` holds for the command: neither the end of the command nor a restart of
//! `supervise` refuses a connection.

use std::{net::TcpListener, os::unix::net::UnixStream, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::{Load, Outcome, Running},
    http::Failure,
    proc,
    service::{Plan, Service, free_port, send},
    status::pids,
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

/// A load until it is finished: only new connections, and so few that hardly any is in flight at a
/// given moment.
fn load(port: u16) -> Running {
    Load {
        path: "/pid".to_owned(),
        keep_alive: false,
        rate: Some(100.0),
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start()
}

/// Kills the command under load, and waits until it serves again with new workers.
fn kill_under_load(options: &[&str], command: &[String], port: u16) -> Outcome {
    let is_server = command[0].ends_with("gunicorn");
    let count = if is_server { 2 } else { 1 };
    let service = Plan::supervise(options, command).start();
    let before = pids(&service.ready(count));
    let running = load(port);
    running.wait_for_answers(100);
    let master = || proc::parent(before[0]).expect("a worker has a parent");
    let victim = if is_server { master() } else { before[0] };
    send(victim, Signal::SIGKILL);
    service.wait("other workers", SOON, || {
        let now = pids(&service.ready(count));
        now.iter().all(|pid| !before.contains(pid)).then_some(())
    });
    running.wait_for_answers(100);
    running.finish()
}

/// SIGKILL loses the requests in flight: at most one on each connection.
#[track_caller]
fn assert_none_refused(command: &[String], port: u16) {
    let outcome = kill_under_load(&["--listen", &format!("127.0.0.1:{port}")], command, port);
    let refused = outcome.failures.get(&Failure::Refused);
    assert_eq!(refused, None, "{outcome}");
    assert!(outcome.failed() <= 8, "{outcome}");
}

#[test]
fn a_killed_gunicorn_with_a_held_socket_refuses_no_connection() {
    let _turn = turn::loaded();
    let port = free_port();
    assert_none_refused(&NEWEST.gunicorn(port, FLASK), port);
}

#[test]
fn a_killed_uvicorn_with_a_held_socket_refuses_no_connection() {
    let _turn = turn::loaded();
    let command = [NEWEST.bin("uvicorn"), "leaky_asgi:app".to_owned()];
    assert_none_refused(&command, free_port());
}

#[test]
fn a_killed_server_with_its_own_socket_refuses_connections() {
    let _turn = turn::loaded();
    let port = free_port();
    let outcome = kill_under_load(&[], &NEWEST.gunicorn(port, FLASK), port);
    println!("own: {outcome}");
    let refused = outcome.failures.get(&Failure::Refused);
    assert!(refused.is_some(), "{outcome}");
}

/// Starts a gunicorn on a socket that is passed in, whatever address its command line has.
fn activated(socket: &TcpListener) -> Service {
    let socket = socket.try_clone().unwrap();
    let command = NEWEST.gunicorn(free_port(), FLASK);
    Plan::supervise(&[], &command).with_socket(socket).start()
}

#[test]
fn a_restart_of_supervise_on_a_passed_socket_loses_no_request() {
    let _turn = turn::loaded();
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let first = activated(&socket);
    let old = pids(&first.ready(2));
    let running = load(port);
    running.wait_for_answers(100);
    assert_eq!(first.stop(SOON).code(), Some(0));
    let second = activated(&socket);
    let new = pids(&second.ready(2));
    running.wait_for_answers(100);
    let outcome = running.finish();
    println!("restarted: {outcome}");
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let served = |pids: &[i32]| pids.iter().any(|pid| outcome.pids.contains(pid));
    assert!(served(&old) && served(&new), "{outcome}");
}

#[test]
fn a_service_that_supervise_gives_up_closes_its_sockets() {
    let _turn = turn::beside();
    let address = format!("127.0.0.1:{}", free_port());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http");
    let unix = format!("unix:{}", path.display());
    let options = ["--listen", &address, "--listen", &unix, "--restart-limit"];
    let options = [&options[..], &["1", "--restart-delay-min", "10ms"]].concat();
    let mut service = Plan::supervise(&options, &["sh", "-c", "sleep 1; exit 3"]).start();
    service.wait("both sockets", SOON, || {
        let unix = UnixStream::connect(&path).ok();
        unix.and_then(|_| std::net::TcpStream::connect(&address).ok())
    });
    assert_eq!(service.ends(SOON).code(), Some(75));
    assert!(!path.exists());
    assert!(TcpListener::bind(&address).is_ok());
}

#[test]
fn a_command_as_another_user_gets_the_sockets_and_the_variables_that_name_them() {
    let _turn = turn::beside();
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID $$ $(id -un); \
                  readlink /proc/$$/fd/3 /proc/$$/fd/4";
    let address = format!("127.0.0.1:{}", free_port());
    let mut options = vec!["--restart", "never", "--name", "shop", "--listen", &address];
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        options.extend(["--user", "nobody"]);
    } else {
        println!("not root: the test with another user is not run");
    }
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let plan = Plan::supervise(&options, &["sh", "-c", script]);
    let ended = plan.with_socket(socket).run(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let lines: Vec<_> = ended.stdout.lines().collect();
    let words: Vec<_> = lines[0].split(' ').collect();
    assert_eq!(words[..2], ["2", "web:shop"], "{}", ended.stdout);
    assert_eq!(words[2], words[3], "{}", ended.stdout);
    assert!(!is_root || words[4] == "nobody", "{}", ended.stdout);
    let sockets = lines[1..3]
        .iter()
        .filter(|line| line.starts_with("socket:"));
    assert_eq!(sockets.count(), 2, "{}", ended.stdout);
}
