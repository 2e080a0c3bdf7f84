//! A service that leaks with every request: its workers are recycled at their ceiling, and no
//! request is lost.

use serde_json::Value;

use super::{
    checks::Checks,
    clock,
    machine::{LONG, figure, sh, show},
    shop::{PLAN, Plan, UNIT, ends, load},
};

pub(crate) fn run(checks: &mut Checks) {
    let wanted = u64::from(figure("RECYCLES", 10));
    let plan = Plan {
        // With preload a worker is ready within a second even when emulated.
        words: "\"--preload\", ",
        leak_kb: 1024,
        more: "[memory]\nceiling = \"60M\"\ncap = \"200M\"\n[recycle]\nmin_age = \"1s\"\n",
        ..PLAN
    };
    let shop = plan.start();
    shop.ready();
    let running = load(8.0).start();
    let recycled = || {
        let status = shop.status()?;
        let count = status["totals"]["recycles"]["ceiling"].as_u64()?;
        (count >= wanted).then_some((count, status))
    };
    let found = clock::poll(3 * LONG, recycled);
    let outcome = running.finish();
    let Some((count, status)) = found else {
        checks.check("workers are recycled at their ceiling", false, &outcome);
        return;
    };
    checks.check(
        "workers are recycled at their ceiling",
        true,
        format_args!("{count} recycles"),
    );
    checks.check("no request is lost", outcome.failed() == 0, &outcome);
    let by_ceiling = ends(&status)
        .iter()
        .filter(|end| end["cause"] == "ceiling")
        .count();
    checks.check(
        "no worker ended by another cause",
        by_ceiling == ends(&status).len(),
        format_args!("{by_ceiling} of {} ends", ends(&status).len()),
    );
    journal(checks);
    let line = show(UNIT, "StatusText");
    checks.check(
        "systemctl status shows workers and memory",
        line.contains("workers") && line.contains("recycled"),
        line.clone(),
    );
    // It grows until its replacement serves. How long that takes depends on the emulator.
    let over = ends(&status).iter().filter_map(|end| {
        let (memory, limit) = (end["memory"].as_f64()?, end["limit"].as_f64()?);
        Some(memory / limit)
    });
    let over = over.fold(0.0, f64::max);
    checks.note(
        "the most memory at an end",
        format_args!("{over:.2} times its limit"),
    );
}

/// Checks that an end is a record of the journal that can be found by its fields.
fn journal(checks: &mut Checks) {
    let record = sh(&format!(
        "journalctl -u {UNIT} EVENT=worker-ended CAUSE=ceiling -n 1 -o json --no-pager"
    ));
    let record: Value = serde_json::from_str(&record).unwrap_or_default();
    let fields = ["WORKER", "CAUSE", "MEMORY", "LIMIT", "PEAK", "MESSAGE"];
    let values: Vec<_> = fields.iter().map(|name| record[*name].as_str()).collect();
    checks.check(
        "the journal has an end with its values as fields",
        values.iter().all(Option::is_some),
        format_args!("{values:?}"),
    );
}
