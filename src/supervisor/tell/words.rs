//! Sentences and figures of the longer reports.

use std::time::Duration;

use crate::{
    supervisor::report::{Cause, Effective, End, Left, Limits, Who},
    units::{Bytes, ReportId, WorkerId},
};

use super::{Fact, Facts};

/// A span of time in at most two units: `80ms`, `0.3s`, `42s`, `3m 20s`, `2h 3m`, `4d 1h`.
pub fn span(time: Duration) -> String {
    const TWO: [(&str, &str, u64, u64); 3] = [
        ("d", "h", 86_400, 3_600),
        ("h", "m", 3_600, 60),
        ("m", "s", 60, 1),
    ];
    let seconds = time.as_secs();
    for (great, small, great_s, small_s) in TWO {
        if seconds >= great_s {
            let (many, rest) = (seconds / great_s, (seconds % great_s) / small_s);
            return format!("{many}{great} {rest}{small}");
        }
    }
    match time.as_millis() {
        0 => "0s".to_owned(),
        millis @ 1..100 => format!("{millis}ms"),
        100..10_000 => format!("{:.1}s", time.as_secs_f64()),
        _ => format!("{seconds}s"),
    }
}

pub(super) fn limits_message(limits: &Limits) -> String {
    let one = |name: &str, limit: &Effective| match limit.bytes {
        Some(bytes) => format!("{name} {bytes} ({})", limit.from),
        None => format!("no {name}"),
    };
    format!(
        "limits: {}, {}, {}; {} available",
        one("ceiling", &limits.ceiling),
        one("cap", &limits.cap),
        one("budget", &limits.budget),
        limits.available,
    )
}

pub(super) fn limits_facts(limits: &Limits) -> Facts {
    let mut facts = vec![("available", Fact::Bytes(limits.available))];
    for (name, from, limit) in [
        ("ceiling", "ceiling_from", &limits.ceiling),
        ("cap", "cap_from", &limits.cap),
        ("budget", "budget_from", &limits.budget),
    ] {
        facts.extend(limit.bytes.map(|bytes| (name, Fact::Bytes(bytes))));
        facts.push((from, Fact::Text(limit.from.clone())));
    }
    facts
}

/// `162M, over its ceiling of 150M (146M with jitter)`.
pub(super) fn due_message(
    cause: Cause,
    memory: Bytes,
    limit: Option<Bytes>,
    configured: Option<Bytes>,
) -> String {
    match (cause, limit, configured.or(limit)) {
        (Cause::Ceiling, Some(limit), Some(full)) if limit != full => {
            format!("{memory}, over its ceiling of {full} ({limit} with jitter)")
        }
        (Cause::Ceiling, _, Some(full)) => format!("{memory}, over its ceiling of {full}"),
        (Cause::Budget, _, Some(full)) => format!(
            "{memory}, the most of all workers, which are close to the budget of {full} together"
        ),
        (Cause::Tasks, ..) => format!("{memory}, has done its maximum number of tasks"),
        (Cause::Age, ..) => format!("{memory}, has reached its maximum age"),
        (Cause::Request, ..) => format!("{memory}, an operator asked for it"),
        (Cause::Reload, ..) => format!("{memory}, a reload"),
        _ => format!("{memory}, {cause}"),
    }
}

/// `w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)`.
pub(in crate::supervisor) fn end_message(end: &End) -> String {
    let by = if end.cause == Cause::Cap {
        ", ended by the kernel at its cap"
    } else if end.cause == Cause::Oom {
        ", ended by the kernel for memory missing elsewhere"
    } else if end.cause == Cause::BudgetKill {
        ", killed by the kernel because the budget was full"
    } else {
        ""
    };
    // The budget is not this worker's limit.
    let limit = end.limit.filter(|_| end.cause != Cause::BudgetKill);
    let mut figures = format!(
        "{}, peak {}, age {}",
        memory_of(end.memory, limit),
        end.peak,
        span(end.age)
    );
    if let Some(tasks) = end.tasks {
        figures.push_str(&format!(", {tasks} tasks"));
    }
    match (end.drain, end.killed) {
        (Some(drain), true) => figures.push_str(&format!(", killed after {}", span(drain))),
        (Some(drain), false) => figures.push_str(&format!(", drained in {}", span(drain))),
        (None, true) => figures.push_str(", killed"),
        (None, false) => {}
    }
    if let Some(report) = end.report {
        figures.push_str(&format!(", report {report}"));
    }
    format!("{} ended: {}{by} ({figures})", end.who, end.cause)
}

pub(super) fn end_facts(end: &End) -> Facts {
    let mut facts = Facts::new();
    if let Who::Worker(worker) = &end.who {
        facts.push(("worker", word(worker)));
    }
    facts.extend([
        ("pid", number(end.pid)),
        ("cause", word(&end.cause)),
        ("memory", Fact::Bytes(end.memory)),
        ("peak", Fact::Bytes(end.peak)),
    ]);
    facts.extend(end.limit.map(|limit| ("limit", Fact::Bytes(limit))));
    facts.push(("age_s", Fact::Seconds(end.age)));
    facts.extend(end.tasks.map(|tasks| ("tasks", Fact::Number(tasks))));
    facts.extend(end.drain.map(|drain| ("drain_s", Fact::Seconds(drain))));
    facts.push(("killed", Fact::Flag(end.killed)));
    facts.extend(end.report.map(|report| ("report", word(&report))));
    facts
}

/// `w3 stays: freed 84M over its ceiling and holds 216M`.
pub(super) fn rescue_message(worker: WorkerId, freed: Bytes, memory: Bytes, times: u32) -> String {
    let again = if times > 1 {
        format!(", {times} times by now")
    } else {
        String::new()
    };
    format!("{worker} stays: freed {freed} over its ceiling and holds {memory}{again}")
}

pub(super) fn rescue_facts(worker: WorkerId, freed: Bytes, memory: Bytes, times: u32) -> Facts {
    vec![
        ("worker", word(&worker)),
        ("freed", Fact::Bytes(freed)),
        ("memory", Fact::Bytes(memory)),
        ("times", Fact::Number(u64::from(times))),
    ]
}

pub(super) fn helper_message(pid: i32, command: &str) -> String {
    format!(
        "pid {pid} (`{command}`) is a child of the server and not a worker: its memory counts as \
         the server's, and only the budget limits it"
    )
}

pub(super) fn left_message(left: &Left) -> String {
    format!(
        "{} has left a process behind: {}",
        left.worker,
        of_process(left)
    )
}

pub(super) fn leftover_message(left: &Left, idle: Option<Duration>) -> String {
    let why = idle.map_or_else(
        || "memory is short".to_owned(),
        |idle| format!("it has used no CPU for {}", span(idle)),
    );
    let process = of_process(left);
    format!(
        "ending {process}, which {} has left behind: {why}",
        left.worker
    )
}

fn of_process(left: &Left) -> String {
    format!("pid {} (`{}`, {})", left.pid, left.command, left.memory)
}

pub(super) fn left_facts(left: &Left, idle: Option<Duration>) -> Facts {
    let mut facts = vec![
        ("worker", word(&left.worker)),
        ("pid", number(left.pid)),
        ("command", word(&left.command)),
        ("memory", Fact::Bytes(left.memory)),
    ];
    facts.extend(idle.map(|idle| ("idle_s", Fact::Seconds(idle))));
    facts
}

pub(super) fn reported_facts(
    report: ReportId,
    worker: WorkerId,
    cause: Cause,
    summary: &str,
) -> Facts {
    vec![
        ("report", word(&report)),
        ("worker", word(&worker)),
        ("cause", word(&cause)),
        ("summary", word(&summary)),
    ]
}

pub(super) fn armed_facts(worker: WorkerId, memory: Bytes, baseline: Bytes) -> Facts {
    vec![
        ("worker", word(&worker)),
        ("memory", Fact::Bytes(memory)),
        ("baseline", Fact::Bytes(baseline)),
    ]
}

pub(super) fn pressed_facts(memory: Bytes, budget: Option<Bytes>) -> Facts {
    let budget = budget.map(|budget| ("budget", Fact::Bytes(budget)));
    std::iter::once(("memory", Fact::Bytes(memory)))
        .chain(budget)
        .collect()
}

/// What follows when a worker is due.
pub(super) const fn then(dry_run: bool) -> &'static str {
    if dry_run {
        "it would be replaced, but this is a dry run"
    } else {
        "replacing it"
    }
}

pub(super) fn gave_up_message(ends: u32, window: Duration, last: &str) -> String {
    let within = span(window);
    let ends = ends.saturating_sub(1);
    format!("giving up: more than {ends} ends within {within}, the last with {last}")
}

pub(super) fn gave_up_facts(ends: u32, window: Duration, last: &str) -> Facts {
    vec![
        ("ends", Fact::Number(u64::from(ends))),
        ("window_s", Fact::Seconds(window)),
        ("last", word(&last)),
    ]
}

pub(super) fn unwatched_facts(workers: u32, limit: u64) -> Facts {
    vec![
        ("workers", Fact::Number(u64::from(workers))),
        ("limit", Fact::Number(limit)),
    ]
}

pub(super) fn unwatched(workers: u32, limit: u64) -> String {
    if workers == 0 {
        return format!("enough files may be open again ({limit}): all workers are watched");
    }
    format!(
        "{workers} workers are capped but not watched, because no more than {limit} files may be \
         open: until there is room, their ceiling is off and their end is noticed late. hint: \
         raise the hard limit (`LimitNOFILE=`, `ulimit -Hn`)"
    )
}

pub(super) fn memory_of(memory: Bytes, limit: Option<Bytes>) -> String {
    match limit {
        Some(limit) => format!("memory {memory} of {limit}"),
        None => format!("memory {memory}"),
    }
}

pub(super) fn suspended_message(why: &str, down: bool) -> String {
    let until = if down {
        "until the service has run for a while"
    } else {
        "until a worker starts; the workers that serve stay, under their caps"
    };
    format!("{why}; recycling is suspended {until}")
}

pub(super) fn word(shown: &impl ToString) -> Fact {
    Fact::Text(shown.to_string())
}

/// Pids and exit statuses are never negative.
pub(super) fn number(of: i32) -> Fact {
    Fact::Number(u64::try_from(of).unwrap_or(0))
}
