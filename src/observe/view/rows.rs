//! The cells of the status page's tables.

use std::collections::BTreeMap;

use crate::{
    observe::paper::Column::{self, Figures, Words},
    supervisor::{
        event::Agent,
        report::{End, LeftoverView, MemoryView, Snapshot, WorkerView},
        tell::span,
    },
    units::{Bytes, Timestamp},
};

/// So many workers are named where one thing is said of several.
const NAMED: usize = 6;

pub(super) const WORKER: [Column; 10] = [
    Words("ID"),
    Figures("PID"),
    Words("STATE"),
    Figures("AGE"),
    Figures("MEMORY"),
    Figures("PEAK"),
    Figures("OF CEILING"),
    Figures("SLOPE"),
    Figures("TO CEILING"),
    Figures("PROCS"),
];

/// Beside them where somebody counts.
pub(super) const TASKS: [Column; 3] = [Figures("TASKS"), Figures("/S"), Figures("MEM/TASK")];

pub(super) const ENDED: [Column; 9] = [
    Figures("ENDED"),
    Words("WORKER"),
    Figures("PID"),
    Words("CAUSE"),
    Figures("MEMORY"),
    Figures("PEAK"),
    Figures("LIMIT"),
    Figures("AGE"),
    Figures("DRAIN"),
];

pub(super) fn worker_row(snapshot: &Snapshot, worker: &WorkerView) -> Vec<String> {
    let memory = &worker.memory;
    let now = measured(snapshot, memory);
    let part = snapshot
        .limits
        .ceiling
        .bytes
        .filter(|ceiling| *ceiling > Bytes::ZERO);
    let traced = if worker.traced { ", traced" } else { "" };
    vec![
        worker.id.to_string(),
        worker.pid.to_string(),
        format!("{}{traced}", worker.state),
        span(worker.age),
        now.to_string(),
        memory.peak.to_string(),
        known(part, |ceiling| {
            format!("{:.0}%", now.as_f64() / ceiling.as_f64() * 100.0)
        }),
        known(memory.slope_bps, |bps| format!("{}/s", signed(bps))),
        known(memory.to_ceiling, span),
        worker.processes.to_string(),
    ]
}

pub(super) fn tasks(worker: &WorkerView) -> [String; 3] {
    [
        known(worker.tasks, |tasks| tasks.to_string()),
        known(worker.tasks_per_s, |rate| {
            if rate < 10.0 {
                format!("{rate:.1}")
            } else {
                format!("{rate:.0}")
            }
        }),
        known(worker.bytes_per_task, signed),
    ]
}

/// Each reason for which workers cannot be asked, and those that it holds for.
pub(super) fn silent(workers: &[WorkerView]) -> Vec<(&str, String)> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for worker in workers {
        match &worker.agent {
            Agent::Absent(why) => reasons.entry(why).or_default().push(worker.id.to_string()),
            Agent::Unknown | Agent::Loaded => {}
        }
    }
    let named = |(why, workers): (_, Vec<String>)| {
        let others = workers.len().saturating_sub(NAMED);
        let mut names = workers[..workers.len() - others].join(", ");
        if others > 0 {
            names.push_str(&format!(" and {others} more"));
        }
        (why, names)
    };
    reasons.into_iter().map(named).collect()
}

/// `3 processes of ended workers, 90.0M: pid 123 of w1 (30.0M, idle 4.0s, `chrome`)`.
pub(super) fn leftovers(all: &[LeftoverView]) -> String {
    let processes: u32 = all.iter().map(|one| one.processes).sum();
    let memory = all
        .iter()
        .fold(Bytes::ZERO, |sum, one| sum.plus(one.memory));
    let named = |one: &LeftoverView| {
        format!(
            "pid {} of {} ({}, idle {}, `{}`)",
            one.pid,
            one.worker,
            one.memory,
            span(one.idle),
            one.command
        )
    };
    let mut names: Vec<_> = all.iter().take(NAMED).map(named).collect();
    let others = all.len().saturating_sub(NAMED);
    if others > 0 {
        names.push(format!("{others} more"));
    }
    format!(
        "{processes} processes of ended workers, {memory}: {}",
        names.join(", ")
    )
}

pub(super) fn end_row(end: &End, now: Timestamp) -> Vec<String> {
    let drain = match (end.drain, end.killed) {
        (Some(drain), true) => format!("{}, killed", span(drain)),
        (Some(drain), false) => span(drain),
        (None, true) => "killed".to_owned(),
        (None, false) => "-".to_owned(),
    };
    vec![
        format!("{} ago", span(now.since(end.at))),
        end.who.to_string(),
        end.pid.to_string(),
        end.cause.to_string(),
        end.memory.to_string(),
        end.peak.to_string(),
        known(end.limit, |limit| limit.to_string()),
        span(end.age),
        drain,
    ]
}

pub(super) fn known<T>(value: Option<T>, shown: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shown)
}

/// `+1.20M`.
fn signed(size: f64) -> String {
    let sign = if size < 0.0 { '-' } else { '+' };
    match Bytes(1).scaled(size.abs()) {
        Bytes::ZERO => "0".to_owned(),
        bytes => format!("{sign}{bytes}"),
    }
}

/// `3 (ceiling 2, age 1)`.
pub(super) fn counts(counts: &BTreeMap<String, u64>) -> String {
    let sum: u64 = counts.values().sum();
    if sum == 0 {
        return "0".to_owned();
    }
    let each: Vec<_> = counts
        .iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    format!("{sum} ({})", each.join(", "))
}

/// The name of what is held against the ceiling.
pub(super) fn measure(snapshot: &Snapshot) -> &str {
    match snapshot.measure.as_str() {
        "" => "private",
        measure => measure,
    }
}

/// The figure that is held against the ceiling; private where it has not been looked at.
fn measured(snapshot: &Snapshot, memory: &MemoryView) -> Bytes {
    let figure = match measure(snapshot) {
        "rss" => Some(memory.rss),
        "pss" => memory.pss,
        "cgroup" => memory.cgroup,
        _ => None,
    };
    figure.unwrap_or(memory.private)
}
