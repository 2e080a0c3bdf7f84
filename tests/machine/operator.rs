//! Requests of an operator and their answers.

use std::{io::Read, net::TcpStream, time::Duration};

use super::{
    client::Load,
    proc,
    service::{Plan, Service, free_port, recycles},
    status::{pids, workers},
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn start_gunicorn(options: &[&str]) -> (Service, Load) {
    let port = free_port();
    let mut all = vec!["--ceiling", "200M", "--name", "shop"];
    all.extend(options);
    let service = Plan::supervise(&all, &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    (service, Load::on(port))
}

#[test]
fn the_status_has_its_documented_fields() {
    let _turn = turn::beside();
    let (service, _) = start_gunicorn(&[]);
    let status = service.ready(2);
    assert_eq!(status["name"], "shop");
    assert_eq!(status["pid"], service.pid());
    assert_eq!(status["mode"], "server");
    assert!(status["version"].is_string() && !status["started"].is_null());
    assert!(status["caps"]["mechanism"].is_string());
    assert!(status["caps"]["enforced"].is_boolean());
    assert!(!status["limits"].is_null());
    for worker in workers(&status) {
        let pid = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
        assert!(worker["id"].as_str().unwrap().starts_with('w'));
        assert!(proc::command_line(pid).contains("gunicorn"), "{worker:#}");
        let seen = worker["memory"]["rss"].as_u64().unwrap();
        let (real, _) = proc::resident(pid).unwrap();
        assert!(seen.abs_diff(real) < 5 << 20, "{seen} {real}");
        assert!(worker["memory"]["private"].as_u64().unwrap() <= seen);
    }
    assert_eq!(status["ends"].as_array().map(Vec::len), Some(0));
}

#[test]
fn the_status_shows_the_private_memory_that_the_kernel_reports() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn(&[]);
    load.once("/alloc?mb=40").unwrap();
    // The bounds of an exact sample may be some MB apart, and pages change between two samples.
    let slack = 10 << 20;
    service.wait("the same values as in /proc", SOON, || {
        let status = service.status()?;
        let figures: Option<Vec<_>> = workers(&status)
            .iter()
            .map(|worker| {
                let (real, _) = proc::exact(i32::try_from(worker["pid"].as_i64()?).ok()?)?;
                Some((worker["memory"]["private"].as_u64()?, real))
            })
            .collect();
        let figures = figures?;
        let are_right = figures
            .iter()
            .all(|(seen, real)| seen.abs_diff(*real) < slack);
        (are_right && figures.iter().any(|(seen, _)| *seen > 45 << 20)).then_some(())
    });
}

#[test]
fn a_recycle_request_is_answered_after_the_worker_was_replaced() {
    let _turn = turn::loaded();
    let (service, load) = start_gunicorn(&[]);
    let before = service.ready(2);
    let id = workers(&before)[0]["id"].as_str().unwrap().to_owned();
    let load = Load {
        rate: Some(50.0),
        path: "/pid".to_owned(),
        lasts: Duration::from_secs(30),
        ..load
    }
    .start();
    let output = service.client(&["recycle", &id]);
    assert!(output.status.success(), "{output:?}");
    let after = service.status().unwrap();
    assert!(workers(&after).iter().all(|worker| worker["id"] != *id));
    assert_eq!(recycles(&after, "request"), 1, "{after:#}");
    service.ready(2);
    let outcome = load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

#[test]
fn recycle_all_replaces_all_workers_without_losing_a_request() {
    let _turn = turn::loaded();
    let (service, load) = start_gunicorn(&[]);
    let before = pids(&service.ready(2));
    let load = Load {
        rate: Some(50.0),
        path: "/pid".to_owned(),
        lasts: Duration::from_secs(60),
        ..load
    }
    .start();
    let output = service.client(&["recycle", "--all"]);
    assert!(output.status.success(), "{output:?}");
    let after = pids(&service.ready(2));
    assert!(after.iter().all(|pid| !before.contains(pid)));
    let outcome = load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}

#[test]
fn scale_sets_the_number_of_workers_without_losing_a_request() {
    let _turn = turn::loaded();
    let port = free_port();
    let (address, number) = (format!("127.0.0.1:{port}"), port.to_string());
    let uvicorn = NEWEST.bin("uvicorn");
    let own = ["--workers", "2", "--port", &number, "leaky_asgi:app"];
    let fleet = ["-n", "2", "--listen", &address];
    for (options, command) in [
        (&[][..], NEWEST.gunicorn(port, FLASK)),
        (&[], words(&[&[&*uvicorn], &own[..]].concat())),
        (&fleet, words(&[&*uvicorn, "leaky_asgi:app"])),
    ] {
        let service = Plan::supervise(options, &command).start();
        service.ready(2);
        let load = Load {
            rate: Some(50.0),
            lasts: Duration::from_secs(3600),
            ..Load::on(port)
        }
        .start();
        for workers in ["4", "1", "2"] {
            let answer = service.client(&["scale", workers]);
            assert!(answer.status.success(), "{answer:?}\n{}", service.log());
            service.ready(workers.parse().unwrap());
        }
        let outcome = load.finish();
        assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
        assert_eq!(service.stop(SOON).code(), Some(0));
    }
}

#[test]
fn a_recycle_of_an_unknown_worker_fails_and_names_it() {
    let _turn = turn::beside();
    let (service, _) = start_gunicorn(&[]);
    let output = service.client(&["recycle", "w999"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("w999"));
}

#[test]
fn events_are_listed_oldest_first() {
    let _turn = turn::beside();
    let (service, _) = start_gunicorn(&[]);
    let id = workers(&service.ready(2))[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(service.client(&["recycle", &id]).status.success());
    let kinds: Vec<_> = service
        .events()
        .iter()
        .map(|event| event["event"].as_str().unwrap_or_default().to_owned())
        .collect();
    let place = |kind: &str| kinds.iter().position(|known| known == kind);
    for kind in ["started", "ready", "due", "worker-ended"] {
        assert!(place(kind).is_some(), "no {kind} in {kinds:?}");
    }
    assert!(place("started") < place("due") && place("due") < place("worker-ended"));
}

#[test]
fn metrics_and_probes_are_served_and_tcp_is_read_only() {
    let _turn = turn::beside();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let (service, _) = start_gunicorn(&["--metrics", &address]);
    assert_eq!(service.ask("/healthz").0, 200);
    assert_eq!(service.ask("/readyz").0, 200);
    let (status, text) = service.ask("/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("# TYPE supervise_"), "{text}");
    assert!(over_tcp(port, "GET /metrics").contains("supervise_"));
    // Requests that change something are refused over TCP.
    let answer = over_tcp(port, "POST /v1/stop");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    service.ready(2);
}

fn over_tcp(port: u16, line: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_stop_request_is_answered_and_ends_the_service() {
    let _turn = turn::beside();
    let (mut service, _) = start_gunicorn(&[]);
    let output = service.client(&["stop"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(service.ends(SOON).code(), Some(0));
}

#[test]
fn a_second_service_of_the_same_name_is_refused_and_the_first_continues() {
    let _turn = turn::beside();
    let (service, load) = start_gunicorn(&[]);
    let before = pids(&service.ready(2));
    let socket = service.socket();
    let socket = socket.to_str().unwrap();
    let second = Plan::supervise(
        &["--name", "shop", "--socket", socket],
        &["/bin/sh", "-c", "echo started"],
    )
    .run(SOON);
    assert_eq!(second.status.code(), Some(125), "{}", second.stderr);
    assert!(second.stderr.contains("shop"), "{}", second.stderr);
    assert!(!second.stdout.contains("started"));
    assert_eq!(pids(&service.ready(2)), before);
    assert!(load.once("/pid").is_ok());
}

#[test]
fn a_dry_run_announces_a_recycle_and_replaces_no_worker() {
    let _turn = turn::beside();
    let port = free_port();
    let service = Plan::supervise(
        &["--ceiling", "100M", "--min-age", "1s", "--dry-run"],
        &NEWEST.gunicorn(port, FLASK),
    )
    .start();
    let before = pids(&service.ready(2));
    Load::on(port).once("/alloc?mb=120").unwrap();
    service.wait("the announcement", SOON, || {
        service
            .events()
            .iter()
            .any(|event| event["event"] == "due")
            .then_some(())
    });
    assert_eq!(pids(&service.ready(2)), before);
}

#[test]
fn doctor_works_without_a_service() {
    let _turn = turn::beside();
    let doctor = std::process::Command::new(env!("CARGO_BIN_EXE_supervise"))
        .arg("doctor")
        .output()
        .unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(text.contains("cap"), "{text}");
}
