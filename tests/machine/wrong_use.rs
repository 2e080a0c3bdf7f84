//! What is wrong is said once, clearly, and before anything is started.

use std::{net::TcpListener, time::Duration};

use super::{
    house::{Ended, Plan, SUPERVISE},
    turn,
};

const COMMAND: [&str; 3] = ["/bin/sh", "-c", "echo started"];

/// Runs it, and checks what must hold for every wrong use.
#[track_caller]
fn refused(plan: Plan, status: i32, said: &[&str]) -> Ended {
    let _turn = turn::beside();
    let ended = plan.run(Duration::from_secs(10));
    assert_eq!(ended.status.code(), Some(status), "{}", ended.stderr);
    for word in said {
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
fn an_unknown_flag_is_answered_with_the_nearest() {
    let plan = Plan::supervise(&["--cieling", "300M"], &COMMAND);
    refused(plan, 2, &["--cieling", "--ceiling"]);
}

#[test]
fn a_size_that_is_none_is_named() {
    for size in ["300Q", "0", "1e99", "lots"] {
        let plan = Plan::supervise(&["--ceiling", size], &COMMAND);
        refused(plan, 2, &["--ceiling", size]);
    }
    refused(Plan::supervise(&["--ceiling=-5"], &COMMAND), 2, &["-5"]);
}

#[test]
fn a_limit_below_a_mebibyte_is_answered_with_what_was_meant() {
    let meant = ["`50` is 50 bytes", "did you mean `50M`?"];
    let limits = ["--ceiling", "--cap", "--budget", "--max-rss"];
    for flag in limits {
        let plan = Plan::supervise(&[flag, "50"], &COMMAND);
        refused(plan, 2, &[&[flag], meant.as_slice()].concat());
    }
    for flag in &limits[..3] {
        let plan = Plan::bare(&[SUPERVISE, "map", "math:sqrt", flag, "50"]);
        refused(plan, 2, &[&[*flag], meant.as_slice()].concat());
        let plan = Plan::bare(&[SUPERVISE, "map", "math:sqrt", flag, "0.00001%"]);
        refused(plan, 2, &[*flag, "at least 1M"]);
    }
    let plan = Plan::supervise(&[], &COMMAND).config("[memory]\ncap = 50\n");
    refused(plan, 78, &[&["memory.cap"], meant.as_slice()].concat());
    let plan = Plan::supervise(&[], &COMMAND).env("SUPERVISE_CAP", 50);
    refused(plan, 78, &[&["SUPERVISE_CAP"], meant.as_slice()].concat());
    let plan = Plan::supervise(&["--ceiling", "0.00001%"], &COMMAND);
    refused(
        plan,
        78,
        &["memory.ceiling", "`0.00001%` of", "at least 1M"],
    );
}

#[test]
fn a_termination_log_that_cannot_be_opened_is_named() {
    let path = "/no/such/place/termination-log";
    let plan = Plan::supervise(&["--termination-log", path], &COMMAND);
    refused(plan, 125, &["open the termination log", path]);
    let text = "[control]\ntermination_log = 1\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    refused(plan, 78, &["control.termination_log", "a path"]);
}

#[test]
fn limits_that_contradict_each_other_are_named() {
    let plan = Plan::supervise(&["--ceiling", "2G", "--cap", "1G"], &COMMAND);
    refused(plan, 2, &["ceiling", "2G", "cap", "1G"]);
    let plan = Plan::supervise(&["--cap", "2G", "--budget", "1G"], &COMMAND);
    refused(plan, 2, &["cap", "2G", "budget", "1G"]);
    let text = "[memory]\nceiling = \"2G\"\ncap = \"1G\"\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    refused(plan, 78, &["ceiling", "2G", "cap", "1G"]);
}

#[test]
fn a_command_that_is_missing_is_asked_for() {
    let none: [&str; 0] = [];
    refused(
        Plan::supervise(&["--ceiling", "1G"], &none),
        2,
        &["COMMAND"],
    );
}

#[test]
fn a_command_that_is_not_there_is_127() {
    let plan = Plan::supervise(&[], &["gunicron", "app"]);
    refused(plan, 127, &["gunicron"]);
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    refused(Plan::supervise(&[], &[&path]), 126, &[&path]);
    refused(Plan::supervise(&[], &["/tmp"]), 126, &["/tmp"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plan = Plan::supervise(&["--metrics", &address], &COMMAND);
    refused(plan, 125, &[&address]);
}

#[test]
fn a_runtime_directory_that_cannot_be_made_is_named() {
    let plan = Plan::supervise(&["--socket", "/etc/hostname/x.sock"], &COMMAND);
    refused(plan, 125, &["/etc/hostname"]);
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let plan = Plan::supervise(&["--config", "/nonexistent/supervise.toml"], &COMMAND);
    refused(plan, 78, &["/nonexistent/supervise.toml"]);
}

#[test]
fn a_config_that_is_no_toml_is_named_with_its_line() {
    let plan = Plan::supervise(&[], &COMMAND).config("[memory]\nceiling = = 3\n");
    refused(plan, 78, &["supervise.toml:2", "TOML"]);
}

#[test]
fn all_complaints_about_a_config_come_at_once() {
    let text = "[memory]\ncieling = \"1G\"\ncap = \"300Q\"\n[recycle]\nmin_age = \"soon\"\n";
    let plan = Plan::supervise(&[], &COMMAND).config(text);
    refused(plan, 78, &["cieling", "ceiling", "300Q", "min_age", "soon"]);
}

#[test]
fn an_unwritable_config_key_type_is_named() {
    let plan = Plan::supervise(&[], &COMMAND).config("[recycle]\nat_once = \"many\"\n");
    refused(plan, 78, &["at_once"]);
}
