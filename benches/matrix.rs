//! Versions of gunicorn, worker classes and keep-alive: 1 MB leaked a request, 60 s of steady load
//! from 8 connections. Also the same without the agent, and the requests lost by a SIGTERM to a
//! worker of bare gunicorn.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::{Load, Outcome},
    service::{Plan, free_port, recycles, send},
    venv::{G20, G23, Gunicorn, NEWEST, UVICORN, Venv},
    watch::{rest, settled, workers_below},
};

/// A worker reaches the ceiling of 110 MB in three seconds.
const OPTIONS: [&str; 4] = ["--ceiling", "110M", "--min-age", "1s"];
const GRACE: Duration = Duration::from_secs(20);
const PLAIN: Duration = Duration::from_secs(20);
const BETWEEN_TERMS: Duration = Duration::from_secs(2);

/// Prints the table. Arguments are a number of seconds, and versions and classes to choose rows.
pub(crate) fn run(words: &[String]) {
    let seconds = words
        .iter()
        .find_map(|word| word.parse().ok())
        .unwrap_or(60);
    let lasts = Duration::from_secs(seconds);
    println!(
        "| gunicorn | class | keep-alive | requests | failed | recycles | failed without the agent | recycles | per plain TERM | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, venv) in [("newest", NEWEST), ("g23", G23), ("g20", G20)] {
        for class in ["sync", "gthread", "gevent", "asgi", UVICORN] {
            let is_there = class != "asgi" || venv == NEWEST;
            if !is_there || !is_chosen(words, &["newest", "g23", "g20"], name) {
                continue;
            }
            if !is_chosen(
                words,
                &["sync", "gthread", "gevent", "asgi", UVICORN],
                class,
            ) {
                continue;
            }
            for keep_alive in [false, true] {
                row(venv, class, keep_alive, lasts);
            }
        }
    }
}

/// Whether the arguments name it, or name nothing of its kind.
fn is_chosen(words: &[String], kind: &[&str], name: &str) -> bool {
    let mut named = words
        .iter()
        .filter(|word| kind.contains(&word.as_str()))
        .peekable();
    named.peek().is_none() || named.any(|word| word == name)
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn row(venv: Venv, class: &'static str, keep_alive: bool, lasts: Duration) {
    let (outcome, recycles) = leaking(venv, class, keep_alive, lasts, "auto");
    let (without, others) = leaking(venv, class, keep_alive, lasts, "off");
    let (plain, terms) = plain_terms(venv, class, keep_alive);
    println!(
        "| {} | {} | {} | {} | **{}** | {recycles} | {} | {others} | {:.2} | {:.1} |",
        venv.version("gunicorn"),
        class.rsplit('.').next().unwrap_or(class),
        if keep_alive { "on" } else { "off" },
        outcome.ok,
        outcome.failed(),
        without.failed(),
        plain.failed() as f64 / f64::from(terms.max(1)),
        outcome.quantile(0.99).as_secs_f64() * 1e3,
    );
    for (failure, count) in &outcome.failures {
        println!("  with it: {failure} {count}");
    }
}

fn leaking(
    venv: Venv,
    class: &'static str,
    keep_alive: bool,
    lasts: Duration,
    agent: &str,
) -> (Outcome, u64) {
    let port = free_port();
    let command = venv.gunicorn(port, Gunicorn::of(class));
    let options = [&OPTIONS[..], &["--agent", agent]].concat();
    let service = Plan::supervise(&options, &command)
        .env("LEAK_KB", 1024)
        .start();
    service.ready(2);
    let outcome = steady(port, keep_alive, lasts).run();
    let status = service.status().expect("supervise answers after the load");
    service.stop(GRACE);
    (outcome, recycles(&status, "ceiling"))
}

/// The same server without a leak and a supervisor. Every two seconds a worker gets SIGTERM.
fn plain_terms(venv: Venv, class: &'static str, keep_alive: bool) -> (Outcome, u32) {
    let port = free_port();
    let service = Plan::bare(&venv.gunicorn(port, Gunicorn::of(class))).start();
    let load = steady(port, keep_alive, PLAIN);
    settled(&service, &load);
    let running = load.start();
    let mut terms = 0;
    for _ in 0..(PLAIN.as_secs() / BETWEEN_TERMS.as_secs() - 1) {
        rest(BETWEEN_TERMS);
        if let Some(pid) = workers_below(service.pid()).first() {
            send(*pid, Signal::SIGTERM);
            terms += 1;
        }
    }
    let outcome = running.join();
    service.stop(GRACE);
    (outcome, terms)
}

fn steady(port: u16, keep_alive: bool, lasts: Duration) -> Load {
    Load {
        keep_alive,
        rate: Some(50.0),
        lasts,
        ..Load::on(port)
    }
}
