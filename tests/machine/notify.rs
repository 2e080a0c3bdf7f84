//! Messages that the command sends about itself (sd_notify(3)).

use std::{os::unix::net::UnixDatagram, time::Duration};

use nix::sys::signal::Signal;

use super::{
    service::{Plan, Service},
    turn,
    venv::python,
};

const SOON: Duration = Duration::from_secs(20);

/// A program that needs two seconds to stop, and one second to do so. `asks`: it asks for more.
fn program(asks: &[&str], options: &[&str], manager: Option<&str>) -> Service {
    let options = [&["--grace", "1s"], options].concat();
    let mut command = vec![python(), "asks_for_time.py".to_owned()];
    command.extend(asks.iter().map(ToString::to_string));
    let mut plan = Plan::supervise(&options, &command);
    if let Some(socket) = manager {
        plan = plan.env("NOTIFY_SOCKET", socket);
    }
    let service = plan.start();
    service.wait_for_output("works", SOON);
    service
}

#[test]
fn a_program_that_asks_for_more_time_finishes_its_work_before_it_stops() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut service = program(&["asks"], &[], path.to_str());
    service.signal(Signal::SIGTERM);
    let worker = service.wait("what it says", SOON, || {
        let status = service.status()?;
        let left = status["killed_in_s"].as_f64().filter(|left| *left > 10.0);
        left.map(|_| status["workers"][0].clone())
    });
    assert_eq!(worker["status_text"], "writing batch 7", "{worker:#}");
    let page = service.client(&["status"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("w1: writing batch 7"), "{page}");
    assert!(page.contains("the command, killed in "), "{page}");
    assert!(service.ends(SOON).success(), "{}", service.log());
    assert!(service.stdout().contains("saved"), "{}", service.log());
    let log = service.log();
    let told = "w1 needs more time to stop (writing batch 7); killed in 20s";
    assert!(log.contains(told), "{log}");
    let mut extensions = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = manager.recv(&mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let seconds = message.strip_prefix("EXTEND_TIMEOUT_USEC=");
        extensions.extend(seconds.and_then(|usec| usec.parse::<u64>().ok()));
    }
    let last = extensions.last().map(|usec| usec / 1_000_000);
    // Until the kill, and then two seconds for the rest.
    assert!(
        last.is_some_and(|last| (20..=22).contains(&last)),
        "{extensions:?}"
    );
}

#[test]
fn a_program_that_does_not_ask_or_may_not_ask_is_killed_after_its_grace_period() {
    let _turn = turn::beside();
    let silent = program(&[], &[], None);
    let refused = program(&["asks"], &["--extend-max", "0s"], None);
    for mut service in [silent, refused] {
        service.signal(Signal::SIGTERM);
        service.ends(SOON);
        assert!(!service.stdout().contains("saved"), "{}", service.log());
    }
}

#[test]
fn a_worker_that_is_recycled_finishes_its_work_before_the_next_start() {
    let _turn = turn::beside();
    let service = program(&["asks"], &[], None);
    service.ready(1);
    let answer = service.client(&["recycle", "w1"]);
    assert!(answer.status.success(), "{}", service.log());
    assert!(service.stdout().contains("saved"), "{}", service.log());
    let status = service.ready(1);
    let ends = status["ends"].as_array().expect("ends");
    assert_eq!(ends[0]["killed"], false, "{status:#}");
    assert_eq!(ends[0]["cause"], "request", "{status:#}");
}
