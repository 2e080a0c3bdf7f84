//! The limit on open files: the one that `supervise` sets for itself, the one that the command
//! gets, and what happens when it is reached.

use std::{fs, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    house::{Plan, SUPERVISE, free_port, pids, send, workers},
    venv::{Gunicorn, NEWEST},
};

const LIMIT: Duration = Duration::from_secs(60);
const SHOW: &str = "echo soft $(ulimit -Sn) hard $(ulimit -Hn); exec sleep 1000";

/// Soft and hard, as `/proc` has them.
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
fn the_command_gets_the_limits_we_were_started_with_also_after_an_upgrade() {
    let within = ["sh", "-c", "ulimit -Sn 256; exec \"$0\" \"$@\""];
    let options = ["--ready", "delay:0s", "--restart", "always"];
    let options = [&options[..], &["--restart-delay-min", "10ms"]].concat();
    let plan = Plan::supervise(&options, &["sh", "-c", SHOW]).within(&within);
    let house = plan.start();
    let status = house.ready(1);
    let (soft, hard) = limits_of(house.pid());
    assert_eq!(soft, hard.min(65_536));
    let said = format!("soft 256 hard {hard}\n");
    house.wait_for_output(&said, LIMIT);

    let output = house.client(&["upgrade"]);
    assert!(output.status.success(), "{output:?}\n{}", house.log());
    assert_eq!(limits_of(house.pid()), (soft, hard));
    send(pids(&status)[0], Signal::SIGKILL);
    house.wait("the limits of the next start", LIMIT, || {
        (house.stdout() == said.repeat(2)).then_some(())
    });
    assert!(house.stop(LIMIT).success());
}

#[test]
fn workers_and_tasks_get_the_same_limits_unless_nofile_is_configured() {
    let within = ["sh", "-c", "ulimit -Sn 256; exec \"$0\" \"$@\""];
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let house = Plan::supervise(&[], &command).within(&within).start();
    for pid in pids(&house.ready(2)) {
        assert_eq!(limits_of(pid).0, 256);
    }
    assert!(house.stop(LIMIT).success());

    let wished = ["--ready", "delay:0s", "--rlimit", "nofile=100:200"];
    let house = Plan::supervise(&wished, &["sh", "-c", SHOW])
        .within(&within)
        .start();
    house.ready(1);
    house.wait_for_output("soft 100 hard 200\n", LIMIT);
    assert!(house.stop(LIMIT).success());

    let script = "ulimit -Sn 256; echo 7 | \"$0\" map --workers 1 resource:getrlimit";
    let output = Command::new("sh")
        .args(["-c", script, SUPERVISE])
        .output()
        .unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(line["result"][0], 256, "{output:?}");
}

#[test]
fn workers_without_a_descriptor_are_reported_and_watched_when_there_is_room() {
    let count = 24;
    let within = ["sh", "-c", "ulimit -n 80; exec \"$0\" \"$@\""];
    let mut command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let at = command.iter().position(|word| word == "-w").unwrap();
    command[at + 1] = count.to_string();
    let options = ["--cap", "300M", "--ceiling", "200M"];
    let house = Plan::supervise(&options, &command).within(&within).start();
    let told = house.wait("workers that are not watched", LIMIT, || {
        house.events_of("unwatched").pop()
    });
    let unwatched = told["workers"].as_u64().unwrap();
    assert!((1..count).contains(&unwatched), "{told}");
    assert_eq!(told["limit"], 80);
    // All serve, and the control socket answers.
    house.ready(usize::try_from(count).unwrap());
    let log = house.log();
    assert!(!log.contains("a cap is not held"), "{log}");

    // The server reduces its workers until there are descriptors for all of them.
    house.wait("all to be watched", LIMIT, || {
        house.signal(Signal::SIGTTOU);
        house.events_of("watched").pop()
    });
    let status = house.wait("all to be looked at", LIMIT, || {
        let status = house.status()?;
        let seen = |worker: &Value| worker["memory"]["rss"].as_u64() > Some(0);
        workers(&status).iter().all(seen).then_some(status)
    });
    assert_eq!(house.events_of("unwatched").len(), 1);
    let last = *pids(&status).last().unwrap();
    send(last, Signal::SIGKILL);
    house.wait("its end", LIMIT, || {
        let ends = house.events_of("worker-ended");
        ends.iter().any(|end| end["pid"] == last).then_some(())
    });
    assert!(house.stop(LIMIT).success());
}
