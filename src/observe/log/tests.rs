//! Lines in their three forms, and the filter.

use std::{
    collections::BTreeSet,
    io::{Read as _, pipe},
};

use serde_json::Value;

use crate::{
    supervisor::{
        event,
        event_format::{EventRecord, Level, samples},
    },
    units::WorkerId,
};

use super::*;

/// The log that `work` writes, with this filter.
fn log_of(form: Form, filter: Targets, work: impl FnOnce()) -> String {
    let (mut reader, writer) = pipe().unwrap();
    let layer = LogLayer::new(form, writer).unwrap();
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    tracing::subscriber::with_default(subscriber, work);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

fn logged(form: Form, work: impl FnOnce()) -> String {
    log_of(form, filter(None, false).unwrap(), work)
}

fn record(event: event::Event) -> EventRecord {
    EventRecord {
        id: 7,
        at: 1_757_073_600.25,
        mono_ns: 7,
        event,
    }
}

fn started() -> EventRecord {
    record(event::Event::WorkerSeen {
        worker: WorkerId::FIRST,
        pid: 41,
    })
}

#[test]
fn an_event_is_one_sentence_in_text() {
    let text = logged(Form::Text, || write_event(&started()));
    assert_eq!(text, "2025-09-05T12:00:00.250Z info  w1 started (pid 41)\n");
}

#[test]
fn an_event_is_an_object_with_its_fields_in_json() {
    let text = logged(Form::Json, || write_event(&started()));
    assert_eq!(
        text,
        "{\"time\":\"2025-09-05T12:00:00.250Z\",\"level\":\"info\",\
         \"message\":\"w1 started (pid 41)\",\
         \"event\":\"worker-seen\",\"id\":7,\"pid\":41,\"worker\":\"w1\"}\n"
    );
}

#[test]
fn an_event_is_a_record_with_its_fields_in_the_journal() {
    let text = logged(Form::Journal, || {
        write_event(&started());
        tracing::warn!(tries = 3, "odd");
    });
    assert_eq!(
        text,
        "MESSAGE=w1 started (pid 41)\nPRIORITY=6\nSYSLOG_IDENTIFIER=supervise\n\
         EVENT=worker-seen\nEVENT_ID=7\nPID_OF_WORKER=41\nWORKER=w1\n\
         MESSAGE=odd\nPRIORITY=4\nSYSLOG_IDENTIFIER=supervise\nTRIES=3\n"
    );
}

#[test]
fn every_event_reaches_the_log_with_all_its_fields() {
    for event in samples::all() {
        let mut expected: BTreeSet<_> = event.fields().into_iter().map(|(name, _)| name).collect();
        expected.extend(["time", "level", "message", "event", "id"]);
        let all = Targets::new().with_default(LevelFilter::TRACE);
        let line = log_of(Form::Json, all, || write_event(&record(event)));
        let line: Value = serde_json::from_str(&line).unwrap();
        let found: BTreeSet<_> = line
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(found, expected, "`emit!` must name every field");
    }
}

#[test]
fn other_messages_show_their_fields_and_cannot_forge_a_line() {
    let text = logged(Form::Text, || {
        tracing::warn!(tries = 3, "bad\nname \u{1b}[2J");
        tracing::debug!("only with --verbose");
    });
    assert!(
        text.ends_with(" warn  bad\\nname \\u{1b}[2J tries=3\n"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn a_field_cannot_control_the_terminal_in_json() {
    let text = logged(Form::Json, || {
        tracing::warn!(name = "\u{202e}\u{1b}[2J", "odd")
    });
    assert!(text.contains("\\u202e\\u001b[2J"), "{text}");
}

#[test]
fn the_variable_overrides_verbose_as_the_filter() {
    let reasons = |variable: Option<&str>, verbose| {
        let filter = filter(variable.map(OsStr::new), verbose).unwrap();
        let debug = tracing::Level::DEBUG;
        (
            filter.would_enable(line::DECIDER, &debug),
            filter.would_enable("hyper", &debug),
            filter.would_enable(line::EVENT, &tracing::Level::INFO),
        )
    };
    assert_eq!(reasons(None, false), (false, false, true));
    assert_eq!(reasons(None, true), (true, false, true));
    assert_eq!(reasons(Some(""), true), (true, false, true));
    assert_eq!(reasons(Some("debug"), false), (true, true, true));
    assert_eq!(reasons(Some("warn"), true), (false, false, false));
    let decider = Some("supervise::decider=debug");
    assert_eq!(reasons(decider, false), (true, false, true));
    let error = filter(Some(OsStr::new("a=b=c")), false).unwrap_err();
    let error = LogError::from(error).to_string();
    assert!(error.starts_with("SUPERVISE_LOG: "), "{error}");
}

#[test]
fn reasons_are_logged_only_if_the_filter_allows_them() {
    let verbose = |verbose| {
        let mut wanted = Vec::new();
        log_of(Form::Text, filter(None, verbose).unwrap(), || {
            wanted = [Level::Debug, Level::Info].map(is_wanted).to_vec();
        });
        wanted
    };
    assert_eq!(verbose(false), [false, true]);
    assert_eq!(verbose(true), [true, true]);
}
