//! A thousand reports by workers under load: how long each takes, and its effect on requests.

use std::time::Duration;

use super::{
    client::Load,
    clock,
    service::{Plan, Service, free_port},
    status::workers,
    venv::{Gunicorn, NEWEST, UVICORN},
};

const GRACE: Duration = Duration::from_secs(20);

/// Prints the table. The optional argument is the number of reports.
pub(crate) fn run(words: &[String]) {
    let count = words.first().and_then(|word| word.parse().ok());
    let classes = ["sync", "gthread", "gevent", UVICORN];
    let each = count.unwrap_or(1000) / classes.len();
    println!("| class | reports | median ms | worst ms | requests | failed | p99 ms | ends |");
    println!("|---|---|---|---|---|---|---|---|");
    for class in classes {
        row(class, each);
    }
}

fn row(class: &'static str, count: usize) {
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of(class));
    let service = Plan::supervise(&["--ceiling", "500M"], &command).start();
    let status = service.ready(2);
    let ids: Vec<String> = (workers(&status).iter())
        .filter_map(|worker| worker["id"].as_str().map(str::to_owned))
        .collect();
    let running = Load {
        path: "/pid".to_owned(),
        rate: Some(200.0),
        lasts: Duration::from_secs(600),
        ..Load::on(port)
    }
    .start();
    let mut took: Vec<Duration> = (0..count)
        .map(|number| report(&service, &ids[number % ids.len()]))
        .collect();
    took.sort();
    let outcome = running.finish();
    let status = service.status().expect("supervise answers after the load");
    let ends = status["ends"].as_array().map_or(0, Vec::len);
    println!(
        "| {} | {count} | {:.1} | {:.1} | {} | **{}** | {:.1} | {ends} |",
        class.rsplit('.').next().unwrap_or(class),
        took[took.len() / 2].as_secs_f64() * 1e3,
        took[took.len() - 1].as_secs_f64() * 1e3,
        outcome.ok,
        outcome.failed(),
        outcome.quantile(0.99).as_secs_f64() * 1e3,
    );
    service.stop(GRACE);
}

fn report(service: &Service, id: &str) -> Duration {
    let begun = clock::now();
    let answer = service.client(&["report", id, "--json"]);
    assert!(answer.status.success(), "{answer:?}");
    begun.elapsed()
}
