//! `supervise reload` again and again under load, behind a held socket; beside it, the same server
//! without `supervise`, stopped and started again as often.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    client::{BUCKET, Load, Outcome},
    servers::program,
    service::{Plan, free_port},
};

const GRACE: Duration = Duration::from_secs(60);
/// How often each server is reloaded.
const TIMES: usize = 20;

/// A name, the options of `supervise`, the command line with it, and the one without.
type Row = (
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static str,
);

const TWO: &[&str] = &["--copies", "2"];
const WHOLE: &[&str] = &["--copies", "1", "--server", "none"];

const ROWS: [Row; 8] = [
    (
        "gunicorn gthread",
        &[],
        "gunicorn -w 2 -k gthread --threads 4 leaky_flask:app",
        "gunicorn -w 2 -k gthread --threads 4 -b {address} leaky_flask:app",
    ),
    (
        "gunicorn `--preload`, as a whole",
        WHOLE,
        "gunicorn -w 2 --preload leaky_flask:app",
        "gunicorn -w 2 --preload -b {address} leaky_flask:app",
    ),
    (
        "uvicorn",
        &[],
        "uvicorn --workers 2 leaky_asgi:app",
        "uvicorn --workers 2 --port {port} leaky_asgi:app",
    ),
    (
        "hypercorn",
        &[],
        "hypercorn -w 2 --bind fd://{fd} leaky_asgi:app",
        "hypercorn -w 2 --bind {address} leaky_asgi:app",
    ),
    (
        "granian",
        &[],
        "granian --interface asgi --workers 2 leaky_asgi:app",
        // Without a time limit, it does not always end at TERM.
        "granian --interface asgi --workers 2 --workers-kill-timeout 5 --port {port} leaky_asgi:app",
    ),
    (
        "uvicorn, two copies",
        TWO,
        "uvicorn leaky_asgi:app",
        "uvicorn --workers 2 --port {port} leaky_asgi:app",
    ),
    (
        "hypercorn, two copies",
        TWO,
        "hypercorn --workers 0 --bind fd://{fd} leaky_asgi:app",
        "hypercorn -w 2 --bind {address} leaky_asgi:app",
    ),
    (
        "daphne, two copies",
        TWO,
        "daphne --fd {fd} leaky_asgi:app",
        "daphne -p {port} leaky_asgi:app",
    ),
];

/// Prints the table. Arguments are how often to reload, and a word to choose rows.
pub(crate) fn run(words: &[String]) {
    let times = words.iter().find_map(|word| word.parse().ok());
    let times = times.unwrap_or(TIMES);
    let chosen = words.iter().find(|word| word.parse::<u64>().is_err());
    println!(
        "| server | keep-alive | requests | failed in {times} reloads | p99 ms | longest wait ms | \
         failed in {times} plain restarts | longest time without an answer s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let is_chosen = |row: &&Row| chosen.is_none_or(|chosen| row.0.contains(chosen.as_str()));
    for row in ROWS.iter().filter(is_chosen) {
        for keep_alive in [false, true] {
            let held = reloaded(*row, keep_alive, times);
            let bare = restarted(*row, keep_alive, times);
            println!(
                "| {} | {} | {} | **{}** | {:.1} | {:.0} | {} | {:.1} |",
                row.0,
                if keep_alive { "on" } else { "off" },
                held.ok,
                held.failed(),
                held.quantile(0.99).as_secs_f64() * 1e3,
                held.quantile(1.0).as_secs_f64() * 1e3,
                bare.failed(),
                longest_silence(&bare).as_secs_f64(),
            );
            for (failure, count) in &held.failures {
                println!("  {failure} {count}");
            }
        }
    }
}

/// The words of a command line.
fn command(line: &str, port: u16) -> Vec<String> {
    let filled = line
        .replace("{address}", &format!("127.0.0.1:{port}"))
        .replace("{port}", &port.to_string());
    filled.split(' ').map(program).collect()
}

fn load(port: u16, keep_alive: bool) -> Load {
    Load {
        keep_alive,
        rate: Some(50.0),
        lasts: Duration::from_secs(3600),
        ..Load::on(port)
    }
}

/// With `supervise`, which holds the socket.
fn reloaded((_, options, line, _): Row, keep_alive: bool, times: usize) -> Outcome {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let all = [&["--listen", &address], options].concat();
    let service = Plan::supervise(&all, &command(line, port)).start();
    service.ready(if options == WHOLE { 1 } else { 2 });
    let running = load(port, keep_alive).start();
    for _ in 0..times {
        let answer = service.client(&["reload"]);
        assert!(answer.status.success(), "{answer:?}\n{}", service.log());
    }
    let outcome = running.finish();
    service.stop(GRACE);
    outcome
}

/// Without `supervise`: stopped, waited for, and started again.
fn restarted((.., line): Row, keep_alive: bool, times: usize) -> Outcome {
    let port = free_port();
    let words = command(line, port);
    let start = || {
        let server = Plan::bare(&words).start();
        let answers = load(port, false);
        server.wait("an answer", GRACE, || answers.once("/").ok());
        server
    };
    let mut server = start();
    let running = load(port, keep_alive).start();
    for _ in 0..times {
        server.signal(Signal::SIGTERM);
        server.ends(GRACE);
        server = start();
    }
    let outcome = running.finish();
    server.stop(GRACE);
    outcome
}

/// The longest time in which no request was answered, to a tenth of a second.
fn longest_silence(outcome: &Outcome) -> Duration {
    let silences = outcome.buckets.split(|answers| *answers > 0);
    let longest = silences.map(<[u32]>::len).max().unwrap_or_default();
    BUCKET * u32::try_from(longest).unwrap_or(u32::MAX)
}
