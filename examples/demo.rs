//! `cargo run --release --example demo`: watch a leaking Flask service being kept small.
//!
//! Makes a Python environment, starts the service under gunicorn under `supervise`, asks it 30
//! times a second, and counts what is lost. What is seen meanwhile is `supervise`'s own log.
#![expect(
    clippy::panic,
    reason = "a demonstration that cannot be given ends where it stands"
)]
#![expect(clippy::print_stdout, reason = "it is there to be watched")]

#[path = "../tests/machine/client.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod client;
#[path = "../tests/machine/clock.rs"]
mod clock;
#[path = "../tests/machine/http.rs"]
mod http;
#[path = "../tests/machine/venv.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod venv;

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use client::Load;
use serde_json::Value;

const LASTS: Duration = Duration::from_secs(45);

fn main() {
    let supervise = build();
    println!("Python packages: .venvs/ (made once, from PyPI)");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("find a free port")
        .port();
    let gunicorn = venv::NEWEST.gunicorn(port, venv::FLASK);
    let mut service = start(&supervise, &gunicorn);
    let load = Load {
        rate: Some(30.0),
        lasts: LASTS,
        ..Load::on(port)
    };
    let answers = clock::poll(Duration::from_secs(20), || load.once("/pid").ok());
    assert!(answers.is_some(), "the service did not answer");
    println!(
        "\n30 requests a second for {} s; each leaks 500 KB\n",
        LASTS.as_secs()
    );
    let running = load.start();
    let begun = clock::now();
    while clock::now() - begun < LASTS {
        clock::until(clock::now() + Duration::from_secs(5));
        println!("  now: {}", sizes(&status(&supervise)));
    }
    let outcome = running.join();
    let status = status(&supervise);
    stop(&mut service);
    println!(
        "\n{} workers recycled at their ceiling of 100 MB, {} requests answered, {} lost",
        status["totals"]["recycles"]["ceiling"],
        outcome.ok,
        outcome.failed(),
    );
    println!("{outcome}");
}

/// Builds the program beside this one, as `cargo run` built this.
fn build() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--bin", "supervise"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("run cargo build");
    assert!(status.success(), "cargo build failed");
    let here = env::current_exe().expect("know where we are");
    // target/debug/examples/demo or target/release/examples/demo
    let target = here
        .ancestors()
        .nth(3)
        .expect("we are in target/*/examples");
    target.join("release/supervise")
}

fn start(supervise: &Path, gunicorn: &[String]) -> Child {
    let shown: Vec<_> = gunicorn
        .iter()
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .collect();
    println!("$ supervise --ceiling 100M -- {}\n", shown.join(" "));
    let _ = fs::remove_file(socket());
    Command::new(supervise)
        .arg("--socket")
        .arg(socket())
        .args(["--name", "demo", "--ceiling", "100M", "--"])
        .args(gunicorn)
        .current_dir(venv::programs())
        .env("LEAK_KB", "500")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("start {}: {error}", supervise.display()))
}

fn status(supervise: &Path) -> Value {
    let output = Command::new(supervise)
        .args(["status", "--json", "--socket"])
        .arg(socket())
        .output()
        .expect("run supervise status");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// `w3 64 MB, w4 12 MB`.
fn sizes(status: &Value) -> String {
    let workers = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let sizes: Vec<_> = workers
        .iter()
        .map(|worker| {
            let private = worker["memory"]["private"].as_u64().unwrap_or(0);
            let id = worker["id"].as_str().unwrap_or("?");
            format!("{id} {} MB", private >> 20)
        })
        .collect();
    sizes.join(", ")
}

fn stop(service: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(service.id()).expect("a pid is an i32"));
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let _ = service.wait();
}

fn socket() -> PathBuf {
    env::temp_dir().join(format!("supervise-demo-{}.sock", std::process::id()))
}
