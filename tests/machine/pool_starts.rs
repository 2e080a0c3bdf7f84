//! Templates and workers of a pool that end while they start, and which Python they run.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    clock,
    pool::{cause, map, read, run},
    venv,
};

const TASKS: &str = "
import ctypes, os, sys, time

def end(how):
    if how == 'exit':
        os._exit(3)
    if how == 'segv':
        ctypes.string_at(0)
    if how == 'eat':
        bytearray(300 << 20)
    if how == 'kill_once' and not os.path.exists('killed'):
        open('killed', 'w').close()
        os.kill(os.getpid(), 9)

def initialize():
    end(os.environ.get('AT_INITIALIZER'))

def same(value):
    return value

def prefix(_):
    return sys.prefix

def naps_and_ends(value):
    time.sleep(0.3)
    if value == 1:
        os._exit(3)
    if value == 2:
        bytearray(300 << 20)
    time.sleep(1000)

end(os.environ.get('AT_IMPORT'))
";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("starts.py"), TASKS).unwrap();
    folder
}

/// Runs one task, with a worker or template that ends while it starts.
fn ends_at(place: (&str, &str), budget: &str, words: &[&str]) -> (Output, String) {
    let folder = folder();
    let input = folder.path().join("in");
    fs::write(&input, "1\n").unwrap();
    let common = ["-i", "in", "--cap", "100M", "--budget", budget];
    let output = map(folder.path(), &[&common, words].concat())
        .env(place.0, place.1)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_worker_that_ends_while_it_starts_says_how() {
    let fresh = ["--start", "fresh", "starts:same"];
    let initializer = ["--initializer", "starts:initialize", "starts:same"];
    for (place, words) in [("AT_IMPORT", &fresh), ("AT_INITIALIZER", &initializer)] {
        for (how, told) in [
            ("exit", "it exited with status 3"),
            ("segv", "signal SEGV"),
            ("eat", "it reached its memory cap of 100M"),
        ] {
            // The budget has room for two workers at their cap, so that they meet the cap first.
            let (output, said) = ends_at((place, how), "400M", words);
            assert_eq!(output.status.code(), Some(75), "{place} {how}: {said}");
            // Without a group RLIMIT_DATA holds the cap, and Python raises MemoryError.
            let told = told.replace("it exceeded", "a worker ended while starting: it exceeded");
            let is_told = said.contains(&told) || (how == "eat" && said.contains("MemoryError"));
            assert!(is_told, "{place} {how}: {said}");
            assert_eq!(
                said.matches("no worker can be started").count(),
                1,
                "{said}"
            );
            let results = read(&output.stdout);
            let message = results[&1]["error"]["message"].to_string();
            assert_eq!(cause(&results[&1]), "start-failed", "{message}");
            assert!(
                message.contains(&told) || message.contains("MemoryError"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_template_that_ends_while_it_imports_says_how_and_is_tried_again() {
    for (how, told) in [
        ("exit", "it exited with status 3"),
        ("segv", "signal SEGV"),
        ("eat", "the memory budget of 200M was exhausted"),
    ] {
        let (output, said) = ends_at(("AT_IMPORT", how), "200M", &["starts:same"]);
        assert_eq!(output.status.code(), Some(75), "{how}: {said}");
        let failure = format!("the template ended during its imports: {told}");
        let is_told = said.contains(&failure) || (how == "eat" && said.contains("MemoryError"));
        assert!(is_told, "{how}: {said}");
        assert_eq!(said.matches("restarting it").count(), 2, "{how}: {said}");
    }
}

#[test]
fn a_template_killed_while_it_starts_is_started_again() {
    let (output, said) = ends_at(("AT_IMPORT", "kill_once"), "200M", &["starts:same"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("the template has ended (signal KILL)"),
        "{said}"
    );
    assert_eq!(read(&output.stdout)[&1]["result"], 1, "{said}");
}

#[test]
fn the_seconds_of_a_task_whose_worker_died_are_measured() {
    let folder = folder();
    let limits = ["--cap", "100M", "--task-timeout", "2s"];
    let words = [&limits[..], &["starts:naps_and_ends"]].concat();
    let begun = clock::now();
    let (output, results) = run(folder.path(), 3, &words);
    let most = (clock::now() - begun).as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    for (id, expected, least) in [(1, "exit:3", 0.3), (2, "cap", 0.3), (3, "timeout", 2.0)] {
        let result = &results[&id];
        let by_rlimit = result["error"]["type"] == "MemoryError";
        assert!(cause(result) == expected || by_rlimit, "{result}: {said}");
        let seconds = result["seconds"].as_f64().unwrap();
        assert!((least..most).contains(&seconds), "{result}");
    }
}

#[test]
fn workers_run_the_python_of_the_environment_that_supervise_is_installed_in() {
    let folder = folder();
    let place = folder.path().join("venv");
    let made = Command::new(venv::python())
        .args(["-m", "venv", "--without-pip"])
        .arg(&place)
        .status()
        .unwrap();
    assert!(made.success());
    let own = place.join("bin/supervise");
    fs::copy(env!("CARGO_BIN_EXE_supervise"), &own).unwrap();
    fs::write(folder.path().join("in"), "1\n").unwrap();
    let prefix = |called: &Path, words: &[&str]| {
        let output = Command::new(called)
            .args(["map", "-i", "in", "starts:prefix"])
            .args(words)
            .current_dir(folder.path())
            .env("RUNTIME_DIRECTORY", folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let results = read(&output.stdout);
        let prefix = results.get(&1).map(|result| result["result"].clone());
        prefix.unwrap_or_else(|| panic!("{said}"))
    };
    let of_venv = place.to_str().unwrap();
    assert_eq!(prefix(&own, &[]), of_venv);
    // `--python` has priority. Outside of an environment it is the Python of the PATH.
    let given = venv::python();
    assert_ne!(prefix(&own, &["--python", &given]), of_venv);
    assert_ne!(
        prefix(Path::new(env!("CARGO_BIN_EXE_supervise")), &[]),
        of_venv
    );
}
