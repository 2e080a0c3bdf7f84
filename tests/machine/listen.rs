//! The sockets that are held for the command: its end, and ours, refuses no connection.

use std::{net::TcpListener, os::unix::net::UnixStream, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::{Load, Outcome, Running},
    house::{House, Plan, free_port, pids, send},
    http::Failure,
    proc, turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

/// Load that is on until it is told to end: new connections only, and few enough that hardly any is
/// in flight at a given moment.
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

/// What the command line starts is killed, with all its workers, and comes back.
fn killed_under_load(options: &[&str], command: &[String], port: u16) -> Outcome {
    let is_server = command[0].ends_with("gunicorn");
    let count = if is_server { 2 } else { 1 };
    let house = Plan::supervise(options, command).start();
    let before = pids(&house.ready(count));
    let running = load(port);
    running.meets(100);
    let master = || proc::parent(before[0]).expect("a worker has a parent");
    let victim = if is_server { master() } else { before[0] };
    send(victim, Signal::SIGKILL);
    house.wait("other workers", SOON, || {
        let now = pids(&house.ready(count));
        now.iter().all(|pid| !before.contains(pid)).then_some(())
    });
    running.meets(100);
    running.finish()
}

/// SIGKILL loses what is in flight: on each connection one request at the most.
#[track_caller]
fn nobody_is_refused(command: &[String], port: u16) {
    let outcome = killed_under_load(&["--listen", &format!("127.0.0.1:{port}")], command, port);
    let refused = outcome.failures.get(&Failure::Refused);
    assert_eq!(refused, None, "{outcome}");
    assert!(outcome.failed() <= 8, "{outcome}");
}

#[test]
fn a_killed_gunicorn_refuses_nobody_whose_socket_is_held() {
    let _turn = turn::alone();
    let port = free_port();
    nobody_is_refused(&NEWEST.gunicorn(port, FLASK), port);
}

#[test]
fn a_killed_uvicorn_refuses_nobody_whose_socket_is_held() {
    let _turn = turn::alone();
    let command = [NEWEST.bin("uvicorn"), "leaky_asgi:app".to_owned()];
    nobody_is_refused(&command, free_port());
}

#[test]
fn a_killed_server_with_a_socket_of_its_own_refuses() {
    let _turn = turn::alone();
    let port = free_port();
    let outcome = killed_under_load(&[], &NEWEST.gunicorn(port, FLASK), port);
    println!("own: {outcome}");
    let refused = outcome.failures.get(&Failure::Refused);
    assert!(refused.is_some(), "{outcome}");
}

/// On a socket that is handed in, whatever the command line says.
fn activated(socket: &TcpListener) -> House {
    let socket = socket.try_clone().unwrap();
    let command = NEWEST.gunicorn(free_port(), FLASK);
    Plan::supervise(&[], &command).handed(socket).start()
}

#[test]
fn we_ourselves_are_restarted_on_a_socket_that_is_handed_in_and_nothing_is_lost() {
    let _turn = turn::alone();
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let first = activated(&socket);
    let old = pids(&first.ready(2));
    let running = load(port);
    running.meets(100);
    assert_eq!(first.stop(SOON).code(), Some(0));
    let second = activated(&socket);
    let new = pids(&second.ready(2));
    running.meets(100);
    let outcome = running.finish();
    println!("restarted: {outcome}");
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let served = |pids: &[i32]| pids.iter().any(|pid| outcome.pids.contains(pid));
    assert!(served(&old) && served(&new), "{outcome}");
}

#[test]
fn a_service_that_is_given_up_lets_its_sockets_go() {
    let _turn = turn::beside();
    let address = format!("127.0.0.1:{}", free_port());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http");
    let unix = format!("unix:{}", path.display());
    let options = ["--listen", &address, "--listen", &unix, "--restart-limit"];
    let options = [&options[..], &["1", "--restart-delay-min", "10ms"]].concat();
    let mut house = Plan::supervise(&options, &["sh", "-c", "sleep 1; exit 3"]).start();
    house.wait("both sockets", SOON, || {
        let unix = UnixStream::connect(&path).ok();
        unix.and_then(|_| std::net::TcpStream::connect(&address).ok())
    });
    assert_eq!(house.ends(SOON).code(), Some(75));
    assert!(!path.exists());
    assert!(TcpListener::bind(&address).is_ok());
}

#[test]
fn the_command_of_another_user_has_the_sockets_and_is_meant_by_them() {
    let _turn = turn::beside();
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID $$ $(id -un); \
                  readlink /proc/$$/fd/3 /proc/$$/fd/4";
    let address = format!("127.0.0.1:{}", free_port());
    let mut options = vec!["--restart", "never", "--name", "shop", "--listen", &address];
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        options.extend(["--user", "nobody"]);
    } else {
        println!("not root: not tested with another user");
    }
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let plan = Plan::supervise(&options, &["sh", "-c", script]);
    let ended = plan.handed(socket).run(SOON);
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
