//! A job under a cap: `supervise` exits with its status, and one line reports its peak.

use std::time::Duration;

use super::{
    service::{Ended, Plan},
    turn,
    venv::python,
};

/// Runs `supervise OPTIONS --restart never -- python3 WORDS` to its end.
fn job(options: &[&str], words: &[&str]) -> Ended {
    let _turn = turn::beside();
    let mut all = vec!["--restart", "never"];
    all.extend(options);
    let mut command = vec![python()];
    command.extend(words.iter().map(ToString::to_string));
    Plan::supervise(&all, &command).run(Duration::from_secs(30))
}

/// The one line that reports the peak of the job.
#[track_caller]
fn peak_line(ended: &Ended) -> &str {
    let mut lines = ended.stderr.lines().filter(|line| line.contains("peak"));
    let line = lines.next();
    assert!(lines.next().is_none(), "{}", ended.stderr);
    line.unwrap_or_else(|| panic!("no peak in: {}", ended.stderr))
}

#[test]
fn supervise_exits_with_the_status_of_its_job() {
    for status in ["0", "1", "7", "255"] {
        let ended = job(&["--cap", "500M"], &["etl.py", "--status", status]);
        assert_eq!(
            ended.status.code().map(|code| code.to_string()).as_deref(),
            Some(status),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_job_ended_by_a_signal_exits_with_128_and_its_number() {
    let code = "import os; os.kill(os.getpid(), 15)";
    let ended = job(&["--cap", "500M"], &["-c", code]);
    assert_eq!(ended.status.code(), Some(128 + 15), "{}", ended.stderr);
}

#[test]
fn a_job_that_does_not_handle_the_stop_signal_is_told_with_a_hint() {
    let _turn = turn::beside();
    let hint = "w1 does not handle TERM: it ended at once";
    let stopped = |prepare: &str| {
        let code = format!("{prepare}; print('ready', flush=True); import time; time.sleep(60)");
        let command = [python(), "-c".to_owned(), code];
        let mut service = Plan::supervise(&["--restart", "never"], &command).start();
        service.wait_for_output("ready", Duration::from_secs(20));
        service.signal(nix::sys::signal::Signal::SIGTERM);
        service.ends(Duration::from_secs(20));
        service.log()
    };
    let log = stopped("pass");
    assert_eq!(log.matches(hint).count(), 1, "{log}");
    assert!(log.contains("`--stop-signal`"), "{log}");
    // It has a chance to finish its work, and then ends by the same signal, as uvicorn does.
    let handles = "import os, signal; signal.signal(15, lambda *_: (signal.signal(15, 0), \
                   os.kill(os.getpid(), 15)))";
    let log = stopped(handles);
    assert!(!log.contains(hint), "{log}");
}

#[test]
fn a_job_that_reaches_its_cap_reports_the_cap_and_its_peak() {
    let ended = job(&["--cap", "100M"], &["etl.py", "--mb", "400"]);
    let code = ended.status.code();
    // With a cgroup the kernel kills it. With RLIMIT_DATA Python exits with a MemoryError.
    assert!(
        code == Some(137) || (code == Some(1) && ended.stderr.contains("MemoryError")),
        "{code:?} {}",
        ended.stderr
    );
    let line = peak_line(&ended);
    if code == Some(137) {
        assert!(line.contains("cap") && line.contains("100M"), "{line}");
    }
    assert!(!ended.stdout.contains("loaded"), "{}", ended.stdout);
}

#[test]
fn the_end_of_a_job_at_its_cap_names_the_line_that_ran() {
    // Near the cap it grows slowly: how soon a stack is written depends on how busy the machine is.
    let code = "import time\nkept = []\nfor n in range(3000):\n    \
                kept.append(bytearray(100_000)); time.sleep(0.001 if n < 300 else 0.01)";
    let ended = job(&["--cap", "80M"], &["-c", code]);
    if ended.status.code() == Some(137) {
        let line = ended
            .stderr
            .lines()
            .find(|line| line.contains("ended: cap"));
        let line = line.unwrap_or_default();
        assert!(
            line.contains("while it ran <string>:4 <module>, at "),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_job_within_its_cap_reports_its_peak() {
    let ended = job(&["--cap", "500M"], &["etl.py", "--mb", "100"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("loaded 100 MB"));
    assert!(peak_line(&ended).contains('M'));
}

#[test]
fn supervise_gives_up_a_failing_program_after_its_restart_limit() {
    let _turn = turn::beside();
    let options = ["--restart-delay-min", "10ms", "--restart-limit", "3"];
    let command = [python(), "-c".to_owned(), "raise SystemExit(3)".to_owned()];
    let ended = Plan::supervise(&options, &command).run(Duration::from_secs(30));
    assert_eq!(ended.status.code(), Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("exit:3"), "{}", ended.stderr);
}
