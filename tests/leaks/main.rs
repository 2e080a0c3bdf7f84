//! Memory reports of leaking apps under real load. Each app states its right answer at its top: the
//! kind of memory that grows, the line that allocates it, and the name that holds it.
//!
//! `LEAKS=module_list,threads cargo test --test leaks -- --nocapture` runs some of them.
#![expect(
    clippy::panic,
    reason = "a helper fails its test in place, with the log of the service"
)]

mod answer;
mod app;
#[path = "../machine/clock.rs"]
mod clock;
#[path = "../machine/http.rs"]
mod http;
mod load;
#[path = "../machine/proc.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod proc;
mod run;
#[path = "../machine/service.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod service;
#[path = "../machine/status.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod status;
#[path = "../machine/venv.rs"]
#[expect(dead_code, reason = "the tests of the machine use the rest")]
mod venv;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use app::{App, Outcome};
use run::Row;

/// The number of apps that run at the same time. A single app waits for growth half of the time.
const CONCURRENT: usize = 2;
/// The percentage of apps with the right line or holder among the first three suspects.
const FOUND_PERCENT: usize = 90;

#[test]
fn every_app_states_its_right_answer() {
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
            !app.needs_place || !app.lines.is_empty(),
            "{name} has no line that is marked"
        );
    }
}

/// In processes that grow without a server, with and without tracing.
#[test]
fn the_cause_of_a_growth_is_in_the_advice() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(venv::python())
        .arg(root.join("tests/python/test_reports.py"))
        .arg(root.join("python/supervise"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
}

#[test]
fn every_leak_is_explained_by_its_report() {
    let apps = chosen();
    let (rows, again) = run_all(&apps);
    println!("{}", Row::HEAD);
    for row in &rows {
        println!("{row}");
    }
    let asked = rows.iter().filter(|row| row.needs_place).count();
    let found = rows.iter().filter(|row| row.is_found()).count();
    let right = rows.iter().filter(|row| row.is_right()).count();
    println!(
        "{} apps: {right} right verdicts; {found} of {asked} lines or holders are among the \
         first three suspects; {again} were run a second time",
        rows.len()
    );
    let wrong = |row: &&Row| !row.is_right() || row.trouble.is_some();
    let wrong: Vec<_> = rows.iter().filter(wrong).map(|row| &row.name).collect();
    assert!(wrong.is_empty(), "wrong: {wrong:?}");
    assert!(
        found * 100 >= asked * FOUND_PERCENT,
        "{found} of {asked} lines or holders"
    );
}

/// All apps, or those that `LEAKS` names. The slowest come first.
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

/// Runs the apps. Returns the results sorted by name, and how many apps ran twice. An app that
/// failed while another one ran is run again alone, so that a busy machine does not fail the test.
fn run_all(apps: &[App]) -> (Vec<Row>, usize) {
    let mut again = 0;
    let mut rows = run_concurrently(apps);
    for row in &mut rows {
        let is_lost = row.needs_place && !row.is_found();
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

fn run_concurrently(apps: &[App]) -> Vec<Row> {
    let left = Mutex::new(apps.iter());
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..CONCURRENT {
            scope.spawn(|| {
                // In the head of the loop the lock would be held until the end of the body.
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
