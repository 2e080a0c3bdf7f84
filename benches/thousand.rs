//! The cost of watching one worker with a thousand processes.

use std::time::Duration;

use super::{service::Plan, venv::python, watch::cost_at_rest};

const LASTS: Duration = Duration::from_secs(20);

/// Prints the part of a core. The optional argument is the number of processes.
pub(crate) fn run(words: &[String]) {
    let count = words.first().map_or("1000", String::as_str);
    let command = [python(), "crowd.py".to_owned(), count.to_owned()];
    let service = Plan::supervise(&["--ceiling", "20G"], &command).start();
    service.wait_for_output("ready", Duration::from_secs(60));
    service.ready(1);
    let (_, part) = cost_at_rest(&service, LASTS);
    println!(
        "{count} processes watched for {:.2} % of a core (under 2)",
        part * 100.0
    );
    println!("{}", service.status().unwrap_or_default()["workers"][0]);
    service.stop(Duration::from_secs(20));
}
