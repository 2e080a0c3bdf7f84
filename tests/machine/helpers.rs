//! Processes other than workers: other children of the server, processes that a worker leaves
//! behind or that the kernel kills in its group, and servers that start in an unusual way.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    proc,
    service::{Plan, Service, free_port, send},
    status::{pids, workers},
    turn,
    venv::{Gunicorn, NEWEST, python},
};

const SOON: Duration = Duration::from_secs(30);

const fn app(app: &'static str) -> Gunicorn {
    Gunicorn {
        workers: 2,
        class: "sync",
        app,
    }
}

/// Waits for a warning that contains `text`.
#[track_caller]
fn wait_for_warning(service: &Service, text: &str) {
    let what = format!("a warning that contains `{text}`");
    service.wait(&what, SOON, || service.warnings(text).pop());
}

#[test]
fn the_dirty_processes_of_gunicorn_are_no_workers_and_are_shown_by_name() {
    let _turn = turn::beside();
    let mut command = NEWEST.gunicorn(free_port(), app("dirty_app:app"));
    let dirty = ["--dirty-app", "dirty_app:Model", "--dirty-workers", "1"];
    command.splice(1..1, dirty.map(str::to_owned));
    let service = Plan::supervise(&["--ceiling", "200M"], &command).start();
    service.ready(2);
    let helper = service.wait("the event of the dirty arbiter", SOON, || {
        service.events_of("server-helper").pop()
    });
    let seen = service.events_of("worker-seen");
    assert_eq!(seen.len(), 2, "{seen:#?}");
    let status = service.ready(2);
    let is_worker = |it: &Value| it["pid"] == helper["pid"];
    assert!(!workers(&status).iter().any(is_worker), "{status:#}");
    let status = service.wait("both dirty processes", SOON, || {
        let status = service.status()?;
        (status["helpers"].as_array()?.len() == 2).then_some(status)
    });
    let helpers = status["helpers"].as_array().expect("helpers");
    assert_eq!(helpers[0]["name"], "dirty arbiter", "{status:#}");
    assert_eq!(helpers[0]["pid"], helper["pid"], "{status:#}");
    assert_eq!(helpers[1]["name"], "dirty worker", "{status:#}");
    let large = |it: &Value| it["memory"].as_u64().is_some_and(|memory| memory > 1 << 20);
    assert!(helpers.iter().all(large), "{status:#}");
    let has_budget = status["caps"]["mechanism"] != "rlimit";
    assert_eq!(status["helpers_limited"], has_budget, "{status:#}");
    let page = service.client(&["status"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("dirty worker pid "), "{page}");
}

#[test]
fn the_workers_of_an_embedded_gunicorn_are_watched() {
    let _turn = turn::beside();
    let command = [NEWEST.bin("python"), "embeds_gunicorn.py".to_owned()];
    let plan = Plan::supervise(&["--ceiling", "200M"], &command);
    let service = plan.env("PORT", free_port()).start();
    service.ready(2);
}

#[test]
fn a_server_behind_a_script_is_found_and_stays_one_across_upgrades_and_restarts() {
    let _turn = turn::beside();
    let mut command = vec!["sh".to_owned(), "entrypoint.sh".to_owned()];
    command.extend(NEWEST.gunicorn(free_port(), app("leaves_behind:app")));
    let service = Plan::supervise(&["--ceiling", "200M"], &command).start();
    let found = service.wait("the event of the server", SOON, || {
        service.events_of("server-found").pop()
    });
    assert_eq!(found["server"], "gunicorn", "{found:#}");
    let before = service.ready(2);
    let upgraded = service.client(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    let after = service.ready(2);
    assert_eq!(after["mode"], "server", "{after:#}");
    assert_eq!(pids(&before), pids(&after));
    let server = found["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    send(server.expect("a pid"), Signal::SIGKILL);
    // A server that is started again is found again.
    service.wait("two other workers", SOON, || {
        let status = service.status()?;
        let old = pids(&before);
        let others = pids(&status)
            .iter()
            .filter(|pid| !old.contains(pid))
            .count();
        (others == 2 && pids(&status).len() == 2).then_some(())
    });
}

#[test]
fn the_agent_is_loaded_when_a_tool_puts_its_directory_first_on_the_path() {
    let _turn = turn::beside();
    let mut command = vec![python(), "launches.py".to_owned()];
    command.extend(NEWEST.gunicorn(free_port(), app("leaves_behind:app")));
    let options = ["--ceiling", "200M", "--server", "gunicorn"];
    let service = Plan::supervise(&options, &command).start();
    service.wait("agents in both workers", SOON, || {
        let status = service.status()?;
        let loaded = |it: &&Value| it["agent"] == "loaded";
        (workers(&status).iter().filter(loaded).count() == 2).then_some(())
    });
}

#[test]
fn a_missing_agent_causes_a_warning_that_names_the_disabled_features() {
    let _turn = turn::beside();
    let mut script = "PYTHONPATH=$PWD/front:$PYTHONPATH exec".to_owned();
    for word in NEWEST.gunicorn(free_port(), app("leaves_behind:app")) {
        script.push_str(&format!(" {word}"));
    }
    let command = ["sh", "-c", &script];
    let options = ["--ceiling", "200M", "--max-tasks", "100"];
    let service = Plan::supervise(&options, &command).start();
    wait_for_warning(&service, "front before the agent");
    wait_for_warning(&service, "recycle.max_tasks");
}

#[test]
fn processes_left_behind_by_a_recycled_worker_are_reported_and_ended() {
    let _turn = turn::beside();
    let port = free_port();
    let command = NEWEST.gunicorn(
        port,
        Gunicorn {
            workers: 1,
            ..app("leaves_behind:app")
        },
    );
    let options = ["--ceiling", "200M", "--min-age", "100ms"];
    let service = Plan::supervise(&options, &command).start();
    let status = service.ready(1);
    if status["caps"]["mechanism"] == "rlimit" {
        println!("NOT RUN: leftovers are found by their cgroup, and there is none here");
        return;
    }
    let left = Load::on(port).once("/pid").expect("an answer");
    service.client(&["recycle", "w1"]);
    let ended = service.wait("the end of the leftover", SOON, || {
        service.events_of("leftover-ended").pop()
    });
    assert_eq!(ended["pid"], left, "{ended:#}");
    assert_eq!(ended["worker"], "w1", "{ended:#}");
    service.wait("the leftover to be gone", SOON, || {
        (!proc::is_alive(left)).then_some(())
    });
    let status = service.ready(1);
    assert_eq!(status["totals"]["leftovers_ended"], 1, "{status:#}");
}

/// Runs a job until its child has reached the cap. Returns false if no control group enforces a cap
/// here.
fn job_reaches_cap(how: &str) -> bool {
    let _turn = turn::beside();
    let options = ["--restart", "never", "--cap", "100M"];
    let command = [python(), "pool_over_cap.py".to_owned(), how.to_owned()];
    let ended = Plan::supervise(&options, &command).run(Duration::from_secs(30));
    if ended.stderr.contains("RLIMIT_DATA") {
        return false;
    }
    let is_reported = ended.stderr.lines().any(|line| {
        let warns = line.contains(" warn ") || line.contains(" error ");
        warns && line.contains("cap of 100M")
    });
    assert!(is_reported, "{}", ended.stderr);
    if how == "pool" {
        assert_eq!(ended.status.code(), Some(137), "{}", ended.stderr);
        assert!(ended.stderr.contains("w1 ended: cap"), "{}", ended.stderr);
    }
    true
}

#[test]
fn a_job_whose_pool_child_reaches_the_cap_ends_and_does_not_hang() {
    if !job_reaches_cap("pool") {
        println!("NOT RUN: no control group holds a cap here");
    }
}

#[test]
fn a_child_program_at_the_cap_is_reported_even_if_its_job_ends_immediately() {
    if !job_reaches_cap("program") {
        println!("NOT RUN: no control group holds a cap here");
    }
}
