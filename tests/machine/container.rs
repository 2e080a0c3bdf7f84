//! In a container: PID 1, control groups that are read-only, and a limit that is not ours.
#![expect(clippy::print_stdout, reason = "what is not tested is said")]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    house::{House, Plan, free_port, recycles, send},
    proc, turn,
    venv::{Gunicorn, NEWEST, programs, python},
};

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// A pod's own group, with a limit on memory. Removed when it is dropped.
pub(crate) struct Pod(PathBuf);

impl Pod {
    /// `None`, said loudly, where no such group can be made.
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
            println!("no group of version 1 can be made here: not tested");
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
        // The house in it was dropped before.
        let gone = super::clock::poll(SOON, || fs::remove_dir(&self.0).is_ok().then_some(()));
        assert!(
            gone.is_some() || std::thread::panicking(),
            "{}",
            self.path()
        );
    }
}

/// A container around `supervise OPTIONS -- COMMAND`; `None`, said loudly, where none can be.
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
        println!("no right to make namespaces here: not tested");
        return None;
    }
    let plan = Plan::supervise(options, command).within(&[&script]);
    Some(plan.env("POD", pod.map(Pod::path).unwrap_or_default()))
}

/// The container's first process, as it is seen from outside.
pub(crate) fn init(house: &House) -> i32 {
    house.wait("PID 1", SOON, || {
        let init = proc::children(house.pid()).first().copied()?;
        proc::command_line(init)
            .contains("--socket")
            .then_some(init)
    })
}

fn last_words(house: &House) -> String {
    house.file("termination-log")
}

#[test]
fn limits_follow_the_groups_own_when_that_is_resized() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(1024 * MIB) else {
        return;
    };
    let join = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", pod.path());
    let words = [&python(), "-c", "import time; time.sleep(600)"];
    let plan = Plan::supervise(&[], &words).within(&["sh", "-c", &join, "sh"]);
    let house = plan.start();
    let budget = |status: &Value| {
        let limits = &status["limits"];
        let from = limits["budget"]["from"].as_str().map(str::to_owned);
        (limits["available"].as_u64(), from)
    };
    let expected = (Some(1024 * MIB), Some("90% of 1G".to_owned()));
    assert_eq!(budget(&house.ready(1)), expected);
    fs::write(pod.limit(), (512 * MIB).to_string()).unwrap();
    let expected = (Some(512 * MIB), Some("90% of 512M".to_owned()));
    house.wait("limits of the smaller group", SOON, || {
        (budget(&house.status()?) == expected).then_some(())
    });
    let limits = house.events();
    let limits: Vec<_> = limits
        .iter()
        .filter(|event| event["event"] == "limits")
        .map(|event| event["budget"].as_u64().unwrap_or_default() / MIB)
        .collect();
    assert_eq!(limits, [921, 460]);
    let group = proc::groups_of(house.pid().unsigned_abs());
    let held = fs::read_to_string(group[0].join("memory.limit_in_bytes")).unwrap();
    assert_eq!(held.trim().parse::<u64>().unwrap() / MIB, 460);
    drop(house);
}

#[test]
fn a_runaway_meets_its_rlimit_where_groups_are_read_only() {
    let _turn = turn::beside();
    let code = "kept = []\nwhile True: kept.append(bytearray(1 << 20))";
    let command = [&python(), "-c", code];
    let options = ["--restart", "never", "--cap", "200M"];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let mut house = plan.start();
    let status = house.ends(SOON);
    let log = house.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("MemoryError"), "{log}");
    assert!(log.contains("is read-only"), "{log}");
    let said = last_words(&house);
    assert!(
        said.starts_with("programs is over with exit status 1\n"),
        "{said}"
    );
    assert!(said.contains("w1 ended: exit:1"), "{said}");
    assert!(said.contains("larger --cap"), "{said}");
}

#[test]
fn a_leaking_gunicorn_is_recycled_by_samples_where_groups_are_read_only() {
    let _turn = turn::beside();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let options = ["--ceiling", "80M", "--min-age", "1s", "--leaks", "off"];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let house = plan.env("LEAK_KB", 1000).start();
    house.ready(2);
    let load = Load {
        rate: Some(50.0),
        keep_alive: false,
        lasts: Duration::from_secs(60),
        ..Load::on(port)
    };
    let running = load.start();
    let status = house.wait("two recycles", Duration::from_secs(40), || {
        let status = house.status()?;
        (recycles(&status, "ceiling") >= 2).then_some(status)
    });
    let outcome = running.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert_eq!(status["caps"]["mechanism"], "rlimit", "{status:#}");
    assert_eq!(status["caps"]["enforced"], false, "{status:#}");
    let why = status["caps"]["why_not"].as_str().unwrap_or_default();
    assert!(why.contains("read-only"), "{why}");
    let init = init(&house);
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
        "to get it: ",
        "writable-cgroups=true",
        "in Kubernetes",
    ] {
        assert!(said.contains(words), "no `{words}` in:\n{said}");
    }
    send(init, Signal::SIGTERM);
    let mut house = house;
    assert_eq!(house.ends(SOON).code(), Some(0));
    assert_eq!(last_words(&house), "", "what went well leaves nothing");
}

#[test]
fn a_service_that_is_given_up_leaves_the_reason() {
    let _turn = turn::beside();
    let options = ["--restart-delay-min", "10ms", "--restart-limit", "3"];
    let command = [python(), "-c".to_owned(), "raise SystemExit(3)".to_owned()];
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let mut house = plan.start();
    assert_eq!(house.ends(SOON).code(), Some(75), "{}", house.log());
    let said = last_words(&house);
    assert!(said.contains("given up: more than 3 ends within"), "{said}");
    assert!(said.contains("ended: exit:3"), "{said}");
}

#[test]
fn who_is_killed_with_its_container_has_said_why_before() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(200 * MIB) else {
        return;
    };
    // Held by nothing but the pod's limit; stands still at 185 MB.
    let code = "import time\nkept = b'x' * (185 << 20)\ntime.sleep(600)";
    let options = ["--ceiling", "none", "--cap", "none", "--budget", "none"];
    let Some(plan) = contained(Some(&pod), &options, &[&python(), "-c", code]) else {
        return;
    };
    let mut house = plan.start();
    // RACE: the pod is close to its limit before the worker is sampled; then it is said again.
    let said = house.wait("last words", SOON, || {
        Some(last_words(&house)).filter(|text| text.contains("The largest: w1 1"))
    });
    // As the kernel does, at the pod's limit: all at once.
    send(init(&house), Signal::SIGKILL);
    house.ends(SOON);
    assert_eq!(last_words(&house), said);
    assert!(said.contains("close to the limit"), "{said}");
    assert!(said.contains("of 200M are in use"), "{said}");
    assert!(
        said.contains("what to do: raise the container's memory limit"),
        "{said}"
    );
    drop(house);
}

#[test]
fn a_worker_that_the_kernel_ends_for_the_pod_is_told() {
    let _turn = turn::beside();
    let Some(pod) = Pod::of(150 * MIB) else {
        return;
    };
    let code = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))";
    let options = ["--restart", "never", "--ceiling", "none", "--cap", "none"];
    let Some(plan) = contained(Some(&pod), &options, &[&python(), "-c", code]) else {
        return;
    };
    let mut house = plan.start();
    assert_eq!(house.ends(SOON).code(), Some(137), "{}", house.log());
    let said = last_words(&house);
    assert!(
        said.starts_with("programs is over with exit status 137\n"),
        "{said}"
    );
    assert!(said.contains("w1 ended: oom"), "{said}");
    assert!(
        said.contains("raise the container's memory limit"),
        "{said}"
    );
    drop(house);
}
