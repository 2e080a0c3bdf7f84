//! Repetitions that do not help come to an end: starts of workers that cannot start, kernel kills
//! while something other than workers fills the budget, and recycles of a process tree that needs
//! its memory.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;

use super::{
    service::{Plan, free_port, recycles, send},
    turn,
    venv::{Gunicorn, NEWEST, python},
};

/// Python may start slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn gunicorn(workers: u32, app: &'static str) -> Vec<String> {
    let class = "sync";
    NEWEST.gunicorn(
        free_port(),
        Gunicorn {
            workers,
            class,
            app,
        },
    )
}

#[test]
fn workers_that_exit_at_import_cause_one_warning_and_supervise_gives_up() {
    let _turn = turn::beside();
    let options = ["--restart-limit", "1", "--ceiling", "300M"];
    let command = gunicorn(2, "ends_at_import:app");
    let mut service = Plan::supervise(&options, &command).start();
    service.wait("a problem in the status", LIMIT, || {
        let status = service.status()?;
        let problem = status["problem"].as_str()?;
        problem.contains("workers cannot start").then_some(())
    });
    assert_eq!(service.ends(LIMIT).code(), Some(75), "{}", service.log());
    let log = service.log();
    let count_of = |text: &str| log.matches(text).count();
    assert_eq!(
        count_of("warn  workers cannot start: the last 5"),
        1,
        "{log}"
    );
    assert!(
        log.contains("the last with status 0; no worker serves"),
        "{log}"
    );
    assert_eq!(count_of("is not held"), 0, "{log}");
    assert!(log.contains("giving up: 2 exits within"), "{log}");
    assert!(
        log.contains("the last with status 0, before its workers were ready"),
        "{log}"
    );
    // Two starts of the server, each of them ended after a few workers.
    assert!(count_of("ended: exit:0") <= 16, "{log}");
}

/// Files in `/dev/shm` with this prefix. They are removed when the test ends, even if it fails.
struct Left(String);

impl Drop for Left {
    fn drop(&mut self) {
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.path().display().to_string().starts_with(&self.0) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[test]
fn a_budget_filled_by_files_in_memory_causes_a_warning_and_delays_restarts() {
    let _turn = turn::alone();
    let left = Left(format!("/dev/shm/supervise-test-{}-", std::process::id()));
    let options = ["--budget", "150M", "--cap", "none", "--ceiling", "none"];
    let command = gunicorn(1, "fills_shm:app");
    let plan = Plan::supervise(&options, &command).env("LEAVES", &left.0);
    let service = plan.start();
    let warning = service.wait("the reason", LIMIT, || {
        let status = service.status()?;
        if status["caps"]["mechanism"] == "rlimit" {
            return Some(None);
        }
        // Kill each worker that becomes ready, so that the next one writes its file.
        for worker in status["workers"].as_array()? {
            if worker["state"] == "ready" {
                send(
                    i32::try_from(worker["pid"].as_i64()?).ok()?,
                    Signal::SIGKILL,
                );
            }
        }
        Some(Some(service.warnings("the budget of 150M is full").pop()?))
    });
    let Some(warning) = warning else {
        println!("NOT RUN: needs a memory cgroup to enforce the budget");
        return;
    };
    let status = service.status().expect("a status");
    assert!(
        warning.contains("in tmpfs and shared memory") && warning.contains(&left.0),
        "{warning}"
    );
    assert_eq!(recycles(&status, "budget"), 0, "{status:#}");
    let again = service.wait("the announcement of another start", LIMIT, || {
        let mut events = service.events().into_iter();
        events.rfind(|event| event["event"] == "restarting")?["after_s"].as_f64()
    });
    assert!(again >= 5.0, "{again}");
    let problem = service.status().expect("a status")["problem"].clone();
    assert!(
        problem
            .as_str()
            .is_some_and(|text| text.contains("is full")),
        "{problem}"
    );
    assert_eq!(service.stop(LIMIT).code(), Some(0));
}

#[test]
fn a_process_tree_that_needs_more_than_its_ceiling_is_recycled_at_most_twice() {
    let _turn = turn::beside();
    // Otherwise it would be left alone for a minute, because it could be a server that starts.
    let fixed = ["--server", "none", "--min-age", "2s"];
    let options = [&fixed[..], &["--ceiling", "100M", "--cap", "400M"]].concat();
    let service = Plan::supervise(&options, &[&python(), "tree.py"]).start();
    let warning = service.wait("recycling to be stopped", LIMIT, || {
        service.warnings("recycling cannot help").pop()
    });
    assert!(warning.contains("over the ceiling of"), "{warning}");
    let tree = service.events_of("ceiling-shared");
    assert_eq!(tree.len(), 1, "{tree:?}");
    assert_eq!(tree[0]["processes"], 6, "{tree:?}");
    let status = service.status().expect("a status");
    let times = recycles(&status, "ceiling");
    assert!(times <= 2, "{times} recycles: {}", service.log());
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_tree_that_is_perhaps_no_single_worker_is_told_and_not_killed_for_a_ceiling_meant_for_one() {
    let _turn = turn::beside();
    // Five processes of 30 MB: the derived cap would be 120M for all of them.
    let options = ["--ceiling", "60M", "--min-age", "1s"];
    let service = Plan::supervise(&options, &[&python(), "tree.py"]).start();
    let event = service.wait("the event", LIMIT, || {
        service.events_of("ceiling-shared").pop()
    });
    let message = event["message"].as_str().expect("a message");
    let told = "w1: 6 processes share one ceiling of 60M and hold ";
    assert!(message.starts_with(told), "{message}");
    assert!(
        message.contains("hint: give a --ceiling for all"),
        "{message}"
    );
    let largest = event["largest"].as_str().expect("a list");
    assert_eq!(largest.matches("pid ").count(), 5, "{largest}");
    assert!(largest.ends_with("; 1 more"), "{largest}");
    let all = 150 << 20;
    let status = service.wait("all processes to be large", LIMIT, || {
        let status = service.status()?;
        let memory = status["workers"][0]["memory"]["private"].as_u64()?;
        (memory > all).then_some(status)
    });
    assert_eq!(status["workers"][0]["id"], "w1", "{status:#}");
    assert_eq!(
        status["ends"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    assert_eq!(recycles(&status, "ceiling"), 0, "{status:#}");
}
