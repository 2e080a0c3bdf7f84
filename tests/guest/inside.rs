//! Runs the scenarios inside the guest, one after the other.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use super::{
    checks::Checks, clock, leak, life, livelock, machine, package, runaway, threshold, upgrade,
    users,
};

type Scenario = (&'static str, fn(&mut Checks));

/// The suites of Debian that are booted, each with its scenarios in order.
pub(crate) const GUESTS: [(&str, &[Scenario]); 2] = [("bookworm", &ALL), ("trixie", &NEWER)];

/// All other scenarios need it.
const INSTALL: Scenario = ("install", package::install);

/// The last removes the package.
const ALL: [Scenario; 16] = [
    INSTALL,
    ("units", package::units),
    ("groups", package::groups),
    ("start", package::start),
    ("runaway", runaway::run),
    ("leak", leak::run),
    ("threshold", threshold::run),
    ("livelock", livelock::run),
    ("reload", life::reload),
    ("restart", life::restart),
    ("stop", life::stop),
    ("upgrade", upgrade::run),
    ("watchdog", life::watchdog),
    ("root", users::root),
    ("session", users::session),
    ("remove", package::remove),
];

/// Scenarios for a systemd newer than that of bookworm (252).
const NEWER: [Scenario; 3] = [
    ("units", package::units),
    ("notify-reload", life::notify_reload),
    ("root", users::root),
];

/// The scenarios of a guest that the command line selects. Without names, all.
pub(crate) fn names(scenarios: &[Scenario], words: &[String]) -> Vec<&'static str> {
    let names = scenarios.iter().map(|(name, _)| *name);
    let words: Vec<_> = words.iter().filter(|word| is_name(word)).collect();
    if words.is_empty() {
        return names.collect();
    }
    names
        .filter(|name| words.iter().any(|word| name.contains(word.as_str())))
        .collect()
}

/// Whether the word is neither an option of a test harness nor a `KEY=VALUE`.
fn is_name(word: &str) -> bool {
    !word.starts_with('-') && !word.contains('=')
}

/// Runs the selected scenarios of a suite, as root in the guest.
pub(crate) fn run(suite: &str, words: &[String]) -> ExitCode {
    for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
        machine::set(key, value);
    }
    println!("on {}", machine::about());
    fs::create_dir_all(machine::PROGRAMS).expect("make a folder for the programs");
    machine::sh(&format!("cp /payload/*.py {}", machine::PROGRAMS));
    let guest = GUESTS.iter().find(|(name, _)| *name == suite);
    let (_, scenarios) = guest.expect("a known suite");
    let wanted = names(scenarios, words);
    let wanted = |(name, _): &&Scenario| *name != INSTALL.0 && wanted.contains(name);
    let mut checks = Checks::default();
    for (name, scenario) in std::iter::once(&INSTALL).chain(scenarios.iter().filter(wanted)) {
        let begun = clock::now();
        checks.begin(name);
        // The other scenarios still run after a panic.
        if catch_unwind(AssertUnwindSafe(|| scenario(&mut checks))).is_err() {
            checks.check("completes", false, "it panicked, see above");
        }
        let seconds = (clock::now() - begun).as_secs_f64();
        checks.note("took", format_args!("{seconds:.0} s"));
    }
    if checks.finish() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
