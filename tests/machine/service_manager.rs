//! Notifications to the service manager, records of the journal, and the units.

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
    service::{Plan, Service, free_port},
    status::pids,
    turn,
    venv::{FLASK, NEWEST},
};

const SOON: Duration = Duration::from_secs(20);

/// The socket of a service manager, named `notify` in the directory.
fn notify_socket() -> (tempfile::TempDir, UnixDatagram) {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    (dir, socket)
}

#[test]
fn the_service_manager_is_notified_of_readiness_reloads_and_stops() {
    let _turn = turn::beside();
    let (dir, socket) = notify_socket();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "200M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", dir.path().join("notify").display())
        .env("WATCHDOG_USEC", 400_000)
        .start();
    let first = receive_until(&service, &socket, "READY=1");
    // Gunicorn itself would send READY before it has a worker.
    assert!(!first.contains("Gunicorn"), "{first}");
    // A client may connect immediately after READY.
    assert!(Load::on(port).once("/pid").is_ok());
    receive_until(&service, &socket, "STATUS=");
    receive_until(&service, &socket, "WATCHDOG=1");
    thread::scope(|scope| {
        // The client returns when the reload is over. Only this thread reads the socket meanwhile.
        let reload = scope.spawn(|| service.client(&["reload"]));
        let messages = receive_until(&service, &socket, "RELOADING=1");
        assert!(messages.contains("MONOTONIC_USEC="), "{messages}");
        receive_until(&service, &socket, "READY=1");
        assert!(reload.join().unwrap().status.success());
    });
    // systemd reloads in this way with `Type=notify-reload` (systemd.service(5)).
    let before = pids(&service.ready(2));
    signal_to_reload(&service);
    let messages = receive_until(&service, &socket, "RELOADING=1");
    assert!(messages.contains("MONOTONIC_USEC="), "{messages}");
    receive_until(&service, &socket, "READY=1");
    let after = pids(&service.ready(2));
    assert!(after.iter().all(|pid| !before.contains(pid)), "{after:?}");
    service.signal(Signal::SIGTERM);
    receive_until(&service, &socket, "STOPPING=1");
}

/// Waits for a message with a line that starts with `wanted`. Returns all messages up to it.
#[track_caller]
fn receive_until(service: &Service, socket: &UnixDatagram, wanted: &str) -> String {
    let mut messages = String::new();
    service.wait(wanted, SOON, || {
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..count]);
            messages.push_str(&message);
            messages.push('\n');
            if message.lines().any(|line| line.starts_with(wanted)) {
                return Some(());
            }
        }
        None
    });
    messages
}

/// Sends the signal by `kill`, since `nix` has no real-time signals.
fn signal_to_reload(service: &Service) {
    let command = format!("kill -35 {}", service.pid());
    let sent = Command::new("sh").args(["-c", &command]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

#[test]
fn the_status_line_shows_the_current_memory() {
    let _turn = turn::beside();
    let (dir, socket) = notify_socket();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "400M"], &NEWEST.gunicorn(port, FLASK))
        .env("NOTIFY_SOCKET", dir.path().join("notify").display())
        .start();
    service.ready(2);
    let before = receive_until(&service, &socket, "STATUS=2 workers, ");
    assert!(Load::on(port).once("/alloc?mb=150").is_ok());
    // The number of workers has not changed.
    service.wait("150 MB more", SOON, || {
        let after = receive_until(&service, &socket, "STATUS=2 workers, ");
        (megabytes(&after) > megabytes(&before) + 100.0).then_some(())
    });
}

/// The total memory in the last status.
fn megabytes(messages: &str) -> f64 {
    let line = messages.lines().rfind(|line| line.starts_with("STATUS="));
    let figure = line.and_then(|line| line.split(", ").nth(1)?.split('M').next());
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a total in megabytes")
}

/// In a mount namespace the test takes the place of journald. Events are records of the journal if
/// stderr is the journal's, and text otherwise.
#[test]
fn events_are_journal_records_if_stderr_is_the_journal_and_text_otherwise() {
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
    if !can_run(&unshare) {
        println!("NOT RUN: needs the right to mount");
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

fn can_run(words: &[&str]) -> bool {
    let run = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .status();
    run.is_ok_and(|status| status.success())
}

/// Runs `systemd-analyze WORDS UNIT` for the instance `shop` of one of our units, with drop-ins.
/// Returns whether it succeeded, its output and its warnings.
fn analyze(words: &[&str], unit: &str, drop_ins: &[&str]) -> (bool, String, String) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let dir = tempfile::tempdir().unwrap();
    // The unit names the installed program, which need not be installed where the tests run.
    let put = |from: PathBuf, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let text = fs::read_to_string(from).unwrap();
        let here = text.replace("/usr/bin/supervise", env!("CARGO_BIN_EXE_supervise"));
        fs::write(to, here).unwrap();
    };
    // A socket unit needs its service.
    let file_of_service = "supervise@.service";
    for file in [unit, file_of_service] {
        put(units.join(file), dir.path().join(instance(file)));
    }
    for name in drop_ins {
        let folder = format!("{file_of_service}.d");
        let to = dir.path().join(format!("{}.d", instance(file_of_service)));
        put(units.join(folder).join(name), to.join(name));
    }
    let output = Command::new("systemd-analyze")
        .args(words)
        .arg(dir.path().join(instance(unit)))
        .env("XDG_RUNTIME_DIR", dir.path())
        .output();
    let output = output.expect("systemd-analyze is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let success = output.status.success();
    (success, text(&output.stdout), text(&output.stderr))
}

/// The name of the instance `shop` of a template unit.
fn instance(unit: &str) -> String {
    unit.replace('@', "@shop")
}

/// Asserts that the unit is valid, without warnings: unknown keys only cause a warning.
#[track_caller]
fn assert_valid(words: &[&str], unit: &str, drop_ins: &[&str]) {
    let words = [&["verify", "--man=no"], words].concat();
    let (success, _, warnings) = analyze(&words, unit, drop_ins);
    assert!(success && warnings.is_empty(), "{unit}: {warnings}");
}

#[test]
#[ignore = "needs `systemd-analyze` of the Debian package systemd; run `.ci/debian`"]
fn systemd_accepts_the_units_without_warnings() {
    assert_valid(&[], "supervise@.service", &[]);
    assert_valid(&[], "supervise@.service", &["root.conf"]);
    assert_valid(&[], "supervise@.socket", &[]);
    assert_valid(&["--user"], "user/supervise@.service", &[]);
    if systemd_version() >= 253 {
        assert_valid(&[], "supervise@.service", &["notify-reload.conf"]);
    } else {
        println!("NOT RUN: notify-reload needs systemd 253");
    }
}

fn systemd_version() -> u32 {
    let output = Command::new("systemd-analyze").arg("--version").output();
    let text = String::from_utf8(output.expect("systemd-analyze is installed").stdout).unwrap();
    let version = text.split_whitespace().nth(1).unwrap();
    version.parse().unwrap()
}

/// The threshold 30 means an exposure of 3.0 of 10.
#[test]
#[ignore = "needs `systemd-analyze` of the Debian package systemd; run `.ci/debian`"]
fn the_exposure_of_the_service_unit_is_below_3() {
    let words = ["security", "--offline=true", "--threshold=30"];
    let (success, table, warnings) = analyze(&words, "supervise@.service", &[]);
    println!("{}", table.lines().last().unwrap_or_default());
    assert!(success, "{table}{warnings}");
}
