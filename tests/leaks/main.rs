//! A collection of leaking apps, each under real load, with its right answer written at its top:
//! what kind of memory grew, at which line, and which name of a module holds it.
//!
//! `LEAKS=module_list,threads cargo test --test leaks -- --nocapture` runs some of them.
#![expect(
    clippy::panic,
    reason = "a helper of a test fails the test, with its log, where it stands"
)]

mod answer;
mod app;
#[path = "../machine/clock.rs"]
mod clock;
#[path = "../machine/house.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod house;
#[path = "../machine/http.rs"]
mod http;
mod load;
#[path = "../machine/proc.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod proc;
mod run;
#[path = "../machine/venv.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod venv;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
};

use app::{App, Outcome};
use run::Row;

/// So many run beside each other: one would leave half of the time unused, waiting for growth.
const BESIDE: usize = 2;
/// The right line or holder is among the first three suspects in so many of a hundred.
const FOUND_PERCENT: usize = 90;

#[test]
fn every_app_says_what_is_right() {
    let apps = App::all();
    assert!(apps.len() >= 26, "{} apps", apps.len());
    for app in &apps {
        let name = &app.name;
        assert!(!app.leak.is_empty(), "{name} does not say what leaks");
        let kinds = ["python", "native", "garbage", "freed", "mixed"];
        let is_known = |verdict: &String| kinds.contains(&verdict.as_str());
        assert!(
            !app.verdicts.is_empty() && app.verdicts.iter().all(is_known),
            "{name}: {:?}",
            app.verdicts
        );
        assert!(
            !app.asks_for_place || !app.lines.is_empty(),
            "{name} has no line that is marked"
        );
    }
}

#[test]
fn every_leak_is_explained() {
    let apps = chosen();
    let (rows, again) = run_all(&apps);
    println!("{}", Row::HEAD);
    for row in &rows {
        println!("{row}");
    }
    let asked = rows.iter().filter(|row| row.asks_for_place).count();
    let found = rows.iter().filter(|row| row.is_found()).count();
    let right = rows.iter().filter(|row| row.is_right()).count();
    println!(
        "{} apps: {right} verdicts are right; of {asked} lines or holders {found} are among the \
         first three suspects; {again} were run a second time",
        rows.len()
    );
    let wrong = |row: &&Row| !row.is_right() || row.trouble.is_some();
    let wrong: Vec<_> = rows.iter().filter(wrong).map(|row| &row.name).collect();
    assert!(wrong.is_empty(), "not as it is to be: {wrong:?}");
    assert!(
        found * 100 >= asked * FOUND_PERCENT,
        "{found} of {asked} lines or holders"
    );
}

/// All apps, or those that `LEAKS` names. Those that take longest are first.
fn chosen() -> Vec<App> {
    let wanted = std::env::var("LEAKS").unwrap_or_default();
    let mut apps = App::all();
    if !wanted.is_empty() {
        apps.retain(|app| wanted.split(',').any(|name| name == app.name));
        assert!(!apps.is_empty(), "no app of LEAKS={wanted}");
    }
    apps.sort_by_key(|app| app.outcome != Outcome::Stays);
    apps
}

/// Runs them, and gives what came of each, in the order of their names. One that went wrong beside
/// another is run once more by itself: what is judged is its report, not how busy the machine was.
/// So many were.
fn run_all(apps: &[App]) -> (Vec<Row>, usize) {
    let mut again = 0;
    let mut rows = run_beside(apps);
    for row in &mut rows {
        let is_lost = row.asks_for_place && !row.is_found();
        let is_wrong = !row.is_right() || row.trouble.is_some() || is_lost;
        let app = apps.iter().find(|app| is_wrong && app.name == row.name);
        if let Some(app) = app {
            *row = run_one(app);
            again += 1;
        }
    }
    (rows, again)
}

fn run_one(app: &App) -> Row {
    catch_unwind(AssertUnwindSafe(|| run::run(app)))
        .unwrap_or_else(|panic| Row::failed(app, panic.as_ref()))
}

fn run_beside(apps: &[App]) -> Vec<Row> {
    let left = Mutex::new(apps.iter());
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                // Not in the loop's head: what is there is locked until the end of the body.
                let next = || locked(&left).next();
                while let Some(app) = next() {
                    let row = run_one(app);
                    locked(&rows).push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    rows
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
