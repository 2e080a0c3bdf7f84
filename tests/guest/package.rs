//! The package is installed, its units are valid, its service starts, and it is removed completely.

use std::path::Path;

use super::{
    cgroup,
    checks::Checks,
    machine::{read, sh, show, text, try_sh},
    shop::{PLAN, UNIT, load, pids, workers},
};

/// The maximum exposure of the service by `systemd-analyze security`, on a scale from 0 to 10.
const EXPOSURE_MAX: f64 = 3.0;

pub(crate) fn install(checks: &mut Checks) {
    let output = try_sh("dpkg -i /payload/supervise.deb");
    checks.check(
        "dpkg -i installs it",
        output.status.success() && output.stderr.is_empty(),
        sh("dpkg-query -W -f '${Status}, ${Version}, ${Installed-Size} kB' supervise"),
    );
    checks.check(
        "the program runs",
        try_sh("supervise --version").status.success(),
        sh("supervise --version"),
    );
    let files = [
        "usr/share/man/man1/supervise.1.gz",
        "usr/lib/systemd/user/supervise@.service",
        "etc/supervise/README",
    ];
    let examples = sh("ls /usr/share/doc/supervise/examples | wc -l");
    checks.check(
        "manual, examples and the folder for configurations are there",
        files.iter().all(|file| Path::new("/").join(file).exists()) && examples != "0",
        format_args!("{examples} examples"),
    );
    // The user of the services has a home directory, for a user session.
    sh("printf 'u shop 1000 \"The shop\" /srv/shop /bin/sh\\n' | systemd-sysusers -");
    sh("chown -R shop: /srv/shop");
}

pub(crate) fn units(checks: &mut Checks) {
    let units = sh("dpkg -L supervise | grep -E '/systemd/(system|user)/.*@' | sort");
    for unit in units.lines() {
        let (before, user) = if unit.contains("/user/") {
            ("XDG_RUNTIME_DIR=/run", "--user")
        } else {
            ("", "")
        };
        // The guest has no man(1), which looks up the manual.
        let output = try_sh(&format!(
            "{before} systemd-analyze verify --man=no {user} {unit}"
        ));
        checks.check(
            "systemd-analyze verify has no warnings",
            output.status.success() && output.stderr.is_empty(),
            format_args!("{unit} {}", text(&output.stderr)),
        );
    }
    let said = try_sh(&format!(
        "systemd-analyze security --no-pager {UNIT}.service | tail -1"
    ));
    let said = text(&said.stdout);
    let exposure = said
        .split_whitespace()
        .find_map(|word| word.parse::<f64>().ok());
    checks.check(
        "systemd-analyze security: exposed by less than 3.0",
        exposure.is_some_and(|exposure| exposure < EXPOSURE_MAX),
        exposure.unwrap_or(f64::NAN),
    );
}

/// The unit tests of control groups, which need a real kernel.
pub(crate) fn groups(checks: &mut Checks) {
    let output = try_sh(
        "systemd-run --scope --quiet -p Delegate=yes /payload/unit host::cgroup --test-threads=1 \
         --nocapture 2>&1",
    );
    let said = text(&output.stdout);
    let last = said.lines().rfind(|line| line.starts_with("test result"));
    let is_done = !said.contains("NOT RUN: needs a writable memory") && !said.contains(" 0 passed");
    checks.check(
        "the unit tests of groups pass on a real cgroup v2",
        output.status.success() && is_done,
        if output.status.success() {
            last.unwrap_or_default()
        } else {
            &said
        },
    );
}

pub(crate) fn start(checks: &mut Checks) {
    let shop = PLAN.start();
    let first = load(1.0).once("/pid");
    checks.check(
        "systemctl start returns when it answers: the first request",
        first.is_ok(),
        format_args!("{first:?}, started in {:.1} s", shop.took.as_secs_f64()),
    );
    checks.equal(
        "systemctl is-active",
        sh(&format!("systemctl is-active {UNIT}")),
        "active".to_owned(),
    );

    let status = shop.ready();
    let caps = &status["caps"];
    checks.check(
        "caps are enforced by cgroup v2",
        caps["mechanism"] == "cgroup-v2" && caps["enforced"] == true && caps["wire"] == true,
        caps,
    );
    let cap = status["limits"]["cap"]["bytes"].as_u64().unwrap_or(0);
    let unit = shop.group();
    for pid in pids(&status) {
        let group = cgroup::of(pid);
        checks.check(
            "a worker has a group of its own in the unit's",
            group.starts_with(&unit),
            group.display(),
        );
        limited(checks, &group, cap);
        let user = sh(&format!("stat -c %U /proc/{pid}"));
        checks.equal("a worker runs as", user, "shop".to_owned());
    }
    checks.equal("workers", workers(&status).len(), 2);
    let user = sh(&format!("stat -c %U /proc/{}", shop.pid()));
    checks.equal("supervise itself runs as", user, "shop".to_owned());
    let own = cgroup::of(shop.pid());
    checks.check(
        "supervise is in a leaf of its own",
        own == unit.join("supervisor"),
        own.display(),
    );
    let root = cgroup::pids(&unit);
    checks.check(
        "the unit's own group has no processes",
        root.is_empty(),
        format_args!("{root:?}"),
    );
    idle(checks, &shop);
}

/// Memory that a worker used before it was moved into its group is charged elsewhere, so the
/// kernel's limit is lower by it.
fn limited(checks: &mut Checks, group: &Path, cap: u64) {
    let number = |file| cgroup::number(group, file);
    let max = number("memory.max").unwrap_or(0);
    let (swap, together) = (number("memory.swap.max"), number("memory.oom.group"));
    checks.check(
        "the kernel's files have the cap of the status",
        max <= cap && max >= cap - cap / 10 && swap == Some(0) && together == Some(1),
        format_args!(
            "memory.max {max}, {:.1} % below {cap}; memory.swap.max {swap:?}, memory.oom.group \
             {together:?}; memory.high {}",
            ratio(cap - max, cap) * 100.0,
            read(group.join("memory.high"))
        ),
    );
}

#[expect(clippy::cast_precision_loss, reason = "sizes of a guest's memory")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// A memory threshold costs no CPU time while no worker reaches it.
fn idle(checks: &mut Checks, shop: &super::shop::Shop) {
    let ticks = || -> u64 {
        let stat = read(format!("/proc/{}/stat", shop.pid()));
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let fields: Vec<_> = after.split_whitespace().collect();
        fields[11..13]
            .iter()
            .filter_map(|field| field.parse::<u64>().ok())
            .sum()
    };
    let before = (ticks(), super::clock::now());
    super::clock::until(before.1 + std::time::Duration::from_secs(5));
    let seconds = (super::clock::now() - before.1).as_secs_f64();
    let part = ratio(ticks() - before.0, 100) / seconds;
    checks.check(
        "supervise idles while its workers do",
        part < 0.5,
        format_args!("{:.0} % of a CPU over {seconds:.0} s", part * 100.0),
    );
}

pub(crate) fn remove(checks: &mut Checks) {
    let shop = PLAN.start();
    let unit = shop.group();
    let listed = sh("dpkg -L supervise; dpkg-query --control-list supervise >/dev/null");
    let removed = try_sh("dpkg -r supervise");
    checks.check(
        "dpkg -r stops the service and removes the package",
        removed.status.success()
            && removed.stderr.is_empty()
            && cgroup::processes(&unit).is_empty(),
        format_args!("{:?}, {}", text(&removed.stderr), show(UNIT, "ActiveState")),
    );
    std::mem::forget(shop);
    let left = |listed: &str| -> Vec<String> {
        let files = listed.lines().filter(|path| Path::new(path).is_file());
        files.map(str::to_owned).collect()
    };
    let after = left(&listed);
    checks.check(
        "only the conffiles are left",
        after == ["/etc/supervise/README"],
        format_args!("{after:?}"),
    );
    // The administrator's files.
    sh("rm -f /etc/supervise/shop.toml /etc/supervise/wire.toml");
    let purged = try_sh("dpkg -P supervise");
    let after = left(&listed);
    // Except for the programs of the test, the files of its user, and the state of dpkg and
    // systemd.
    let found = sh("find / -xdev -name '*supervise*' >/tmp/found; \
                    find /run -name '*supervise*' >>/tmp/found; \
                    grep -vE '^/(payload|srv|var/lib/dpkg|run/systemd)/' /tmp/found || :");
    checks.check(
        "a purge leaves nothing",
        purged.status.success() && purged.stderr.is_empty() && after.is_empty() && found.is_empty(),
        format_args!("{after:?} {found:?} {:?}", text(&purged.stderr)),
    );
}
