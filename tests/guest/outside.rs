//! The part outside the guests: builds the package and the guests, and boots each guest.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
};

use serde_json::Value;

use super::{clock, inside};

/// Variables that are passed in, for longer runs of a scenario than a test has time for.
const PASSED_IN: [&str; 3] = ["CHURN_S", "CROSSINGS", "RECYCLES"];

/// `words` are the arguments of `cargo test`: names of scenarios, or parts of names.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let guests = inside::GUESTS.map(|(suite, scenarios)| (suite, inside::names(scenarios, words)));
    let wanted: Vec<_> = guests
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .collect();
    if words.iter().any(|word| word == "--list") {
        for (suite, names) in wanted {
            names
                .iter()
                .for_each(|name| println!("{suite}::{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        println!("guest: no scenario of that name");
        return ExitCode::SUCCESS;
    }
    let begun = clock::now();
    let report = |what: &str| {
        let seconds = (clock::now() - begun).as_secs_f64();
        println!("guest: {what} after {seconds:.0} s");
    };
    if !succeeds(Command::new(root().join(".ci/deb"))) {
        return ExitCode::FAILURE;
    }
    report("the package is built");
    let payload = tempfile::tempdir().expect("make a temporary directory");
    fill(payload.path());
    for (suite, _) in &wanted {
        if !succeeds(build(suite)) {
            return ExitCode::FAILURE;
        }
        report(&format!("the image of {suite} is built"));
    }
    let run = |suite: &str| {
        let results = root().join("target/guest").join(suite);
        let passed = succeeds_with_prefix(suite, boot(suite, payload.path(), &results, words));
        if !passed {
            let journal = results.join("journal.txt");
            println!("guest: its journal is {}", journal.display());
        }
        report(&format!("{suite} ended"));
        passed
    };
    let run = &run;
    // The guests run at the same time, since neither keeps two cores busy all the time.
    let passed = thread::scope(|scope| {
        let guests = wanted.iter().map(|(suite, _)| *suite);
        let running: Vec<_> = guests
            .map(|suite| scope.spawn(move || run(suite)))
            .collect();
        let ended = running.into_iter().map(|guest| guest.join());
        ended.fold(true, |passed, guest| {
            passed & guest.is_ok_and(|passed| passed)
        })
    });
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn build(suite: &str) -> Command {
    let mut build = Command::new(here().join("build-image"));
    build.arg(suite);
    build
}

fn boot(suite: &str, payload: &Path, results: &Path, words: &[String]) -> Command {
    let mut guest = Command::new(here().join("run-guest"));
    guest
        .args(["-t", &time_limit_s().to_string(), "-o"])
        .args([results, Path::new(suite), payload])
        .args(["--inside", suite])
        .args(words);
    guest.args(PASSED_IN.iter().filter_map(|key| {
        let value = std::env::var(key).ok()?;
        Some(format!("{key}={value}"))
    }));
    guest
}

/// A time limit for a slow machine, and for a long `CHURN_S`.
fn time_limit_s() -> u64 {
    let churn = std::env::var("CHURN_S")
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    1500 + 2 * churn.unwrap_or(0)
}

/// Fills the payload with the package, this program, and the services that it starts.
fn fill(payload: &Path) {
    let put = |from: &Path, name: &str| {
        fs::copy(from, payload.join(name))
            .unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
    };
    put(
        &std::env::current_exe().expect("a program has a path"),
        "run",
    );
    let debs = files(&root().join("target/debian"), "deb");
    let newest = debs
        .iter()
        .max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok())
        .expect("the package was built");
    put(newest, "supervise.deb");
    put(&unit_tests(), "unit");
    for program in files(&root().join("tests/programs"), "py") {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        put(&program, &name);
    }
}

/// Builds the program of the unit tests as `cargo test` does. Returns its path.
fn unit_tests() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["test", "-q", "-p", "supervise", "--lib", "--no-run"])
        .arg("--message-format=json")
        .current_dir(root())
        .output()
        .expect("run cargo");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|report| Some(PathBuf::from(report["executable"].as_str()?)))
        .unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == end))
        .collect()
}

/// Runs it and prints each line of its output after `name`. Returns whether it succeeded.
fn succeeds_with_prefix(name: &str, mut command: Command) -> bool {
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("guest: start {command:?}: {error}");
            return false;
        }
    };
    let stdout = child.stdout.take().expect("piped above");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.expect("read the output of a guest");
        println!("{name}: {}", String::from_utf8_lossy(&line).trim_end());
    }
    child.wait().is_ok_and(|status| status.success())
}

/// Runs it. Returns whether it succeeded.
fn succeeds(mut command: Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("guest: start {command:?}: {error}");
            false
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn here() -> PathBuf {
    root().join("tests/guest")
}
