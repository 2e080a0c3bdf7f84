//! The service manager: what it is told, and whether it takes our units.

use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    client::Load,
    house::{House, Plan, free_port, pids},
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_service_manager_is_told() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", path.display())
        .env("WATCHDOG_USEC", 400_000)
        .start();
    let first = hear(&house, &socket, "READY=1");
    // Gunicorn would say so itself, before it has a worker.
    assert!(!first.contains("Gunicorn"), "{first}");
    // Whoever is told so may ask at once.
    assert!(Load::on(port).once("/pid").is_ok());
    hear(&house, &socket, "STATUS=");
    hear(&house, &socket, "WATCHDOG=1");
    thread::scope(|scope| {
        // It returns when the reload is over; nobody else empties the socket meanwhile.
        let reload = scope.spawn(|| house.client(&["reload"]));
        let told = hear(&house, &socket, "RELOADING=1");
        assert!(told.contains("MONOTONIC_USEC="), "{told}");
        hear(&house, &socket, "READY=1");
        assert!(reload.join().unwrap().status.success());
    });
    // As systemd asks with `Type=notify-reload` (systemd.service(5)).
    let before = pids(&house.ready(2));
    signal_to_reload(&house);
    let told = hear(&house, &socket, "RELOADING=1");
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    hear(&house, &socket, "READY=1");
    let after = pids(&house.ready(2));
    assert!(after.iter().all(|pid| !before.contains(pid)), "{after:?}");
    house.signal(Signal::SIGTERM);
    hear(&house, &socket, "STOPPING=1");
}

/// Waits for a message with a line that begins so; what was said up to it, and the message.
#[track_caller]
fn hear(house: &House, socket: &UnixDatagram, wanted: &str) -> String {
    let mut told = String::new();
    house.wait(wanted, SOON, || {
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..count]);
            told.push_str(&message);
            told.push('\n');
            if message.lines().any(|line| line.starts_with(wanted)) {
                return Some(());
            }
        }
        None
    });
    told
}

/// `nix` has no real-time signals.
fn signal_to_reload(house: &House) {
    let command = format!("kill -35 {}", house.pid());
    let sent = Command::new("sh").args(["-c", &command]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

#[test]
fn the_line_of_the_status_follows_the_memory() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = free_port();
    let house = Plan::supervise(&["--ceiling", "400M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", path.display())
        .start();
    house.ready(2);
    let before = hear(&house, &socket, "STATUS=2 workers, ");
    assert!(Load::on(port).once("/alloc?mb=150").is_ok());
    // No worker has come or gone.
    house.wait("150 MB more", SOON, || {
        let after = hear(&house, &socket, "STATUS=2 workers, ");
        (megabytes(&after) > megabytes(&before) + 100.0).then_some(())
    });
}

/// The total of the last status.
fn megabytes(told: &str) -> f64 {
    let line = told.lines().rfind(|line| line.starts_with("STATUS="));
    let figure = line.and_then(|line| line.split(", ").nth(1)?.split('M').next());
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a total in megabytes")
}

/// Its events are records of a journal that stands where systemd's does, in a mount namespace; with
/// another stderr than the journal's they are text.
#[test]
fn what_happened_is_a_record_of_the_journal() {
    let _turn = turn::beside();
    let dir = tempfile::tempdir().unwrap();
    let journald = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    journald.set_nonblocking(true).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
         mount --bind {} /run/systemd/journal && exec \"$@\"",
        dir.path().display()
    );
    let unshare = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    if !works(&unshare) {
        println!("no right to mount here: not tested");
        return;
    }
    let (supervise, socket) = (env!("CARGO_BIN_EXE_supervise"), dir.path().join("c.sock"));
    let socket = socket.display().to_string();
    let ours = [supervise, "--socket", &socket, "--restart", "never"];
    let words = [&unshare[..], &ours[..], &["--", "sh", "-c", "exit 3"]].concat();
    let run = |stream: &dyn Fn(&File) -> String| {
        let path = dir.path().join("stderr");
        let stderr = File::create(&path).unwrap();
        let plan = Plan::bare(&words).env("JOURNAL_STREAM", stream(&stderr));
        assert_eq!(plan.stderr(stderr.into()).run(SOON).status.code(), Some(3));
        let records: Vec<_> = std::iter::from_fn(|| {
            let mut buffer = [0; 4096];
            let count = journald.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
        })
        .collect();
        (records, fs::read_to_string(&path).unwrap())
    };

    let (records, text) = run(&|stderr| {
        let found = stderr.metadata().unwrap();
        format!("{}:{}", found.dev(), found.ino())
    });
    assert_eq!(text, "");
    let ended: Vec<_> = records
        .iter()
        .filter(|record| record.contains("\nEVENT=worker-ended\n"))
        .collect();
    assert_eq!(ended.len(), 1, "{records:#?}");
    for field in [
        "MESSAGE=w1 ended: exit:3 (",
        "\nPRIORITY=4\n",
        "\nSYSLOG_IDENTIFIER=supervise\n",
        "\nWORKER=w1\n",
        "\nCAUSE=exit:3\n",
        "\nMEMORY=",
        "\nPEAK=",
        "\nPID_OF_WORKER=",
    ] {
        assert!(ended[0].contains(field), "{field:?} is not in {}", ended[0]);
    }

    let (records, text) = run(&|_| "1:1".to_owned());
    assert!(
        records.is_empty() && text.contains("w1 ended: exit:3"),
        "{text}"
    );
}

fn works(words: &[&str]) -> bool {
    let run = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .status();
    run.is_ok_and(|status| status.success())
}

/// `systemd-analyze WORDS UNIT` about one of our units, as the instance `shop`, with its drop-ins.
/// Its success, what it says, and what it complains of.
fn analyzed(words: &[&str], unit: &str, drop_ins: &[&str]) -> (bool, String, String) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let dir = tempfile::tempdir().unwrap();
    // The unit names the installed program, which need not be installed where the tests run.
    let put = |from: PathBuf, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let text = fs::read_to_string(from).unwrap();
        let here = text.replace("/usr/bin/supervise", env!("CARGO_BIN_EXE_supervise"));
        fs::write(to, here).unwrap();
    };
    // A socket is nothing without its service.
    let service = "supervise@.service";
    for file in [unit, service] {
        put(units.join(file), dir.path().join(instance(file)));
    }
    for name in drop_ins {
        let folder = format!("{service}.d");
        let to = dir.path().join(format!("{}.d", instance(service)));
        put(units.join(folder).join(name), to.join(name));
    }
    let analyzed = Command::new("systemd-analyze")
        .args(words)
        .arg(dir.path().join(instance(unit)))
        .env("XDG_RUNTIME_DIR", dir.path())
        .output();
    let output = analyzed.expect("there is one, of a known version");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let success = output.status.success();
    (success, text(&output.stdout), text(&output.stderr))
}

/// `supervise@.service` as the service of `shop`.
fn instance(unit: &str) -> String {
    unit.replace('@', "@shop")
}

/// Unknown keys are only complained about.
#[track_caller]
fn is_taken(words: &[&str], unit: &str, drop_ins: &[&str]) {
    let words = [&["verify", "--man=no"], words].concat();
    let (success, _, complaints) = analyzed(&words, unit, drop_ins);
    assert!(success && complaints.is_empty(), "{unit}: {complaints}");
}

#[test]
#[ignore = "needs `systemd-analyze` of the Debian package systemd; run `.ci/debian`"]
fn systemd_takes_the_units() {
    is_taken(&[], "supervise@.service", &[]);
    is_taken(&[], "supervise@.service", &["root.conf"]);
    is_taken(&[], "supervise@.socket", &[]);
    is_taken(&["--user"], "user/supervise@.service", &[]);
    if systemd_version() >= 253 {
        is_taken(&[], "supervise@.service", &["notify-reload.conf"]);
    } else {
        println!("no systemd of at least 253: notify-reload is not tested");
    }
}

fn systemd_version() -> u32 {
    let output = Command::new("systemd-analyze").arg("--version").output();
    let text = String::from_utf8(output.expect("systemd-analyze is installed").stdout).unwrap();
    let version = text.split_whitespace().nth(1).unwrap();
    version.parse().unwrap()
}

/// 30 is 3.0 of 10.
#[test]
#[ignore = "needs `systemd-analyze` of the Debian package systemd; run `.ci/debian`"]
fn the_service_is_not_exposed_more_than_it_needs() {
    let words = ["security", "--offline=true", "--threshold=30"];
    let (success, table, complaints) = analyzed(&words, "supervise@.service", &[]);
    println!("{}", table.lines().last().unwrap_or_default());
    assert!(success, "{table}{complaints}");
}
