//! Limits that follow from what the workers of a service have needed.

use std::{process::Output, time::Duration};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::Load,
    service::{Plan, Service, free_port},
    turn,
    venv::{Gunicorn, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);
/// What each request leaks.
const LEAK_KB: u64 = 400;

fn suggestion(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits for a suggestion. It follows from the lives of six workers: on a busy machine, the growth
/// of a single short life is uncertain.
fn wait_for_suggestion(service: &Service) -> Value {
    service.wait("a suggestion", SOON * 2, || {
        let output = service.client(&["suggest", "--json"]);
        let found = output.status.success().then(|| suggestion(&output))?;
        (found["seen"]["ended"].as_u64() >= Some(6)).then_some(found)
    })
}

#[test]
fn the_limits_of_a_leaking_service_follow_from_what_it_needs_also_after_its_end() {
    let _turn = turn::loaded();
    let port = free_port();
    let home = TempDir::new().unwrap();
    let kept = home.path().join("kept").display().to_string();
    let name = format!("suggested-{}", std::process::id());
    // Workers live for a few seconds only, less than the default minimum age.
    let options = [
        "--leaks-directory",
        &kept,
        "--name",
        &name,
        "--ceiling",
        "110M",
        "--min-age",
        "1s",
    ];
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, Gunicorn::of("sync")))
        .env("LEAK_KB", LEAK_KB)
        .start();
    service.ready(2);
    let early = service.client(&["suggest"]);
    assert_eq!(early.status.code(), Some(1));
    let text = String::from_utf8_lossy(&early.stdout);
    assert!(text.contains("too little seen"), "{text}");

    let load = Load {
        rate: Some(50.0),
        lasts: SOON * 2,
        ..Load::on(port)
    }
    .start();
    let found = wait_for_suggestion(&service);
    let outcome = load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");

    let mib = |field: &str| found["limits"][field].as_u64().unwrap() >> 20;
    assert!((20..110).contains(&mib("ceiling")), "{found:#}");
    assert_eq!(mib("cap"), 2 * mib("ceiling"), "{found:#}");
    assert!(found["limits"]["workers"].as_u64().unwrap() >= 2);
    let growth = found["seen"]["growth_per_task"].as_f64().unwrap() / 1024.0;
    assert!((300.0..500.0).contains(&growth), "{growth} KiB: {found:#}");
    assert_eq!(found["now"]["ceiling"], 110 << 20);

    let (status, history) = service.ask("/v1/history");
    let history: Value = serde_json::from_str(&history).unwrap();
    assert_eq!(status, 200);
    let newest = history["curves"][0]["points"].as_array().unwrap().last();
    let newest = newest.unwrap();
    assert!(newest[1].as_u64().unwrap() > 20 << 20, "{newest}");
    assert!(newest[2].as_u64().unwrap() >= 2, "{newest}");

    service.stop(SOON);
    let ended = std::process::Command::new(super::service::SUPERVISE)
        .args(["--leaks-directory", &kept, "suggest", &name])
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{ended:?}");
    assert!(page.contains("(now 110M)"), "{page}");
    assert!(page.contains("try        supervise --ceiling "), "{page}");
}

#[test]
fn a_dry_run_ends_with_a_suggestion() {
    let _turn = turn::beside();
    let ended = Plan::supervise(&["--dry-run", "--restart", "on-failure"], &["true"]).run(SOON);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("the dry run suggests no limits: too little seen"),
        "{}",
        ended.stderr
    );
}
