//! Reports by workers under load, while each request builds objects by C code, also of numpy, lxml,
//! orjson and protobuf: how long the reports take, failed requests, wrong answers, and workers that
//! end.

use std::time::Duration;

use super::{
    client::Load,
    clock,
    service::{Plan, Service, free_port},
    status::workers,
    venv::{Gunicorn, NEWEST, UVICORN, Venv},
};

const GRACE: Duration = Duration::from_secs(20);

/// The parts of all reports that the workers of each class make: a thousand and a hundred.
const CLASSES: [(&str, usize); 5] = [
    ("sync", 1),
    ("gthread", 1),
    ("gevent", 10),
    ("asgi", 10),
    (UVICORN, 10),
];

/// Prints the table. The optional arguments are the number of reports by sync and by gthread
/// workers, and the interpreters to try instead of one.
pub(crate) fn run(words: &[String]) {
    let count = words.first().and_then(|word| word.parse().ok());
    let pythons = words.get(1..).unwrap_or_default();
    println!(
        "| Python | class | reports | median ms | worst ms | requests | failed | p99 ms | ends |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (class, part) in CLASSES {
        let count = count.unwrap_or(1000) / part;
        if pythons.is_empty() {
            row(NEWEST, class, count);
        }
        for python in pythons {
            row(Venv::of(python), class, count);
        }
    }
}

fn row(venv: Venv, class: &'static str, count: usize) {
    let port = free_port();
    let is_asgi = class == "asgi" || class == UVICORN;
    let app = if is_asgi {
        "constructions:asgi"
    } else {
        "constructions:app"
    };
    let gunicorn = Gunicorn {
        workers: 2,
        class,
        app,
    };
    if !venv.has_class(class) {
        println!(
            "| {} | {class} | not offered for this Python | | | | | | |",
            venv.python_version()
        );
        return;
    }
    let service = Plan::supervise(&["--ceiling", "500M"], &venv.gunicorn(port, gunicorn)).start();
    let status = service.ready(2);
    let ids: Vec<String> = (workers(&status).iter())
        .filter_map(|worker| worker["id"].as_str().map(str::to_owned))
        .collect();
    let running = Load {
        lasts: Duration::from_secs(3600),
        connections: 4,
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
        "| {} | {} | {count} | {:.1} | {:.1} | {} | **{}** | {:.1} | {ends} |",
        venv.python_version(),
        class.rsplit('.').next().unwrap_or(class),
        took[took.len() / 2].as_secs_f64() * 1e3,
        took[took.len() - 1].as_secs_f64() * 1e3,
        outcome.ok,
        outcome.failed(),
        outcome.quantile(0.99).as_secs_f64() * 1e3,
    );
    for (when, failure) in &outcome.first_failures {
        println!("  {failure} at {:.1} s", when.as_secs_f64());
    }
    if outcome.failed() > 0 || ends > 0 {
        println!("{}", service.log());
    }
    service.stop(GRACE);
}

fn report(service: &Service, id: &str) -> Duration {
    let begun = clock::now();
    let answer = service.client(&["report", id, "--json"]);
    assert!(answer.status.success(), "{answer:?}");
    begun.elapsed()
}
