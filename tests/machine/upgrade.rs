//! Another binary takes over under load without losing a request. If it cannot, the old one
//! continues.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::Load,
    clock, pool, program,
    service::{Plan, SUPERVISE, Service, free_port, recycles},
    status::{pids, workers},
    turn,
    venv::{Gunicorn, NEWEST},
};

fn upgrade(service: &Service) -> (bool, String) {
    let output = service.client(&["upgrade"]);
    let message = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&message).into_owned(),
    )
}

fn open_files(service: &Service) -> usize {
    let folder = format!("/proc/{}/fd", service.pid());
    fs::read_dir(folder).expect("it lives").count()
}

const PROBES_EVERY: Duration = Duration::from_millis(5);

/// Requests `/readyz` on the control socket and the TCP port all the time, each time on a new
/// connection. Returns the number of probes and the errors.
struct Prober {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

impl Prober {
    fn start(service: &Service, port: u16) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (socket, stop) = (service.socket(), Arc::clone(&ends));
        let thread = thread::spawn(move || {
            let (mut asked, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let whole = UnixStream::connect(&socket).and_then(probe);
                let reading = TcpStream::connect(("127.0.0.1", port)).and_then(probe);
                asked += 1;
                let both = [whole, reading].map(Result::err);
                failed.extend(both.into_iter().flatten().map(|error| error.to_string()));
                clock::until(clock::now() + PROBES_EVERY);
            }
            (asked, failed)
        });
        Self { ends, thread }
    }

    fn end(self) -> (u32, Vec<String>) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn probe(mut stream: impl Read + Write) -> io::Result<()> {
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(io::Error::other(answer))
    }
}

#[test]
fn twenty_upgrades_under_load_lose_no_request_and_keep_all_pids() {
    let _turn = turn::loaded();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("gthread"));
    // `supervise` holds the socket, so each binary must take it over.
    let address = format!("127.0.0.1:{port}");
    let reading = free_port();
    let metrics = format!("127.0.0.1:{reading}");
    let options = [
        "--ceiling",
        "500M",
        "--listen",
        &address,
        "--metrics",
        &metrics,
    ];
    let service = Plan::supervise(&options, &command).start();
    let before = service.ready(2);
    let supervisor = service.pid();
    let load = Load {
        rate: Some(100.0),
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    let upgraded = |number: u32| {
        let (done, message) = upgrade(&service);
        assert!(done, "{number}: {message}\n{}", service.log());
        let after = service.ready(2);
        assert_eq!(pids(&after), pids(&before), "{number}");
        assert_eq!(after["upgrades"]["done"], number, "{after:#}");
    };
    upgraded(1);
    // Files opened at the first upgrade, such as answers of agents, stay open. Count before the
    // probes begin.
    let files = open_files(&service);
    let prober = Prober::start(&service, reading);
    for number in 2..=20 {
        upgraded(number);
        service.wait("no descriptor leaks", Duration::from_secs(5), || {
            (open_files(&service) == files).then_some(())
        });
    }
    let outcome = load.finish();
    let (probes, failed) = prober.end();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(failed.is_empty() && probes > 20, "{probes}: {failed:?}");
    assert_eq!(service.pid(), supervisor);
    assert_eq!(service.ready(2)["started"], before["started"]);
    let requests = |status: &Value| status["totals"]["requests"].as_u64();
    service.wait("all requests counted", Duration::from_secs(10), || {
        (requests(&service.status()?) >= Some(outcome.ok)).then_some(())
    });
    let seen = |kind: &str| {
        let events = service.events();
        events.iter().filter(|event| event["event"] == kind).count()
    };
    // Earlier events are still known, and no worker counts as new.
    assert_eq!((seen("upgraded"), seen("worker-seen")), (20, 2));
    assert!(service.stop(Duration::from_secs(20)).success());
}

#[test]
fn recycling_continues_across_upgrades() {
    let _turn = turn::loaded();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let service = Plan::supervise(&["--ceiling", "110M", "--min-age", "1s"], &command)
        .env("LEAK_KB", 1024)
        .start();
    service.ready(2);
    let load = Load {
        keep_alive: false,
        rate: Some(50.0),
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    let ends = clock::now() + Duration::from_secs(100);
    let mut done = 0;
    while recycles(&service.status().unwrap_or_default(), "ceiling") < 6 {
        assert!(clock::now() < ends, "{done} upgrades\n{}", service.log());
        // An upgrade is refused during a memory report, for example. Then it is requested again.
        let (taken, message) = upgrade(&service);
        done += u32::from(taken);
        assert!(!message.contains("does not answer any more"), "{message}");
    }
    let outcome = load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(done >= 10, "only {done} upgrades");
    let status = service.status().expect("a status");
    assert!(workers(&status).len() <= 3, "{status:#}");
    assert_eq!(status["ends"].as_array().map(Vec::is_empty), Some(false));
    assert_eq!(status["upgrades"]["failed"], 0, "{status:#}");
    assert!(service.stop(Duration::from_secs(20)).success());
}

/// Replaces the binary by a script.
fn script(path: &Path, text: &str) {
    let half = path.with_extension("half");
    program::script(&half, text);
    fs::rename(&half, path).unwrap();
}

#[test]
fn after_a_failed_upgrade_the_old_binary_continues() {
    let _turn = turn::beside();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("supervise");
    symlink(SUPERVISE, &path).unwrap();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let service = Plan::supervise(&[], &command).binary(&path).start();
    let before = service.ready(2);
    let failed = |service: &Service| service.ready(2)["upgrades"].clone();

    fs::remove_file(&path).unwrap();
    let (done, message) = upgrade(&service);
    assert!(
        !done && message.contains("does not exist any more"),
        "{message}"
    );

    script(&path, "echo I am no supervisor; exit 3");
    let (done, message) = upgrade(&service);
    assert!(!done && message.contains("I am no supervisor"), "{message}");

    // The check before the upgrade succeeds, and the upgrade itself fails.
    let check = r#"[ "$1" = __take-over ] && exec REAL "$@""#;
    let text = format!("{check}\nexec REAL --ceiling much \"$@\"").replace("REAL", SUPERVISE);
    script(&path, &text);
    let (done, message) = upgrade(&service);
    assert!(!done && message.contains("much"), "{message}");
    assert_eq!(failed(&service)["failed"], 1);

    // The file is removed after the check, so executing it fails. Clients that already wait must
    // still be accepted.
    let text = format!(r#"[ "$1" = __take-over ] && rm "$0"; exec {SUPERVISE} "$@""#);
    script(&path, &text);
    let (done, message) = upgrade(&service);
    assert!(
        !done && message.contains("does not exist any more"),
        "{message}"
    );
    assert_eq!(failed(&service)["failed"], 2);
    assert_eq!(pids(&service.ready(2)), pids(&before));

    symlink(SUPERVISE, &path).unwrap();
    let (done, message) = upgrade(&service);
    assert!(done, "{message}\n{}", service.log());
    assert_eq!(pids(&service.ready(2)), pids(&before));
    assert!(service.stop(Duration::from_secs(20)).success());
}

#[test]
fn an_upgrade_applies_a_changed_configuration_but_refuses_another_name() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let config = "[memory]\nceiling = \"300M\"\n";
    let service = Plan::supervise(&[], &command).config(config).start();
    let before = service.ready(2);
    let file = service.config_file();
    fs::write(&file, "name = \"other\"\n").unwrap();
    let (done, message) = upgrade(&service);
    assert!(!done && message.contains("name cannot change"), "{message}");
    fs::write(&file, "[memory]\nceiling = \"much\"\n").unwrap();
    let (done, message) = upgrade(&service);
    assert!(!done && message.contains("memory.ceiling"), "{message}");
    fs::write(&file, "[memory]\nceiling = \"400M\"\ncap = \"500M\"\n").unwrap();
    let (done, message) = upgrade(&service);
    assert!(done, "{message}");
    let after = service.ready(2);
    let limit = |status: &Value, name: &str| status["limits"][name]["bytes"].as_u64();
    assert_eq!(limit(&before, "ceiling"), Some(300 << 20));
    assert_eq!(limit(&after, "ceiling"), Some(400 << 20));
    assert_eq!(limit(&after, "cap"), Some(500 << 20));
    assert_eq!(pids(&after), pids(&before));
}

#[test]
fn the_exit_status_of_a_job_is_kept_across_an_upgrade() {
    let _turn = turn::beside();
    let script = "read line < \"$0\"; exit 7";
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("go");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let words = ["sh", "-c", script, pipe.to_str().unwrap()];
    let mut service = Plan::supervise(&["--restart", "never"], &words).start();
    service.wait("an upgrade", Duration::from_secs(20), || {
        upgrade(&service).0.then_some(())
    });
    fs::write(&pipe, "go\n").unwrap();
    assert_eq!(service.ends(Duration::from_secs(10)).code(), Some(7));
}

/// A pool cannot be upgraded. When its binary is replaced, new workers must still come from the old
/// one.
#[test]
fn a_pool_continues_when_its_binary_is_replaced() {
    let _turn = turn::beside();
    let folder = pool::folder();
    let path = folder.path().join("supervise");
    program::copy(SUPERVISE.as_ref(), &path);
    let usual = pool::map(folder.path(), &["--max-tasks", "5", "tasks:brief"]);
    let mut child = Command::new(&path)
        .current_dir(folder.path())
        .args(usual.get_args())
        .envs(
            usual
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut results = String::new();
    for number in 1..=200 {
        writeln!(input, "{number}").unwrap();
    }
    output.read_line(&mut results).unwrap();
    script(&path, "exit 99");
    for number in 201..=400 {
        writeln!(input, "{number}").unwrap();
    }
    drop(input);
    output.read_to_string(&mut results).unwrap();
    assert!(child.wait().unwrap().success(), "{results}");
    let results = pool::read(results.as_bytes());
    assert_eq!(results.len(), 400);
    assert!(results.values().all(|result| result["ok"] == true));
}
