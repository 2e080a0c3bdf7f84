//! One worker of a thousand processes: what watching it costs.

use std::time::Duration;

use super::{clock, house::Plan, proc, venv::python};

const LASTS: Duration = Duration::from_secs(20);

/// Prints the part of a core. A word, if there is one, is the number of processes.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
pub(crate) fn run(words: &[String]) {
    let count = words.first().map_or("1000", String::as_str);
    let command = [python(), "crowd.py".to_owned(), count.to_owned()];
    let house = Plan::supervise(&["--ceiling", "20G"], &command).start();
    house.wait_for_output("ready", Duration::from_secs(60));
    house.ready(1);
    clock::rest(Duration::from_secs(5));
    let ours: Vec<_> = house
        .everybody()
        .into_iter()
        .filter(|pid| !proc::is_python(*pid))
        .collect();
    let cpu = || ours.iter().map(|pid| proc::cpu_nanos(*pid)).sum::<u64>();
    let before = cpu();
    clock::rest(LASTS);
    let part = (cpu() - before) as f64 / LASTS.as_nanos() as f64;
    println!(
        "{count} processes watched for {:.2} % of a core (under 2)",
        part * 100.0
    );
    println!("{}", house.status().unwrap_or_default()["workers"][0]);
    house.stop(Duration::from_secs(20));
}
