//! The Python package: its wheel, and the tests of `supervise.Executor`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{turn, venv};

/// Runs a program, asserts that it succeeds, and returns its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    text
}

/// Makes an environment with only our wheel and its dependencies. Returns its `bin`.
fn install(python: &str, folder: &Path) -> PathBuf {
    let bin = environment(python, &folder.join("fresh"));
    run(pip(&bin, "install").arg(wheel()));
    bin
}

/// The wheel as `pip install .` builds it; built once.
fn wheel() -> &'static Path {
    static WHEEL: OnceLock<PathBuf> = OnceLock::new();
    WHEEL.get_or_init(|| {
        // `target`, where the packages have left a release build.
        let target = Path::new(env!("CARGO_BIN_EXE_supervise"))
            .ancestors()
            .nth(2);
        let target = target.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bin = environment(&venv::python(), folder.path());
        let wheels = target.join("wheels");
        // There may be a wheel of an earlier version.
        let _ = fs::remove_dir_all(&wheels);
        run(pip(&bin, "wheel")
            .arg("--no-deps")
            .arg("--wheel-dir")
            .arg(&wheels)
            .arg(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", target));
        let mut found = fs::read_dir(&wheels).unwrap();
        found.next().expect("pip has made a wheel").unwrap().path()
    })
}

fn environment(python: &str, place: &Path) -> PathBuf {
    run(Command::new(python).arg("-m").arg("venv").arg(place));
    place.join("bin")
}

fn pip(bin: &Path, word: &str) -> Command {
    let mut pip = Command::new(bin.join("python"));
    pip.args(["-m", "pip", word, "--disable-pip-version-check"]);
    pip
}

#[test]
#[ignore = "builds a release; run `.ci/wheel`"]
fn the_wheel_contains_the_binary_and_the_executor() {
    let folder = tempfile::tempdir().unwrap();
    let bin = install(&venv::python(), folder.path());
    let version = run(Command::new(bin.join("supervise")).arg("--version"));
    assert_eq!(
        version,
        format!("supervise {}\n", env!("CARGO_PKG_VERSION"))
    );
    let listed =
        run(Command::new(bin.join("python")).args(["-m", "pip", "show", "--files", "supervise"]));
    for file in [
        "bin/supervise",
        "supervise/__init__.py",
        "supervise/py.typed",
    ] {
        assert!(
            listed.contains(file),
            "{file} is not in the wheel:\n{listed}"
        );
    }
    let mut python = Command::new(bin.join("python"));
    python
        .env_remove("SUPERVISE_BINARY")
        .env_remove("PYTHONPATH");
    test_executor(python, folder.path());
}

#[test]
fn the_executor_of_this_checkout_passes_its_tests() {
    let _turn = turn::beside();
    let folder = tempfile::tempdir().unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let mut python = Command::new(venv::NEWEST.bin("python"));
    python
        .env("SUPERVISE_BINARY", env!("CARGO_BIN_EXE_supervise"))
        .env("PYTHONPATH", package);
    test_executor(python, folder.path());
}

/// Runs our own tests of `supervise.Executor` by this Python.
fn test_executor(mut python: Command, folder: &Path) {
    let files = ["test_executor.py", "test_large.py", "helpers_for_tasks.py"];
    let tests = copy_tests(&files, folder);
    let text = run(python
        .args(["-X", "faulthandler", "-m", "unittest"])
        .args(["test_executor", "test_large"])
        .env("STATE_DIRECTORY", folder.join("state"))
        .current_dir(&tests));
    assert!(text.contains("\nOK"), "{text}");
}

#[test]
#[ignore = "needs CPython's own tests (Debian: libpython3.N-testsuite); run `.ci/wheel`"]
fn the_executor_tests_of_cpython_pass_except_known_differences() {
    let folder = tempfile::tempdir().unwrap();
    let bin = install(&python_with_tests(), folder.path());
    let tests = copy_tests(&["cpython_executor_tests.py"], folder.path());
    let text = run(Command::new(bin.join("python"))
        .arg("cpython_executor_tests.py")
        .current_dir(&tests)
        .env("STATE_DIRECTORY", folder.path().join("state"))
        .env_remove("SUPERVISE_BINARY")
        .env_remove("PYTHONPATH"));
    let passed = text.lines().find_map(|line| {
        let (count, _) = line.strip_prefix("Python ")?.split_once(" passed, ")?;
        count.rsplit(' ').next()?.parse::<u32>().ok()
    });
    assert!(passed.is_some_and(|count| count > 0), "{text}");
    println!("{text}");
}

/// A Python with CPython's own tests of executors. Panics with what to install if there is none.
fn python_with_tests() -> String {
    let probe = "import venv, ensurepip, test.test_concurrent_futures";
    venv::first(&["/usr/bin/python3", "python3"], probe).expect(
        "no python3 with venv, ensurepip and test.test_concurrent_futures: apt-get install python3 \
         python3-venv and libpython3.N-testsuite, where 3.N is what /usr/bin/python3 is",
    )
}

/// Copies these files of `tests/python` into a folder without the package.
fn copy_tests(files: &[&str], folder: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let tests = folder.join("tests");
    fs::create_dir(&tests).unwrap();
    for file in files {
        fs::copy(here.join(file), tests.join(file)).unwrap();
    }
    tests
}
