//! The time from the crossing of the ceiling to the decision, with the kernel's memory threshold
//! and with the forecast alone, at 20 MB a second. The clock is emulated, so the times are compared
//! with each other and with the lateness of a timer.

use std::{fs, time::Duration};

use serde_json::Value;

use super::{
    checks::Checks,
    clock,
    machine::{PROGRAMS, figure, sh},
    shop,
};

const CEILING: i64 = 30 << 20;
const CROSSINGS: &str = "/srv/shop/crossings";

const HUGE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// The result of some crossings.
struct Seen {
    /// The times from the crossing to the decision, shortest first. A time is negative if the
    /// decision came before the program noticed the crossing.
    late_ms: Vec<f64>,
    /// The worst overshoot, as a part of the ceiling.
    over: f64,
}

pub(crate) fn run(checks: &mut Checks) {
    let wanted = usize::try_from(figure("CROSSINGS", 5)).unwrap();
    // Without huge pages: their steps of 2 MB would be measured instead of the threshold.
    sh(&format!("echo never >{HUGE}"));
    let timer = timer_late_ms();
    let threshold = measure(wanted, true);
    let forecast = measure(wanted, false);
    sh(&format!("echo always >{HUGE}"));
    let (median, worst) = (
        threshold.late_ms[(wanted - 1) / 2],
        threshold.late_ms[wanted - 1],
    );
    checks.check(
        "every crossing causes a decision, with the threshold",
        threshold.over < 0.5,
        format_args!(
            "{wanted} crossings at 20 MB a second, small pages: median {:.1} and worst {:.1} times \
             a timer's median lateness in this guest; over by {:.2} % of the ceiling at worst",
            median / timer,
            worst / timer,
            threshold.over * 100.0
        ),
    );
    let (f_median, f_worst) = (
        forecast.late_ms[(wanted - 1) / 2],
        forecast.late_ms[wanted - 1],
    );
    checks.note(
        "by forecast alone",
        format_args!(
            "median {:.1} and worst {:.1} times the same; over by {:.2} %",
            f_median / timer,
            f_worst / timer,
            forecast.over * 100.0
        ),
    );
}

/// The median lateness of a wait of a millisecond.
fn timer_late_ms() -> f64 {
    let mut late: Vec<_> = (0..101)
        .map(|_| {
            let due = clock::now() + Duration::from_millis(1);
            clock::until(due);
            (clock::now() - due).as_secs_f64() * 1e3
        })
        .collect();
    late.sort_by(f64::total_cmp);
    late[50]
}

fn measure(wanted: usize, with_threshold: bool) -> Seen {
    let threshold = if with_threshold { "auto" } else { "off" };
    let config = format!(
        "command = [\"python3\", \"grows.py\"]\ndirectory = \"{PROGRAMS}\"\n\
         [env]\nCEILING = {CEILING}\nRATE_MB = 20\nCROSSINGS = \"{CROSSINGS}\"\n\
         [memory]\nceiling = {CEILING}\nthreshold = \"{threshold}\"\n\
         [recycle]\nmin_age = \"0s\"\njitter = 0\n[agent]\nload = \"off\"\n"
    );
    let _ = fs::remove_file(CROSSINGS);
    let shop = shop::start(&config, "");
    let crossings = shop.wait("the crossings", || {
        let seen = moments(&fs::read_to_string(CROSSINGS).unwrap_or_default());
        (seen.len() > wanted).then_some(seen)
    });
    let events = sh("supervise events --name shop --json");
    let due: Vec<Value> = events
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &Value| event["event"] == "due")
        .collect();
    seen(&crossings[..wanted], &due)
}

/// The times in lines of the form `PID MONOTONIC_NS PRIVATE`.
fn moments(text: &str) -> Vec<i64> {
    text.lines()
        .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
        .collect()
}

/// Compares each crossing with the nearest decision. Crossings are seconds apart.
#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds and bytes of small things"
)]
fn seen(crossings: &[i64], due: &[Value]) -> Seen {
    let mut late_ms = Vec::new();
    let mut over = 0.0_f64;
    for crossing in crossings {
        let nearest = due
            .iter()
            .filter_map(|event| Some((event["mono_ns"].as_i64()? - crossing, event)))
            .min_by_key(|(late, _)| late.abs());
        let (late, event) = nearest.expect("a decision");
        late_ms.push(late as f64 / 1e6);
        let memory = event["memory"].as_i64().unwrap_or(i64::MAX);
        over = over.max((memory - CEILING) as f64 / CEILING as f64);
    }
    late_ms.sort_by(f64::total_cmp);
    Seen { late_ms, over }
}
