//! The user of the supervisor: root with `user = `, and a user in a scope of the user's manager.

use serde_json::Value;

use super::{
    cgroup,
    checks::Checks,
    clock,
    machine::{LONG, PROGRAMS, read, sh, text, try_sh},
    shop::{PLAN, PORT, Plan, UNIT, ends, load, pids},
};

/// `supervise` runs as root, by the drop-in of the package, and its workers by `user = `.
pub(crate) fn root(checks: &mut Checks) {
    let drop_in = read("/usr/share/doc/supervise/examples/root.conf");
    let plan = Plan {
        top: "user = \"shop\"\n",
        drop_in: &drop_in,
        ..PLAN
    };
    let shop = plan.start();
    let status = shop.ready();
    let user = |pid: i32| sh(&format!("stat -c %U /proc/{pid}"));
    checks.equal(
        "supervise itself runs as",
        user(shop.pid()),
        "root".to_owned(),
    );
    for pid in pids(&status) {
        checks.equal("a worker runs as", user(pid), "shop".to_owned());
    }
    capped(checks, &status);
    let lost = load(1.0).once("/alloc?mb=1000&rate=1000000");
    let end = shop.wait("an end", || ends(&shop.status()?).first().cloned());
    checks.check(
        "a runaway reaches its cap",
        lost.is_err() && end["cause"] == "cap",
        &end["cause"],
    );
    let state = sh(&format!("systemctl is-active {UNIT}"));
    checks.equal("the unit is", state, "active".to_owned());
}

fn capped(checks: &mut Checks, status: &Value) {
    let cap = status["limits"]["cap"]["bytes"].as_u64().unwrap_or(0);
    for pid in pids(status) {
        let max = cgroup::number(&cgroup::of(pid), "memory.max");
        checks.check(
            "a worker is capped by cgroup v2",
            status["caps"]["mechanism"] == "cgroup-v2"
                && max.is_some_and(|max| max.abs_diff(cap) <= cap / 10),
            format_args!("memory.max {max:?} of {cap}, {}", status["caps"]),
        );
    }
}

/// A shell command as the user shop, in the user's session.
fn as_shop(command: &str) -> String {
    format!(
        "cd {PROGRAMS} && exec setpriv --reuid=shop --regid=shop --init-groups env HOME={PROGRAMS} \
         XDG_RUNTIME_DIR=/run/user/1000 {command}"
    )
}

pub(crate) fn session(checks: &mut Checks) {
    sh("systemctl start dbus.socket systemd-logind && loginctl enable-linger shop");
    let bus = clock::poll(LONG, || {
        std::path::Path::new("/run/user/1000/bus")
            .exists()
            .then_some(())
    });
    assert!(
        bus.is_some(),
        "no user manager: {}",
        sh("journalctl -b -n 30 --no-pager")
    );
    let scope = as_shop(&format!(
        "systemd-run --user --scope --quiet --unit=mine -p Delegate=yes supervise --name mine \
         --ceiling 60M --cap 120M -- python3 -m gunicorn -w 2 -t 0 -b 127.0.0.1:{PORT} churn:app \
         >/tmp/mine.log 2>&1"
    ));
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", &scope])
        .spawn()
        .unwrap();
    let ask = as_shop("supervise status --name mine --json");
    let status = || -> Option<Value> { serde_json::from_slice(&try_sh(&ask).stdout).ok() };
    let found = clock::poll(LONG, || {
        status().filter(|status| status["ready"] == true && pids(status).len() == 2)
    });
    let Some(found) = found else {
        checks.check(
            "a scope of the user's own manager starts",
            false,
            read("/tmp/mine.log"),
        );
        let _ = child.kill();
        let _ = child.wait();
        return;
    };
    let pid = i32::try_from(found["pid"].as_i64().unwrap_or(0)).unwrap();
    let group = cgroup::of(pid);
    checks.check(
        "it runs in a scope of the user's own manager",
        group.to_string_lossy().contains("user@1000.service"),
        group.display(),
    );
    capped(checks, &found);
    let lost = load(1.0).once("/alloc?mb=1000&rate=1000000");
    let end = clock::poll(LONG, || ends(&status()?).first().cloned()).unwrap_or_default();
    let is_cap = lost.is_err() && end["cause"] == "cap";
    let said = if is_cap {
        String::new()
    } else {
        read("/tmp/mine.log")
    };
    checks.check(
        "a runaway reaches its cap there",
        is_cap,
        format_args!("{} {said}", end["cause"]),
    );
    let stopped = try_sh(&as_shop("supervise stop --name mine"));
    let ended = child.wait().unwrap();
    checks.check(
        "its user stops it",
        stopped.status.success() && ended.success(),
        format_args!("{ended} {}", text(&stopped.stderr)),
    );
    sh("loginctl disable-linger shop");
}
