//! The agent in real servers: it counts requests exactly, workers are recycled by that number,
//! and the status says why an agent is missing.

use std::{path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port, recycles},
    status::workers,
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

/// Waits until `count` workers have the agent.
fn wait_for_agents(service: &Service, count: usize) {
    service.wait("the agent in every worker", SOON, || {
        let status = service.status()?;
        let is_loaded = |worker: &&Value| worker["agent"] == "loaded";
        (workers(&status).iter().filter(is_loaded).count() == count).then_some(())
    });
}

/// Asserts that workers count exactly the requests that clients saw answered.
fn assert_counts(venv: Venv, gunicorn: Gunicorn, more: &[&str]) {
    let _turn = turn::beside();
    let port = free_port();
    let mut command = venv.gunicorn(port, gunicorn);
    command.extend(more.iter().map(ToString::to_string));
    let service = Plan::supervise(&["--ceiling", "400M"], &command).start();
    service.ready(2);
    wait_for_agents(&service, 2);
    let outcome = load(port, 200.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let answered = outcome.ok;
    assert!(answered > 100, "{outcome}");
    service.wait("the right number of requests", SOON, || {
        (requests(&service.status()?)? == answered).then_some(())
    });
}

#[test]
fn requests_are_counted_exactly_in_sync_workers() {
    assert_counts(NEWEST, Gunicorn::of("sync"), &[]);
}

#[test]
fn requests_are_counted_exactly_in_gthread_workers() {
    assert_counts(NEWEST, FLASK, &[]);
}

#[test]
fn requests_are_counted_exactly_in_gevent_workers() {
    assert_counts(NEWEST, Gunicorn::of("gevent"), &[]);
}

#[test]
fn requests_are_counted_exactly_in_asgi_workers() {
    assert_counts(NEWEST, Gunicorn::of("asgi"), &[]);
    assert_counts(NEWEST, Gunicorn::of(UVICORN), &[]);
}

#[test]
fn requests_are_counted_exactly_with_preload() {
    assert_counts(NEWEST, FLASK, &["--preload"]);
}

#[test]
fn requests_are_counted_exactly_in_old_gunicorns() {
    assert_counts(G23, FLASK, &[]);
    assert_counts(G20, Gunicorn::of("sync"), &[]);
}

#[test]
fn requests_of_all_uvicorn_workers_are_counted_together() {
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
    let service = Plan::supervise(&[], &command).start();
    service.ready(2);
    wait_for_agents(&service, 2);
    let outcome = load(port, 200.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    service.wait("the right number of requests", SOON, || {
        (requests(&service.status()?)? == outcome.ok).then_some(())
    });
}

#[test]
fn a_worker_that_reaches_max_requests_is_recycled_without_losing_a_request() {
    let _turn = turn::alone();
    let port = free_port();
    let options = ["--max-requests", "100", "--min-age", "1s", "--jitter", "0"];
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    wait_for_agents(&service, 2);
    // Slow enough that a worker which waits for the replacement of the other stays below the bound.
    let load = Load {
        rate: Some(50.0),
        lasts: Duration::from_secs(16),
        ..load(port, 800.0)
    };
    let outcome = load.run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    let status = service.status().unwrap();
    assert!(recycles(&status, "tasks") >= 4, "{status:#}");
    for end in status["ends"].as_array().unwrap() {
        let tasks = end["tasks"].as_u64().unwrap();
        // Counts are read at least every second, and earlier at half of the way to the maximum.
        assert!(
            end["cause"] != "tasks" || (100..200).contains(&tasks),
            "{end}"
        );
    }
}

#[test]
fn requests_to_ignored_paths_are_not_counted() {
    let _turn = turn::beside();
    let port = free_port();
    let options = ["--ignore-paths", "/pid,/livez"];
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, FLASK)).start();
    service.ready(2);
    wait_for_agents(&service, 2);
    let outcome = load(port, 50.0).run();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    for _ in 0..3 {
        Load::on(port).once("/").unwrap();
    }
    service.wait("three requests", SOON, || {
        (requests(&service.status()?)? == 3).then_some(())
    });
}

/// Asserts that the status says why `command`, a single worker, has no agent.
fn assert_absent(command: &[&str], expected: &str) {
    let _turn = turn::beside();
    let service = Plan::supervise(&["--ready", "delay:100ms"], command).start();
    service.wait(expected, SOON, || {
        let status = service.status()?;
        let worker = workers(&status).first()?;
        let why = worker["agent_why_not"].as_str()?;
        (worker["agent"] == "absent" && why.contains(expected)).then_some(())
    });
}

#[test]
fn the_status_says_why_a_worker_has_no_agent() {
    let python = python();
    let waits = "import time; time.sleep(60)";
    assert_absent(&[&python, "-I", "-c", waits], "started with -I");
    assert_absent(&[&python, "-S", "-c", waits], "started with -S");
    assert_absent(
        &["env", "-i", &python, "-c", waits],
        "environment was cleared",
    );
    assert_absent(&["sleep", "60"], "not a Python interpreter");
}

#[test]
fn a_worker_with_an_unknown_agent_protocol_is_treated_as_one_without_an_agent() {
    let _turn = turn::alone();
    let port = free_port();
    // As after an upgrade to a binary that does not understand the agents of the workers.
    let other = r#"sed -i 's/^VERSION = .*/VERSION = 99/' \
                   "$SUPERVISE_AGENT/_supervise_agent/protocol.py" && exec "$@""#;
    let mut command = ["sh", "-c", other, "sh"].map(str::to_owned).to_vec();
    command.extend(NEWEST.gunicorn(port, FLASK));
    let mut options = vec!["--ceiling", "80M", "--cap", "1G", "--min-age", "1s"];
    options.extend(["--server", "gunicorn"]);
    let service = Plan::supervise(&options, &command)
        .env("LEAK_KB", 320)
        .start();
    let is_absent = |status: &Value| {
        let expected = "its agent speaks a newer protocol than this version of supervise: 99";
        let workers = workers(status);
        workers.iter().all(|worker| {
            let why = worker["agent_why_not"].as_str().unwrap_or_default();
            worker["agent"] == "absent" && why.starts_with(expected)
        })
    };
    service.ready(2);
    let running = Load {
        rate: Some(40.0),
        lasts: 2 * SOON,
        ..Load::on(port)
    }
    .start();
    service.wait("no agent in any worker", SOON, || {
        service.status().filter(is_absent)
    });
    let status = service.wait("a recycle by the ceiling", 2 * SOON, || {
        let status = service.status()?;
        (recycles(&status, "ceiling") >= 1).then_some(status)
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}\n{}", service.log());
    assert_eq!(requests(&status).unwrap_or(0), 0, "{status:#}");
    for end in status["ends"].as_array().unwrap() {
        assert_eq!(end["cause"], "ceiling", "{end}");
    }
    let warning = "the agent is not in w";
    assert!(service.log().contains(warning), "{}", service.log());
}

#[test]
fn without_the_agent_pythonpath_is_unchanged() {
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
fn a_sitecustomize_of_the_user_is_still_executed() {
    let _turn = turn::beside();
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("sitecustomize.py"), "print('mine')\n").unwrap();
    let command = [python(), "-c".to_owned(), "print('app')".to_owned()];
    let plan = Plan::supervise(&["--restart", "never"], &command);
    let ended = plan.env("PYTHONPATH", own.path().display()).run(SOON);
    assert_eq!(ended.stdout, "mine\napp\n", "{}", ended.stderr);
}

/// Runs one of the agent's tests in Python.
fn assert_passes(test: &str) {
    assert_passes_in(&python(), test);
}

fn assert_passes_in(python: &str, test: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python)
        .arg(root.join("tests/python").join(test))
        .arg(root.join("python/supervise"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    assert!(!stderr.contains("NOT RUN"), "{stderr}");
}

/// The master imports what a report needs. The rest of a worker's exit competes with no request,
/// and exit handlers have their usual priority.
#[test]
fn a_worker_inherits_imports_and_has_a_lower_priority_after_its_exit_handlers() {
    for class in ["sync", "gthread"] {
        let app = "exits:app";
        let workers = 1;
        let gunicorn = Gunicorn {
            workers,
            class,
            app,
        };
        let mut service = Plan::supervise(&[], &NEWEST.gunicorn(free_port(), gunicorn)).start();
        service.ready(1);
        wait_for_agents(&service, 1);
        service.signal(Signal::SIGTERM);
        service.ends(SOON);
        let log = service.log();
        for line in [
            "report imported: True",
            "exit handler at priority 0",
            "freed at priority 5",
        ] {
            assert!(log.contains(line), "{class}: no {line:?} in\n{log}");
        }
    }
}

#[test]
fn the_python_code_matches_the_protocol() {
    assert_passes("test_protocol.py");
}

#[test]
fn the_agent_prepares_reports_in_short_steps() {
    assert_passes("test_prepare.py");
}

#[test]
fn lines_are_followed_in_the_threads_of_requests() {
    assert_passes("test_lines.py");
}

#[test]
fn the_agent_finds_the_route_of_each_request() {
    assert_passes("test_routes.py");
}

#[test]
fn streams_are_ended_and_other_answers_are_not() {
    assert_passes("test_streams.py");
}

#[test]
fn a_request_that_comes_while_another_is_answered_is_answered_too() {
    assert_passes("test_ask.py");
}

#[test]
fn a_request_that_interrupts_an_import_does_not_break_it() {
    assert_passes("test_imports.py");
}

/// With running threads: reading their frames carelessly would end the process.
#[test]
fn writing_a_stack_twenty_thousand_times_does_not_end_the_process() {
    assert_passes("test_stacks.py");
}

/// C code builds objects in the main thread and in other threads, and meanwhile calls Python code.
#[test]
fn agent_requests_do_not_touch_objects_under_construction_in_c() {
    let _turn = turn::beside();
    assert_passes_in(&NEWEST.bin("python"), "test_construction.py");
}

/// With threads of C libraries, which wait for the GIL within allocations when tracing ends.
#[test]
fn opening_a_tracing_window_forty_times_does_not_end_the_process() {
    let _turn = turn::beside();
    assert_passes("test_windows.py");
}
