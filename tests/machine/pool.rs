//! `supervise map`: each task gets one result, whatever happens to a worker.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{clock, proc::children, turn};

/// The time between two kills of a worker.
const KILL_EVERY: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(60);
/// A pool that takes longer counts as hung.
const HANGS: Duration = Duration::from_secs(300);

const TASKS: &str = "
import os, subprocess, sys, time

def same(value):
    return value

def faults(value):
    if value == 3:
        raise ValueError('three')
    if value == 4:
        os._exit(7)
    if value == 5:
        os.kill(os.getpid(), 9)
    if value == 6:
        return {1}
    if value == 7:
        os.closerange(3, 256)
    if value == 8:
        print('printed by eight')
    if value == 9:
        time.sleep(1000)
    if value == 10:
        subprocess.Popen(['sleep', '1000'])
    return value

def grows(value):
    kept = []
    for _ in range(20):
        kept.append(bytearray(4 << 20))
        time.sleep(0.01)
    return value

def leaves_a_child(value):
    child = subprocess.Popen(['sleep', '1000'])
    return child.pid

def fails_twice(value):
    with open('tries', 'a') as file:
        file.write('x')
    if os.path.getsize('tries') < 3:
        raise ValueError('not yet')
    return value

def naps(value):
    with open('begun', 'a') as file:
        file.write('x')
    time.sleep(0.3)
    return value

def hog(value):
    return len(b'x' * (300 << 20)) if value % 20 == 0 else value

def brief(value):
    end = time.perf_counter() + 0.0001
    while time.perf_counter() < end:
        pass
    return value
";

pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tasks.py"), TASKS).unwrap();
    folder
}

pub(crate) fn map(folder: &Path, words: &[&str]) -> Command {
    map_by(python(), folder, words)
}

pub(crate) fn map_by(python: &str, folder: &Path, words: &[&str]) -> Command {
    map_of("2", python, folder, words)
}

/// `supervise map` with one worker.
pub(crate) fn map_by_one(folder: &Path, words: &[&str]) -> Command {
    map_of("1", python(), folder, words)
}

fn map_of(workers: &str, python: &str, folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supervise"));
    command
        .current_dir(folder)
        .args(["map", "--workers", workers, "--python", python])
        .args(words)
        // With PYTHONUNBUFFERED, C's standard output would have no buffer that must be flushed.
        .env_remove("PYTHONUNBUFFERED")
        .env("XDG_RUNTIME_DIR", folder)
        .env("RUNTIME_DIRECTORY", folder)
        .env("STATE_DIRECTORY", folder.join("state"));
    command
}

/// The interpreter itself: `python3` may be a script that starts it with additional processes.
fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let probe = ["-c", "import sys; print(sys.executable)"];
        let output = Command::new("python3").args(probe).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// Runs it over the numbers up to `count`. Returns the results by their ids.
pub(crate) fn run(folder: &Path, count: u64, words: &[&str]) -> (Output, BTreeMap<u64, Value>) {
    run_numbers(map(folder, words), count)
}

/// Runs it over the numbers up to `count`. Returns the results by their ids.
pub(crate) fn run_numbers(command: Command, count: u64) -> (Output, BTreeMap<u64, Value>) {
    let lines: String = (1..=count).map(|number| format!("{number}\n")).collect();
    let output = output_of(start(command, lines));
    let results = read(&output.stdout);
    (output, results)
}

/// Starts it with `lines` as its standard input.
pub(crate) fn start(mut command: Command, lines: impl Into<Vec<u8>>) -> Child {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = lines.into();
    std::thread::spawn(move || {
        // The run may end before it has read everything.
        let _ = input.write_all(&lines);
    });
    child
}

/// Waits for its end. A run that does not end is killed with its child processes.
pub(crate) fn output_of(child: Child) -> Output {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (ends, ended) = mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let late = ended.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout);
        late && kill(pid, Signal::SIGKILL).is_ok()
    });
    let output = child.wait_with_output().unwrap();
    drop(ends);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!guard.join().unwrap(), "it does not end: {stderr}");
    output
}

/// Reads results by their ids. Each id must occur once.
pub(crate) fn read(lines: &[u8]) -> BTreeMap<u64, Value> {
    let mut results = BTreeMap::new();
    for line in lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let result: Value = serde_json::from_slice(line).unwrap();
        let id = result["id"].as_u64().unwrap();
        let before = results.insert(id, result);
        assert!(before.is_none(), "two results for {id}");
    }
    results
}

pub(crate) fn cause(result: &Value) -> &str {
    result["error"]["cause"].as_str().unwrap_or("none")
}

#[test]
fn each_failing_task_gets_one_error_and_other_tasks_succeed() {
    let _turn = turn::beside();
    let folder = folder();
    let (output, results) = run(folder.path(), 40, &["--task-timeout", "2s", "tasks:faults"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(results.len(), 40, "{stderr}");
    for (id, expected) in [
        (3, "exception"),
        (4, "exit:7"),
        (5, "signal:KILL"),
        (6, "unserializable"),
        (9, "timeout"),
    ] {
        assert_eq!(cause(&results[&id]), expected, "{}", results[&id]);
    }
    let raised = &results[&3]["error"];
    assert_eq!(raised["type"], "ValueError");
    assert!(raised["traceback"].as_str().unwrap().contains("in faults"));
    assert!(stderr.contains("[task 8] printed by eight"), "{stderr}");
    for (id, result) in &results {
        if ![3, 4, 5, 6, 7, 9].contains(id) {
            assert_eq!(result["result"].as_u64(), Some(*id), "{result}");
        }
    }
}

#[test]
fn a_module_that_cannot_be_imported_causes_one_error() {
    let _turn = turn::beside();
    let folder = folder();
    for (name, shown) in [
        ("nowhere:f", "No module named 'nowhere'"),
        ("tasks:none", "no attribute"),
    ] {
        let (output, results) = run(folder.path(), 3, &[name]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{stderr}");
        assert_eq!(stderr.matches(shown).count(), 1, "{stderr}");
        assert!(results.is_empty());
    }
}

#[test]
fn with_max_tasks_1_each_task_has_its_own_process_and_ordered_results_are_in_order() {
    let _turn = turn::beside();
    let folder = folder();
    let (output, results) = run(
        folder.path(),
        30,
        &["--max-tasks", "1", "--ordered", "tasks:same"],
    );
    assert_eq!(output.status.code(), Some(0));
    let workers: std::collections::BTreeSet<_> = results
        .values()
        .map(|result| result["worker"].to_string())
        .collect();
    assert_eq!(workers.len(), 30);
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.contains("\"id\":1,"), "{first}");
}

#[test]
fn a_task_over_its_cap_is_retried_alone_and_then_fails() {
    let _turn = turn::beside();
    let folder = folder();
    let words = ["--cap", "60M", "--budget", "400M", "tasks:hog"];
    let (output, results) = run(folder.path(), 400, &words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(results.len(), 400, "{stderr}");
    assert!(!stderr.contains("Traceback"), "{stderr}");
    for (id, result) in &results {
        if id % 20 == 0 {
            // Without a group RLIMIT_DATA enforces the cap, and Python raises MemoryError.
            let by_rlimit = result["error"]["type"] == "MemoryError";
            assert!(cause(result) == "cap" || by_rlimit, "{result}");
            // Its fork server may have been killed with it.
            assert!(by_rlimit || result["peak"] == 60 << 20, "{result}");
        } else {
            assert_eq!(result["result"].as_u64(), Some(*id), "{result}");
        }
    }
}

/// The pids of the workers. The chain is: supervise, keeper, template, fork server, worker.
pub(crate) fn workers(of: i32) -> Vec<i32> {
    let below = |pids: Vec<i32>| pids.into_iter().flat_map(children).collect::<Vec<_>>();
    below(below(below(children(of))))
}

#[test]
fn killed_workers_lose_no_task() {
    let _turn = turn::beside();
    let folder = folder();
    let lines: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    fs::write(folder.path().join("in"), lines).unwrap();
    let words = ["-i", "in", "-o", "out", "--retries", "100", "tasks:brief"];
    let mut child = map(folder.path(), &words).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let mut kills = 0_usize;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        clock::until(clock::now() + KILL_EVERY);
        let workers = workers(pid);
        if let Some(worker) = workers.get(kills % workers.len().max(1)) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(*worker),
                nix::sys::signal::Signal::SIGKILL,
            );
            kills += 1;
        }
    };
    assert!(kills > 5, "only {kills} kills");
    assert_eq!(status.code(), Some(0));
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    assert_eq!(results.len(), 20_000);
    assert!(results.values().all(|result| result["ok"] == true));
}

#[test]
fn a_killed_run_is_resumed_from_its_journal() {
    let _turn = turn::beside();
    let folder = folder();
    let lines: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    fs::write(folder.path().join("in"), lines).unwrap();
    let journal = folder.path().join("journal");
    let length = || fs::metadata(&journal).map_or(0, |found| found.len());
    let words = [
        "-i",
        "in",
        "-o",
        "out",
        "--journal",
        "journal",
        "--resume",
        "tasks:brief",
    ];
    for _ in 0..4 {
        let before = length();
        let mut child = map(folder.path(), &words).spawn().unwrap();
        // Kill it when it has finished some tasks.
        let mut done = || length() >= before + 10_000 || child.try_wait().unwrap().is_some();
        clock::poll(LIMIT, || done().then_some(())).expect("tasks are done");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let again = map(
        folder.path(),
        &["-i", "in", "--journal", "journal", "tasks:brief"],
    )
    .output()
    .unwrap();
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(
        stderr.contains("continue it with --resume, or remove it"),
        "{stderr}"
    );
    assert!(map(folder.path(), &words).status().unwrap().success());
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    assert_eq!(results.len(), 20_000);
}
