//! The unit is reloaded, stopped and restarted under load, and restarted by the watchdog.

use std::{fs, thread};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    checks::Checks,
    client::Load,
    http::Failure,
    machine::{read, sh, show, text, try_sh},
    shop::{PLAN, PORT, Plan, Shop, UNIT, load, pids},
};

fn pid_load() -> Load {
    Load {
        path: "/pid".to_owned(),
        ..load(10.0)
    }
}

/// Waits until the service answers.
fn wait_for_answer(shop: &Shop) {
    shop.wait("an answer", || pid_load().once("/pid").ok());
}

pub(crate) fn reload(checks: &mut Checks) {
    check_reload(checks, &PLAN, "notify");
}

/// Reloads by a signal and notifications, with the drop-in of the package.
pub(crate) fn notify_reload(checks: &mut Checks) {
    let drop_in = read("/usr/share/doc/supervise/examples/notify-reload.conf");
    let drop_in = &drop_in;
    check_reload(checks, &Plan { drop_in, ..PLAN }, "notify-reload");
}

fn check_reload(checks: &mut Checks, plan: &Plan<'_>, kind: &str) {
    let shop = plan.start();
    checks.equal("the unit's type", show(UNIT, "Type").as_str(), kind);
    let before = pids(&shop.ready());
    let running = pid_load().start();
    wait_for_answer(&shop);
    let output = try_sh(&format!("systemctl reload {UNIT}"));
    let after = pids(&shop.ready());
    let outcome = running.finish();
    checks.check(
        "systemctl reload returns when all workers were replaced",
        output.status.success() && after.iter().all(|pid| !before.contains(pid)),
        format_args!("{before:?}, then {after:?} {}", text(&output.stderr)),
    );
    checks.check(
        "a reload loses no request",
        outcome.failed() == 0 && outcome.ok > 0,
        &outcome,
    );
}

/// systemd holds the socket during the restart: clients wait, and no connection is refused.
pub(crate) fn restart(checks: &mut Checks) {
    let socket = UNIT.to_owned() + ".socket";
    let folder = format!("/etc/systemd/system/{socket}.d");
    fs::create_dir_all(&folder).unwrap();
    let listen = format!("[Socket]\nListenStream=\nListenStream=127.0.0.1:{PORT}\n");
    fs::write(format!("{folder}/test.conf"), listen).unwrap();
    sh(&format!(
        "systemctl daemon-reload && systemctl start {socket}"
    ));
    let shop = PLAN.start();
    let before = pids(&shop.ready());
    let running = pid_load().start();
    wait_for_answer(&shop);
    let output = try_sh(&format!("systemctl restart {UNIT}"));
    let after = pids(&shop.ready());
    // The load continues for a while on the new workers.
    wait_for_answer(&shop);
    let outcome = running.finish();
    checks.check(
        "systemctl restart replaces all workers, with the socket held by systemd",
        output.status.success() && after.iter().all(|pid| !before.contains(pid)),
        format_args!("{before:?}, then {after:?} {}", text(&output.stderr)),
    );
    checks.check(
        "a restart loses no request",
        outcome.failed() == 0 && outcome.pids.len() > 2,
        &outcome,
    );
    drop(shop);
    sh(&format!("systemctl stop {socket}"));
    fs::remove_dir_all(folder).unwrap();
    sh("systemctl daemon-reload");
}

/// Connected clients are answered, even if no worker has accepted them yet. Later ones are refused.
pub(crate) fn stop(checks: &mut Checks) {
    let shop = PLAN.start();
    shop.ready();
    let group = shop.group();
    let slow: Vec<_> = (0..2)
        .map(|_| thread::spawn(|| pid_load().once("/sleep?s=3")))
        .collect();
    shop.wait("two accepted requests", || (accepted() == 2).then_some(()));
    // More connections than it can serve at once, so that some always wait.
    let running = Load {
        connections: 8,
        rate: None,
        ..pid_load()
    }
    .start();
    let output = try_sh(&format!("systemctl stop {UNIT}"));
    let outcome = running.finish();
    let answers: Vec<_> = slow
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let result = show(UNIT, "Result");
    checks.check(
        "systemctl stop ends it with success",
        output.status.success() && result == "success" && !group.exists(),
        format_args!(
            "Result={result}, ExecMainStatus={}",
            show(UNIT, "ExecMainStatus")
        ),
    );
    checks.check(
        "accepted requests are answered",
        answers.iter().all(Result::is_ok),
        format_args!("{answers:?}"),
    );
    let refused = outcome.failures.get(&Failure::Refused).copied();
    checks.check(
        "no other connection is reset",
        outcome.failed() == refused.unwrap_or(0),
        &outcome,
    );
    let after = pid_load().once("/pid");
    checks.check(
        "afterwards connections are refused",
        after == Err(Failure::Refused),
        format_args!("{after:?}"),
    );
}

/// The number of connections that a worker has accepted: those have an inode (`/proc/net/tcp`).
fn accepted() -> usize {
    let local = format!(":{PORT:04X}");
    let lines = read("/proc/net/tcp");
    lines
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 9 && words[1].ends_with(&local))
        .filter(|words| words[3] == "01" && words[9] != "0")
        .count()
}

pub(crate) fn watchdog(checks: &mut Checks) {
    let plan = Plan {
        drop_in: "[Service]\nWatchdogSec=5\nRestartSec=0\n",
        ..PLAN
    };
    let shop = plan.start();
    shop.ready();
    let before = shop.processes();
    let invocation = show(UNIT, "InvocationID");
    kill(Pid::from_raw(shop.pid()), Signal::SIGSTOP).unwrap();
    shop.wait("another invocation of the unit", || {
        let now = show(UNIT, "InvocationID");
        (now != invocation && show(UNIT, "ActiveState") == "active").then_some(())
    });
    let after = shop.processes();
    let left: Vec<_> = before.iter().filter(|pid| after.contains(pid)).collect();
    let alive = before
        .iter()
        .filter(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    checks.check(
        "no old process is left when the new ones are ready",
        left.is_empty() && alive.clone().count() == 0,
        format_args!(
            "{} before, {} after, {} of the old ones alive",
            before.len(),
            after.len(),
            alive.count()
        ),
    );
    checks.equal(
        "NRestarts of a supervisor that was stopped by SIGSTOP",
        show(UNIT, "NRestarts"),
        "1".to_owned(),
    );
    let answer = pid_load().once("/pid");
    checks.check(
        "the service answers again",
        answer.is_ok(),
        format_args!("{answer:?}"),
    );
    let said = sh(&format!(
        "journalctl -u {UNIT} -o cat --no-pager | grep -i watchdog | head -1"
    ));
    checks.note("systemd", said);
}
