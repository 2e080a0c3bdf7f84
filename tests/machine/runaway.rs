//! One request that takes all it can get: its worker meets the cap, and nobody else notices. And
//! limits that are too small for the service itself.

use std::time::Duration;

use serde_json::Value;

use super::{
    client::Load,
    house::{House, Plan, free_port, pids, workers},
    turn,
    venv::{Gunicorn, NEWEST},
};

#[test]
fn a_runaway_request_ends_only_its_own_worker_and_at_its_cap() {
    let _turn = turn::alone();
    let port = free_port();
    // A sync worker has no other request in hand when it dies of one.
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let options = ["--ceiling", "150M", "--cap", "250M"];
    let house = Plan::supervise(&options, &command).start();
    let status = house.ready(2);
    if status["caps"]["mechanism"] == "rlimit" {
        println!("no memory cgroup here: the end by RLIMIT_DATA is a MemoryError, not tested");
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
    let end = house.wait("an end by the cap", Duration::from_secs(10), || {
        let status = house.status()?;
        let ends = status["ends"].as_array()?.clone();
        ends.into_iter().find(|end| end["cause"] == "cap")
    });
    house.ready(2);
    let outcome = others.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let peak = end["peak"].as_u64().expect("a peak");
    assert!((200 << 20..=250 << 20).contains(&peak), "{end:#}");
    assert_eq!(end["limit"], 250 << 20, "{end:#}");
    let status = house.status().expect("a status");
    assert_eq!(
        status["ends"].as_array().map(Vec::len),
        Some(1),
        "{status:#}"
    );
    // Two, and the spare if one was raised when it passed its ceiling.
    let spares = house.events();
    let spares = spares.iter().filter(|event| event["event"] == "raised");
    assert_eq!(workers(&status).len(), 2 + spares.count(), "{status:#}");
}

#[test]
fn a_ceiling_below_birth_is_said_once_and_nobody_is_recycled_for_it() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let options = ["--ceiling", "10M", "--cap", "none", "--min-age", "100ms"];
    let house = Plan::supervise(&options, &command).start();
    let before = pids(&house.ready(2));
    let said = house.wait("the warning", Duration::from_secs(15), || {
        let warnings = warnings(&house);
        (!warnings.is_empty()).then_some(warnings)
    });
    assert!(said[0].contains("10M"), "{said:?}");
    // Old enough thirty times over to be recycled, if anybody were to be.
    house.wait("workers of three seconds", Duration::from_secs(15), || {
        let status = house.status()?;
        let old = |worker: &Value| worker["age_s"].as_f64().is_some_and(|age| age >= 3.0);
        workers(&status).iter().all(old).then_some(())
    });
    assert_eq!(warnings(&house), said);
    assert_eq!(pids(&house.ready(2)), before);
}

#[test]
fn a_cap_too_small_for_the_import_is_diagnosed() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let options = ["--ceiling", "none", "--cap", "8M"];
    let house = Plan::supervise(&options, &command).start();
    house.wait(
        "a warning that names the cap",
        Duration::from_secs(20),
        || {
            warnings(&house)
                .iter()
                .any(|text| text.contains("cap") && text.contains("8M"))
                .then_some(())
        },
    );
}

/// What `supervise` warned of, oldest first.
fn warnings(house: &House) -> Vec<String> {
    house
        .events()
        .iter()
        .filter(|event| event["event"] == "warning")
        .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}
