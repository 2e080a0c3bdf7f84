//! Requests to agents do not disturb HTTP requests. A worker that is recycled makes its report when
//! it has answered its last request.

use std::time::Duration;

use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port, recycles},
    turn,
    venv::{FLASK, G20, Gunicorn, NEWEST, UVICORN, Venv},
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

/// Sends requests until a worker was recycled at its ceiling. None of them may fail. Returns the
/// status.
#[track_caller]
fn recycled_under_load(service: &Service, port: u16, workers: usize) -> Value {
    service.ready(workers);
    let running = load(port).start();
    let status = service.wait("a recycle at the ceiling", LIMIT, || {
        let status = service.status()?;
        (recycles(&status, "ceiling") >= 1).then_some(status)
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    status
}

/// A worker that is recycled at its ceiling makes its report after it has begun to drain, and its
/// end has the number of that report.
#[track_caller]
fn assert_reports_after_drain(venv: Venv, class: &'static str) {
    let port = free_port();
    let options = ["--ceiling", "80M", "--cap", "1G", "--min-age", "1s"];
    // No other worker waits for its report.
    let alone = Gunicorn {
        workers: 1,
        ..Gunicorn::of(class)
    };
    let command = venv.gunicorn(port, alone);
    let service = Plan::supervise(&options, &command)
        .env("LEAK_KB", 320)
        .start();
    let status = recycled_under_load(&service, port, 1);
    let ends = status["ends"].as_array().unwrap();
    let reported = ends.iter().find(|end| !end["report"].is_null());
    let reported = reported.unwrap_or_else(|| panic!("{class}: no report\n{}", service.log()));
    let events = service.events();
    let place = |kind: &str| {
        let is_it = |event: &Value| event["event"] == kind && event["worker"] == reported["worker"];
        events.iter().position(is_it)
    };
    let order = [place("draining"), place("reported"), place("worker-ended")];
    assert!(
        order.is_sorted() && order[0].is_some(),
        "{class}: {order:?}"
    );
    let id = reported["report"].as_str().unwrap();
    let report = service.client(&["report", id, "--json"]).stdout;
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["verdict"], "python", "{class}: {report:#}");
    let holders = report["suspects"].as_array().unwrap().iter();
    let holders: Vec<_> = holders.map(|suspect| &suspect["holder"]).collect();
    assert!(
        holders.contains(&&"leak.KEPT".into()),
        "{class}: {report:#}"
    );
}

#[test]
fn a_worker_reports_after_its_last_answer_by_default() {
    let _turn = turn::loaded();
    for class in ["sync", "gthread", "gevent", "asgi", UVICORN] {
        assert_reports_after_drain(NEWEST, class);
    }
}

#[test]
fn a_worker_of_an_old_gunicorn_reports_after_its_last_answer() {
    let _turn = turn::loaded();
    for class in ["sync", "gthread"] {
        assert_reports_after_drain(G20, class);
    }
}

#[test]
fn agent_requests_break_no_object_under_construction_in_threads() {
    let _turn = turn::loaded();
    let port = free_port();
    let mut options = vec!["--ceiling", "60M", "--cap", "1G", "--min-age", "1s"];
    options.extend(["--leaks", "always"]);
    let threads = Gunicorn {
        app: "builds_tuples:app",
        ..FLASK
    };
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, threads))
        .env("LEAK_KB", 256)
        .start();
    service.ready(2);
    let running = load(port).start();
    service.wait("a report after windows of tracing", LIMIT, || {
        let reports = service.client(&["report", "--json"]).stdout;
        let reports: Vec<Value> = serde_json::from_slice(&reports).ok()?;
        let traced = |report: &Value| report["cost"]["windows"].as_u64() > Some(0);
        reports.iter().any(traced).then_some(())
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
}

#[test]
fn a_worker_that_shares_memory_with_its_master_is_recycled_before_its_cap() {
    let _turn = turn::loaded();
    let port = free_port();
    let options = ["--ceiling", "40M", "--min-age", "1s", "--leaks", "on"];
    let preloaded = Gunicorn {
        app: "preloaded:app",
        ..Gunicorn::of("sync")
    };
    let mut command = NEWEST.gunicorn(port, preloaded);
    command.push("--preload".to_owned());
    let service = Plan::supervise(&options, &command)
        .env("LEAK_KB", 200)
        .env("PRELOADED_MB", 100)
        .start();
    let status = recycled_under_load(&service, port, 2);
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["cause"], "ceiling", "{end}\n{}", service.log());
    }
    let log = service.log();
    let warnings = log
        .matches("without collecting garbage or reporting")
        .count();
    assert_eq!(warnings, 1, "{log}");
}
