//! What questions to workers do to clients: by default nothing, and where they are asked nothing
//! that a client sees.

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

/// Waits until so many workers were recycled for their ceiling.
fn recycled(house: &House, count: u64) -> Value {
    house.wait("recycles for the ceiling", LIMIT, || {
        house
            .status()
            .filter(|status| recycles(status, "ceiling") >= count)
    })
}

fn events_of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let of_kind = |event: &&Value| event["event"] == kind;
    events.iter().filter(of_kind).collect()
}

#[test]
fn a_worker_that_serves_is_neither_traced_nor_asked_for_a_report_by_default() {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--ceiling", "80M", "--cap", "1G", "--min-age", "1s"];
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK))
        .env("LEAK_KB", 320)
        .start();
    house.ready(2);
    let running = load(port).start();
    let status = recycled(&house, 1);
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", house.log());
    let events = house.events();
    assert!(!events_of(&events, "draining").is_empty(), "{events:?}");
    for kind in ["armed", "reported"] {
        let told = events_of(&events, kind);
        assert!(told.is_empty(), "{told:?}");
    }
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["report"], Value::Null, "{end}");
    }
}

#[test]
fn questions_break_nothing_that_threads_build() {
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
    house.ready(2);
    let running = load(port).start();
    recycled(&house, 1);
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", house.log());
    // The workers themselves said so: it is not a look from outside.
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
    house.ready(2);
    let running = load(port).start();
    let status = recycled(&house, 1);
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", house.log());
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["cause"], "ceiling", "{end}\n{}", house.log());
    }
    let log = house.log();
    let said = log
        .matches("without collecting garbage or reporting")
        .count();
    assert_eq!(said, 1, "{log}");
}
