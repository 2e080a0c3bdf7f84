//! Rows of the status page's tables.

use std::collections::BTreeMap;

use crate::{
    observe::text_layout::Column::{self, Number, Text},
    supervisor::{
        event::End,
        event_format::span,
        input::Agent,
        snapshot::{
            HelperView, LeftoverView, MemoryView, PoolView, RouteView, Snapshot, WorkerView,
        },
    },
    units::{Bytes, Timestamp},
};

/// Maximum workers named in one line.
const NAMED: usize = 6;

/// Maximum routes shown.
const ROUTES_SHOWN: usize = 5;
/// Routes with less growth than this, or with a smaller share of all growth, are not shown.
const GROWTH_MIN: Bytes = Bytes::mib(1);
const SHARE_MIN: f64 = 0.05;
/// The same for routes whose growth is not certain.
const UNCERTAIN_SHARE_MIN: f64 = 0.2;

pub(super) const WORKER: [Column; 10] = [
    Text("ID"),
    Number("PID"),
    Text("STATE"),
    Number("AGE"),
    Number("MEMORY"),
    Number("PEAK"),
    Number("OF CEILING"),
    Number("SLOPE"),
    Number("TO CEILING"),
    Number("PROCS"),
];

/// Further columns if tasks are counted.
pub(super) const TASKS: [Column; 3] = [Number("TASKS"), Number("/S"), Number("MEM/TASK")];

pub(super) const ROUTE: [Column; 6] = [
    Text("ROUTE"),
    Number("REQUESTS"),
    Number("GROWTH"),
    Number("PER REQUEST"),
    Number("SHARE"),
    Text("CERTAIN"),
];

pub(super) const ENDED: [Column; 9] = [
    Number("ENDED"),
    Text("WORKER"),
    Number("PID"),
    Text("CAUSE"),
    Number("MEMORY"),
    Number("PEAK"),
    Number("LIMIT"),
    Number("AGE"),
    Number("DRAIN"),
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

/// The routes with growth that is worth showing, the largest first.
pub(super) fn growing(routes: &[RouteView]) -> impl Iterator<Item = &RouteView> {
    let is_large = |route: &&RouteView| {
        let share = if route.certain {
            SHARE_MIN
        } else {
            UNCERTAIN_SHARE_MIN
        };
        route.growth >= GROWTH_MIN && route.share >= share
    };
    routes.iter().filter(is_large).take(ROUTES_SHOWN)
}

pub(super) fn route_row(route: &RouteView) -> Vec<String> {
    vec![
        route.route.clone(),
        route.requests.to_string(),
        format!("+{}", route.growth),
        format!("+{}", route.per_request),
        format!("{:.0}%", route.share * 100.0),
        if route.certain { "yes" } else { "no" }.to_owned(),
    ]
}

/// Each reason for a missing agent, and the workers that it applies to.
pub(super) fn missing_agents(workers: &[WorkerView]) -> Vec<(&str, String)> {
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

/// What is waited for, and until when: `the command, killed in 30s; w1, killed in 2m 0s`.
pub(super) fn waiting(snapshot: &Snapshot) -> String {
    let named = |name: String, time| format!("{name}, killed in {}", span(time));
    let command = snapshot.killed_in;
    let command = command.map(|time| named("the command".to_owned(), time));
    let workers = snapshot.workers.iter();
    let workers = workers.filter_map(|one| Some(named(one.id.to_string(), one.killed_in?)));
    bounded(command.into_iter().chain(workers))
}

/// What the command and its workers say about themselves: `w1: writing batch 7`.
pub(super) fn status_texts(snapshot: &Snapshot) -> String {
    let command = snapshot.status_text.clone();
    let workers = snapshot.workers.iter();
    let workers =
        workers.filter_map(|one| Some(format!("{}: {}", one.id, one.status_text.as_ref()?)));
    bounded(command.into_iter().chain(workers))
}

/// The first of these, and the number of the others.
fn bounded(all: impl Iterator<Item = String>) -> String {
    let mut all: Vec<_> = all.collect();
    let others = all.len().saturating_sub(NAMED);
    if others > 0 {
        all.truncate(NAMED);
        all.push(format!("{others} more"));
    }
    all.join("; ")
}

/// `dirty arbiter pid 12: 30M; dirty worker pid 13: 152M (only the budget limits them)`.
pub(super) fn helpers(snapshot: &Snapshot) -> String {
    let named = |one: &HelperView| {
        let command = if one.name == "helper" {
            format!(" (`{}`)", one.command)
        } else {
            String::new()
        };
        format!("{} pid {}{command}: {}", one.name, one.pid, one.memory)
    };
    let all = bounded(snapshot.helpers.iter().map(named));
    let limit = if snapshot.helpers_limited {
        "only the budget limits them"
    } else {
        "no limit holds for them"
    };
    if all.is_empty() {
        all
    } else {
        format!("{all} ({limit})")
    }
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

/// `1200 done, 3 failed, 4 running, 64 waiting`.
pub(super) fn progress(pool: &PoolView) -> String {
    let PoolView {
        done,
        failed,
        running,
        waiting,
        abandoned,
        ..
    } = pool;
    let mut text = format!("{done} done, {failed} failed, {running} running, {waiting} waiting");
    if *abandoned > 0 {
        text.push_str(&format!(", {abandoned} abandoned"));
    }
    text
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

/// The measure that is compared with the ceiling.
pub(super) fn measure(snapshot: &Snapshot) -> &str {
    match snapshot.measure.as_str() {
        "" => "private",
        measure => measure,
    }
}

/// The figure that is compared with the ceiling; private memory if that is not known yet.
fn measured(snapshot: &Snapshot, memory: &MemoryView) -> Bytes {
    let figure = match measure(snapshot) {
        "rss" => Some(memory.rss),
        "pss" => memory.pss,
        "cgroup" => memory.cgroup,
        _ => None,
    };
    figure.unwrap_or(memory.private)
}
