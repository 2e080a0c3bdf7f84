//! The status, events, metrics and requests of a running pool.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    clock,
    pool::{map, output_of, read},
    service::free_port,
    turn, venv,
};

/// A longer wait fails a test.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const TOKEN: &str = "a-token-of-many-letters";

/// A task writes down that it has begun, and ends when its gate is open.
const GATE: &str = "
import os, time

def waits(value):
    with open('begun', 'a') as file:
        file.write('%s %d\\n' % (value, os.getpid()))
    while not os.path.exists('open') and not os.path.exists('open-%s' % value):
        time.sleep(0.005)
    return value

def faults(value):
    if value == 1:
        return len(b'x' * (300 << 20))
    if value == 2:
        time.sleep(1000)
    return value
";

pub(crate) struct Pool {
    folder: tempfile::TempDir,
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    socket: PathBuf,
}

impl Pool {
    /// Starts it with these lines as input. The input stays open until [`Self::ends`].
    pub(crate) fn start(folder: tempfile::TempDir, words: &[&str], lines: &str) -> Self {
        fs::write(folder.path().join("gate.py"), GATE).unwrap();
        let mut command = map(folder.path(), words);
        Self::of(
            folder,
            command.stdin(Stdio::piped()),
            lines,
            "map-gate.sock",
        )
    }

    fn of(folder: tempfile::TempDir, command: &mut Command, lines: &str, socket: &str) -> Self {
        let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
        let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            stdin.write_all(lines.as_bytes()).unwrap();
        }
        Self {
            socket: folder.path().join(socket),
            folder,
            child: Some(child),
            stdin,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn client(&self, words: &[&str]) -> Command {
        let mut client = Command::new(env!("CARGO_BIN_EXE_supervise"));
        client.args(words).arg("--socket").arg(&self.socket);
        client.stdout(Stdio::piped()).stderr(Stdio::piped());
        client
    }

    fn said(&self, words: &[&str]) -> String {
        let output = self.client(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Option<Value> {
        let output = self.client(&["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the status satisfies `is`.
    #[track_caller]
    pub(crate) fn shows(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = clock::poll(LIMIT, || {
            last = self.status()?;
            is(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("not shown: {what}: {last:#}"))
    }

    fn events(&self) -> Vec<Value> {
        let text = self.said(&["events", "--json"]);
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    pub(crate) fn open(&self, gate: &str) {
        fs::write(self.folder().join(gate), "").unwrap();
    }

    /// The last task that this worker has begun. A status shows a task as soon as it is sent, so
    /// this waits until one has begun.
    fn task_of(&self, worker: &Value) -> String {
        let pid = worker["pid"].to_string();
        let found = clock::poll(LIMIT, || {
            let begun = fs::read_to_string(self.folder().join("begun")).ok()?;
            let mut lines = begun.lines().rev().filter_map(|line| line.split_once(' '));
            let (task, _) = lines.find(|(_, its)| *its == pid)?;
            Some(task.to_owned())
        });
        found.expect("it has begun a task")
    }

    /// Closes its input and waits for its end.
    pub(crate) fn ends(&mut self) -> Output {
        drop(self.stdin.take());
        output_of(self.child.take().unwrap())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn lines(count: u64) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

pub(crate) fn runs(number: u64) -> impl Fn(&Value) -> bool {
    move |status| status["pool"]["running"] == number
}

pub(crate) fn worker<'a>(status: &'a Value, id: &str) -> &'a Value {
    let mut workers = status["workers"].as_array().unwrap().iter();
    workers.find(|worker| worker["id"] == id).unwrap()
}

pub(crate) fn end_by<'a>(status: &'a Value, cause: &str) -> Option<&'a Value> {
    let ends = status["ends"].as_array().unwrap();
    ends.iter().find(|end| end["cause"] == cause)
}

/// Sends a request. Returns the answer with its head.
fn get(mut stream: impl Read + Write, path: &str, host: &str) -> String {
    let head = format!("Host: {host}\r\nAuthorization: Bearer {TOKEN}");
    write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Asserts the answers over HTTP while two tasks run and four wait.
#[track_caller]
fn assert_answers_over_http(socket: &Path, address: &str) {
    for stream in ["socket", "port"] {
        let metrics = match stream {
            "socket" => get(UnixStream::connect(socket).unwrap(), "/metrics", "any"),
            _ => get(TcpStream::connect(address).unwrap(), "/metrics", "any"),
        };
        for line in [
            "supervise_workers{state=\"ready\"} 2",
            "supervise_requests_total 0",
            "supervise_pool_tasks{state=\"running\"} 2",
            "supervise_pool_tasks{state=\"waiting\"} 4",
        ] {
            assert!(
                metrics.contains(&format!("\n{line}\n")),
                "{stream}: {metrics}"
            );
        }
    }
    for (path, host, status) in [
        ("/readyz", "any", 200),
        ("/v1/status", "pool.example", 200),
        ("/v1/status", "other.example", 403),
        // With the token.
        ("/v1/events", "pool.example", 200),
    ] {
        let answer = get(TcpStream::connect(address).unwrap(), path, host);
        let is_so = answer.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(is_so, "{path} {host}: {answer}");
    }
}

#[test]
fn a_running_map_shows_its_status_events_and_metrics() {
    let _turn = turn::beside();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let folder = folder();
    let token = folder.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let words = ["--metrics", &address, "--hosts", "pool.example"];
    let words = [&words[..], &["--token-file", "token", "--history", "4"]].concat();
    let words = [&words[..], &["gate:waits"]].concat();
    let mut pool = Pool::start(folder, &words, &lines(6));
    let status = pool.shows("two tasks", |status| {
        let sampled = |one: &Value| one["memory"]["private"].as_u64() > Some(0);
        runs(2)(status) && status["workers"].as_array().unwrap().iter().all(sampled)
    });
    assert_eq!(status["name"], "map-gate", "{status:#}");
    assert_eq!(status["mode"], "pool");
    assert_eq!(status["ready"], true);
    let tasks = &status["pool"];
    assert_eq!(
        (&tasks["function"], &tasks["done"]),
        (&"gate:waits".into(), &0.into())
    );
    assert_eq!(tasks["waiting"], 4, "{tasks}");
    for id in ["w1", "w2"] {
        let worker = worker(&status, id);
        assert_eq!(
            (&worker["state"], &worker["tasks"]),
            (&"ready".into(), &0.into())
        );
        pool.task_of(worker);
    }
    let page = pool.said(&["status"]);
    assert!(
        page.contains("ready, pool, up ") && page.contains("calls gate:waits"),
        "{page}"
    );
    assert!(
        page.contains("0 done, 0 failed, 2 running, 4 waiting"),
        "{page}"
    );
    assert!(
        !page.contains("agent") && !page.contains("no command"),
        "{page}"
    );
    let kinds: Vec<_> = pool
        .events()
        .into_iter()
        .map(|event| event["event"].clone())
        .collect();
    // The first event, `limits`, is not among the last four.
    assert_eq!(kinds.len(), 4);
    for kind in ["worker-seen", "worker-ready"] {
        assert_eq!(
            kinds.iter().filter(|it| *it == kind).count(),
            2,
            "{kinds:?}"
        );
    }
    assert_answers_over_http(&pool.socket, &address);
    pool.open("open");
    pool.shows("all tasks", |status| status["pool"]["done"] == 6);
    let output = pool.ends();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_eq!(read(&output.stdout).len(), 6);
    assert_eq!(pool.status(), None);
}

#[test]
fn a_recycle_request_replaces_workers_of_a_pool_after_their_tasks() {
    let _turn = turn::beside();
    let mut pool = Pool::start(folder(), &["gate:waits"], &lines(6));
    let status = pool.shows("two tasks", runs(2));
    let task = pool.task_of(worker(&status, "w1"));
    let mut client = pool.client(&["recycle", "w1"]).spawn().unwrap();
    let draining = |status: &Value| worker(status, "w1")["state"] == "draining";
    pool.shows("w1 drains", draining);
    // The answer comes only when the worker was replaced.
    assert_eq!(client.try_wait().unwrap(), None);
    pool.open(&format!("open-{task}"));
    let answer = client.wait_with_output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stdout).contains("1 worker was replaced"));
    let status = pool.shows("w3 runs a task", |status| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().any(|worker| worker["id"] == "w3") && runs(2)(status)
    });
    let end = end_by(&status, "request").unwrap();
    assert_eq!(
        (&end["worker"], &end["tasks"]),
        (&"w1".into(), &1.into()),
        "{end}"
    );
    assert_eq!(status["totals"]["recycles"]["request"], 1);

    let unknown = pool.client(&["recycle", "w1"]).output().unwrap();
    assert!(!unknown.status.success(), "{unknown:?}");
    let reload = pool.client(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(
        !reload.status.success() && said.contains("imports its function only once"),
        "{said}"
    );

    let all = pool.client(&["recycle", "--all"]).spawn().unwrap();
    pool.shows("both drain", |status| {
        ["w2", "w3"]
            .iter()
            .all(|id| worker(status, id)["state"] == "draining")
    });
    pool.open("open");
    let answer = all.wait_with_output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stdout).contains("2 workers were replaced"));
    let output = pool.ends();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read(&output.stdout).len(), 6);
}

#[test]
fn a_pool_stopped_by_request_can_be_resumed_from_its_journal() {
    let _turn = turn::beside();
    let words = ["--journal", "journal", "-i", "in", "gate:waits"];
    let folder = folder();
    fs::write(folder.path().join("in"), lines(6)).unwrap();
    let mut pool = Pool::start(folder, &words, "");
    pool.shows("two tasks", runs(2));
    let stop = pool.client(&["stop"]).spawn().unwrap();
    pool.shows("it stops", |status| {
        status["stopping"] == true && status["ready"] == false
    });
    pool.open("open");
    assert!(stop.wait_with_output().unwrap().status.success());
    let output = pool.ends();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(read(&output.stdout).len(), 2);

    let resume = [&words[..], &["--resume"]].concat();
    let output = map(pool.folder(), &resume).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read(&output.stdout).len(), 6);
}

#[test]
fn an_immediate_stop_ends_the_running_tasks_of_a_pool() {
    let _turn = turn::beside();
    let mut pool = Pool::start(folder(), &["gate:waits"], &lines(6));
    pool.shows("two tasks", runs(2));
    let answer = pool.client(&["stop", "--now"]).output().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    let output = pool.ends();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(read(&output.stdout).is_empty());
}

#[test]
fn the_ends_of_workers_have_their_cause_and_memory() {
    let _turn = turn::beside();
    let words = ["--cap", "60M", "--budget", "400M", "--oom-retries", "0"];
    let words = [&words[..], &["--task-timeout", "1s", "gate:faults"]].concat();
    let mut pool = Pool::start(folder(), &words, &lines(3));
    let status = pool.shows("three results", |status| {
        let tasks = &status["pool"];
        tasks["done"] == 1 && tasks["failed"] == 2
    });
    let hung = end_by(&status, "hung").unwrap();
    assert!(hung["age_s"].as_f64() >= Some(1.0), "{hung}");
    assert_eq!(
        (&hung["killed"], &hung["limit"]),
        (&true.into(), &Value::Null),
        "{hung}"
    );
    assert!(hung["pid"].as_i64() > Some(0), "{hung}");
    // Without a group RLIMIT_DATA enforces the cap, and Python raises MemoryError.
    if status["caps"]["mechanism"] != "rlimit" {
        let cap = end_by(&status, "cap").unwrap();
        for figure in ["limit", "peak", "memory"] {
            assert_eq!(cap[figure], 60 * MIB, "{cap}");
        }
        let ends = &status["totals"]["ends"];
        assert_eq!(
            (&ends["cap"], &ends["hung"]),
            (&1.into(), &1.into()),
            "{ends}"
        );
        let ended = pool
            .events()
            .into_iter()
            .filter(|event| event["event"] == "worker-ended");
        let causes: Vec<_> = ended.map(|event| event["cause"].clone()).collect();
        assert!(
            causes.contains(&"cap".into()) && causes.contains(&"hung".into()),
            "{causes:?}"
        );
    }
    let output = pool.ends();
    assert_eq!(read(&output.stdout).len(), 3, "{output:?}");
}

#[test]
fn a_second_map_of_the_same_function_has_its_pid_in_its_name() {
    let _turn = turn::beside();
    let mut first = Pool::start(folder(), &["gate:waits"], "1\n");
    first.shows("one task", runs(1));
    let mut command = map(first.folder(), &["gate:waits"]);
    let place = folder();
    let mut second = Pool::of(place, command.stdin(Stdio::piped()), "2\n", "none");
    let name = format!("map-gate-{}", second.child.as_ref().unwrap().id());
    second.socket = first.folder().join(format!("{name}.sock"));
    let status = second.shows("one task", runs(1));
    assert_eq!(status["name"], name.as_str());
    assert_eq!(first.status().unwrap()["name"], "map-gate");
    first.open("open");
    for pool in [&mut first, &mut second] {
        let output = pool.ends();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

const EXECUTOR: &str = "
import gate
from supervise import Executor

with Executor(1) as executor:
    assert executor.submit(gate.waits, 1).result() == 1
";

#[test]
fn a_running_executor_shows_its_status_and_events() {
    let _turn = turn::beside();
    let folder = folder();
    fs::write(folder.path().join("gate.py"), GATE).unwrap();
    fs::write(folder.path().join("program.py"), EXECUTOR).unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let mut python = Command::new(venv::NEWEST.bin("python"));
    python
        .arg("program.py")
        .current_dir(folder.path())
        .env("SUPERVISE_BINARY", env!("CARGO_BIN_EXE_supervise"))
        .env("PYTHONPATH", package)
        .env("RUNTIME_DIRECTORY", folder.path())
        .env("STATE_DIRECTORY", folder.path().join("state"));
    let mut pool = Pool::of(folder, &mut python, "", "executor.sock");
    let status = pool.shows("one task", runs(1));
    assert_eq!(
        (&status["name"], &status["mode"]),
        (&"executor".into(), &"pool".into())
    );
    assert_eq!(status["pool"]["function"], Value::Null);
    assert!(
        pool.said(&["status"])
            .contains("calls functions from its executor")
    );
    let ready = pool
        .events()
        .into_iter()
        .any(|event| event["event"] == "worker-ready");
    assert!(ready, "{:?}", pool.events());
    pool.open("open");
    let output = pool.ends();
    assert!(output.status.success(), "{output:?}");
}
