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

/// In this order: the first installs the package, the last removes it.
const SCENARIOS: [Scenario; 16] = [
    ("install", package::install),
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

/// Nothing goes without it.
const FIRST: &str = SCENARIOS[0].0;

/// The scenarios that the words of a command line ask for; without a word, all.
pub(crate) fn names(words: &[String]) -> Vec<&'static str> {
    let mut words = words.iter().filter(|word| is_name(word)).peekable();
    if words.peek().is_none() {
        return SCENARIOS.iter().map(|(name, _)| *name).collect();
    }
    let words: Vec<_> = words.collect();
    SCENARIOS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| words.iter().any(|word| name.contains(word.as_str())))
        .collect()
}

/// Neither an option of a test harness nor a figure.
fn is_name(word: &str) -> bool {
    !word.starts_with('-') && !word.contains('=')
}

/// Runs them as root in the guest.
pub(crate) fn run(words: &[String]) -> ExitCode {
    for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
        machine::set(key, value);
    }
    let wanted = names(words);
    println!("on {}", machine::about());
    fs::create_dir_all(machine::PROGRAMS).expect("make a folder for the programs");
    machine::sh(&format!("cp /payload/*.py {}", machine::PROGRAMS));
    let mut book = Book::default();
    for (name, scenario) in SCENARIOS {
        if name != FIRST && !wanted.contains(&name) {
            continue;
        }
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
