//! Throughput in steps of 100 ms while workers with an import of 1.5 s are recycled, compared with
//! the same service without recycles.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    service::{Plan, Service, free_port},
    status::workers,
    venv::{Gunicorn, NEWEST},
    watch::rest,
};

const RECYCLES: usize = 3;

/// Prints both.
pub(crate) fn run(_: &[String]) {
    println!("| run | requests | failed | mean per 100 ms | worst 100 ms | part of the mean |");
    println!("|---|---|---|---|---|---|");
    show("no recycles", &load(|_| rest(Duration::from_secs(12))));
    show("3 recycles", &load(recycle));
}

fn load(meanwhile: fn(&Service)) -> Outcome {
    let port = free_port();
    let gunicorn = Gunicorn {
        workers: 3,
        ..Gunicorn::of("sync")
    };
    let service = Plan::supervise(&["--ceiling", "500M"], &NEWEST.gunicorn(port, gunicorn))
        .env("IMPORT_SLEEP", "1.5")
        .start();
    service.ready(3);
    let running = Load {
        path: "/sleep?s=0.01".to_owned(),
        lasts: Duration::from_secs(120),
        keep_alive: false,
        ..Load::on(port)
    }
    .start();
    rest(Duration::from_secs(2));
    meanwhile(&service);
    let outcome = running.finish();
    service.stop(Duration::from_secs(20));
    outcome
}

fn recycle(service: &Service) {
    for _ in 0..RECYCLES {
        let status = service.ready(3);
        let id = workers(&status)[0]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let output = service.client(&["recycle", &id]);
        assert!(output.status.success(), "{output:?}");
        service.ready(3);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred buckets")]
fn show(name: &str, outcome: &Outcome) {
    let inner = &outcome.buckets[1..outcome.buckets.len() - 2];
    let mean = f64::from(inner.iter().sum::<u32>()) / inner.len() as f64;
    println!(
        "| {name} | {} | {} | {mean:.1} | {} | {:.0} % |",
        outcome.ok,
        outcome.failed(),
        inner.iter().min().unwrap_or(&0),
        outcome.dip() * 100.0,
    );
}
