//! Commands in the guest, and a description of it.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The directory of the services.
pub(crate) const PROGRAMS: &str = "/srv/shop";

/// A time limit that is long enough under emulation.
pub(crate) const LONG: Duration = Duration::from_secs(180);

static FIGURES: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Sets a `KEY=VALUE` that was passed in from outside.
pub(crate) fn set(key: &str, value: &str) {
    let mut figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    figures.insert(key.to_owned(), value.to_owned());
}

/// The value that was passed in, or `without`.
pub(crate) fn figure(key: &str, without: u32) -> u32 {
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    figures.get(key).map_or(without, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{key}={text} is no number"))
    })
}

/// Runs a shell command and returns its stdout. Panics if it fails.
#[track_caller]
pub(crate) fn sh(command: &str) -> String {
    let output = try_sh(command);
    assert!(
        output.status.success(),
        "`{command}`: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a shell command and returns its output.
pub(crate) fn try_sh(command: &str) -> Output {
    let shell = Command::new("/bin/sh").args(["-c", command]).output();
    shell.unwrap_or_else(|error| panic!("start /bin/sh: {error}"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// The text of a file. Empty if it cannot be read.
pub(crate) fn read(path: impl AsRef<std::path::Path>) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

/// A property of a unit.
pub(crate) fn show(unit: &str, property: &str) -> String {
    sh(&format!("systemctl show --value -p {property} {unit}"))
}

/// A description of the guest.
pub(crate) fn about() -> String {
    sh("echo \"a guest under TCG (CPU emulated), $(nproc) CPUs, \
        $(sed -n 's/MemTotal: *//p' /proc/meminfo), Linux $(uname -r), \
        $(systemctl --version | sed -n '1s/ (.*//p'), \
        gunicorn $(python3 -c 'import gunicorn; print(gunicorn.__version__)'), \
        $(python3 --version), booted after $(cut -d' ' -f1 /proc/uptime) s\"")
}
