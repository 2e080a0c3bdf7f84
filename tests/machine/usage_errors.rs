//! A usage error is reported once, clearly, and before anything is started.

use std::{net::TcpListener, time::Duration};

use super::{
    service::{Ended, Plan, SUPERVISE},
    turn,
};

const COMMAND: [&str; 3] = ["/bin/sh", "-c", "echo started"];

/// Runs `plan`, and asserts what must hold for every usage error.
#[track_caller]
fn assert_refused(plan: Plan, status: i32, expected: &[&str]) -> Ended {
    let _turn = turn::beside();
    let ended = plan.run(Duration::from_secs(10));
    assert_eq!(ended.status.code(), Some(status), "{}", ended.stderr);
    for word in expected {
        assert!(
            ended.stderr.contains(word),
            "no `{word}` in: {}",
            ended.stderr
        );
    }
    assert!(!ended.stdout.contains("started"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

#[test]
fn an_unknown_option_is_refused_with_the_nearest_one_as_a_hint() {
    let plan = Plan::supervise(&["--cieling", "300M"], &COMMAND);
    assert_refused(plan, 2, &["--cieling", "--ceiling"]);
}

#[test]
fn an_invalid_size_is_named() {
    for size in ["300Q", "0", "1e99", "lots"] {
        let plan = Plan::supervise(&["--ceiling", size], &COMMAND);
        assert_refused(plan, 2, &["--ceiling", size]);
    }
    assert_refused(Plan::supervise(&["--ceiling=-5"], &COMMAND), 2, &["-5"]);
}

#[test]
fn a_limit_below_a_mebibyte_is_refused_with_a_suggestion() {
    let suggestion = ["`50` is 50 bytes", "did you mean `50M`?"];
    let limits = ["--ceiling", "--cap", "--budget", "--max-rss"];
    for flag in limits {
        let plan = Plan::supervise(&[flag, "50"], &COMMAND);
        assert_refused(plan, 2, &[&[flag], suggestion.as_slice()].concat());
    }
    for flag in &limits[..3] {
        let plan = Plan::bare(&[SUPERVISE, "map", "math:sqrt", flag, "50"]);
        assert_refused(plan, 2, &[&[*flag], suggestion.as_slice()].concat());
        let plan = Plan::bare(&[SUPERVISE, "map", "math:sqrt", flag, "0.00001%"]);
        assert_refused(plan, 2, &[*flag, "at least 1M"]);
    }
    let plan = Plan::supervise(&[], &COMMAND).config("[memory]\ncap = 50\n");
    assert_refused(plan, 78, &[&["memory.cap"], suggestion.as_slice()].concat());
    let plan = Plan::supervise(&[], &COMMAND).env("SUPERVISE_CAP", 50);
    assert_refused(
        plan,
        78,
        &[&["SUPERVISE_CAP"], suggestion.as_slice()].concat(),
    );
    let plan = Plan::supervise(&["--ceiling", "0.00001%"], &COMMAND);
    assert_refused(
        plan,
        78,
        &["memory.ceiling", "`0.00001%` of", "at least 1M"],
    );
}

#[test]
fn a_termination_log_that_cannot_be_opened_is_named() {
    let path = "/no/such/place/termination-log";
    let plan = Plan::supervise(&["--termination-log", path], &COMMAND);
    assert_refused(plan, 125, &["open the termination log", path]);
    let text = "[control]\ntermination_log = 1\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    assert_refused(plan, 78, &["control.termination_log", "a path"]);
}

#[test]
fn limits_that_contradict_each_other_are_named() {
    let plan = Plan::supervise(&["--ceiling", "2G", "--cap", "1G"], &COMMAND);
    assert_refused(plan, 2, &["ceiling", "2G", "cap", "1G"]);
    let plan = Plan::supervise(&["--cap", "2G", "--budget", "1G"], &COMMAND);
    assert_refused(plan, 2, &["cap", "2G", "budget", "1G"]);
    let text = "[memory]\nceiling = \"2G\"\ncap = \"1G\"\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    assert_refused(plan, 78, &["ceiling", "2G", "cap", "1G"]);
}

#[test]
fn a_missing_command_is_reported() {
    let none: [&str; 0] = [];
    assert_refused(
        Plan::supervise(&["--ceiling", "1G"], &none),
        2,
        &["COMMAND"],
    );
}

#[test]
fn a_command_that_does_not_exist_exits_with_127() {
    let plan = Plan::supervise(&[], &["gunicron", "app"]);
    assert_refused(plan, 127, &["gunicron"]);
}

#[test]
fn a_command_that_cannot_be_executed_exits_with_126() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    assert_refused(Plan::supervise(&[], &[&path]), 126, &[&path]);
    assert_refused(Plan::supervise(&[], &["/tmp"]), 126, &["/tmp"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plan = Plan::supervise(&["--metrics", &address], &COMMAND);
    assert_refused(plan, 125, &[&address]);
}

#[test]
fn a_runtime_directory_that_cannot_be_made_is_named() {
    let plan = Plan::supervise(&["--socket", "/etc/hostname/x.sock"], &COMMAND);
    assert_refused(plan, 125, &["/etc/hostname"]);
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let plan = Plan::supervise(&["--config", "/nonexistent/supervise.toml"], &COMMAND);
    assert_refused(plan, 78, &["/nonexistent/supervise.toml"]);
}

#[test]
fn a_config_with_a_toml_error_is_named_with_its_line() {
    let plan = Plan::supervise(&[], &COMMAND).config("[memory]\nceiling = = 3\n");
    assert_refused(plan, 78, &["supervise.toml:2", "TOML"]);
}

#[test]
fn all_errors_of_a_config_are_reported_together() {
    let text = "[memory]\ncieling = \"1G\"\ncap = \"300Q\"\n[recycle]\nmin_age = \"soon\"\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    assert_refused(plan, 78, &["cieling", "ceiling", "300Q", "min_age", "soon"]);
}

#[test]
fn a_config_value_of_the_wrong_type_is_named() {
    let plan = Plan::supervise(&[], &COMMAND).config("[recycle]\nat_once = \"many\"\n");
    assert_refused(plan, 78, &["at_once"]);
}
