//! `supervise` in a container: as PID 1, with read-only control groups, and with an outer limit.
#![expect(
    clippy::print_stdout,
    reason = "a test prints what it cannot test here"
)]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    proc,
    service::{Plan, Service, free_port, recycles, send},
    turn,
    venv::{Gunicorn, NEWEST, programs, python},
};

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// The group of a pod, with a memory limit. It is removed when this is dropped.
pub(crate) struct Pod(PathBuf);

impl Pod {
    /// `None`, with a message, if such a group cannot be made.
    fn of(limit: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = groups
            .lines()
            .find_map(|line| line.split_once(":memory:"))
            .map(|(_, path)| format!("/sys/fs/cgroup/memory{path}"));
        let name = format!("pod-of-test-{}-{}", std::process::id(), free_port());
        let pod = own.map(|own| Self(PathBuf::from(own).join(name)));
        let made = pod.filter(|pod| {
            fs::create_dir(&pod.0).is_ok() && fs::write(pod.limit(), limit.to_string()).is_ok()
        });
        if made.is_none() {
            println!("NOT RUN: needs the right to make a group of cgroup v1");
        }
        made
    }

    fn limit(&self) -> PathBuf {
        self.0.join("memory.limit_in_bytes")
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The service in it has been dropped before.
        let gone = super::clock::poll(SOON, || fs::remove_dir(&self.0).is_ok().then_some(()));
        assert!(
            gone.is_some() || std::thread::panicking(),
            "{}",
            self.path()
        );
    }
}

/// A container around `supervise OPTIONS -- COMMAND`. `None`, with a message, if it cannot be made.
pub(crate) fn contained(
    pod: Option<&Pod>,
    options: &[&str],
    command: &[impl ToString],
) -> Option<Plan> {
    let script = programs().join("container.sh").display().to_string();
    let home = tempfile::tempdir().unwrap();
    let works = Command::new(&script)
        .arg("true")
        .env("HOME", home.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        println!("NOT RUN: needs the right to make namespaces");
        return None;
    }
    let plan = Plan::supervise(options, command).within(&[&script]);
    Some(plan.env("POD", pod.map(Pod::path).unwrap_or_default()))
}

/// The first process of the container, by its pid outside.
pub(crate) fn init(service: &Service) -> i32 {
    service.wait("PID 1", SOON, || {
        let init = proc::children(service.pid()).first().copied()?;
        proc::command_line(init)
            .contains("--socket")
            .then_some(init)
    })
}

fn termination_log(service: &Service) -> String {
    service.file("termination-log")
}

#[test]
fn limits_change_with_the_limit_of_the_outer_group() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(1024 * MIB) else {
        return;
    };
    let join = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", pod.path());
    let words = [&python(), "-c", "import time; time.sleep(600)"];
    let plan = Plan::supervise(&[], &words).within(&["sh", "-c", &join, "sh"]);
    let service = plan.start();
    let budget = |status: &Value| {
        let limits = &status["limits"];
        let from = limits["budget"]["from"].as_str().map(str::to_owned);
        (limits["available"].as_u64(), from)
    };
    let expected = (Some(1024 * MIB), Some("90% of 1G".to_owned()));
    assert_eq!(budget(&service.ready(1)), expected);
    fs::write(pod.limit(), (512 * MIB).to_string()).unwrap();
    let expected = (Some(512 * MIB), Some("90% of 512M".to_owned()));
    service.wait("limits of the smaller group", SOON, || {
        (budget(&service.status()?) == expected).then_some(())
    });
    let limits = service.events();
    let limits: Vec<_> = limits
        .iter()
        .filter(|event| event["event"] == "limits")
        .map(|event| event["budget"].as_u64().unwrap_or_default() / MIB)
        .collect();
    assert_eq!(limits, [921, 460]);
    let group = proc::groups_of(service.pid().unsigned_abs());
    let held = fs::read_to_string(group[0].join("memory.limit_in_bytes")).unwrap();
    assert_eq!(held.trim().parse::<u64>().unwrap() / MIB, 460);
    drop(service);
}

#[test]
fn a_runaway_reaches_its_rlimit_if_groups_are_read_only() {
    let _turn = turn::beside();
    let code = "kept = []\nwhile True: kept.append(bytearray(1 << 20))";
    let command = [&python(), "-c", code];
    let options = ["--restart", "never", "--cap", "200M"];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let mut service = plan.start();
    let status = service.ends(SOON);
    let log = service.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("MemoryError"), "{log}");
    assert!(log.contains("is read-only"), "{log}");
    let said = termination_log(&service);
    assert!(
        said.starts_with("programs exited with status 1\n"),
        "{said}"
    );
    assert!(said.contains("w1 ended: exit:1"), "{said}");
    assert!(said.contains("larger --cap"), "{said}");
}

#[test]
fn a_leaking_gunicorn_is_recycled_by_samples_if_groups_are_read_only() {
    let _turn = turn::beside();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let options = ["--ceiling", "80M", "--min-age", "1s", "--leaks", "off"];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let service = plan.env("LEAK_KB", 1000).start();
    service.ready(2);
    let load = Load {
        rate: Some(50.0),
        keep_alive: false,
        lasts: Duration::from_secs(60),
        ..Load::on(port)
    };
    let running = load.start();
    let status = service.wait("two recycles", Duration::from_secs(40), || {
        let status = service.status()?;
        (recycles(&status, "ceiling") >= 2).then_some(status)
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_eq!(status["caps"]["mechanism"], "rlimit", "{status:#}");
    assert_eq!(status["caps"]["enforced"], false, "{status:#}");
    let why = status["caps"]["why_not"].as_str().unwrap_or_default();
    assert!(why.contains("read-only"), "{why}");
    let init = init(&service);
    let doctor = Command::new("nsenter")
        .args(["--target", &init.to_string(), "--pid", "--mount"])
        .args([env!("CARGO_BIN_EXE_supervise"), "doctor"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    for words in [
        "no  a cap on each worker: only RLIMIT_DATA",
        "no  a budget over all workers",
        "is read-only",
        "hint: ",
        "writable-cgroups=true",
        "in Kubernetes",
    ] {
        assert!(said.contains(words), "no `{words}` in:\n{said}");
    }
    send(init, Signal::SIGTERM);
    let mut service = service;
    assert_eq!(service.ends(SOON).code(), Some(0));
    assert_eq!(
        termination_log(&service),
        "",
        "a clean stop leaves it empty"
    );
}

#[test]
fn the_termination_log_says_why_supervise_gave_up() {
    let _turn = turn::beside();
    let options = ["--restart-delay-min", "10ms", "--restart-limit", "3"];
    let command = [python(), "-c".to_owned(), "raise SystemExit(3)".to_owned()];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let mut service = plan.start();
    assert_eq!(service.ends(SOON).code(), Some(75), "{}", service.log());
    let said = termination_log(&service);
    assert!(
        said.contains("given up: more than 3 exits within"),
        "{said}"
    );
    assert!(said.contains("ended: exit:3"), "{said}");
}

#[test]
fn the_termination_log_warns_before_the_container_is_killed_at_its_limit() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(200 * MIB) else {
        return;
    };
    // Only the pod's limit applies. The program stays at 185 MB.
    let code = "import time\nkept = b'x' * (185 << 20)\ntime.sleep(600)";
    let options = ["--ceiling", "none", "--cap", "none", "--budget", "none"];
    let Some(plan) = contained(Some(&pod), &options, &[&python(), "-c", code]) else {
        return;
    };
    let mut service = plan.start();
    // RACE: the pod may be close to its limit before the worker is sampled. Then the warning is
    // written again.
    let said = service.wait("the termination log", SOON, || {
        Some(termination_log(&service)).filter(|text| text.contains("The largest: w1 1"))
    });
    // The kernel kills all processes of the pod together at its limit.
    send(init(&service), Signal::SIGKILL);
    service.ends(SOON);
    assert_eq!(termination_log(&service), said);
    assert!(said.contains("close to the limit"), "{said}");
    assert!(said.contains("of 200M are in use"), "{said}");
    assert!(
        said.contains("hint: raise the container's memory limit"),
        "{said}"
    );
    drop(service);
}

#[test]
fn the_termination_log_names_a_worker_killed_at_the_limit_of_the_pod() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(150 * MIB) else {
        return;
    };
    let code = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))";
    let options = ["--restart", "never", "--ceiling", "none", "--cap", "none"];
    let Some(plan) = contained(Some(&pod), &options, &[&python(), "-c", code]) else {
        return;
    };
    let mut service = plan.start();
    assert_eq!(service.ends(SOON).code(), Some(137), "{}", service.log());
    let said = termination_log(&service);
    assert!(
        said.starts_with("programs exited with status 137\n"),
        "{said}"
    );
    assert!(said.contains("w1 ended: oom"), "{said}");
    assert!(
        said.contains("raise the container's memory limit"),
        "{said}"
    );
    drop(service);
}
