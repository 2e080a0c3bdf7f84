//! One worker of a thousand processes: what watching it costs.

use std::time::Duration;

use super::{house::Plan, venv::python, watch::cost_at_rest};

const LASTS: Duration = Duration::from_secs(20);

/// Prints the part of a core. A word, if there is one, is the number of processes.
pub(crate) fn run(words: &[String]) {
    let count = words.first().map_or("1000", String::as_str);
    let command = [python(), "crowd.py".to_owned(), count.to_owned()];
    let house = Plan::supervise(&["--ceiling", "20G"], &command).start();
    house.wait_for_output("ready", Duration::from_secs(60));
    house.ready(1);
    let (_, part) = cost_at_rest(&house, LASTS);
    println!(
        "{count} processes watched for {:.2} % of a core (under 2)",
        part * 100.0
    );
    println!("{}", house.status().unwrap_or_default()["workers"][0]);
    house.stop(Duration::from_secs(20));
}
