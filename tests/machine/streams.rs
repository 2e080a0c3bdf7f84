//! Event streams and WebSockets get `stop.stream_grace` at a recycle, and their clients are told.
//! Other requests of the same workers do not fail, however long they take.
#![expect(clippy::print_stdout, reason = "the long tests show their figures")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port, recycles},
    turn,
    venv::{G23, Gunicorn, NEWEST, OTHERS, UVICORN, Venv, programs, python},
};

/// The longest time from the end of `stop.stream_grace` to the last client that is told. The agent
/// takes two seconds, to spread them.
const SPREAD: f64 = 4.0;

/// The longest time from there to the end of the worker: its clients close their connections, and
/// the longest download of a client is over.
const LEAVES: f64 = 6.0;

/// Moments of the client and of the supervisor are rounded to milliseconds.
const ROUNDED: f64 = 0.01;

/// How many streams of each kind, and how often all of two workers are recycled.
struct Scale {
    event_streams: usize,
    websockets: usize,
    rounds: u64,
    grace: f64,
    /// More options of `supervise`.
    options: &'static [&'static str],
}

const SHORT: Scale = Scale {
    event_streams: 6,
    websockets: 6,
    rounds: 1,
    grace: 2.5,
    options: &[],
};

const LONG: Scale = Scale {
    event_streams: 100,
    websockets: 100,
    rounds: 10,
    grace: 5.0,
    options: &[],
};

/// `streams_client.py`.
struct Clients {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Clients {
    /// Starts it, and waits until all streams are open.
    fn start(port: u16, scale: &Scale, path: &str) -> Self {
        let numbers = [scale.event_streams, scale.websockets].map(|number| number.to_string());
        let [event_streams, websockets] = &numbers;
        let port = port.to_string();
        let mut child = Command::new(python())
            .args([
                "streams_client.py",
                &port,
                event_streams,
                websockets,
                "2",
                path,
            ])
            .current_dir(programs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the client");
        let mut output = BufReader::new(child.stdout.take().expect("piped above"));
        let mut line = String::new();
        output.read_line(&mut line).expect("read its output");
        assert_eq!(line, "connected\n");
        Self { child, output }
    }

    /// Stops it. Returns what has ended before.
    fn finish(mut self) -> Vec<Value> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output
            .read_to_string(&mut text)
            .expect("read its output");
        assert!(self.child.wait().expect("wait for the client").success());
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("a JSON object"))
            .collect()
    }
}

/// When each process began to drain, in Unix seconds.
fn drains(service: &Service) -> BTreeMap<i64, f64> {
    let seen = service.events_of("worker-seen").into_iter();
    let pids: BTreeMap<String, i64> = seen
        .map(|event| (event["worker"].to_string(), event["pid"].as_i64().unwrap()))
        .collect();
    let begun = service.events_of("draining").into_iter();
    begun
        .map(|event| {
            let pid = pids[&event["worker"].to_string()];
            (pid, event["at"].as_f64().expect("a moment"))
        })
        .collect()
}

/// How long after the begin of the drain of its worker each stream of this kind has ended.
fn ended_after(kind: &str, ends: &[Value], drains: &BTreeMap<i64, f64>) -> Vec<f64> {
    let streams = ends.iter().filter(|end| end["kind"] == kind);
    let mut all: Vec<f64> = streams
        .map(|end| {
            let drain = drains.get(&end["pid"].as_i64().unwrap_or(0));
            let drain = drain.unwrap_or_else(|| panic!("{end}: its worker was not recycled"));
            end["ended"].as_f64().expect("a moment") - drain
        })
        .collect();
    all.sort_unstable_by(f64::total_cmp);
    all
}

/// What happened to the streams while all of two workers were recycled.
struct Recycled {
    service: Service,
    ends: Vec<Value>,
    drains: BTreeMap<i64, f64>,
}

/// Recycles all of two workers while streams are open, and asserts that no other request has
/// failed.
#[track_caller]
fn recycle(plan: impl FnOnce(u16, &[&str]) -> Plan, scale: &Scale, path: &str) -> Recycled {
    let port = free_port();
    let grace = format!("{}ms", scale.grace * 1e3);
    let mut options = vec!["--ceiling", "400M", "--stream-grace", &grace];
    options.extend(scale.options);
    let service = plan(port, &options).start();
    service.ready(2);
    let clients = Clients::start(port, scale, path);
    let load = Load {
        path: "/pid".to_owned(),
        rate: Some(50.0),
        lasts: Duration::from_secs(3600),
        ..Load::on(port)
    }
    .start();
    for _ in 0..scale.rounds {
        let answer = service.client(&["recycle", "--all"]);
        assert!(answer.status.success(), "{answer:?}\n{}", service.log());
    }
    let ends = clients.finish();
    let outcome = load.finish();
    println!("other requests: {outcome}");
    if scale.options.is_empty() {
        assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    }
    let status = service.status().unwrap();
    // The surge worker is recycled, too.
    assert!(recycles(&status, "request") >= 2 * scale.rounds);
    let drains = drains(&service);
    Recycled {
        service,
        ends,
        drains,
    }
}

/// Asserts that every stream had its time and was told at a recycle, that no other request has
/// failed, and that no worker took longer.
#[track_caller]
fn streams_are_told(plan: impl FnOnce(u16, &[&str]) -> Plan, scale: &Scale, path: &str) {
    let _turn = turn::loaded();
    let Recycled {
        service,
        ends,
        drains,
    } = recycle(plan, scale, path);
    let wrong: Vec<_> = ends.iter().filter(|end| end["how"] != "told").collect();
    assert!(
        wrong.is_empty(),
        "{} of {}: {wrong:#?}",
        wrong.len(),
        ends.len()
    );
    for (kind, count) in [
        ("event_stream", scale.event_streams),
        ("websocket", scale.websockets),
    ] {
        if count == 0 {
            continue;
        }
        let after = ended_after(kind, &ends, &drains);
        let least = count * usize::try_from(scale.rounds).unwrap();
        assert!(after.len() >= least, "{} of {least}", after.len());
        let (first, last) = (after[0], after[after.len() - 1]);
        println!(
            "{kind}: {} told, {first:.2} to {last:.2} s after the begin of the drain",
            after.len()
        );
        assert!(first >= scale.grace - ROUNDED, "{after:?}");
        assert!(last <= scale.grace + SPREAD, "{after:?}");
    }
    let others = ends.iter().filter(|end| {
        let kind = end["kind"].as_str();
        kind == Some("upload") || kind == Some("download")
    });
    println!("uploads and downloads: {}", others.count());
    assert_leaves_in_time(&service, scale);
}

/// Asserts that no worker was killed or took longer than its streams needed.
#[track_caller]
fn assert_leaves_in_time(service: &Service, scale: &Scale) {
    let ends = service.events_of("worker-ended");
    let longest = ends
        .iter()
        .filter_map(|end| end["drain_s"].as_f64())
        .fold(0.0, f64::max);
    println!("the longest drain: {longest:.2} s");
    assert!(longest <= scale.grace + SPREAD + LEAVES, "{ends:#?}");
    assert!(ends.iter().all(|end| end["killed"] != true), "{ends:#?}");
    assert!(!service.log().contains("Traceback"), "{}", service.log());
}

fn words(program: String, words: &[&str]) -> Vec<String> {
    [
        vec![program],
        words.iter().map(ToString::to_string).collect(),
    ]
    .concat()
}

fn uvicorn_workers(port: u16, options: &[&str]) -> Plan {
    let (uvicorn, port) = (NEWEST.bin("uvicorn"), port.to_string());
    let command = words(uvicorn, &["--workers", "2", "--port", &port, "streams:app"]);
    Plan::supervise(options, &command)
}

fn fleet(port: u16, options: &[&str], command: &[String]) -> Plan {
    let address = format!("127.0.0.1:{port}");
    let fixed = ["--copies", "2", "--listen", &address];
    Plan::supervise(&[&fixed, options].concat(), command)
}

fn uvicorn_copies(port: u16, options: &[&str]) -> Plan {
    fleet(
        port,
        options,
        &words(NEWEST.bin("uvicorn"), &["streams:app"]),
    )
}

fn gunicorn(class: &'static str) -> impl Fn(u16, &[&str]) -> Plan {
    move |port, options| {
        let gunicorn = Gunicorn {
            app: "streams:app",
            ..Gunicorn::of(class)
        };
        Plan::supervise(options, &NEWEST.gunicorn(port, gunicorn))
    }
}

#[test]
fn streams_of_uvicorn_workers_are_told_at_a_recycle() {
    streams_are_told(uvicorn_workers, &SHORT, "/events");
}

#[test]
fn streams_of_copies_of_uvicorn_are_told_at_a_recycle() {
    streams_are_told(uvicorn_copies, &SHORT, "/events-without-receive");
}

#[test]
fn streams_of_gunicorn_asgi_workers_are_told_at_a_recycle() {
    streams_are_told(gunicorn("asgi"), &SHORT, "/events");
}

#[test]
fn streams_of_gunicorn_uvicorn_workers_are_told_at_a_recycle() {
    streams_are_told(gunicorn(UVICORN), &SHORT, "/events");
}

#[test]
fn streams_of_hypercorn_workers_are_told_at_a_recycle() {
    let plan = |port, options: &[&str]| {
        let address = format!("127.0.0.1:{port}");
        let hypercorn = OTHERS.bin("hypercorn");
        let command = words(hypercorn, &["-w", "2", "-b", &address, "streams:app"]);
        Plan::supervise(options, &command)
    };
    streams_are_told(plan, &SHORT, "/events");
}

#[test]
fn streams_of_copies_of_daphne_are_told_at_a_recycle() {
    let plan = |port, options: &[&str]| {
        let command = words(OTHERS.bin("daphne"), &["--fd", "{fd}", "streams:app"]);
        fleet(port, options, &command)
    };
    streams_are_told(plan, &SHORT, "/events");
}

#[test]
fn a_handler_that_never_returns_does_not_keep_its_worker() {
    streams_are_told(uvicorn_copies, &SHORT, "/silent");
}

fn gunicorn_threads(venv: Venv) -> impl Fn(u16, &[&str]) -> Plan {
    move |port, options| {
        let (gunicorn, address) = (venv.bin("gunicorn"), format!("127.0.0.1:{port}"));
        let fixed = ["-k", "gthread", "--threads", "30", "-w", "2", "-b"];
        let command = words(
            gunicorn,
            &[&fixed[..], &[&address, "streams_wsgi:app"]].concat(),
        );
        Plan::supervise(options, &command)
    }
}

/// WSGI has no WebSockets.
const WSGI: Scale = Scale {
    websockets: 0,
    ..SHORT
};

#[test]
fn event_streams_of_gthread_workers_are_told_at_a_recycle() {
    streams_are_told(gunicorn_threads(NEWEST), &WSGI, "/events");
}

#[test]
fn event_streams_of_gthread_workers_of_gunicorn_23_are_told_at_a_recycle() {
    streams_are_told(gunicorn_threads(G23), &WSGI, "/events");
}

#[test]
fn event_streams_of_gthread_workers_that_wait_are_told_at_a_recycle() {
    let scale = Scale {
        // The generator keeps its worker until that is killed.
        options: &["--grace", "8s"],
        ..WSGI
    };
    let _turn = turn::loaded();
    let Recycled { ends, drains, .. } = recycle(gunicorn_threads(NEWEST), &scale, "/silent");
    let streams: Vec<_> = ends
        .iter()
        .filter(|end| end["kind"] == "event_stream")
        .collect();
    assert!(
        streams.iter().all(|end| end["how"] == "told"),
        "{streams:#?}"
    );
    let after = ended_after("event_stream", &ends, &drains);
    assert!(after.len() >= scale.event_streams, "{after:?}");
    assert!(after[0] >= scale.grace - ROUNDED, "{after:?}");
    assert!(after[after.len() - 1] <= scale.grace + SPREAD, "{after:?}");
}

/// Stops a service while streams are open, and asserts that their clients are told.
#[track_caller]
fn streams_are_told_at_a_stop(plan: impl FnOnce(u16, &[&str]) -> Plan) {
    let _turn = turn::loaded();
    let port = free_port();
    let service = plan(port, &["--ceiling", "400M", "--stream-grace", "1s"]).start();
    service.ready(2);
    let clients = Clients::start(port, &SHORT, "/events");
    assert_eq!(service.stop(Duration::from_secs(20)).code(), Some(0));
    let mut ends = clients.finish();
    // The clients begin again, and are refused. Such an attempt has no process.
    ends.retain(|end| !end["pid"].is_null());
    let all = SHORT.event_streams + SHORT.websockets;
    assert_eq!(ends.len(), all, "{ends:#?}");
    assert!(ends.iter().all(|end| end["how"] == "told"), "{ends:#?}");
}

#[test]
fn streams_of_uvicorn_workers_are_told_at_a_stop() {
    streams_are_told_at_a_stop(uvicorn_workers);
}

#[test]
fn streams_of_gunicorn_asgi_workers_are_told_at_a_stop() {
    streams_are_told_at_a_stop(gunicorn("asgi"));
}

#[test]
fn streams_without_a_drain_do_not_get_their_time() {
    let _turn = turn::loaded();
    let scale = Scale {
        options: &["--drain", "0s", "--grace", "4s"],
        ..SHORT
    };
    let recycled = recycle(uvicorn_copies, &scale, "/events");
    let after = ended_after("websocket", &recycled.ends, &recycled.drains);
    assert!(after[0] < scale.grace, "{after:?}");
    let cut = recycled.ends.iter().filter(|end| end["how"] != "told");
    assert!(cut.count() > 0, "{:#?}", recycled.ends);
}

#[test]
#[ignore = "three minutes: cargo test --test machine -- --ignored --nocapture hundreds_of_streams"]
fn hundreds_of_streams_of_uvicorn_workers_are_told_at_twenty_recycles() {
    streams_are_told(uvicorn_workers, &LONG, "/events");
}

#[test]
#[ignore = "three minutes: cargo test --test machine -- --ignored --nocapture hundreds_of_streams"]
fn hundreds_of_streams_of_copies_of_uvicorn_are_told_at_twenty_recycles() {
    streams_are_told(uvicorn_copies, &LONG, "/events");
}

#[test]
#[ignore = "three minutes: cargo test --test machine -- --ignored --nocapture hundreds_of_streams"]
fn hundreds_of_streams_of_gunicorn_asgi_workers_are_told_at_twenty_recycles() {
    streams_are_told(gunicorn("asgi"), &LONG, "/events");
}

#[test]
#[ignore = "three minutes: cargo test --test machine -- --ignored --nocapture hundreds_of_streams"]
fn hundreds_of_streams_of_gunicorn_uvicorn_workers_are_told_at_twenty_recycles() {
    streams_are_told(gunicorn(UVICORN), &LONG, "/events");
}
