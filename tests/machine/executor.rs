//! The Python package, from the wheel to each promise of `supervise.Executor`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::venv;

/// Runs a program to its end, which must be a good one; the result is what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    said
}

/// An environment in which nothing is but our wheel and what it needs; the result is its `bin`.
fn installed(python: &str, folder: &Path) -> PathBuf {
    let bin = environment(python, &folder.join("fresh"));
    run(pip(&bin, "install").arg(wheel()));
    bin
}

/// The wheel as `pip install .` builds it, but for the optimization; built once. Not beside the
/// build of the tests: maturin takes the binary away from where cargo has put it.
fn wheel() -> &'static Path {
    static WHEEL: OnceLock<PathBuf> = OnceLock::new();
    WHEEL.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_supervise"))
            .ancestors()
            .nth(2);
        let place = target.unwrap().join("wheel");
        let folder = tempfile::tempdir().unwrap();
        let bin = environment(&venv::python(), folder.path());
        let wheels = place.join("wheels");
        // One of an earlier version may be there.
        let _ = fs::remove_dir_all(&wheels);
        run(pip(&bin, "wheel")
            .arg("--no-deps")
            .arg("--wheel-dir")
            .arg(&wheels)
            .arg(env!("CARGO_MANIFEST_DIR"))
            .env("MATURIN_PEP517_ARGS", "--profile dev")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_TARGET_DIR", &place));
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
fn the_wheel_brings_the_binary_and_the_executor() {
    let folder = tempfile::tempdir().unwrap();
    let bin = installed(&venv::python(), folder.path());
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
    let files = ["test_executor.py", "test_large.py", "helpers_for_tasks.py"];
    let tests = copied(&files, folder.path());
    let said = run(Command::new(bin.join("python"))
        .args(["-X", "faulthandler", "-m", "unittest"])
        .args(["test_executor", "test_large"])
        .current_dir(&tests)
        .env_remove("SUPERVISE_BINARY")
        .env_remove("PYTHONPATH"));
    assert!(said.contains("\nOK"), "{said}");
}

#[test]
#[ignore = "needs CPython's own tests (Debian: libpython3.N-testsuite); run `.ci/debian`"]
fn cpythons_own_tests_pass_but_for_those_that_are_known_to_differ() {
    let folder = tempfile::tempdir().unwrap();
    let bin = installed(&python_with_tests(), folder.path());
    let tests = copied(&["cpython_executor_tests.py"], folder.path());
    let said = run(Command::new(bin.join("python"))
        .arg("cpython_executor_tests.py")
        .current_dir(&tests)
        .env_remove("SUPERVISE_BINARY")
        .env_remove("PYTHONPATH"));
    let passed = said.lines().find_map(|line| {
        let (count, _) = line.strip_prefix("Python ")?.split_once(" passed, ")?;
        count.rsplit(' ').next()?.parse::<u32>().ok()
    });
    assert!(passed.is_some_and(|count| count > 0), "{said}");
    println!("{said}");
}

/// A Python with CPython's own tests of executors; says what to install if there is none.
fn python_with_tests() -> String {
    let asks = "import venv, ensurepip, test.test_concurrent_futures";
    venv::first(&["/usr/bin/python3", "python3"], asks).expect(
        "no python3 with venv, ensurepip and test.test_concurrent_futures: apt-get install python3 \
         python3-venv and libpython3.N-testsuite, where 3.N is what /usr/bin/python3 is",
    )
}

/// A folder with these files of `tests/python`, away from the package beside them.
fn copied(files: &[&str], folder: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let tests = folder.join("tests");
    fs::create_dir(&tests).unwrap();
    for file in files {
        fs::copy(here.join(file), tests.join(file)).unwrap();
    }
    tests
}
