//! A socket that outlives its server accepts connections again as soon as the next server is ready.

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    service::{Plan, Service, free_port, send},
    status::pids,
    turn,
    venv::{NEWEST, OTHERS, python},
};

const SOON: Duration = Duration::from_secs(30);

/// Sends requests over many new connections, so that every worker gets one.
#[track_caller]
fn assert_answers(service: &Service, load: &Load, when: &str) {
    service.wait(&format!("an answer {when}"), SOON, || {
        load.once("/pid").ok()
    });
    for _ in 0..10 {
        let answer = load.once("/pid");
        assert!(answer.is_ok(), "{when}: {answer:?}\n{}", service.log());
    }
}

fn uvicorn_workers() -> Vec<String> {
    let words = [&*NEWEST.bin("uvicorn"), "--workers", "2", "leaky_asgi:app"];
    words.map(str::to_owned).to_vec()
}

/// Replaces all processes of `command`, which has this many workers, while `supervise` holds their
/// socket.
#[track_caller]
fn assert_served_again(port: u16, (command, count): (&[String], usize), replacements: &[&[&str]]) {
    let _turn = turn::beside();
    let listen = format!("127.0.0.1:{port}");
    let options = ["--listen", &listen, "--min-age", "0s"];
    let service = Plan::supervise(&options, command).start();
    let load = Load::on(port);
    assert_answers(&service, &load, "after the start");
    for how in replacements {
        let before = pids(&service.ready(count));
        let answer = service.client(how);
        assert!(answer.status.success(), "{answer:?}\n{}", service.log());
        assert_answers(&service, &load, &format!("after {how:?}"));
        let after = pids(&service.ready(count));
        assert!(after.iter().all(|pid| !before.contains(pid)), "{how:?}");
    }
}

#[test]
fn uvicorn_workers_answer_on_a_held_socket_after_a_recycle_and_a_reload() {
    let replacements = [&["recycle", "--all"][..], &["reload"]];
    assert_served_again(free_port(), (&uvicorn_workers(), 2), &replacements);
}

#[test]
fn hypercorn_workers_answer_on_a_held_socket_after_a_recycle() {
    let program = OTHERS.bin("hypercorn");
    let words = [&*program, "-w", "2", "--bind", "fd://3", "leaky_asgi:app"];
    let replacements = [&["recycle", "--all"][..]];
    assert_served_again(free_port(), (&words.map(str::to_owned), 2), &replacements);
}

#[test]
fn granian_workers_answer_on_a_held_socket_after_a_recycle() {
    let program = OTHERS.bin("granian");
    let words = [
        &*program,
        "--interface",
        "asgi",
        "--workers",
        "2",
        "leaky_asgi:app",
    ];
    let replacements = [&["recycle", "--all"][..]];
    assert_served_again(free_port(), (&words.map(str::to_owned), 2), &replacements);
}

#[test]
fn a_socket_from_the_service_manager_is_served_again_after_a_restart() {
    let _turn = turn::beside();
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let load = Load::on(socket.local_addr().unwrap().port());
    for when in ["at the first start", "at the second start"] {
        let socket = socket.try_clone().unwrap();
        let service = Plan::supervise(&[], &uvicorn_workers())
            .with_socket(socket)
            .start();
        assert_answers(&service, &load, when);
        assert_eq!(service.stop(SOON).code(), Some(0), "{when}");
    }
}

/// An older version of `supervise`, or another program, may have left the filter on the socket.
#[test]
fn a_passed_socket_with_a_drop_filter_is_served() {
    let _turn = turn::beside();
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    // SO_ATTACH_FILTER with one instruction of classic BPF: drop.
    let script = "import array, socket, struct\ns = socket.socket(fileno=0)\n\
                  code = array.array('B', struct.pack('HBBI', 6, 0, 0, 0))\n\
                  s.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HL', 1, code.buffer_info()[0]))";
    let filters = Command::new(python())
        .args(["-c", script])
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())))
        .status();
    assert!(filters.unwrap().success());
    let mut load = Load::on(socket.local_addr().unwrap().port());
    let patience = std::mem::replace(&mut load.timeout, Duration::from_millis(500));
    assert!(load.once("/pid").is_err());
    load.timeout = patience;
    let service = Plan::supervise(&[], &uvicorn_workers())
        .with_socket(socket)
        .start();
    assert_answers(&service, &load, "with a filter");
}

/// The process that ends must not put a filter on the socket that its siblings accept from.
#[test]
fn processes_that_share_a_listener_answer_after_one_of_them_has_ended() {
    let _turn = turn::beside();
    let port = free_port();
    let (program, port_word) = (OTHERS.bin("python"), port.to_string());
    let command = [&*program, "prefork_waitress.py", &port_word];
    let service = Plan::supervise(&[], &command).start();
    let both = || {
        let output = service.stdout();
        let pids: Vec<i32> = output
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect();
        (pids.len() == 2).then_some(pids)
    };
    let pids = service.wait("both processes", SOON, both);
    let load = Load::on(port);
    assert_answers(&service, &load, "at the start");
    send(pids[0], Signal::SIGTERM);
    service.wait("one of them to end", SOON, || {
        (!super::proc::is_alive(pids[0])).then_some(())
    });
    assert_answers(&service, &load, "when one has ended");
}
