//! The service manager: what it is told, and whether it takes our units.

use std::{os::unix::net::UnixDatagram, process::Command, thread, time::Duration};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    house::{House, Plan, free_port, pids},
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_service_manager_is_told() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", path.display())
        .env("WATCHDOG_USEC", 400_000)
        .start();
    let first = hear(&house, &socket, "READY=1");
    // Gunicorn would say so itself, before it has a worker.
    assert!(!first.contains("Gunicorn"), "{first}");
    // Whoever is told so may ask at once.
    assert!(Load::on(port).once("/pid").is_ok());
    hear(&house, &socket, "STATUS=");
    hear(&house, &socket, "WATCHDOG=1");
    thread::scope(|scope| {
        // It returns when the reload is over; nobody else empties the socket meanwhile.
        let reload = scope.spawn(|| house.client(&["reload"]));
        let told = hear(&house, &socket, "RELOADING=1");
        assert!(told.contains("MONOTONIC_USEC="), "{told}");
        hear(&house, &socket, "READY=1");
        assert!(reload.join().unwrap().status.success());
    });
    // As systemd asks with `Type=notify-reload` (systemd.service(5)).
    let before = pids(&house.ready(2));
    signal_to_reload(&house);
    let told = hear(&house, &socket, "RELOADING=1");
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    hear(&house, &socket, "READY=1");
    let after = pids(&house.ready(2));
    assert!(after.iter().all(|pid| !before.contains(pid)), "{after:?}");
    house.signal(Signal::SIGTERM);
    hear(&house, &socket, "STOPPING=1");
}

/// Waits for a message with a line that begins so; what was said up to it, and the message.
#[track_caller]
fn hear(house: &House, socket: &UnixDatagram, wanted: &str) -> String {
    let mut told = String::new();
    house.wait(wanted, SOON, || {
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..count]);
            told.push_str(&message);
            told.push('\n');
            if message.lines().any(|line| line.starts_with(wanted)) {
                return Some(());
            }
        }
        None
    });
    told
}

/// `nix` has no real-time signals.
fn signal_to_reload(house: &House) {
    let command = format!("kill -35 {}", house.pid());
    let sent = Command::new("sh").args(["-c", &command]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

#[test]
fn the_line_of_the_status_follows_the_memory() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "400M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", path.display())
        .start();
    house.ready(2);
    let before = hear(&house, &socket, "STATUS=2 workers, ");
    assert!(Load::on(port).once("/alloc?mb=150").is_ok());
    // No worker has come or gone.
    house.wait("150 MB more", SOON, || {
        let after = hear(&house, &socket, "STATUS=2 workers, ");
        (megabytes(&after) > megabytes(&before) + 100.0).then_some(())
    });
}

/// The total of the last status.
fn megabytes(told: &str) -> f64 {
    let line = told.lines().rfind(|line| line.starts_with("STATUS="));
    let figure = line.and_then(|line| line.split(", ").nth(1)?.split('M').next());
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a total in megabytes")
}
