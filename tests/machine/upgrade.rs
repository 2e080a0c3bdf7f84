//! Another binary takes over under load: nobody notices, and one that cannot leaves the old one.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixStream,
    },
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
    clock,
    house::{House, Plan, SUPERVISE, free_port, pids, recycles, workers},
    pool, turn,
    venv::{Gunicorn, NEWEST},
};

fn upgrade(house: &House) -> (bool, String) {
    let output = house.client(&["upgrade"]);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn open_files(house: &House) -> usize {
    let folder = format!("/proc/{}/fd", house.pid());
    fs::read_dir(folder).expect("it lives").count()
}

const PROBES_EVERY: Duration = Duration::from_millis(5);

/// A probe that asks both doors all the time, each time anew. How often, and what was no answer.
struct Prober {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

impl Prober {
    fn start(house: &House, port: u16) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (socket, told) = (house.socket(), Arc::clone(&ends));
        let thread = thread::spawn(move || {
            let (mut asked, mut failed) = (0, Vec::new());
            while !told.load(Ordering::Relaxed) {
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
fn twenty_upgrades_under_load_lose_no_request_and_change_no_pid() {
    let _turn = turn::alone();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("gthread"));
    // Its socket is ours: it must be held by each of the binaries.
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
    let house = Plan::supervise(&options, &command).start();
    let before = house.ready(2);
    let supervisor = house.pid();
    let load = Load {
        rate: Some(100.0),
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    let upgraded = |number: u32| {
        let (done, said) = upgrade(&house);
        assert!(done, "{number}: {said}\n{}", house.log());
        let after = house.ready(2);
        assert_eq!(pids(&after), pids(&before), "{number}");
        assert_eq!(after["upgrades"]["done"], number, "{after:#}");
    };
    upgraded(1);
    // What is opened at the first one, such as answers of agents, stays open; probes do not.
    let files = open_files(&house);
    let prober = Prober::start(&house, reading);
    for number in 2..=20 {
        upgraded(number);
        house.wait("no descriptor leaks", Duration::from_secs(5), || {
            (open_files(&house) == files).then_some(())
        });
    }
    let outcome = load.finish();
    let (probes, failed) = prober.end();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(failed.is_empty() && probes > 20, "{probes}: {failed:?}");
    assert_eq!(house.pid(), supervisor);
    assert_eq!(house.ready(2)["started"], before["started"]);
    let requests = |status: &Value| status["totals"]["requests"].as_u64();
    house.wait("all requests counted", Duration::from_secs(10), || {
        (requests(&house.status()?) >= Some(outcome.ok)).then_some(())
    });
    let seen = |kind: &str| {
        let events = house.events();
        events.iter().filter(|event| event["event"] == kind).count()
    };
    // What happened before is still known, and nobody was taken for new.
    assert_eq!((seen("upgraded"), seen("worker-seen")), (20, 2));
    assert!(house.stop(Duration::from_secs(20)).success());
}

#[test]
fn recycling_goes_on_across_upgrades() {
    let _turn = turn::alone();
    let port = free_port();
    let command = NEWEST.gunicorn(port, Gunicorn::of("sync"));
    let house = Plan::supervise(&["--ceiling", "110M", "--min-age", "1s"], &command)
        .env("LEAK_KB", 1024)
        .start();
    house.ready(2);
    let load = Load {
        keep_alive: false,
        rate: Some(50.0),
        lasts: Duration::from_secs(120),
        ..Load::on(port)
    }
    .start();
    let ends = clock::now() + Duration::from_secs(100);
    let mut done = 0;
    while recycles(&house.status().unwrap_or_default(), "ceiling") < 6 {
        assert!(clock::now() < ends, "{done} upgrades\n{}", house.log());
        // One that comes while a report is waited for, say, is refused and asked for again.
        let (taken, said) = upgrade(&house);
        done += u32::from(taken);
        assert!(!said.contains("does not answer any more"), "{said}");
    }
    let outcome = load.finish();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(done >= 10, "only {done} upgrades");
    let status = house.status().expect("a status");
    assert!(workers(&status).len() <= 3, "{status:#}");
    assert_eq!(status["ends"].as_array().map(Vec::is_empty), Some(false));
    assert_eq!(status["upgrades"]["failed"], 0, "{status:#}");
    assert!(house.stop(Duration::from_secs(20)).success());
}

/// Puts a script in the binary's place.
fn script(path: &Path, text: &str) {
    let half = path.with_extension("half");
    fs::write(&half, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&half, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&half, path).unwrap();
}

#[test]
fn a_binary_that_cannot_take_over_leaves_the_old_one() {
    let _turn = turn::beside();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("supervise");
    symlink(SUPERVISE, &path).unwrap();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let house = Plan::supervise(&[], &command).binary(&path).start();
    let before = house.ready(2);
    let failed = |house: &House| house.ready(2)["upgrades"].clone();

    fs::remove_file(&path).unwrap();
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("is there any more"), "{said}");

    script(&path, "echo I am no supervisor; exit 3");
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("I am no supervisor"), "{said}");

    // It was tried and found able, and then it is not.
    let check = r#"[ "$1" = __take-over ] && exec REAL "$@""#;
    let text = format!("{check}\nexec REAL --ceiling much \"$@\"").replace("REAL", SUPERVISE);
    script(&path, &text);
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("much"), "{said}");
    assert_eq!(failed(&house)["failed"], 1);

    // It is not even executed, when all who come wait already: they are let in again.
    let text = format!(r#"[ "$1" = __take-over ] && rm "$0"; exec {SUPERVISE} "$@""#);
    script(&path, &text);
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("is there any more"), "{said}");
    assert_eq!(failed(&house)["failed"], 2);
    assert_eq!(pids(&house.ready(2)), pids(&before));

    symlink(SUPERVISE, &path).unwrap();
    let (done, said) = upgrade(&house);
    assert!(done, "{said}\n{}", house.log());
    assert_eq!(pids(&house.ready(2)), pids(&before));
    assert!(house.stop(Duration::from_secs(20)).success());
}

#[test]
fn other_wishes_hold_from_an_upgrade_on_but_not_another_name() {
    let _turn = turn::beside();
    let command = NEWEST.gunicorn(free_port(), Gunicorn::of("sync"));
    let config = "[memory]\nceiling = \"300M\"\n";
    let house = Plan::supervise(&[], &command).config(config).start();
    let before = house.ready(2);
    let file = house.config_file();
    fs::write(&file, "name = \"other\"\n").unwrap();
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("name was"), "{said}");
    fs::write(&file, "[memory]\nceiling = \"much\"\n").unwrap();
    let (done, said) = upgrade(&house);
    assert!(!done && said.contains("memory.ceiling"), "{said}");
    fs::write(&file, "[memory]\nceiling = \"400M\"\ncap = \"500M\"\n").unwrap();
    let (done, said) = upgrade(&house);
    assert!(done, "{said}");
    let after = house.ready(2);
    let limit = |status: &Value, name: &str| status["limits"][name]["bytes"].as_u64();
    assert_eq!(limit(&before, "ceiling"), Some(300 << 20));
    assert_eq!(limit(&after, "ceiling"), Some(400 << 20));
    assert_eq!(limit(&after, "cap"), Some(500 << 20));
    assert_eq!(pids(&after), pids(&before));
}

#[test]
fn a_jobs_exit_status_comes_through_an_upgrade() {
    let _turn = turn::beside();
    let script = "read line < \"$0\"; exit 7";
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("go");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let words = ["sh", "-c", script, pipe.to_str().unwrap()];
    let mut house = Plan::supervise(&["--restart", "never"], &words).start();
    house.wait("an upgrade", Duration::from_secs(20), || {
        upgrade(&house).0.then_some(())
    });
    fs::write(&pipe, "go\n").unwrap();
    assert_eq!(house.ends(Duration::from_secs(10)).code(), Some(7));
}

/// A pool is not upgraded; but the file that it was started from may change under it, and each new
/// worker must still be what the others are.
#[test]
fn a_pool_goes_on_though_its_binary_is_replaced() {
    let _turn = turn::beside();
    let folder = pool::folder();
    let path = folder.path().join("supervise");
    fs::hard_link(SUPERVISE, &path)
        .or_else(|_| fs::copy(SUPERVISE, &path).map(drop))
        .unwrap();
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
