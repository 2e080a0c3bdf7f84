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

/// The servers, and their command lines. `{address}` and `{port}` are those of the load.
const ROWS: [(&str, Form, &str); 10] = [
    (
        "uvicorn",
        Form::Own,
        "uvicorn --workers 2 --port {port} leaky_asgi:app",
    ),
    (
        "hypercorn",
        Form::Own,
        "hypercorn -w 2 -b {address} leaky_asgi:app",
    ),
    (
        "uWSGI http",
        Form::Own,
        "pyuwsgi --master -p 2 --http {address} --http-keepalive -w leaky_flask:app",
    ),
    (
        "uWSGI http-socket",
        Form::Own,
        "pyuwsgi --master -p 2 --http-socket {address} -w leaky_flask:app",
    ),
    (
        "granian asgi",
        Form::Own,
        "granian --interface asgi --workers 2 --port {port} leaky_asgi:app",
    ),
    (
        "granian wsgi",
        Form::Own,
        "granian --interface wsgi --workers 2 --port {port} leaky_flask:app",
    ),
    ("uvicorn", Form::Fleet, "uvicorn leaky_asgi:app"),
    (
        "hypercorn",
        Form::Fleet,
        "hypercorn --workers 0 --bind fd://{fd} leaky_asgi:app",
    ),
    ("daphne", Form::Fleet, "daphne --fd {fd} leaky_asgi:app"),
    ("waitress", Form::Fleet, "python serves_waitress.py"),
];

/// A word of a command line, as the path of the program if it is one.
pub(super) fn program(word: &str) -> String {
    match word {
        "gunicorn" | "uvicorn" => NEWEST.bin(word),
        "hypercorn" | "pyuwsgi" | "granian" | "daphne" | "python" => OTHERS.bin(word),
        _ => word.to_owned(),
    }
}

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
    for (name, form, line) in ROWS {
        if chosen.is_some_and(|chosen| !name.contains(chosen.as_str())) {
            continue;
        }
        let command: Vec<_> = line.split(' ').map(program).collect();
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
            Form::Own => "2 workers",
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
    let fill = |word: &String| {
        word.replace("{address}", &address)
            .replace("{port}", &number)
    };
    let filled: Vec<_> = command.iter().map(fill).collect();
    let mut options = OPTIONS.to_vec();
    match form {
        Some(Form::Own) => {}
        Some(Form::Fleet) => options.extend(["--copies", "2", "--listen", &address]),
        None if filled == command => options.extend(["--listen", &address]),
        None => options.extend(["--server", "none"]),
    }
    let command = filled;
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
