//! Questions to workers break no request. By default a worker that serves is asked none.

use std::time::Duration;

use serde_json::Value;

use super::{
    client::Load,
    house::{House, Plan, free_port, recycles},
    turn,
    venv::{FLASK, Gunicorn, NEWEST},
};

const LIMIT: Duration = Duration::from_secs(40);

fn load(port: u16) -> Load {
    Load {
        rate: Some(40.0),
        keep_alive: false,
        lasts: LIMIT,
        ..Load::on(port)
    }
}

/// Sends requests until a worker was recycled for its ceiling. None of them may fail. Gives the
/// status.
#[track_caller]
fn recycled_under_load(house: &House, port: u16) -> Value {
    house.ready(2);
    let running = load(port).start();
    let status = house.wait("a recycle for the ceiling", LIMIT, || {
        let status = house.status()?;
        (recycles(&status, "ceiling") >= 1).then_some(status)
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", house.log());
    status
}

#[test]
fn a_worker_that_serves_is_neither_traced_nor_asked_for_a_report_by_default() {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--ceiling", "80M", "--cap", "1G", "--min-age", "1s"];
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK))
        .env("LEAK_KB", 320)
        .start();
    let status = recycled_under_load(&house, port);
    assert!(!house.events_of("draining").is_empty(), "{}", house.log());
    for kind in ["armed", "reported"] {
        let events = house.events_of(kind);
        assert!(events.is_empty(), "{events:?}");
    }
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["report"], Value::Null, "{end}");
    }
}

#[test]
fn questions_break_no_object_that_threads_are_building() {
    let _turn = turn::alone();
    let port = free_port();
    let mut options = vec!["--ceiling", "60M", "--cap", "1G", "--min-age", "1s"];
    options.extend(["--leaks", "always"]);
    let threads = Gunicorn {
        app: "builds_tuples:app",
        ..FLASK
    };
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, threads))
        .env("LEAK_KB", 256)
        .start();
    recycled_under_load(&house, port);
    // At least one report was made by a worker itself, with a census from before it grew.
    let reports = house.client(&["report", "--json"]).stdout;
    let reports: Vec<Value> = serde_json::from_slice(&reports).unwrap();
    let armed = |report: &Value| report["base"] == "armed" && report["verdict"] == "python";
    assert!(reports.iter().any(armed), "{reports:#?}");
}

#[test]
fn a_worker_that_shares_its_memory_with_its_master_is_recycled_and_meets_no_cap() {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--ceiling", "40M", "--min-age", "1s", "--leaks", "on"];
    let preloaded = Gunicorn {
        app: "preloaded:app",
        ..Gunicorn::of("sync")
    };
    let mut command = NEWEST.gunicorn(port, preloaded);
    command.push("--preload".to_owned());
    let house = Plan::supervise(&options, &command)
        .env("LEAK_KB", 200)
        .env("PRELOADED_MB", 100)
        .start();
    let status = recycled_under_load(&house, port);
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["cause"], "ceiling", "{end}\n{}", house.log());
    }
    let log = house.log();
    let said = log
        .matches("without collecting garbage or reporting")
        .count();
    assert_eq!(said, 1, "{log}");
}
