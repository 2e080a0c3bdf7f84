//! The limit on open files: of `supervise` itself, of the command, and what happens when it is
//! reached.

use std::{fs, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    service::{Plan, SUPERVISE, free_port, send},
    status::{pids, workers},
    turn,
    venv::{Gunicorn, NEWEST},
};

const LIMIT: Duration = Duration::from_secs(60);
const SHOW: &str = "echo soft $(ulimit -Sn) hard $(ulimit -Hn); exec sleep 1000";

/// The soft and hard limit of a process, from `/proc`.
fn limits_of(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line
        .unwrap()
        .split_whitespace()
        .map(|word| word.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn the_command_gets_the_limits_supervise_was_started_with_even_after_an_upgrade() {
    let within = ["sh", "-c", "ulimit -Sn 256; exec \"$0\" \"$@\""];
    let options = ["--ready", "delay:0s", "--restart", "always"];
    let options = [&options[..], &["--restart-delay-min", "10ms"]].concat();
    let plan = Plan::supervise(&options, &["sh", "-c", SHOW]).within(&within);
    let service = plan.start();
    let status = service.ready(1);
    let (soft, hard) = limits_of(service.pid());
    assert_eq!(soft, hard.min(65_536));
    let said = format!("soft 256 hard {hard}\n");
    service.wait_for_output(&said, LIMIT);

    let output = service.client(&["upgrade"]);
    assert!(output.status.success(), "{output:?}\n{}", service.log());
    assert_eq!(limits_of(service.pid()), (soft, hard));
    send(pids(&status)[0], Signal::SIGKILL);
    service.wait("the limits of the next start", LIMIT, || {
        (service.stdout() == said.repeat(2)).then_some(())
    });
    assert!(service.stop(LIMIT).success());
}

#[test]
fn workers_and_tasks_get_the_inherited_limits_unless_nofile_is_configured() {
    let _turn = turn::beside();
    let within = ["sh", "-c", "ulimit -Sn 256; exec \"$0\" \"$@\""];
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let service = Plan::supervise(&[], &command).within(&within).start();
    for pid in pids(&service.ready(2)) {
        assert_eq!(limits_of(pid).0, 256);
    }
    assert!(service.stop(LIMIT).success());

    let options = ["--ready", "delay:0s", "--rlimit", "nofile=100:200"];
    let service = Plan::supervise(&options, &["sh", "-c", SHOW])
        .within(&within)
        .start();
    service.ready(1);
    service.wait_for_output("soft 100 hard 200\n", LIMIT);
    assert!(service.stop(LIMIT).success());

    let script = "ulimit -Sn 256; echo 7 | \"$0\" map --workers 1 resource:getrlimit";
    let output = Command::new("sh")
        .args(["-c", script, SUPERVISE])
        .output()
        .unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(line["result"][0], 256, "{output:?}");
}

#[test]
fn workers_beyond_the_descriptor_limit_are_reported_and_watched_once_there_is_room() {
    let _turn = turn::beside();
    let count = 24;
    let within = ["sh", "-c", "ulimit -n 80; exec \"$0\" \"$@\""];
    let mut command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let at = command.iter().position(|word| word == "-w").unwrap();
    command[at + 1] = count.to_string();
    let options = ["--cap", "300M", "--ceiling", "200M"];
    let service = Plan::supervise(&options, &command).within(&within).start();
    let event = service.wait("workers that are not watched", LIMIT, || {
        service.events_of("unwatched").pop()
    });
    let unwatched = event["workers"].as_u64().unwrap();
    assert!((1..count).contains(&unwatched), "{event}");
    assert_eq!(event["limit"], 80);
    // All serve, and the control socket answers.
    service.ready(usize::try_from(count).unwrap());
    let log = service.log();
    assert!(!log.contains("the cap is not enforced"), "{log}");

    // The server reduces its workers until there are descriptors for all of them.
    service.wait("all to be watched", LIMIT, || {
        service.signal(Signal::SIGTTOU);
        service.events_of("watched").pop()
    });
    let status = service.wait("a sample of each worker", LIMIT, || {
        let status = service.status()?;
        let seen = |worker: &Value| worker["memory"]["rss"].as_u64() > Some(0);
        workers(&status).iter().all(seen).then_some(status)
    });
    assert_eq!(service.events_of("unwatched").len(), 1);
    let last = *pids(&status).last().unwrap();
    send(last, Signal::SIGKILL);
    service.wait("its end", LIMIT, || {
        let ends = service.events_of("worker-ended");
        ends.iter().any(|end| end["pid"] == last).then_some(())
    });
    assert!(service.stop(LIMIT).success());
}
