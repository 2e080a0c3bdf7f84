//! Inside the guest: the scenarios, one after the other.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use super::{
    book::Book, clock, leak, life, livelock, machine, package, runaway, upgrade, users, wire,
};

type Scenario = (&'static str, fn(&mut Book));

/// The suites of Debian that are booted, each with its scenarios in this order.
pub(crate) const GUESTS: [(&str, &[Scenario]); 2] = [("bookworm", &ALL), ("trixie", &NEWER)];

/// Nothing goes without it.
const INSTALL: Scenario = ("install", package::install);

/// The last removes the package.
const ALL: [Scenario; 16] = [
    INSTALL,
    ("units", package::units),
    ("groups", package::groups),
    ("start", package::start),
    ("runaway", runaway::run),
    ("leak", leak::run),
    ("wire", wire::run),
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

/// What the systemd of bookworm, 252, cannot do or does otherwise.
const NEWER: [Scenario; 3] = [
    ("units", package::units),
    ("notify-reload", life::notify_reload),
    ("root", users::root),
];

/// The scenarios of a guest that the words of a command line ask for; without a word, all.
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

/// Neither an option of a test harness nor a figure.
fn is_name(word: &str) -> bool {
    !word.starts_with('-') && !word.contains('=')
}

/// Runs those of a suite that the words ask for, as root in the guest.
pub(crate) fn run(suite: &str, words: &[String]) -> ExitCode {
    for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
        machine::set(key, value);
    }
    println!("on {}", machine::about());
    fs::create_dir_all(machine::PROGRAMS).expect("make a folder for the programs");
    machine::sh(&format!("cp /payload/*.py {}", machine::PROGRAMS));
    let guest = GUESTS.iter().find(|(name, _)| *name == suite);
    let (_, scenarios) = guest.expect("a suite that is known");
    let wanted = names(scenarios, words);
    let wanted = |(name, _): &&Scenario| *name != INSTALL.0 && wanted.contains(name);
    let mut book = Book::default();
    for (name, scenario) in std::iter::once(&INSTALL).chain(scenarios.iter().filter(wanted)) {
        let begun = clock::now();
        book.open(name);
        // What fails in one scenario is no reason not to see the others.
        if catch_unwind(AssertUnwindSafe(|| scenario(&mut book))).is_err() {
            book.check("went to its end", false, "it panicked, see above");
        }
        let seconds = (clock::now() - begun).as_secs_f64();
        book.note("took", format_args!("{seconds:.0} s"));
    }
    if book.close() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
