//! Workers of queues finish the tasks that they have in hand when they are replaced. The queues are
//! in a real Redis.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    clock,
    service::{Plan, free_port},
    turn,
    venv::{QUEUES, programs},
};

const SOON: Duration = Duration::from_secs(60);
const TASKS: u32 = 1000;

/// How many times all workers are replaced. `QUEUE_ROUNDS=10` is the long form.
fn rounds() -> u32 {
    let set = std::env::var("QUEUE_ROUNDS").ok();
    set.map_or(3, |rounds| rounds.parse().expect("QUEUE_ROUNDS"))
}

/// A Redis without files.
struct Redis {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server (Debian: redis-server)");
        let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        clock::poll(SOON, answers).expect("a Redis that answers");
        Self {
            process,
            port,
            _dir: dir,
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Replaces all workers again and again while tasks are fed, and asserts that each task is done
/// exactly once.
#[track_caller]
fn each_task_is_done_once(system: &str, (options, workers): (&[&str], usize), command: &[&str]) {
    let _turn = turn::loaded();
    let redis = Redis::start();
    let port = redis.port.to_string();
    let fixed = ["--ceiling", "200M", "--min-age", "1s"];
    let service = Plan::supervise(&[&fixed, options].concat(), command)
        .env("REDIS", &port)
        .start();
    let before = service.ready(workers);
    let mode = if options.is_empty() {
        "server"
    } else {
        "fleet"
    };
    assert_eq!(before["mode"], mode, "{before:#}");
    // The tasks are fed for a little longer than the replacements take.
    let pause = (rounds() * 10).to_string();
    let feeder = Command::new(QUEUES.bin("python"))
        .args(["queues.py", system, &TASKS.to_string()])
        .arg(format!("0.{pause:0>3}"))
        .current_dir(programs())
        .env("REDIS", &port)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..rounds() {
        let answer = service.client(&["recycle", "--all"]);
        assert!(answer.status.success(), "{answer:?}\n{}", service.log());
    }
    let output = feeder.wait_with_output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(
        found,
        serde_json::json!({ "lost": 0, "doubled": 0 }),
        "{}",
        service.log()
    );
    let after = service.ready(workers);
    assert_eq!(before["command_pid"], after["command_pid"]);
    // The agent has counted them, also those of workers that have ended. One that leaves may exit
    // between the end of its task and the count.
    let counted = after["totals"]["requests"].as_u64().unwrap_or_default();
    let ends = workers as u64 * u64::from(rounds());
    let least = u64::from(TASKS) - ends;
    assert!((least..=u64::from(TASKS)).contains(&counted), "{after:#}");
    let ended = service.events_of("worker-ended");
    assert_eq!(ended.len() as u64, ends, "{}", service.log());
    assert!(
        ended.iter().all(|end| end["cause"] == "request"),
        "{ended:#?}"
    );
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
#[ignore = "needs `redis-server` (Debian: redis-server); run `.ci/debian`"]
fn tasks_of_an_rq_worker_pool_are_done_once() {
    let redis = "redis://127.0.0.1:$REDIS/0";
    let (rq, class) = (QUEUES.bin("rq"), "queues_rq.SlowWorker");
    let line = format!("exec {rq} worker-pool -n 2 -w {class} -P . --url {redis}");
    each_task_is_done_once("rq", (&[], 2), &["sh", "-c", &line]);
}

#[test]
#[ignore = "needs `redis-server` (Debian: redis-server); run `.ci/debian`"]
fn tasks_of_taskiq_workers_are_done_once() {
    let taskiq = QUEUES.bin("taskiq");
    let words = [&*taskiq, "worker", "queues_taskiq:broker", "--workers", "2"];
    each_task_is_done_once("taskiq", (&[], 2), &words);
}

#[test]
#[ignore = "needs `redis-server` (Debian: redis-server); run `.ci/debian`"]
fn tasks_of_a_huey_consumer_are_done_once() {
    let huey = QUEUES.bin("huey_consumer");
    // The third process is the scheduler.
    let words = [
        &*huey,
        "queues_huey.huey",
        "-k",
        "process",
        "-w",
        "2",
        "-c",
        "1",
    ];
    each_task_is_done_once("huey", (&[], 3), &words);
}

#[test]
#[ignore = "needs `redis-server` (Debian: redis-server); run `.ci/debian`"]
fn tasks_of_copies_of_dramatiq_are_done_once() {
    let dramatiq = QUEUES.bin("dramatiq");
    let words = [&*dramatiq, "-p", "1", "-t", "1", "queues_dramatiq"];
    each_task_is_done_once("dramatiq", (&["-n", "2"], 2), &words);
}
