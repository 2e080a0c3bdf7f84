//! The examples in `config/` are real: each is valid, and each starts and does its work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    client::Load,
    house::{Plan, free_port},
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(20);
const NONE: [&str; 0] = [];

/// The examples' own port may be taken where the tests run: a copy with another.
fn copy(name: &str, port: u16) -> (tempfile::TempDir, String) {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let address = format!("127.0.0.1:{port}");
    fs::write(&path, text.replace("127.0.0.1:8000", &address)).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

/// `supervise run NAME` beside the programs that it names serves with so many workers.
#[track_caller]
fn serves(name: &str, count: usize) {
    let _turn = turn::beside();
    let port = free_port();
    let (_dir, path) = copy(name, port);
    let house = Plan::supervise(&["--metrics", "none", "run", &path], &NONE)
        .env("PATH", search_path())
        .start();
    house.ready(count);
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(house.stop(SOON).code(), Some(0));
}

#[test]
fn the_flask_example_serves() {
    serves("gunicorn-flask.toml", 2);
}

#[test]
fn the_django_example_serves() {
    serves("gunicorn-django.toml", 3);
}

#[test]
fn the_job_example_does_its_work() {
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
    assert!(examples.len() >= 4, "{examples:?}");
    for path in examples {
        let mut check = Command::new(env!("CARGO_BIN_EXE_supervise"));
        check.arg("check").arg(&path);
        if path.ends_with("supervise.toml") {
            // It shows every key, and wishes for nothing.
            check.args(["--", "/bin/true"]);
        }
        check.env("PATH", search_path());
        let output = check.output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", path.display());
    }
}

/// Where the programs are that the examples name, as in an activated environment.
fn search_path() -> String {
    let gunicorn = PathBuf::from(NEWEST.bin("gunicorn"));
    let bin = gunicorn.parent().unwrap().display().to_string();
    format!("{bin}:{}", std::env::var("PATH").unwrap_or_default())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}
