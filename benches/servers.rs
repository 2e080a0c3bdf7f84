//! Servers other than gunicorn, and fleets: 1 MB leaked a request, steady load from 8 connections.
//! Also the same program as one worker, which is recycled as a whole.

use std::time::Duration;

use super::{
    client::{Load, Outcome},
    service::{Plan, free_port, recycles},
    venv::{NEWEST, OTHERS},
};

/// A worker reaches the ceiling of 110 MB in three seconds.
const OPTIONS: [&str; 4] = ["--ceiling", "110M", "--min-age", "1s"];
const GRACE: Duration = Duration::from_secs(20);
const SECONDS: u64 = 60;

/// How the workers come to be.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Form {
    /// The server starts them.
    Own,
    /// Two copies behind a socket.
    Fleet,
}

/// Prints the table. Arguments are a number of seconds, and a word to choose rows.
pub(crate) fn run(words: &[String]) {
    let seconds = words.iter().find_map(|word| word.parse().ok());
    let lasts = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let chosen = words.iter().find(|word| word.parse::<u64>().is_err());
    println!(
        "| server | form | keep-alive | requests | failed | recycles | p99 ms | failed as one worker | recycles | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let program = |name: &str| OTHERS.bin(name);
    let fd = "fd://{fd}";
    let rows = [
        (
            "uvicorn",
            Form::Own,
            vec![NEWEST.bin("uvicorn"), "leaky_asgi:app".to_owned()],
        ),
        (
            "uvicorn",
            Form::Fleet,
            vec![NEWEST.bin("uvicorn"), "leaky_asgi:app".to_owned()],
        ),
        (
            "hypercorn",
            Form::Fleet,
            [
                &*program("hypercorn"),
                "--workers",
                "0",
                "--bind",
                fd,
                "leaky_asgi:app",
            ]
            .map(str::to_owned)
            .to_vec(),
        ),
        (
            "daphne",
            Form::Fleet,
            [&*program("daphne"), "--fd", "{fd}", "leaky_asgi:app"]
                .map(str::to_owned)
                .to_vec(),
        ),
        (
            "waitress",
            Form::Fleet,
            [&*program("python"), "serves_waitress.py"]
                .map(str::to_owned)
                .to_vec(),
        ),
    ];
    for (name, form, command) in rows {
        if chosen.is_some_and(|chosen| !name.contains(chosen.as_str())) {
            continue;
        }
        for keep_alive in [false, true] {
            row((name, form), &command, (keep_alive, lasts));
        }
    }
}

fn row((name, form): (&str, Form), command: &[String], (keep_alive, lasts): (bool, Duration)) {
    let (outcome, count) = leaking(Some(form), command, keep_alive, lasts);
    let (whole, others) = leaking(None, command, keep_alive, lasts);
    println!(
        "| {name} | {} | {} | {} | **{}** | {count} | {:.1} | {} | {others} | {:.1} |",
        match form {
            Form::Own => "`--workers 2`",
            Form::Fleet => "`-n 2 --listen`",
        },
        if keep_alive { "on" } else { "off" },
        outcome.ok,
        outcome.failed(),
        outcome.quantile(0.99).as_secs_f64() * 1e3,
        whole.failed(),
        whole.quantile(0.99).as_secs_f64() * 1e3,
    );
    for (failure, count) in &outcome.failures {
        println!("  {failure} {count}");
    }
}

/// The outcome, and the number of recycles. `form`: `None` for one worker.
fn leaking(
    form: Option<Form>,
    command: &[String],
    keep_alive: bool,
    lasts: Duration,
) -> (Outcome, String) {
    let port = free_port();
    let (address, number) = (format!("127.0.0.1:{port}"), port.to_string());
    let mut command = command.to_vec();
    let mut options = OPTIONS.to_vec();
    match form {
        Some(Form::Own) => command.extend(["--workers", "2", "--port", &number].map(str::to_owned)),
        Some(Form::Fleet) => options.extend(["--copies", "2", "--listen", &address]),
        None => options.extend(["--listen", &address]),
    }
    let service = Plan::supervise(&options, &command)
        .env("LEAK_KB", 1024)
        .start();
    service.ready(if form.is_some() { 2 } else { 1 });
    let outcome = Load {
        keep_alive,
        rate: Some(50.0),
        lasts,
        ..Load::on(port)
    }
    .run();
    // Without an answer, it has given up, because the kernel has killed its worker again and again.
    let status = service.status();
    service.stop(GRACE);
    let recycled = status.map(|status| recycles(&status, "ceiling").to_string());
    (outcome, recycled.unwrap_or("gave up".to_owned()))
}
