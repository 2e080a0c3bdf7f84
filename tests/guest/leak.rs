//! A service that leaks with every request: its workers are recycled at their ceiling, and the
//! strict client loses nothing.

use serde_json::Value;

use super::{
    book::Book,
    clock,
    machine::{LONG, figure, sh, show},
    shop::{PLAN, Plan, UNIT, ends, load},
};

pub(crate) fn run(book: &mut Book) {
    let wanted = u64::from(figure("RECYCLES", 10));
    let plan = Plan {
        // A worker is forked and ready in a second, emulated or not, so that ten of them fit.
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
        book.check("workers are recycled at their ceiling", false, &outcome);
        return;
    };
    book.check(
        "workers are recycled at their ceiling",
        true,
        format_args!("{count} recycles"),
    );
    book.check("no request is lost", outcome.failed() == 0, &outcome);
    let by_ceiling = ends(&status)
        .iter()
        .filter(|end| end["cause"] == "ceiling")
        .count();
    book.check(
        "no worker ended for another cause",
        by_ceiling == ends(&status).len(),
        format_args!("{by_ceiling} of {} ends", ends(&status).len()),
    );
    journal(book);
    let line = show(UNIT, "StatusText");
    book.check(
        "systemctl status says workers and memory in a line",
        line.contains("workers") && line.contains("recycled"),
        line.clone(),
    );
    // Until its replacement serves it grows on; how long that takes is the emulator's.
    let over = ends(&status).iter().filter_map(|end| {
        let (memory, limit) = (end["memory"].as_f64()?, end["limit"].as_f64()?);
        Some(memory / limit)
    });
    let over = over.fold(0.0, f64::max);
    book.note(
        "the most at an end",
        format_args!("{over:.2} times its limit"),
    );
}

/// One record for an end, found by its fields.
fn journal(book: &mut Book) {
    let record = sh(&format!(
        "journalctl -u {UNIT} EVENT=worker-ended CAUSE=ceiling -n 1 -o json --no-pager"
    ));
    let record: Value = serde_json::from_str(&record).unwrap_or_default();
    let fields = ["WORKER", "CAUSE", "MEMORY", "LIMIT", "PEAK", "MESSAGE"];
    let values: Vec<_> = fields.iter().map(|name| record[*name].as_str()).collect();
    book.check(
        "the journal has an end with its figures as fields",
        values.iter().all(Option::is_some),
        format_args!("{values:?}"),
    );
}
