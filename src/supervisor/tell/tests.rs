//! Each kind of report in words, and the document that lists them.

use std::collections::BTreeSet;

use crate::{
    supervisor::report::{Cause, Effective, Limits},
    units::{ReportId, WorkerId},
};

use super::{
    samples::{all, end},
    *,
};

const DOCUMENT: &str = include_str!("../../../docs/events.md");

#[test]
fn a_suspension_says_what_failed_and_what_follows() {
    let suspended = |down| Report::Suspended {
        why: "w3 exited with status 1 before it was ready".to_owned(),
        down,
    };
    said(
        &suspended(false),
        "w3 exited with status 1 before it was ready; recycling is suspended until a worker \
         starts; the workers that serve stay, under their caps",
    );
    said(
        &suspended(true),
        "w3 exited with status 1 before it was ready; recycling is suspended until the service has \
         run for a while",
    );
}

fn said(report: &Report, message: &str) {
    assert_eq!(report.message(), message);
}

#[test]
fn an_end_names_its_cause_its_figure_and_its_limit() {
    let mut end = end(Who::Worker(WorkerId::FIRST.next().next()), Cause::Ceiling);
    end.tasks = None;
    said(
        &Report::Ended(end.clone()),
        "w3 ended: ceiling (memory 301M of 300M, peak 302M, age 42s, drained in 0.3s)",
    );
    end.killed = true;
    assert_eq!(Report::Ended(end).level(), Level::Warn);
}

#[test]
fn a_job_that_met_its_cap_reads_so() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::Cap);
    (end.tasks, end.drain) = (None, None);
    said(
        &Report::Ended(end),
        "w1 ended: cap, ended by the kernel at its cap (memory 301M of 300M, peak 302M, \
         age 42s)",
    );
}

#[test]
fn a_kill_at_the_budget_is_not_held_against_the_worker() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::BudgetKill);
    (end.tasks, end.drain) = (None, None);
    let report = Report::Ended(end);
    said(
        &report,
        "w1 ended: budget-kill, killed by the kernel because the budget was full \
         (memory 301M, peak 302M, age 42s)",
    );
    assert_eq!(report.level(), Level::Warn);
}

#[test]
fn a_recycle_shows_the_limit_and_what_jitter_made_of_it() {
    let due = |cause, limit, dry_run| Report::Due {
        worker: WorkerId::FIRST,
        cause,
        memory: Bytes::mib(162),
        limit: Some(Bytes::mib(limit)),
        configured: Some(Bytes::mib(150)),
        dry_run,
    };
    said(
        &due(Cause::Ceiling, 146, false),
        "w1: 162M, over its ceiling of 150M (146M with jitter); replacing it",
    );
    said(
        &due(Cause::Ceiling, 150, true),
        "w1: 162M, over its ceiling of 150M; it would be replaced, but this is a dry run",
    );
    said(
        &due(Cause::Budget, 150, false),
        "w1: 162M, the most of all workers, which are close to the budget of 150M together; \
         replacing it",
    );
}

#[test]
fn a_service_that_is_given_up_says_the_last_reason() {
    let gave_up = Report::GaveUp {
        ends: 6,
        window: Duration::from_secs(60),
        last: "status 3: ConnectionError: database is away".to_owned(),
    };
    said(
        &gave_up,
        "giving up: more than 5 ends within 1m 0s, the last with status 3: ConnectionError: \
         database is away",
    );
}

#[test]
fn a_limit_that_is_off_is_said() {
    let limits = Limits {
        available: Bytes::mib(2048),
        ceiling: Effective {
            bytes: Some(Bytes::mib(300)),
            from: "given".to_owned(),
        },
        ..Limits::default()
    };
    said(
        &Report::Limits(limits),
        "limits: ceiling 300M (given), no cap, no budget; 2G available",
    );
}

#[test]
fn spans_have_at_most_two_units() {
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
fn the_document_lists_every_kind_with_its_facts_and_no_other() {
    let told: BTreeSet<String> = all()
        .into_iter()
        .map(|report| {
            let facts: Vec<_> = report.facts().iter().map(|(name, _)| *name).collect();
            format!("{}: {}", report.kind(), facts.join(" "))
        })
        .collect();
    let documented: BTreeSet<String> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            let (kind, facts) = (cells[0].trim_end_matches('`'), cells[2]);
            format!("{kind}: {}", facts.replace([',', '`'], ""))
        })
        .collect();
    assert_eq!(told, documented);
}

#[test]
fn a_rescue_and_a_report_read_as_sentences() {
    let worker = WorkerId::FIRST;
    let rescued = |times| Report::Rescued {
        worker,
        freed: Bytes::mib(84),
        memory: Bytes::mib(216),
        times,
    };
    said(
        &rescued(1),
        "w1 stays: freed 84M over its ceiling and holds 216M",
    );
    said(
        &rescued(3),
        "w1 stays: freed 84M over its ceiling and holds 216M, 3 times by now",
    );
    let armed = Report::Armed {
        worker,
        memory: Bytes::mib(260),
        baseline: Bytes::mib(200),
    };
    said(
        &armed,
        "w1 has grown to 260M from 200M; its growth is traced for a while",
    );
    let reported = Report::Reported {
        report: ReportId(3),
        worker,
        cause: Cause::Ceiling,
        summary: "python: 81M of 90M; app.py:7 remember".to_owned(),
    };
    said(
        &reported,
        "r3 says of w1 (ceiling): python: 81M of 90M; app.py:7 remember",
    );
    for report in [rescued(1), armed, reported] {
        assert_eq!(report.level(), Level::Info);
    }
}

#[test]
fn an_end_names_the_report_that_was_taken_before() {
    let mut end = end(Who::Worker(WorkerId::FIRST), Cause::Ceiling);
    end.report = Some(ReportId(3));
    let message = Report::Ended(end).message();
    assert!(
        message.ends_with("drained in 0.3s, report r3)"),
        "{message}"
    );
}
