//! One run under a cap: its exit status is ours, and one line says what it took.

use std::time::Duration;

use super::{
    house::{Ended, Plan},
    turn,
    venv::python,
};

/// `supervise OPTIONS --restart never -- python3 WORDS`, to its end.
fn job(options: &[&str], words: &[&str]) -> Ended {
    let _turn = turn::beside();
    let mut all = vec!["--restart", "never"];
    all.extend(options);
    let mut command = vec![python()];
    command.extend(words.iter().map(ToString::to_string));
    Plan::supervise(&all, &command).run(Duration::from_secs(30))
}

/// The one line that says what the job took.
#[track_caller]
fn line_of_the_end(ended: &Ended) -> &str {
    let mut lines = ended.stderr.lines().filter(|line| line.contains("peak"));
    let line = lines.next();
    assert!(lines.next().is_none(), "{}", ended.stderr);
    line.unwrap_or_else(|| panic!("no peak in: {}", ended.stderr))
}

#[test]
fn the_exit_status_of_a_job_is_ours() {
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
fn a_signal_that_ends_a_job_is_ours_as_the_shell_says_it() {
    let code = "import os; os.kill(os.getpid(), 15)";
    let ended = job(&["--cap", "500M"], &["-c", code]);
    assert_eq!(ended.status.code(), Some(128 + 15), "{}", ended.stderr);
}

#[test]
fn a_job_that_meets_its_cap_says_so_with_its_peak() {
    let ended = job(&["--cap", "100M"], &["etl.py", "--mb", "400"]);
    let code = ended.status.code();
    // By a cgroup the kernel kills it; by RLIMIT_DATA Python ends itself with a MemoryError.
    assert!(
        code == Some(137) || (code == Some(1) && ended.stderr.contains("MemoryError")),
        "{code:?} {}",
        ended.stderr
    );
    let line = line_of_the_end(&ended);
    if code == Some(137) {
        assert!(line.contains("cap") && line.contains("100M"), "{line}");
    }
    assert!(!ended.stdout.contains("loaded"), "{}", ended.stdout);
}

#[test]
fn a_job_within_its_cap_says_its_peak() {
    let ended = job(&["--cap", "500M"], &["etl.py", "--mb", "100"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("loaded 100 MB"));
    assert!(line_of_the_end(&ended).contains('M'));
}

#[test]
fn a_failing_program_is_given_up_after_its_limit() {
    let _turn = turn::beside();
    let options = ["--restart-delay-min", "10ms", "--restart-limit", "3"];
    let command = [python(), "-c".to_owned(), "raise SystemExit(3)".to_owned()];
    let ended = Plan::supervise(&options, &command).run(Duration::from_secs(30));
    assert_eq!(ended.status.code(), Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("exit:3"), "{}", ended.stderr);
}
