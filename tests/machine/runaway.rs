//! A request that takes all memory it can get: its worker reaches the cap, and other requests are
//! not affected. And limits that are too small for the service itself.

use std::time::Duration;

use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port},
    status::{pids, workers},
    turn,
    venv::{Gunicorn, NEWEST},
};

#[test]
fn a_runaway_request_ends_only_its_own_worker_at_its_cap() {
    let _turn = turn::loaded();
    let port = free_port();
    // A sync worker serves one request at a time, so no other request dies with it.
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let options = ["--ceiling", "150M", "--cap", "250M"];
    let service = Plan::supervise(&options, &command).start();
    let status = service.ready(2);
    if status["caps"]["mechanism"] == "rlimit" {
        println!("NOT RUN: needs a memory cgroup (with RLIMIT_DATA the end is a MemoryError)");
        return;
    }
    let load = Load {
        path: "/pid".to_owned(),
        rate: Some(40.0),
        keep_alive: false,
        lasts: Duration::from_secs(20),
        ..Load::on(port)
    };
    let others = load.clone().start();
    assert!(load.once("/alloc?mb=1000&rate=1000").is_err());
    let end = service.wait("an end by the cap", Duration::from_secs(10), || {
        let status = service.status()?;
        let ends = status["ends"].as_array()?.clone();
        ends.into_iter().find(|end| end["cause"] == "cap")
    });
    service.ready(2);
    let outcome = others.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let peak = end["peak"].as_u64().expect("a peak");
    assert!((200 << 20..=250 << 20).contains(&peak), "{end:#}");
    assert_eq!(end["limit"], 250 << 20, "{end:#}");
    let events = service.events_of("worker-ended");
    let by_cap = events.iter().find(|event| event["cause"] == "cap");
    let event = by_cap.expect("the event of the end");
    assert_eq!(
        (&event["request"], &event["in_progress"]),
        (&"/alloc".into(), &1.into()),
        "{event:#}"
    );
    // It takes 250 MB at 1000 MB a second.
    assert!(
        event["request_age_s"]
            .as_f64()
            .is_some_and(|age| (0.1..10.0).contains(&age)),
        "{event:#}"
    );
    let status = service.status().expect("a status");
    assert_eq!(
        status["ends"].as_array().map(Vec::len),
        Some(1),
        "{status:#}"
    );
    // Two, and the surge worker if one was started when the worker exceeded its ceiling.
    let surge = service.events();
    let surge = surge.iter().filter(|event| event["event"] == "raised");
    assert_eq!(workers(&status).len(), 2 + surge.count(), "{status:#}");
}

#[test]
fn a_ceiling_below_the_initial_memory_causes_one_warning_and_no_recycle() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let options = ["--ceiling", "10M", "--cap", "none", "--min-age", "100ms"];
    let service = Plan::supervise(&options, &command).start();
    let before = pids(&service.ready(2));
    let first_warnings = service.wait("the warning", Duration::from_secs(15), || {
        let warnings = warnings(&service);
        (!warnings.is_empty()).then_some(warnings)
    });
    assert!(first_warnings[0].contains("10M"), "{first_warnings:?}");
    // Thirty times the minimum age: any recycle would have happened by then.
    service.wait("workers of three seconds", Duration::from_secs(15), || {
        let status = service.status()?;
        let old = |worker: &Value| worker["age_s"].as_f64().is_some_and(|age| age >= 3.0);
        workers(&status).iter().all(old).then_some(())
    });
    assert_eq!(warnings(&service), first_warnings);
    assert_eq!(pids(&service.ready(2)), before);
}

#[test]
fn a_cap_too_small_for_the_import_causes_a_warning_that_names_it() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let options = ["--ceiling", "none", "--cap", "8M"];
    let service = Plan::supervise(&options, &command).start();
    service.wait(
        "a warning that names the cap",
        Duration::from_secs(20),
        || {
            warnings(&service)
                .iter()
                .any(|text| text.contains("cap") && text.contains("8M"))
                .then_some(())
        },
    );
}

/// The warnings, oldest first.
fn warnings(service: &Service) -> Vec<String> {
    service
        .events()
        .iter()
        .filter(|event| event["event"] == "warning")
        .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}
