//! Repetitions that do not help come to an end: starts of workers that cannot start, kills by the
//! kernel while something other than workers fills the budget, and recycles of a process tree that
//! needs its memory.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;

use super::{
    house::{Plan, free_port, recycles, send},
    turn,
    venv::{Gunicorn, NEWEST, python},
};

/// A busy machine takes its time to start Python.
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
fn workers_that_end_at_import_cause_one_warning_and_the_service_is_given_up() {
    let _turn = turn::beside();
    let options = ["--restart-limit", "1", "--ceiling", "300M"];
    let command = gunicorn(2, "ends_at_import:app");
    let mut house = Plan::supervise(&options, &command).start();
    house.wait("a problem in the status", LIMIT, || {
        let status = house.status()?;
        let problem = status["problem"].as_str()?;
        problem.contains("workers cannot start").then_some(())
    });
    assert_eq!(house.ends(LIMIT).code(), Some(75), "{}", house.log());
    let log = house.log();
    let told = |text: &str| log.matches(text).count();
    assert_eq!(told("warn  workers cannot start: the last 5"), 1, "{log}");
    assert!(
        log.contains("the last with status 0; no worker serves"),
        "{log}"
    );
    assert_eq!(told("is not held"), 0, "{log}");
    assert!(log.contains("giving up: more than 1 ends"), "{log}");
    assert!(
        log.contains("the last with status 0, before its workers were ready"),
        "{log}"
    );
    // Two runs, and each of them is stopped after a few workers.
    assert!(told("ended: exit:0") <= 16, "{log}");
}

/// Files in `/dev/shm` with this prefix, removed when the test ends, also when it fails.
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
fn a_budget_full_of_files_in_memory_causes_a_warning_and_restarts_are_spaced() {
    let _turn = turn::alone();
    let left = Left(format!("/dev/shm/supervise-test-{}-", std::process::id()));
    let options = ["--budget", "150M", "--cap", "none", "--ceiling", "none"];
    let command = gunicorn(1, "fills_shm:app");
    let plan = Plan::supervise(&options, &command).env("LEAVES", &left.0);
    let house = plan.start();
    let said = house.wait("the reason", LIMIT, || {
        let status = house.status()?;
        if status["caps"]["mechanism"] == "rlimit" {
            return Some(None);
        }
        // Kill each worker that became ready, so that the next one writes its file.
        for worker in status["workers"].as_array()? {
            if worker["state"] == "ready" {
                send(
                    i32::try_from(worker["pid"].as_i64()?).ok()?,
                    Signal::SIGKILL,
                );
            }
        }
        Some(Some(house.warnings("the budget of 150M is full").pop()?))
    });
    let Some(said) = said else {
        println!("no memory cgroup here: the kernel holds no budget, not tested");
        return;
    };
    let status = house.status().expect("a status");
    assert!(
        said.contains("in tmpfs and shared memory") && said.contains(&left.0),
        "{said}"
    );
    assert_eq!(recycles(&status, "budget"), 0, "{status:#}");
    let again = house.wait("another start to be told", LIMIT, || {
        let mut events = house.events().into_iter();
        events.rfind(|event| event["event"] == "restarting")?["after_s"].as_f64()
    });
    assert!(again >= 5.0, "{again}");
    let problem = house.status().expect("a status")["problem"].clone();
    assert!(
        problem
            .as_str()
            .is_some_and(|text| text.contains("is full")),
        "{problem}"
    );
    assert_eq!(house.stop(LIMIT).code(), Some(0));
}

#[test]
fn a_tree_that_needs_more_than_its_ceiling_is_recycled_twice_and_then_left() {
    let _turn = turn::beside();
    let options = ["--ceiling", "100M", "--cap", "400M", "--min-age", "2s"];
    let house = Plan::supervise(&options, &[&python(), "tree.py"]).start();
    let said = house.wait("recycling to be stopped", LIMIT, || {
        house.warnings("recycling cannot help").pop()
    });
    assert!(said.contains("over the ceiling of"), "{said}");
    let tree = house.warnings("processes share one ceiling of 100M and hold");
    assert_eq!(tree.len(), 1, "{tree:?}");
    assert!(tree[0].contains("6 processes"), "{tree:?}");
    let status = house.status().expect("a status");
    let times = recycles(&status, "ceiling");
    assert!(times <= 2, "{times} recycles: {}", house.log());
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(1));
}
