//! Memory reports of the workers of a pool, and what a pool leaves on disk.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    clock,
    pool::{map, output_of, read},
    pool_status::{Pool, end_by, folder, lines, runs},
    service::send,
    status::{pids, workers},
    turn,
};

/// A longer wait fails a test.
const LIMIT: Duration = Duration::from_secs(60);

/// Each task adds 10 MB to what its worker holds.
const LEAK: &str = "
import time

KEPT = {}

def task(number):
    KEPT[number] = b'x' * 10_000_000
    time.sleep(0.05)
    return number
";

/// What a client finds in the state directory of a pool that has ended.
fn kept(folder: &std::path::Path, words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_supervise"))
        .args(words)
        .current_dir(folder)
        .env("XDG_RUNTIME_DIR", folder)
        .env("STATE_DIRECTORY", folder.join("state"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_worker_of_a_pool_over_its_ceiling_reports_what_holds_its_memory() {
    let _turn = turn::beside();
    let folder = folder();
    fs::write(folder.path().join("leak.py"), LEAK).unwrap();
    fs::write(folder.path().join("in"), lines(40)).unwrap();
    let words = ["--ceiling", "80M", "--cap", "400M", "-i", "in", "leak:task"];
    let output = map(folder.path(), &words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // No task is lost for a report.
    assert_eq!(read(&output.stdout).len(), 40);

    let text = kept(folder.path(), &["report", "map-leak", "--json"]);
    let reports: Vec<Value> = serde_json::from_str(&text).unwrap();
    // The first worker that passes its ceiling reports, and the next only after a pause.
    let [report] = &reports[..] else {
        panic!("{reports:#?}");
    };
    assert_eq!(report["cause"], "ceiling", "{report:#}");
    assert_eq!(report["verdict"], "python", "{report:#}");
    assert_eq!(report["suspects"][0]["holder"], "leak.KEPT", "{report:#}");
    let shown = kept(folder.path(), &["report", "map-leak"]);
    assert!(shown.contains("leak.KEPT"), "{shown}");

    let text = kept(folder.path(), &["events", "map-leak", "--json"]);
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| events.iter().filter(|it| it["event"] == kind).count();
    assert_eq!(of("reported"), 1, "{text}");
    let ended = events.iter().find(|it| it["report"] == report["id"]);
    assert!(
        ended.is_some_and(|it| it["worker"] == report["worker"]),
        "{text}"
    );
}

#[test]
fn an_operator_gets_a_report_of_a_worker_of_a_pool_after_its_task() {
    let _turn = turn::beside();
    let mut pool = Pool::start(folder(), &["gate:waits"], &lines(4));
    pool.shows("two tasks", runs(2));
    let mut client = pool.client(&["report", "w1", "--json"]).spawn().unwrap();
    // It waits for the task.
    assert_eq!(client.try_wait().unwrap(), None);
    pool.open("open");
    let output = output_of(client);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["worker"], &report["cause"]),
        (&"w1".into(), &"request".into())
    );
    let kept = pool.client(&["report", "r1", "--json"]).output().unwrap();
    assert_eq!(kept.stdout, output.stdout, "{kept:?}");
    let status = pool.shows("all tasks", |status| status["pool"]["done"] == 4);
    assert!(end_by(&status, "request").is_none(), "{status:#}");
    let unknown = pool.client(&["report", "w9"]).output().unwrap();
    assert!(!unknown.status.success(), "{unknown:?}");
    assert!(pool.ends().status.success());
}

/// Whether a client has connected to the control socket.
fn is_connected(client: &Child) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{}/fd", client.id())) else {
        return false;
    };
    let mut links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.any(|link| link.to_string_lossy().starts_with("socket:"))
}

#[test]
fn a_request_for_a_report_is_refused_when_its_worker_ends() {
    let _turn = turn::beside();
    let words = ["--retries", "100", "gate:waits"];
    let mut pool = Pool::start(folder(), &words, &lines(2));
    // A request may arrive after the end of its worker. Then it is made again.
    let refused = clock::poll(LIMIT, || {
        let status = pool.shows("two tasks", runs(2));
        let busy = &workers(&status)[0];
        let id = busy["id"].as_str().unwrap();
        let client = pool.client(&["report", id]).spawn().unwrap();
        clock::poll(LIMIT, || is_connected(&client).then_some(())).unwrap();
        send(pids(&status)[0], Signal::SIGKILL);
        let output = output_of(client);
        assert!(!output.status.success(), "{output:?}");
        let why = format!("{id}: it ended before it answered");
        String::from_utf8_lossy(&output.stderr)
            .contains(&why)
            .then_some(())
    });
    assert!(refused.is_some());
    pool.open("open");
    pool.ends();
}

#[test]
fn a_pool_makes_no_reports_if_they_are_off() {
    let _turn = turn::beside();
    let folder = folder();
    fs::write(folder.path().join("leak.py"), LEAK).unwrap();
    fs::write(folder.path().join("in"), lines(40)).unwrap();
    let words = [
        "--ceiling",
        "80M",
        "--leaks",
        "off",
        "-i",
        "in",
        "leak:task",
    ];
    let output = map(folder.path(), &words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let events = kept(folder.path(), &["events", "map-leak"]);
    assert!(
        events.contains("ceiling") && !events.contains("memory report"),
        "{events}"
    );
}
