//! What is done on this machine: the package and the guests are built, and each guest is booted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde_json::Value;

use super::{clock, inside};

/// Switches the guests on. They need packages of Debian, which `.ci/debian` installs.
const SWITCH: &str = "GUEST_TESTS";

/// Printed by a plain `cargo test`, which needs only Rust and Python. The tests of `tests/machine`
/// that need packages of Debian are `#[ignore]`d with their reason.
const NOT_RUN: &str = "
=======================================================================================
NOT RUN: the tests that need packages of Debian
  - the guests: the package on small Debian systems with systemd and cgroup v2
    (need root, mmdebstrap, e2fsprogs and QEMU)
  - the tests of `machine` that are listed as `ignored`, each with what it needs
To run them: `.ci/debian`, on Debian, as root or with sudo; it installs the packages
=======================================================================================
";

/// Handed in: what a scenario may do more of than a test has time for.
const HANDED_IN: [&str; 3] = ["CHURN_S", "CROSSINGS", "RECYCLES"];

/// `words` are those of `cargo test`: names of scenarios, or parts of them.
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
    if std::env::var(SWITCH).is_err() {
        println!("{NOT_RUN}");
        return ExitCode::SUCCESS;
    }
    let begun = clock::now();
    let said = |what: &str| {
        let seconds = (clock::now() - begun).as_secs_f64();
        println!("guest: {what} after {seconds:.0} s");
    };
    if !is_done(Command::new(root().join(".ci/deb"))) {
        return ExitCode::FAILURE;
    }
    said("the package is there");
    let payload = tempfile::tempdir().expect("make a temporary directory");
    fill(payload.path());
    let mut passed = true;
    for (suite, _) in wanted {
        if !is_done(build(suite)) {
            return ExitCode::FAILURE;
        }
        said(&format!("the image of {suite} is there"));
        let results = root().join("target/guest").join(suite);
        if !is_done(boot(suite, payload.path(), &results, words)) {
            println!(
                "guest: its journal is {}",
                results.join("journal.txt").display()
            );
            passed = false;
        }
        said(&format!("{suite} ended"));
    }
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
        .args(["-t", &seconds_at_most().to_string(), "-o"])
        .args([results, Path::new(suite), payload])
        .args(["--inside", suite])
        .args(words);
    guest.args(HANDED_IN.iter().filter_map(|key| {
        let value = std::env::var(key).ok()?;
        Some(format!("{key}={value}"))
    }));
    guest
}

/// Long enough for a slow machine, and for a long churn by hand.
fn seconds_at_most() -> u64 {
    let churn = std::env::var("CHURN_S")
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    1500 + 2 * churn.unwrap_or(0)
}

/// The package, this program, and the services that it starts.
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

/// The program of the unit tests, built as `cargo test` does.
fn unit_tests() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["test", "-q", "--lib", "--no-run", "--message-format=json"])
        .current_dir(root())
        .output()
        .expect("run cargo");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|said| Some(PathBuf::from(said["executable"].as_str()?)))
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

/// What it has to say goes where we say ours.
fn is_done(mut command: Command) -> bool {
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
