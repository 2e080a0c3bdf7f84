//! The output and messages of runs of `supervise map` that are stopped, resumed or refused.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, ChildStderr, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    clock,
    pool::{cause, map, output_of, read, start},
    turn,
};

const LIMIT: Duration = Duration::from_secs(60);

const TASKS: &str = "
import os, time

def same(value):
    return value

def odd(value):
    if value % 2 == 0:
        raise ValueError('even')
    return value

def begins(value):
    with open('begun', 'a') as file:
        file.write('%s\\n' % value)
    while not os.path.exists('go'):
        time.sleep(0.01)
    return value

def again(value):
    with open('tries', 'a') as file:
        file.write('x')
    if not os.path.exists('go'):
        while not os.path.exists('fail'):
            time.sleep(0.01)
        raise ValueError('not yet')
    return value

def first_then_waits(value):
    if value > 1:
        with open('begun', 'a') as file:
            file.write('%s\\n' % value)
        time.sleep(1000)
    return value
";

/// A folder with the tasks, and with an input of the numbers up to `count`.
fn folder(count: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tasks.py"), TASKS).unwrap();
    let lines: String = (1..=count).map(|number| format!("{number}\n")).collect();
    fs::write(folder.path().join("in"), lines).unwrap();
    folder
}

fn begin(folder: &Path, words: &[&str]) -> Child {
    map(folder, words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs it to its end. Returns its exit status and its standard error.
fn run(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = output_of(begin(folder, words));
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// Runs it and asserts that it succeeds.
fn assert_succeeds(folder: &Path, words: &[&str]) {
    let (status, said) = run(folder, words);
    assert_eq!(status, Some(0), "{said}");
}

/// Waits for its first line on standard error. The reader keeps standard error open.
fn first_line(child: &mut Child) -> (String, BufReader<ChildStderr>) {
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line, reader)
}

fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

fn lines(folder: &Path, name: &str) -> usize {
    text(folder, name).lines().count()
}

fn waits_for(folder: &Path, name: &str, count: usize) {
    let has = || (lines(folder, name) >= count).then_some(());
    clock::poll(LIMIT, has).expect("tasks begin");
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}

const JOURNALED: [&str; 6] = ["-i", "in", "-o", "out", "--journal", "journal"];

fn journaled<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&JOURNALED, more].concat()
}

#[test]
fn a_resumed_run_with_failures_of_an_earlier_run_exits_with_1() {
    let _turn = turn::beside();
    let folder = folder(3);
    let folder = folder.path();
    assert_eq!(run(folder, &journaled(&["tasks:odd"])).0, Some(1));
    let first = text(folder, "out");
    let (status, said) = run(folder, &journaled(&["--resume", "tasks:odd"]));
    assert_eq!((status, text(folder, "out")), (Some(1), first));
    let expected_text =
        "tasks that failed in an earlier run: 1. hint: --retry-failed runs them again";
    assert!(said.contains(expected_text), "{said}");
    let code = TASKS.replace("value % 2 == 0", "False");
    fs::write(folder.join("tasks.py"), code).unwrap();
    let retried = journaled(&["--resume", "--retry-failed", "tasks:odd"]);
    let (status, said) = run(folder, &retried);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_succeeds(folder, &journaled(&["--resume", "tasks:odd"]));
}

#[test]
fn tasks_stopped_by_a_second_ctrl_c_are_not_failures_and_run_again_on_resume() {
    let _turn = turn::beside();
    let folder = folder(6);
    let folder = folder.path();
    let mut child = begin(folder, &journaled(&["tasks:begins"]));
    waits_for(folder, "begun", 2);
    signal(&child, Signal::SIGINT);
    let (line, mut said) = first_line(&mut child);
    let expected_text =
        "supervise: finishing the running tasks: 2; press Ctrl-C again to stop now\n";
    assert_eq!(line, expected_text);
    signal(&child, Signal::SIGINT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("tasks stopped without a result: 2"), "{rest}");
    assert_eq!(text(folder, "out"), "");
    fs::write(folder.join("go"), "").unwrap();
    let (status, said) = run(folder, &journaled(&["--resume", "tasks:begins"]));
    let results = read(&fs::read(folder.join("out")).unwrap());
    assert_eq!((status, results.len()), (Some(0), 6), "{said}");
    assert!(results.values().all(|it| it["ok"] == true));
}

#[test]
fn after_ctrl_c_no_waiting_task_begins() {
    let _turn = turn::beside();
    let folder = folder(100);
    let folder = folder.path();
    let mut child = begin(folder, &journaled(&["--batch", "20", "tasks:begins"]));
    waits_for(folder, "begun", 2);
    signal(&child, Signal::SIGINT);
    // The message shows that the signal was handled.
    let _said = first_line(&mut child);
    fs::write(folder.join("go"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines(folder, "begun"), 2);
    let results = read(&fs::read(folder.join("out")).unwrap());
    assert_eq!(results.len(), 2);
    assert_succeeds(folder, &journaled(&["--resume", "tasks:begins"]));
    assert_eq!(lines(folder, "begun"), 100);
}

#[test]
fn a_task_due_for_a_retry_is_not_a_failure_after_a_stop() {
    let _turn = turn::beside();
    let folder = folder(1);
    let folder = folder.path();
    let mut child = begin(folder, &journaled(&["--retries", "3", "tasks:again"]));
    clock::poll(LIMIT, || folder.join("tries").exists().then_some(())).expect("it begins");
    signal(&child, Signal::SIGTERM);
    let _said = first_line(&mut child);
    fs::write(folder.join("fail"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(
        (text(folder, "tries"), text(folder, "out")),
        ("x".to_owned(), String::new())
    );
    fs::write(folder.join("go"), "").unwrap();
    assert_succeeds(folder, &journaled(&["--resume", "tasks:again"]));
}

#[test]
fn another_input_is_refused_with_its_line_number_and_nothing_is_written() {
    let _turn = turn::beside();
    let folder = folder(40_000);
    let folder = folder.path();
    assert_eq!(run(folder, &journaled(&["tasks:same"])).0, Some(0));
    let whole = fs::read(folder.join("in")).unwrap();
    let journal = fs::read(folder.join("journal")).unwrap();
    // The last line is incomplete. Only a run that is accepted repairs that.
    let torn = [&journal[..], b"{\"id\":"].concat();
    for (from, to, expected_text) in [
        ("\n7\n", "\n8\n", "line 7 differs"),
        ("\n39999\n", "\n39998\n", "line 39999 differs"),
        ("\n20000\n", "\n", "line 20000 differs"),
        (
            "\n40000\n",
            "\n",
            "this input ends after line 39999, but the journal has a result for line 40000",
        ),
    ] {
        let other = String::from_utf8(whole.clone())
            .unwrap()
            .replacen(from, to, 1);
        fs::write(folder.join("in"), other).unwrap();
        fs::write(folder.join("out"), "of yesterday").unwrap();
        fs::write(folder.join("journal"), &torn).unwrap();
        let (status, said) = run(folder, &journaled(&["--resume", "tasks:same"]));
        assert_eq!(status, Some(125), "{said}");
        let expected_text =
            format!("journal: it is the journal of another input: {expected_text}\n");
        assert!(said.ends_with(&expected_text), "{said}");
        assert_eq!(text(folder, "out"), "of yesterday");
        assert!(fs::read(folder.join("journal")).unwrap() == torn);
    }
    fs::write(folder.join("in"), whole).unwrap();
    let (status, said) = run(folder, &journaled(&["--resume", "tasks:same"]));
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_eq!(text(folder, "out").lines().count(), 40_000);
    assert!(fs::read(folder.join("journal")).unwrap() == journal);
}

#[test]
fn a_journal_written_with_another_call_is_refused() {
    let _turn = turn::beside();
    let folder = folder(3);
    let folder = folder.path();
    assert_succeeds(folder, &journaled(&["--plain", "tasks:same"]));
    assert!(text(folder, "out").contains("\"result\":\"1\""));
    let (status, said) = run(folder, &journaled(&["--resume", "tasks:same"]));
    let expected_text = "journal: it is the journal of `tasks:same --plain`, not of `tasks:same`";
    assert!(
        status == Some(125) && said.contains(expected_text),
        "{said}"
    );
}

#[test]
fn a_run_that_cannot_start_leaves_the_output_unchanged() {
    let _turn = turn::beside();
    let folder = folder(3);
    let folder = folder.path();
    fs::write(
        folder.join("broken.py"),
        "def setup():\n    raise OSError('away')\n",
    )
    .unwrap();
    for (words, expected) in [
        (&["nowhere:f"][..], 75),
        (&["--initializer", "broken:setup", "tasks:same"], 75),
        (&["--budget", "50", "tasks:same"], 2),
        (&["-i", "missing", "tasks:same"], 125),
    ] {
        for before in [Some("of yesterday"), None] {
            let _ = fs::remove_file(folder.join("out"));
            if let Some(before) = before {
                fs::write(folder.join("out"), before).unwrap();
            }
            let input = if words.contains(&"-i") {
                &[][..]
            } else {
                &["-i", "in"]
            };
            let words = [input, &["-o", "out", "--journal", "journal"], words].concat();
            let (status, said) = run(folder, &words);
            assert_eq!(status, Some(expected), "{said}");
            let after = fs::read_to_string(folder.join("out")).ok();
            assert_eq!(after.as_deref(), before, "{said}");
            assert_eq!(text(folder, "journal"), "", "{said}");
        }
    }
    // A new run can use the journal of a run that could not start.
    assert_succeeds(folder, &journaled(&["tasks:same"]));
    assert_eq!(lines(folder, "out"), 3);
}

#[test]
fn ctrl_c_during_imports_ends_the_run_immediately_and_leaves_the_files_unchanged() {
    let folder = folder(3);
    let folder = folder.path();
    let code = "import time\nopen('begun', 'w').write('x\\n')\ntime.sleep(1000)\n";
    fs::write(folder.join("slow.py"), code).unwrap();
    fs::write(folder.join("out"), "of yesterday").unwrap();
    let child = begin(folder, &journaled(&["slow:f"]));
    waits_for(folder, "begun", 1);
    signal(&child, Signal::SIGINT);
    let output = output_of(child);
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(
        (text(folder, "out"), text(folder, "journal")),
        ("of yesterday".into(), String::new())
    );
}

#[test]
fn an_output_that_is_the_input_or_the_journal_is_refused_under_any_name() {
    let _turn = turn::beside();
    let folder = folder(3);
    let folder = folder.path();
    let before = text(folder, "in");
    fs::hard_link(folder.join("in"), folder.join("hard")).unwrap();
    symlink("in", folder.join("soft")).unwrap();
    symlink(folder.join("soft"), folder.join("far-soft")).unwrap();
    for (input, output) in [
        ("in", "in"),
        ("in", "./in"),
        ("in", "hard"),
        ("in", "soft"),
        ("hard", "far-soft"),
        ("/dev/stdin", "in"),
        ("in", "/dev/stdin"),
        ("", "soft"),
        ("in", "/dev/stdout"),
        ("/dev/fd/0", "/proc/self/fd/1"),
        ("", ""),
    ] {
        let mut words = Vec::new();
        if !input.is_empty() {
            words.extend(["-i", input]);
        }
        if !output.is_empty() {
            words.extend(["-o", output]);
        }
        words.push("tasks:same");
        let stdout = fs::OpenOptions::new().append(true).open(folder.join("in"));
        let child = map(folder, &words)
            .stdin(fs::File::open(folder.join("in")).unwrap())
            .stdout(stdout.unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = output_of(child);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {said}");
        assert!(
            said.ends_with(": the output is the input\n"),
            "{words:?}: {said}"
        );
        assert_eq!(text(folder, "in"), before, "{words:?}");
    }
    for name in ["journal", "./journal"] {
        let words = ["-i", "in", "-o", name, "--journal", "journal", "tasks:same"];
        fs::write(folder.join("journal"), "").unwrap();
        let (status, said) = run(folder, &words);
        assert!(
            status == Some(125) && said.ends_with(": the output is the journal\n"),
            "{said}"
        );
    }
    // A terminal or /dev/null may be both.
    let null = ["-i", "/dev/null", "-o", "/dev/null", "tasks:same"];
    assert_succeeds(folder, &null);
}

#[test]
fn a_reader_that_closes_the_output_ends_the_run_immediately_without_a_message() {
    let _turn = turn::beside();
    let folder = folder(100);
    let folder = folder.path();
    let words = ["-i", "in", "--journal", "journal", "tasks:first_then_waits"];
    let mut child = begin(folder, &words);
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("\"id\":1,"), "{line}");
    waits_for(folder, "begun", 2);
    // `head -n 1` does the same. The running tasks would take long.
    drop(reader);
    let output = output_of(child);
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    // A resumed run runs the stopped tasks again.
    let code = TASKS.replace("time.sleep(1000)", "pass");
    fs::write(folder.join("tasks.py"), code).unwrap();
    let again = ["-i", "in", "-o", "out", "--journal", "journal", "--resume"];
    assert_succeeds(folder, &[&again[..], &["tasks:first_then_waits"]].concat());
    assert_eq!(lines(folder, "out"), 100);
}

#[test]
fn an_output_closed_from_the_start_ends_the_run_without_a_message() {
    let _turn = turn::beside();
    let folder = folder(10);
    let folder = folder.path();
    for _ in 0..5 {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = map(folder, &["-i", "in", "tasks:begins"])
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = output_of(child);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert_eq!(output.status.code(), Some(141));
    }
}

#[test]
fn an_output_that_cannot_be_created_is_an_error_before_anything_starts() {
    let folder = folder(3);
    let folder = folder.path();
    symlink("nowhere/out", folder.join("dangling")).unwrap();
    symlink("dangling", folder.join("chain")).unwrap();
    symlink("made", folder.join("link")).unwrap();
    for (name, expected_text) in [
        ("missing/out", "No such file or directory"),
        ("dangling", "No such file or directory"),
        ("chain", "No such file or directory"),
        ("in/out", "Not a directory"),
        (".", "Is a directory"),
    ] {
        let (status, said) = run(folder, &["-i", "in", "-o", name, "tasks:begins"]);
        assert_eq!(status, Some(125), "{name}: {said}");
        assert!(
            said.starts_with(&format!("supervise: {name}: {expected_text}")),
            "{said}"
        );
        assert_eq!(text(folder, "begun"), "", "{name}");
    }
    assert_succeeds(folder, &["-i", "in", "-o", "link", "tasks:same"]);
    assert_eq!(lines(folder, "made"), 3);
}

#[test]
fn a_full_output_is_an_error_with_a_message() {
    let _turn = turn::beside();
    let folder = folder(10);
    let folder = folder.path();
    let (status, said) = run(folder, &["-i", "in", "-o", "/dev/full", "tasks:same"]);
    assert_eq!(status, Some(125));
    assert!(
        said.contains("write results: No space left on device"),
        "{said}"
    );
}

#[test]
fn lines_that_are_not_json_get_one_hint_and_are_read_with_plain() {
    let _turn = turn::beside();
    let folder = folder(0);
    let folder = folder.path();
    let piped = |words: &[&str]| {
        let input = "{\"args\":\nb.csv\nc d.csv\n2024\n";
        let output = output_of(start(map(folder, words), input));
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), read(&output.stdout), said)
    };
    let (status, results, said) = piped(&["tasks:same"]);
    assert_eq!((status, cause(&results[&2])), (Some(1), "unreadable"));
    let hint = "supervise: line 2 is not JSON. hint: --plain takes each line as a string\n";
    assert_eq!(said, hint);
    let (status, results, said) = piped(&["--plain", "tasks:same"]);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_eq!(results[&3]["result"], "c d.csv");
    assert_eq!(results[&4]["result"], "2024");
    let (status, _, said) = piped(&["--plain", "--call", "args", "tasks:same"]);
    assert!(
        status == Some(2) && said.contains("--plain cannot be used with --call"),
        "{said}"
    );
}
