//! Sentences and fields of the longer events. A sentence about a limit gives, in this order: who,
//! figure, limit, what happens next.

use std::time::Duration;

use crate::{
    servers::fleet,
    supervisor::cause::Cause,
    supervisor::event::{Effective, End, Left, Limits, Running, StopExtended, Suggested, Who},
    units::{Bytes, ReportId, RunId, WorkerId},
};

use super::{Field, Fields};

/// A duration in at most two units: `80ms`, `0.3s`, `42s`, `3m 20s`, `2h 3m`, `4d 1h`.
pub fn span(time: Duration) -> String {
    const TWO: [(&str, &str, u64, u64); 3] = [
        ("d", "h", 86_400, 3_600),
        ("h", "m", 3_600, 60),
        ("m", "s", 60, 1),
    ];
    let seconds = time.as_secs();
    for (great, small, great_s, small_s) in TWO {
        if seconds >= great_s {
            let (count, rest) = (seconds / great_s, (seconds % great_s) / small_s);
            return format!("{count}{great} {rest}{small}");
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

pub(super) fn limits_fields(limits: &Limits) -> Fields {
    let mut fields = vec![("available", Field::Bytes(limits.available))];
    for (name, from, limit) in [
        ("ceiling", "ceiling_from", &limits.ceiling),
        ("cap", "cap_from", &limits.cap),
        ("budget", "budget_from", &limits.budget),
    ] {
        fields.extend(limit.bytes.map(|bytes| (name, Field::Bytes(bytes))));
        fields.push((from, Field::Text(limit.from.clone())));
    }
    fields
}

/// `162M, over its ceiling of 150M (146M for this worker)`.
pub(super) fn due_message(
    cause: Cause,
    memory: Bytes,
    limit: Option<Bytes>,
    configured: Option<Bytes>,
) -> String {
    match (cause, limit, configured.or(limit)) {
        (Cause::Ceiling, Some(limit), Some(full)) if limit != full => {
            format!("{memory}, over its ceiling of {full} ({limit} for this worker)")
        }
        (Cause::Ceiling, _, Some(full)) => format!("{memory}, over its ceiling of {full}"),
        (Cause::Budget, _, Some(full)) => format!(
            "{memory}, the largest of the workers, whose total is close to the budget of {full}"
        ),
        _ => format!("{memory}, {}", reason_of(cause)),
    }
}

/// Why a worker is replaced or stopped, as a phrase.
pub(super) fn reason_of(cause: Cause) -> String {
    let phrase = match cause {
        Cause::Ceiling => "over its ceiling",
        Cause::Budget => "all workers together are close to the budget",
        Cause::Tasks => "at its maximum number of tasks",
        Cause::Age => "at its maximum age",
        Cause::Request => "requested by an operator",
        Cause::Reload => "reload",
        Cause::Scale => "scaling down",
        Cause::Stop => "the service is stopping",
        Cause::Cap
        | Cause::BudgetKill
        | Cause::Oom
        | Cause::Exit(_)
        | Cause::Signal(_)
        | Cause::Unseen
        | Cause::StartFailed
        | Cause::Unready
        | Cause::Hung => return cause.to_string(),
    };
    phrase.to_owned()
}

/// `w1 is finishing its requests (over its ceiling)`.
pub(super) fn draining_message(worker: WorkerId, cause: Cause) -> String {
    let reason = reason_of(cause);
    format!("{worker} is finishing its requests ({reason})")
}

/// `w1 needs more time to stop (writing batch 7); killed in 2m 0s unless it asks again`.
pub(super) fn extended_message(extended: &StopExtended) -> String {
    let who = extended.worker;
    let who = who.map_or_else(|| "the command".to_owned(), |worker| worker.to_string());
    let doing = extended.status.as_ref();
    let doing = doing.map_or_else(String::new, |status| format!(" ({status})"));
    let time = span(extended.time);
    if extended.cut {
        return format!(
            "{who} asks for more time to stop than stop.extend_max allows{doing}; killed in {time}"
        );
    }
    format!("{who} needs more time to stop{doing}; killed in {time} unless it asks again")
}

pub(super) fn extended_fields(extended: &StopExtended) -> Fields {
    let mut fields = Fields::new();
    fields.extend(extended.worker.map(|worker| ("worker", text(&worker))));
    fields.push(seconds("killed_in_s", extended.time));
    let status = extended.status.as_ref();
    fields.extend(status.map(|status| ("status", text(status))));
    fields.push(("cut", Field::Flag(extended.cut)));
    fields
}

/// The fields of a worker that should be replaced, after those of `about`. `limits`: its own limit,
/// and the configured one.
pub(super) fn due_fields(
    about: Fields,
    memory: Bytes,
    limits: (Option<Bytes>, Option<Bytes>),
    dry_run: bool,
) -> Fields {
    let mut fields = about;
    fields.push(("memory", Field::Bytes(memory)));
    let (limit, configured) = limits;
    fields.extend(limit.map(|limit| ("limit", Field::Bytes(limit))));
    fields.extend(configured.map(|limit| ("configured", Field::Bytes(limit))));
    fields.push(("dry_run", Field::Flag(dry_run)));
    fields
}

pub(super) fn killed_message(worker: WorkerId) -> String {
    format!("{worker} did not exit within its grace period; killed with its child processes")
}

pub(super) fn restarting_message(run: RunId, after: Duration) -> String {
    let after = span(after);
    format!("restarting the command in {after} (start {})", run.0)
}

/// `w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)`, or
/// `w3 ended: cap, while it ran etl.py:7 load, at 92M, killed by the kernel ...`.
pub(in crate::supervisor) fn end_message(end: &End) -> String {
    let by = match end.cause {
        Cause::Cap => ", killed by the kernel at its cap",
        Cause::Oom => ", killed by the kernel at a memory limit above the service",
        Cause::BudgetKill => ", killed by the kernel because all workers together met the budget",
        Cause::Ceiling
        | Cause::Budget
        | Cause::Tasks
        | Cause::Age
        | Cause::Request
        | Cause::Reload
        | Cause::Scale
        | Cause::Stop
        | Cause::Exit(_)
        | Cause::Signal(_)
        | Cause::Unseen
        | Cause::StartFailed
        | Cause::Unready
        | Cause::Hung => "",
    };
    let mut ran = end.running.as_ref().map(running).unwrap_or_default();
    if let Some(line) = &end.ran {
        ran.push_str(&format!(", while it ran {line}"));
    }
    // The budget is the limit of all workers together.
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
    format!("{} ended: {}{ran}{by} ({figures})", end.who, end.cause)
}

/// `, in /export for 2.3s`.
fn running(running: &Running) -> String {
    let Running {
        request,
        age,
        in_progress,
    } = running;
    let others = if *in_progress > 1 {
        format!(" (the newest of {in_progress} requests)")
    } else {
        String::new()
    };
    format!(", in {request} for {}{others}", span(*age))
}

pub(super) fn end_fields(end: &End) -> Fields {
    let mut fields = Fields::new();
    if let Who::Worker(worker) = &end.who {
        fields.push(("worker", text(worker)));
    }
    fields.extend([
        ("pid", number(end.pid)),
        ("cause", text(&end.cause)),
        ("memory", Field::Bytes(end.memory)),
        ("peak", Field::Bytes(end.peak)),
    ]);
    fields.extend(end.limit.map(|limit| ("limit", Field::Bytes(limit))));
    fields.push(("age_s", Field::Seconds(end.age)));
    fields.extend(end.tasks.map(|tasks| ("tasks", Field::Number(tasks))));
    fields.extend(end.drain.map(|drain| ("drain_s", Field::Seconds(drain))));
    fields.push(("killed", Field::Flag(end.killed)));
    fields.extend(end.report.map(|report| ("report", text(&report))));
    fields.extend(end.ran.as_ref().map(|ran| ("ran", text(ran))));
    if let Some(running) = &end.running {
        fields.extend([
            ("request", text(&running.request)),
            ("request_age_s", Field::Seconds(running.age)),
            ("in_progress", Field::Number(running.in_progress)),
        ]);
    }
    fields
}

/// `w3: freed 84M over its ceiling, now 216M; not replaced`.
pub(super) fn rescue_message(worker: WorkerId, freed: Bytes, memory: Bytes, times: u32) -> String {
    let again = if times > 1 {
        format!(" ({times} times so far)")
    } else {
        String::new()
    };
    format!("{worker}: freed {freed} over its ceiling, now {memory}; not replaced{again}")
}

pub(super) fn rescue_fields(worker: WorkerId, freed: Bytes, memory: Bytes, times: u32) -> Fields {
    vec![
        ("worker", text(&worker)),
        ("freed", Field::Bytes(freed)),
        ("memory", Field::Bytes(memory)),
        ("times", Field::Number(u64::from(times))),
    ]
}

pub(super) fn server_message(pid: i32, server: &str) -> String {
    if server == fleet::PROFILE.name {
        return "COMMAND accepts connections at the sockets that are passed to it: another copy of \
                it serves before it is replaced"
            .to_owned();
    }
    format!(
        "COMMAND runs {server} (pid {pid}): each of its workers is watched and recycled by itself"
    )
}

pub(super) fn started_fields(run: RunId, pid: i32) -> Fields {
    vec![("run", Field::Number(run.0)), ("pid", number(pid))]
}

pub(super) fn chosen_fields(workers: u32, why: &str) -> Fields {
    let workers = Field::Number(u64::from(workers));
    vec![("workers", workers), ("why", text(&why))]
}

/// The fields of a process, with one that says more.
pub(super) fn process_fields(pid: i32, name: &'static str, value: &str) -> Fields {
    vec![("pid", number(pid)), (name, text(&value))]
}

pub(super) fn helper_message(pid: i32, command: &str) -> String {
    format!(
        "pid {pid} (`{command}`) is a child of the server but not a worker: its memory counts as \
         the server's, and it has no cap of its own"
    )
}

pub(super) fn left_message(left: &Left) -> String {
    format!(
        "{} ended and left a process running: {}",
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
        "{process}, left running by {}: {why}; stopping it",
        left.worker
    )
}

fn of_process(left: &Left) -> String {
    format!("pid {} (`{}`, {})", left.pid, left.command, left.memory)
}

pub(super) fn left_fields(left: &Left, idle: Option<Duration>) -> Fields {
    let mut fields = vec![
        ("worker", text(&left.worker)),
        ("pid", number(left.pid)),
        ("command", text(&left.command)),
        ("memory", Field::Bytes(left.memory)),
    ];
    fields.extend(idle.map(|idle| ("idle_s", Field::Seconds(idle))));
    fields
}

pub(super) fn upgraded_fields(version: &str, from: &str) -> Fields {
    vec![("version", text(&version)), ("from", text(&from))]
}

pub(super) fn suggested_fields(suggested: &Suggested) -> Fields {
    let ceiling = suggested
        .ceiling
        .map(|size| ("ceiling", Field::Bytes(size)));
    let cap = suggested.cap.map(|size| ("cap", Field::Bytes(size)));
    ceiling.into_iter().chain(cap).collect()
}

pub(super) fn reported_fields(
    report: ReportId,
    worker: WorkerId,
    cause: Cause,
    summary: &str,
) -> Fields {
    vec![
        ("report", text(&report)),
        ("worker", text(&worker)),
        ("cause", text(&cause)),
        ("summary", text(&summary)),
    ]
}

pub(super) fn armed_fields(worker: WorkerId, memory: Bytes, baseline: Bytes) -> Fields {
    vec![
        ("worker", text(&worker)),
        ("memory", Field::Bytes(memory)),
        ("baseline", Field::Bytes(baseline)),
    ]
}

pub(super) fn pressed_fields(memory: Bytes, budget: Option<Bytes>) -> Fields {
    let budget = budget.map(|budget| ("budget", Field::Bytes(budget)));
    std::iter::once(("memory", Field::Bytes(memory)))
        .chain(budget)
        .collect()
}

/// What happens to a worker that should be replaced.
pub(super) const fn due_action(dry_run: bool) -> &'static str {
    if dry_run {
        "not replaced, because this is a dry run"
    } else {
        "replacing it"
    }
}

pub(super) fn gave_up_message(ends: u32, window: Duration, last: &str) -> String {
    let within = span(window);
    let limit = ends.saturating_sub(1);
    format!("giving up: {ends} exits within {within}, {limit} allowed; the last with {last}")
}

pub(super) fn gave_up_fields(ends: u32, window: Duration, last: &str) -> Fields {
    vec![
        ("ends", Field::Number(u64::from(ends))),
        ("window_s", Field::Seconds(window)),
        ("last", text(&last)),
    ]
}

pub(super) fn unwatched_fields(workers: u32, limit: u64) -> Fields {
    vec![
        ("workers", Field::Number(u64::from(workers))),
        ("limit", Field::Number(limit)),
    ]
}

pub(super) fn unwatched_message(workers: u32, limit: u64) -> String {
    if workers == 0 {
        return format!("all workers are watched again (limit of open files: {limit})");
    }
    let (s, are) = if workers == 1 {
        ("", "is")
    } else {
        ("s", "are")
    };
    format!(
        "{workers} worker{s} {are} capped but not watched, because no more than {limit} files may \
         be open: the ceiling is off and an end is noticed late until files are closed. hint: \
         raise the hard limit (`LimitNOFILE=`, `ulimit -Hn`)"
    )
}

pub(super) fn pressed_message(memory: Bytes, budget: Option<Bytes>) -> String {
    let used = match budget {
        Some(budget) => format!("{memory} of the budget of {budget}"),
        None => memory.to_string(),
    };
    format!("processes of the service are waiting for memory: {used} used")
}

fn memory_of(memory: Bytes, limit: Option<Bytes>) -> String {
    match limit {
        Some(limit) => format!("memory {memory} of {limit}"),
        None => format!("memory {memory}"),
    }
}

pub(super) fn suspended_message(why: &str, down: bool) -> String {
    let until = if down {
        "until the service has run for a while"
    } else {
        "until a worker starts; running workers stay, under their caps"
    };
    format!("{why}; recycling is suspended {until}")
}

/// `w3: 312M of 300M (ceiling): waits until its replacement is ready`.
pub(super) fn reason_message(worker: Option<WorkerId>, why: &str) -> String {
    match worker {
        Some(worker) => format!("{worker}: {why}"),
        None => why.to_owned(),
    }
}

pub(super) fn reason_fields(worker: Option<WorkerId>, why: &str) -> Fields {
    let worker = worker.map(|worker| ("worker", text(&worker)));
    let why = ("why", Field::Text(why.to_owned()));
    worker.into_iter().chain([why]).collect()
}

pub(super) fn text(shown: &impl ToString) -> Field {
    Field::Text(shown.to_string())
}

/// A field that is a duration.
pub(super) const fn seconds(name: &'static str, time: Duration) -> (&'static str, Field) {
    (name, Field::Seconds(time))
}

/// Pids and exit statuses are never negative.
pub(super) fn number(of: i32) -> Field {
    Field::Number(u64::try_from(of).unwrap_or(0))
}
