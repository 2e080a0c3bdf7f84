//! The examples in `config/` work: each is valid, and each starts and does its work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    client::Load,
    service::{Plan, Service, free_port},
    turn,
    venv::{CELERY, NEWEST, OTHERS, Venv},
};

const SOON: Duration = Duration::from_secs(20);
const NONE: [&str; 0] = [];

/// Copies an example with another port, since its own may be in use here.
fn copy(name: &str, port: u16) -> (tempfile::TempDir, String) {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let address = format!("127.0.0.1:{port}");
    let text = text.replace("127.0.0.1:8000", &address);
    let text = text.replace("\"8000\"", &format!("\"{port}\""));
    let own = dir.path().display().to_string();
    fs::write(&path, text.replace("/var/lib/celery", &own)).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

/// Asserts that `supervise run NAME` serves with `count` workers.
#[track_caller]
fn assert_serves(name: &str, count: usize) {
    let _turn = turn::beside();
    let port = free_port();
    let (_dir, path) = copy(name, port);
    let service = Plan::supervise(&["--metrics", "none", "run", &path], &NONE)
        .env("PATH", search_path())
        .start();
    service.ready(count);
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(service.stop(SOON).code(), Some(0));
}

#[test]
fn the_flask_example_answers_requests() {
    assert_serves("gunicorn-flask.toml", 2);
}

#[test]
fn the_django_example_answers_requests() {
    assert_serves("gunicorn-django.toml", 3);
}

#[test]
fn the_fleet_example_answers_requests() {
    assert_serves("uvicorn-fleet.toml", 4);
}

#[test]
fn the_granian_example_answers_requests() {
    assert_serves("granian.toml", 2);
}

#[test]
fn the_hypercorn_example_answers_requests() {
    assert_serves("hypercorn.toml", 2);
}

#[test]
fn the_uwsgi_example_answers_requests() {
    assert_serves("uwsgi.toml", 2);
}

/// Starts an example of celery whose tasks are files in this directory.
fn start_celery(name: &str, queue: &Path) -> (tempfile::TempDir, Service) {
    fs::create_dir_all(queue.join("control")).unwrap();
    let (dir, path) = copy(name, 0);
    let plan = Plan::supervise(&["--metrics", "none", "run", &path], &NONE)
        .env("PATH", search_path())
        .env("QUEUE_DIRECTORY", queue.display());
    (dir, plan.start())
}

#[test]
fn the_celery_example_runs_the_tasks_that_the_beat_example_sends() {
    let _turn = turn::beside();
    let queue = tempfile::tempdir().unwrap();
    let (_beat_dir, beat) = start_celery("celery-beat.toml", queue.path());
    let (_dir, workers) = start_celery("celery.toml", queue.path());
    workers.ready(4);
    // celery writes what a task prints to its log.
    workers.wait("the output of a task", SOON, || {
        workers.log().contains("reported").then_some(())
    });
    let before = beat.ready(1);
    assert_eq!(before["mode"], "fleet", "{before:#}");
    assert_eq!(beat.stop(SOON).code(), Some(0));
    assert_eq!(workers.stop(SOON).code(), Some(0));
}

#[test]
fn the_job_example_completes() {
    let _turn = turn::beside();
    let (_dir, path) = copy("etl.toml", 0);
    let ended = Plan::supervise(&["run", &path], &NONE).run(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "loaded 1 MB of yesterday\n");
}

#[test]
fn every_example_is_valid() {
    let examples: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    assert!(examples.len() >= 9, "{examples:?}");
    for path in examples {
        // In the file with every key the command is commented out.
        let text = fs::read_to_string(&path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join(path.file_name().unwrap());
        fs::write(&copy, text.replace("\n#command = ", "\ncommand = ")).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_supervise"));
        check.arg("check").arg(&copy);
        check.env("PATH", search_path());
        let output = check.output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", path.display());
    }
}

#[test]
fn the_file_printed_by_config_is_valid() {
    let supervise = || Command::new(env!("CARGO_BIN_EXE_supervise"));
    let file = tempfile::NamedTempFile::new().unwrap();
    for (words, command) in [
        (&["config"][..], &["--", "/bin/true"][..]),
        (&["config", "--pool"], &[]),
    ] {
        let printed = supervise().args(words).output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        fs::write(file.path(), &printed.stdout).unwrap();
        let output = supervise()
            .arg("check")
            .arg(file.path())
            .args(command)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// The PATH with the programs of the examples, as in an activated environment.
fn search_path() -> String {
    let bin = |venv: Venv| {
        let python = PathBuf::from(venv.bin("python"));
        python.parent().unwrap().display().to_string()
    };
    let [newest, others, celery] = [NEWEST, OTHERS, CELERY].map(bin);
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{newest}:{others}:{celery}:{path}")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}
