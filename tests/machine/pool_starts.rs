//! Templates and workers of a pool that end while they start, and the Python that they run.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    clock,
    pool::{cause, map, read, run},
    program, turn, venv,
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
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

#[test]
fn the_error_of_a_worker_that_ends_during_its_start_says_how_it_ended() {
    let _turn = turn::beside();
    let fresh = ["--start", "fresh", "starts:same"];
    let initializer = ["--initializer", "starts:initialize", "starts:same"];
    for (place, words) in [("AT_IMPORT", &fresh), ("AT_INITIALIZER", &initializer)] {
        for (how, expected_text) in [
            ("exit", "it exited with status 3"),
            ("segv", "signal SEGV"),
            ("eat", "it reached its memory cap of 100M"),
        ] {
            // The budget has room for two workers at their cap, so that they reach the cap first.
            let (output, stderr) = ends_at((place, how), "400M", words);
            assert_eq!(output.status.code(), Some(75), "{place} {how}: {stderr}");
            // Without a group RLIMIT_DATA enforces the cap, and Python raises MemoryError.
            let expected_text =
                expected_text.replace("it exceeded", "a worker ended while starting: it exceeded");
            let is_reported =
                stderr.contains(&expected_text) || (how == "eat" && stderr.contains("MemoryError"));
            assert!(is_reported, "{place} {how}: {stderr}");
            assert_eq!(
                stderr.matches("no worker can be started").count(),
                1,
                "{stderr}"
            );
            let results = read(&output.stdout);
            let message = results[&1]["error"]["message"].to_string();
            assert_eq!(cause(&results[&1]), "start-failed", "{message}");
            assert!(
                message.contains(&expected_text) || message.contains("MemoryError"),
                "{message}"
            );
        }
    }
}

#[test]
fn a_template_that_ends_during_imports_is_restarted_twice_and_its_error_says_how_it_ended() {
    let _turn = turn::beside();
    for (how, expected_text) in [
        ("exit", "it exited with status 3"),
        ("segv", "signal SEGV"),
        ("eat", "the memory budget of 200M was exhausted"),
    ] {
        let (output, stderr) = ends_at(("AT_IMPORT", how), "200M", &["starts:same"]);
        assert_eq!(output.status.code(), Some(75), "{how}: {stderr}");
        let failure = format!("the template ended during its imports: {expected_text}");
        let is_reported =
            stderr.contains(&failure) || (how == "eat" && stderr.contains("MemoryError"));
        assert!(is_reported, "{how}: {stderr}");
        assert_eq!(
            stderr.matches("restarting it").count(),
            2,
            "{how}: {stderr}"
        );
    }
}

#[test]
fn a_template_killed_during_its_start_is_restarted() {
    let _turn = turn::beside();
    let (output, stderr) = ends_at(("AT_IMPORT", "kill_once"), "200M", &["starts:same"]);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(
        stderr.contains("the template has ended (signal KILL)"),
        "{stderr}"
    );
    assert_eq!(read(&output.stdout)[&1]["result"], 1, "{stderr}");
}

#[test]
fn the_result_of_a_task_whose_worker_died_has_its_seconds() {
    let _turn = turn::beside();
    let folder = folder();
    let limits = ["--cap", "100M", "--task-timeout", "2s"];
    let words = [&limits[..], &["starts:naps_and_ends"]].concat();
    let begun = clock::now();
    let (output, results) = run(folder.path(), 3, &words);
    let most = (clock::now() - begun).as_secs_f64();
    let stderr = String::from_utf8_lossy(&output.stderr);
    for (id, expected, least) in [(1, "exit:3", 0.3), (2, "cap", 0.3), (3, "timeout", 2.0)] {
        let result = &results[&id];
        let by_rlimit = result["error"]["type"] == "MemoryError";
        assert!(cause(result) == expected || by_rlimit, "{result}: {stderr}");
        let seconds = result["seconds"].as_f64().unwrap();
        assert!((least..most).contains(&seconds), "{result}");
    }
}

#[test]
fn workers_run_the_python_of_the_environment_in_which_supervise_is_installed() {
    let _turn = turn::beside();
    let folder = folder();
    let place = folder.path().join("venv");
    let made = Command::new(venv::python())
        .args(["-m", "venv", "--without-pip"])
        .arg(&place)
        .status()
        .unwrap();
    assert!(made.success());
    let own = place.join("bin/supervise");
    program::copy(env!("CARGO_BIN_EXE_supervise").as_ref(), &own);
    fs::write(folder.path().join("in"), "1\n").unwrap();
    let prefix = |called: &Path, words: &[&str]| {
        let output = Command::new(called)
            .args(["map", "-i", "in", "starts:prefix"])
            .args(words)
            .current_dir(folder.path())
            .env("RUNTIME_DIRECTORY", folder.path())
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let results = read(&output.stdout);
        let prefix = results.get(&1).map(|result| result["result"].clone());
        prefix.unwrap_or_else(|| panic!("{stderr}"))
    };
    let of_venv = place.to_str().unwrap();
    assert_eq!(prefix(&own, &[]), of_venv);
    // `--python` has priority. Outside an environment it is the Python of the PATH.
    let given = venv::python();
    assert_ne!(prefix(&own, &["--python", &given]), of_venv);
    assert_ne!(
        prefix(Path::new(env!("CARGO_BIN_EXE_supervise")), &[]),
        of_venv
    );
}
