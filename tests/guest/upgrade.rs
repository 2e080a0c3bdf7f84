//! The package manager replaces the binary of the running service, and the new one takes over.

use std::{fs, process::Command};

use super::{
    checks::Checks,
    client::Load,
    machine::{PROGRAMS, show, text, try_sh},
    shop::{PLAN, UNIT, load, pids},
};

const TIMES: u64 = 20;
const TASKS: usize = 200;

pub(crate) fn run(checks: &mut Checks) {
    let shop = PLAN.start();
    let before = pids(&shop.ready());
    let supervisor = shop.pid();
    let pool = pool();
    let load_of_pids = Load {
        path: "/pid".to_owned(),
        ..load(10.0)
    };
    let running = load_of_pids.start();
    // The same package again: dpkg replaces the running file by a new one.
    let installed = try_sh("dpkg -i /payload/supervise.deb");
    let replaced = fs::read_link(format!("/proc/{supervisor}/exe")).unwrap_or_default();
    checks.check(
        "dpkg replaces the file and the service continues",
        installed.status.success() && replaced.to_string_lossy().ends_with(" (deleted)"),
        format_args!("{} {}", replaced.display(), text(&installed.stderr)),
    );
    let mut done = 0;
    for _ in 0..TIMES {
        let output = try_sh("supervise upgrade --name shop");
        if output.status.success() {
            done += 1;
        } else {
            checks.note("refused", text(&output.stderr));
        }
    }
    let after = shop.ready();
    let outcome = running.finish();
    let counted = after["upgrades"]["done"].as_u64();
    checks.check(
        "supervise upgrade succeeds every time",
        done == TIMES && counted == Some(TIMES),
        format_args!("{done} of {TIMES}"),
    );
    checks.check(
        "upgrades lose no request",
        outcome.failed() == 0 && outcome.ok > 0,
        &outcome,
    );
    checks.check(
        "all pids are unchanged",
        pids(&after) == before && shop.pid() == supervisor,
        format_args!("{supervisor}: {before:?}, then {:?}", pids(&after)),
    );
    checks.equal(
        "the installed file runs",
        fs::read_link(format!("/proc/{supervisor}/exe"))
            .unwrap_or_default()
            .display()
            .to_string(),
        "/usr/bin/supervise".to_owned(),
    );
    checks.equal("NRestarts", show(UNIT, "NRestarts"), "0".to_owned());
    let output = pool.wait_with_output().expect("wait for the pool");
    let results = text(&output.stdout);
    let good = results.lines().filter(|line| line.contains("\"ok\":true"));
    checks.equal("results of a pool that ran meanwhile", good.count(), TASKS);
}

/// Starts a pool. Its binary is replaced while it runs.
fn pool() -> std::process::Child {
    let tasks = "import time\ndef nap(number):\n    time.sleep(0.1)\n    return number\n";
    fs::write(format!("{PROGRAMS}/naps.py"), tasks).expect("write the tasks");
    let command =
        format!("cd {PROGRAMS} && seq {TASKS} | supervise map --workers 1 --max-tasks 20 naps:nap");
    Command::new("/bin/sh")
        .args(["-c", &command])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("start the pool")
}
