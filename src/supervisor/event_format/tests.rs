//! The sentences and fields of each kind of event, and the document that lists them.

use std::collections::BTreeSet;

use crate::{
    supervisor::cause::Cause,
    supervisor::event::{Effective, Limits},
    units::{ReportId, WorkerId},
};

use super::{
    samples::{all, end},
    *,
};

const DOCUMENT: &str = include_str!("../../../docs/events.md");

#[test]
fn a_suspension_names_what_failed_and_when_recycling_resumes() {
    let suspended = |down| Event::Suspended {
        why: "w3 exited with status 1 before it was ready".to_owned(),
        down,
    };
    assert_message(
        &suspended(false),
        "w3 exited with status 1 before it was ready; recycling is suspended until a worker \
         starts; running workers stay, under their caps",
    );
    assert_message(
        &suspended(true),
        "w3 exited with status 1 before it was ready; recycling is suspended until the service has \
         run for a while",
    );
}

fn assert_message(event: &Event, message: &str) {
    assert_eq!(event.message(), message);
}

#[test]
fn an_end_names_its_cause_its_memory_and_its_limit() {
    let mut end = end(Who::Worker(WorkerId::FIRST.next().next()), Cause::Ceiling);
    end.tasks = None;
    assert_message(
        &Event::Ended(end.clone()),
        "w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)",
    );
    end.killed = true;
    assert_eq!(Event::Ended(end).level(), Level::Warn);
}

#[test]
fn an_end_at_the_cap_says_that_the_kernel_killed_the_worker() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::Cap);
    (end.tasks, end.drain) = (None, None);
    assert_message(
        &Event::Ended(end),
        "w1 ended: cap, killed by the kernel at its cap (memory 301M of 300M, peak 302M, \
         age 42s)",
    );
}

#[test]
fn an_end_at_the_budget_does_not_show_the_budget_as_the_limit_of_the_worker() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::BudgetKill);
    (end.tasks, end.drain) = (None, None);
    let event = Event::Ended(end);
    assert_message(
        &event,
        "w1 ended: budget-kill, killed by the kernel because all workers together met the budget \
         (memory 301M, peak 302M, age 42s)",
    );
    assert_eq!(event.level(), Level::Warn);
}

#[test]
fn a_recycle_shows_the_limit_with_and_without_jitter() {
    let due = |cause, limit, dry_run| Event::Due {
        worker: WorkerId::FIRST,
        cause,
        memory: Bytes::mib(162),
        limit: Some(Bytes::mib(limit)),
        configured: Some(Bytes::mib(150)),
        dry_run,
    };
    assert_message(
        &due(Cause::Ceiling, 146, false),
        "w1: 162M, over its ceiling of 150M (146M for this worker); replacing it",
    );
    assert_message(
        &due(Cause::Ceiling, 150, true),
        "w1: 162M, over its ceiling of 150M; not replaced, because this is a dry run",
    );
    assert_message(
        &due(Cause::Budget, 150, false),
        "w1: 162M, the largest of the workers, whose total is close to the budget of 150M; \
         replacing it",
    );
}

#[test]
fn giving_up_names_the_number_of_exits_the_limit_and_the_last_reason() {
    let gave_up = Event::GaveUp {
        ends: 6,
        window: Duration::from_secs(60),
        last: "status 3: ConnectionError: database is away".to_owned(),
    };
    assert_message(
        &gave_up,
        "giving up: 6 exits within 1m 0s, 5 allowed; the last with status 3: ConnectionError: \
         database is away",
    );
}

#[test]
fn a_limit_that_is_off_is_named() {
    let limits = Limits {
        available: Bytes::mib(2048),
        ceiling: Effective {
            bytes: Some(Bytes::mib(300)),
            from: "given".to_owned(),
        },
        ..Limits::default()
    };
    assert_message(
        &Event::Limits(limits),
        "limits: ceiling 300M (given), no cap, no budget; 2G available",
    );
}

#[test]
fn durations_have_at_most_two_units() {
    for (millis, text) in [
        (0, "0s"),
        (80, "80ms"),
        (300, "0.3s"),
        (42_000, "42s"),
        (200_000, "3m 20s"),
        (7_380_000, "2h 3m"),
        (349_200_000, "4d 1h"),
    ] {
        assert_eq!(span(Duration::from_millis(millis)), text);
    }
}

#[test]
fn the_document_lists_every_kind_with_its_fields_and_no_other() {
    let formatted: BTreeSet<String> = all()
        .into_iter()
        .map(|event| {
            let fields: Vec<_> = event.fields().iter().map(|(name, _)| *name).collect();
            format!("{}: {}", event.kind(), fields.join(" "))
        })
        .collect();
    let documented: BTreeSet<String> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            let (kind, fields) = (cells[0].trim_end_matches('`'), cells[2]);
            format!("{kind}: {}", fields.replace([',', '`'], ""))
        })
        .collect();
    assert_eq!(formatted, documented);
}

#[test]
fn rescues_traces_and_reports_are_told_in_one_sentence_each() {
    let worker = WorkerId::FIRST;
    let rescued = |times| Event::Rescued {
        worker,
        freed: Bytes::mib(84),
        memory: Bytes::mib(216),
        times,
    };
    assert_message(
        &rescued(1),
        "w1: freed 84M over its ceiling, now 216M; not replaced",
    );
    assert_message(
        &rescued(3),
        "w1: freed 84M over its ceiling, now 216M; not replaced (3 times so far)",
    );
    let armed = Event::Armed {
        worker,
        memory: Bytes::mib(260),
        baseline: Bytes::mib(200),
    };
    assert_message(
        &armed,
        "w1: 260M, 200M after warm-up; tracing its allocations",
    );
    let reported = Event::Reported {
        report: ReportId(3),
        worker,
        cause: Cause::Ceiling,
        summary: "python: 81M of 90M; app.py:7 remember".to_owned(),
    };
    assert_message(
        &reported,
        "memory report r3 of w1 (ceiling): python: 81M of 90M; app.py:7 remember",
    );
    for event in [rescued(1), armed, reported] {
        assert_eq!(event.level(), Level::Info);
    }
}

#[test]
fn an_end_names_the_report_of_the_worker() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::Ceiling);
    end.report = Some(ReportId(3));
    let message = Event::Ended(end).message();
    assert!(
        message.ends_with("drained in 0.3s, report r3)"),
        "{message}"
    );
}
