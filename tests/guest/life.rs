//! The life of the unit: reloaded, stopped and restarted under load, and revived by the watchdog.

use std::{fs, thread};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    book::Book,
    client::Load,
    http::Failure,
    machine::{read, sh, show, text, try_sh},
    shop::{PLAN, PORT, Plan, Shop, UNIT, load, pids},
};

fn asked() -> Load {
    Load {
        path: "/pid".to_owned(),
        ..load(10.0)
    }
}

/// Waits until the load has met some answers.
fn warmed(shop: &Shop) {
    shop.wait("an answer", || asked().once("/pid").ok());
}

pub(crate) fn reload(book: &mut Book) {
    replaces_everybody(book, &PLAN, "notify");
}

/// By a signal and the answers to it, with the drop-in that the package brings.
pub(crate) fn notify_reload(book: &mut Book) {
    let drop_in = read("/usr/share/doc/supervise/examples/notify-reload.conf");
    let drop_in = &drop_in;
    replaces_everybody(book, &Plan { drop_in, ..PLAN }, "notify-reload");
}

fn replaces_everybody(book: &mut Book, plan: &Plan<'_>, kind: &str) {
    let shop = plan.start();
    book.same("the unit's type", show(UNIT, "Type").as_str(), kind);
    let before = pids(&shop.ready());
    let running = asked().start();
    warmed(&shop);
    let output = try_sh(&format!("systemctl reload {UNIT}"));
    let after = pids(&shop.ready());
    let outcome = running.finish();
    book.check(
        "systemctl reload returns when everybody was replaced",
        output.status.success() && after.iter().all(|pid| !before.contains(pid)),
        format_args!("{before:?}, then {after:?} {}", text(&output.stderr)),
    );
    book.check(
        "a reload loses no request",
        outcome.failed() == 0 && outcome.ok > 0,
        &outcome,
    );
}

/// systemd holds the socket meanwhile: clients wait, and nobody is refused.
pub(crate) fn restart(book: &mut Book) {
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
    let running = asked().start();
    warmed(&shop);
    let output = try_sh(&format!("systemctl restart {UNIT}"));
    let after = pids(&shop.ready());
    // The load goes on for a while on the new workers.
    warmed(&shop);
    let outcome = running.finish();
    book.check(
        "systemctl restart, its socket held by systemd",
        output.status.success() && after.iter().all(|pid| !before.contains(pid)),
        format_args!("{before:?}, then {after:?} {}", text(&output.stderr)),
    );
    book.check(
        "a restart loses no request",
        outcome.failed() == 0 && outcome.pids.len() > 2,
        &outcome,
    );
    drop(shop);
    sh(&format!("systemctl stop {socket}"));
    fs::remove_dir_all(folder).unwrap();
    sh("systemctl daemon-reload");
}

/// Whoever was connected is answered, those included whom no worker has taken yet; whoever was not
/// is refused.
pub(crate) fn stop(book: &mut Book) {
    let shop = PLAN.start();
    shop.ready();
    let group = shop.group();
    let slow: Vec<_> = (0..2)
        .map(|_| thread::spawn(|| asked().once("/sleep?s=3")))
        .collect();
    shop.wait("two requests in hand", || (in_hand() == 2).then_some(()));
    // More than it has hands: some always wait.
    let running = Load {
        connections: 8,
        rate: None,
        ..asked()
    }
    .start();
    let output = try_sh(&format!("systemctl stop {UNIT}"));
    let outcome = running.finish();
    let answers: Vec<_> = slow
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let result = show(UNIT, "Result");
    book.check(
        "systemctl stop ends it well",
        output.status.success() && result == "success" && !group.exists(),
        format_args!(
            "Result={result}, ExecMainStatus={}",
            show(UNIT, "ExecMainStatus")
        ),
    );
    book.check(
        "what was in hand is answered",
        answers.iter().all(Result::is_ok),
        format_args!("{answers:?}"),
    );
    let refused = outcome.failures.get(&Failure::Refused).copied();
    book.check(
        "of all others nobody was reset",
        outcome.failed() == refused.unwrap_or(0),
        &outcome,
    );
    let after = asked().once("/pid");
    book.check(
        "then nobody listens",
        after == Err(Failure::Refused),
        format_args!("{after:?}"),
    );
}

/// Connections to the service that a worker has accepted: an inode is the sign (`/proc/net/tcp`).
fn in_hand() -> usize {
    let local = format!(":{PORT:04X}");
    let lines = read("/proc/net/tcp");
    lines
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 9 && words[1].ends_with(&local))
        .filter(|words| words[3] == "01" && words[9] != "0")
        .count()
}

pub(crate) fn watchdog(book: &mut Book) {
    let plan = Plan {
        drop_in: "[Service]\nWatchdogSec=5\nRestartSec=0\n",
        ..PLAN
    };
    let shop = plan.start();
    shop.ready();
    let before = shop.everybody();
    let life = show(UNIT, "InvocationID");
    kill(Pid::from_raw(shop.pid()), Signal::SIGSTOP).unwrap();
    shop.wait("another life of the unit", || {
        let now = show(UNIT, "InvocationID");
        (now != life && show(UNIT, "ActiveState") == "active").then_some(())
    });
    let after = shop.everybody();
    let left: Vec<_> = before.iter().filter(|pid| after.contains(pid)).collect();
    let alive = before
        .iter()
        .filter(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    book.check(
        "nobody of the old life is left when the new one is ready",
        left.is_empty() && alive.clone().count() == 0,
        format_args!(
            "{} were, {} are, {} of them alive",
            before.len(),
            after.len(),
            alive.count()
        ),
    );
    book.same(
        "NRestarts of a supervisor that was stopped by SIGSTOP",
        show(UNIT, "NRestarts"),
        "1".to_owned(),
    );
    let answer = asked().once("/pid");
    book.check(
        "the service answers again",
        answer.is_ok(),
        format_args!("{answer:?}"),
    );
    let said = sh(&format!(
        "journalctl -u {UNIT} -o cat --no-pager | grep -i watchdog | head -1"
    ));
    book.note("systemd", said);
}
