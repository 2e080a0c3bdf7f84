//! `supervise` or one of its helper processes is killed or stopped at an unfavourable moment: no
//! process and no group is left, and nothing waits for ever.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    clock, proc,
    service::{Plan, SUPERVISE, Service, send},
    turn,
};

const LIMIT: Duration = Duration::from_secs(30);

/// The child of `supervise` that has this name in `/proc/PID/comm`.
fn child_named(service: &Service, name: &str) -> Option<i32> {
    let mut children = proc::children(service.pid()).into_iter();
    children.find(|pid| {
        let path = format!("/proc/{pid}/comm");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim_end() == name)
    })
}

fn groups_of(pid: u32) -> usize {
    proc::groups_of(pid).len()
}

#[test]
fn a_keeper_stopped_by_a_signal_does_not_delay_the_stop_of_the_service() {
    let options = [
        "--grace",
        "20s",
        "--restart",
        "never",
        "--ready",
        "delay:0s",
    ];
    let service = Plan::supervise(&options, &["sleep", "1000"]).start();
    service.ready(1);
    let keeper = child_named(&service, "supervise-keep").unwrap();
    send(keeper, Signal::SIGSTOP);
    let began = clock::now();
    assert_eq!(service.stop(LIMIT).code(), Some(128 + 15));
    // The command ends immediately, so the stop must not take the whole grace period.
    assert!(clock::now() - began < Duration::from_secs(10));
}

#[test]
fn groups_are_removed_when_supervise_is_killed_before_the_command_runs() {
    let _turn = turn::beside();
    for moment in 0..12 {
        let mut service = Plan::supervise(&[], &["sleep", "1000"]).start();
        clock::until(clock::now() + Duration::from_millis(2 + moment * 3));
        service.signal(Signal::SIGKILL);
        service.ends(LIMIT);
        let pid = u32::try_from(service.pid()).unwrap();
        service.wait("no group to be left", LIMIT, || {
            (groups_of(pid) == 0).then_some(())
        });
    }
}

#[test]
fn groups_are_removed_when_supervise_is_killed_while_a_restart_is_delayed() {
    let options = ["--restart-delay-min", "60s", "--restart-delay-max", "60s"];
    let mut service = Plan::supervise(&options, &["false"]).start();
    service.wait("the command to have ended", LIMIT, || {
        let over = child_named(&service, "supervise-keep").is_none();
        (over && service.log().contains("exit")).then_some(())
    });
    let pid = u32::try_from(service.pid()).unwrap();
    // If the sweeper is killed, another one is started.
    let sweeper = child_named(&service, "supervise-sweep").unwrap();
    send(sweeper, Signal::SIGKILL);
    service.wait("another sweeper", LIMIT, || {
        child_named(&service, "supervise-sweep").filter(|pid| *pid != sweeper)
    });
    assert!(
        groups_of(pid) > 0 || !can_make_groups(),
        "{}",
        service.log()
    );
    service.signal(Signal::SIGKILL);
    service.ends(LIMIT);
    service.wait("no group to be left", LIMIT, || {
        (groups_of(pid) == 0).then_some(())
    });
}

/// Whether control groups can be made here. If not, prints that their removal is not tested.
fn can_make_groups() -> bool {
    let can = nix::unistd::geteuid().is_root();
    if !can {
        let text = "NOT TESTED: removing control groups needs root";
        let _written = writeln!(std::io::stderr(), "{text}");
    }
    can
}

#[test]
fn groups_of_a_pool_are_removed_when_it_is_killed_at_its_start() {
    for moment in 0..8 {
        let mut pool = Command::new(SUPERVISE)
            .args(["map", "--workers", "1", "operator:neg"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        clock::until(clock::now() + Duration::from_millis(4 + moment * 5));
        pool.kill().unwrap();
        pool.wait().unwrap();
        let left = clock::poll(LIMIT, || (groups_of(pool.id()) == 0).then_some(()));
        assert!(left.is_some(), "{:?}", proc::groups_of(pool.id()));
    }
}

#[test]
fn a_limit_on_file_sizes_causes_a_warning_and_does_not_end_the_service() {
    // One block is enough for the lock, and not for the agent's files.
    let within = ["sh", "-c", "ulimit -f 1; exec \"$0\" \"$@\""];
    let command = ["sh", "-c", "grep SigIgn /proc/$$/status >&2; sleep 1000"];
    let options = ["--ready", "delay:0s", "--agent", "on"];
    let (reader, writer) = std::io::pipe().unwrap();
    let plan = Plan::supervise(&options, &command).within(&within);
    let service = plan.stderr(Stdio::from(writer)).start();
    service.ready(1);
    let warned = |event: &serde_json::Value| {
        let text = event["message"].as_str().unwrap_or_default();
        event["event"] == "warning" && text.contains("File too large")
    };
    assert!(
        service.events().iter().any(warned),
        "{:?}",
        service.events()
    );
    // The command has the default action of the signal again.
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:\t").map(str::to_owned));
    let ignored = u64::from_str_radix(&ignored.unwrap(), 16).unwrap();
    assert_eq!(ignored & (1 << (Signal::SIGXFSZ as u32 - 1)), 0);
    assert!(service.stop(LIMIT).success());
}
