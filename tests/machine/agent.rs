//! The agent in real servers: it counts what clients saw, recycles by that number, and says why it
//! is not there when it is not.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use super::{
    client::Load,
    house::{House, Plan, free_port, recycles, workers},
    turn,
    venv::{FLASK, G20, G23, Gunicorn, NEWEST, UVICORN, Venv, python},
};

const SOON: Duration = Duration::from_secs(20);

/// A load that leaks nothing.
fn load(port: u16, requests: f64) -> Load {
    Load {
        path: "/pid".to_owned(),
        rate: Some(100.0),
        lasts: Duration::from_secs_f64(requests / 100.0),
        ..Load::on(port)
    }
}

fn requests(status: &Value) -> Option<u64> {
    status["totals"]["requests"].as_u64()
}

/// Waits until the agent is in as many workers.
fn loaded(house: &House, count: usize) {
    house.wait("the agent in every worker", SOON, || {
        let status = house.status()?;
        let is_loaded = |worker: &&Value| worker["agent"] == "loaded";
        (workers(&status).iter().filter(is_loaded).count() == count).then_some(())
    });
}

/// What clients saw is what the workers counted, exactly.
fn counts(venv: Venv, gunicorn: Gunicorn, more: &[&str]) {
    let _turn = turn::beside();
    let port = free_port();
    let mut command = venv.gunicorn(port, gunicorn);
    command.extend(more.iter().map(ToString::to_string));
    let house = Plan::supervise(&["--ceiling", "400M"], &command).start();
    house.ready(2);
    loaded(&house, 2);
    let outcome = load(port, 200.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let answered = outcome.ok;
    assert!(answered > 100, "{outcome}");
    house.wait("the right number of requests", SOON, || {
        (requests(&house.status()?)? == answered).then_some(())
    });
}

#[test]
fn requests_are_counted_exactly_in_sync_workers() {
    counts(NEWEST, Gunicorn::of("sync"), &[]);
}

#[test]
fn requests_are_counted_exactly_in_threads() {
    counts(NEWEST, FLASK, &[]);
}

#[test]
fn requests_are_counted_exactly_in_greenlets() {
    counts(NEWEST, Gunicorn::of("gevent"), &[]);
}

#[test]
fn requests_are_counted_exactly_by_asgi() {
    counts(NEWEST, Gunicorn::of("asgi"), &[]);
    counts(NEWEST, Gunicorn::of(UVICORN), &[]);
}

#[test]
fn requests_are_counted_exactly_behind_preload() {
    counts(NEWEST, FLASK, &["--preload"]);
}

#[test]
fn requests_are_counted_exactly_by_old_gunicorns() {
    counts(G23, FLASK, &[]);
    counts(G20, Gunicorn::of("sync"), &[]);
}

#[test]
fn requests_of_uvicorns_own_workers_are_counted_together() {
    let _turn = turn::beside();
    let port = free_port();
    let uvicorn = NEWEST.bin("uvicorn");
    let number = port.to_string();
    let command = [
        &uvicorn,
        "leaky_asgi:app",
        "--workers",
        "2",
        "--port",
        &number,
    ];
    let house = Plan::supervise(&["--ready", &format!("tcp:127.0.0.1:{port}")], &command).start();
    house.ready(1);
    loaded(&house, 1);
    let outcome = load(port, 200.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    house.wait("the right number of requests", SOON, || {
        (requests(&house.status()?)? == outcome.ok).then_some(())
    });
}

#[test]
fn a_worker_that_has_done_its_number_is_recycled_and_nothing_is_lost() {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--max-requests", "100", "--min-age", "1s", "--jitter", "0"];
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    house.ready(2);
    loaded(&house, 2);
    let outcome = load(port, 800.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let status = house.status().unwrap();
    assert!(recycles(&status, "tasks") >= 4, "{status:#}");
    for end in status["ends"].as_array().unwrap() {
        let tasks = end["tasks"].as_u64().unwrap();
        // It is looked at each second at the latest, and half of the way to its number before.
        assert!(
            end["cause"] != "tasks" || (100..200).contains(&tasks),
            "{end}"
        );
    }
}

#[test]
fn health_checks_can_be_left_out() {
    let _turn = turn::beside();
    let port = free_port();
    let options = ["--ignore-paths", "/pid,/livez"];
    let house = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    house.ready(2);
    loaded(&house, 2);
    let outcome = load(port, 50.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    for _ in 0..3 {
        Load::on(port).once("/").unwrap();
    }
    house.wait("three requests", SOON, || {
        (requests(&house.status()?)? == 3).then_some(())
    });
}

/// Why the agent is not in the one worker that `command` is.
fn absent(command: &[&str], expected: &str) {
    let _turn = turn::beside();
    let house = Plan::supervise(&["--ready", "delay:100ms"], command).start();
    house.wait(expected, SOON, || {
        let status = house.status()?;
        let worker = workers(&status).first()?;
        let why = worker["agent_why_not"].as_str()?;
        (worker["agent"] == "absent" && why.contains(expected)).then_some(())
    });
}

#[test]
fn status_says_why_a_worker_cannot_be_asked() {
    let python = python();
    let waits = "import time; time.sleep(60)";
    absent(&[&python, "-I", "-c", waits], "started with -I");
    absent(&[&python, "-S", "-c", waits], "started with -S");
    absent(
        &["env", "-i", &python, "-c", waits],
        "environment was cleared",
    );
    absent(&["sleep", "60"], "no Python interpreter");
}

#[test]
fn without_the_agent_the_environment_stays_as_it_was() {
    let _turn = turn::beside();
    let code =
        "import os, sys; print(os.environ.get('PYTHONPATH'), 'sitecustomize' in sys.modules)";
    let options = ["--agent", "off", "--restart", "never"];
    let plan = Plan::supervise(&options, &[python().as_str(), "-c", code]);
    let ended = plan.env("PYTHONPATH", "/mine").run(SOON);
    assert!(ended.stdout.starts_with("/mine "), "{}", ended.stdout);
    let plan = Plan::supervise(&["--restart", "never"], &[python().as_str(), "-c", code]);
    let ended = plan.env("PYTHONPATH", "/mine").run(SOON);
    assert!(ended.stdout.contains(":/mine "), "{}", ended.stdout);
}

#[test]
fn a_sitecustomize_of_the_users_own_is_executed_all_the_same() {
    let _turn = turn::beside();
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("sitecustomize.py"), "print('mine')\n").unwrap();
    let command = [python(), "-c".to_owned(), "print('app')".to_owned()];
    let plan = Plan::supervise(&["--restart", "never"], &command);
    let ended = plan.env("PYTHONPATH", own.path().display()).run(SOON);
    assert_eq!(ended.stdout, "mine\napp\n", "{}", ended.stderr);
}

/// Runs one of the agent's own tests.
fn passes(test: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python())
        .arg(root.join("tests/python").join(test))
        .arg(root.join("python/supervise"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
}

/// Beside threads that run, which is where reading their frames ends a process.
#[test]
fn a_stack_is_written_twenty_thousand_times_and_harms_nobody() {
    passes("test_stacks.py");
}

/// C code builds objects in the main thread and in other threads, and calls Python code half-way.
#[test]
fn questions_do_not_touch_what_c_is_still_building() {
    passes("test_construction.py");
}

/// Beside threads of C libraries, which wait for the GIL within allocations when tracing ends.
#[test]
fn a_window_is_opened_forty_times_and_harms_nobody() {
    passes("test_windows.py");
}
