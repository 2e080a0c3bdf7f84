//! A pool under pressure, and how it ends.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    clock,
    pool::{cause, folder, map, output_of, read, run, workers},
    proc::{children, is_alive},
};

/// No pool of these tests takes longer.
const LIMIT: Duration = Duration::from_secs(60);

fn tree(pid: i32) -> Vec<i32> {
    let below = children(pid).into_iter().flat_map(tree);
    std::iter::once(pid).chain(below).collect()
}

/// What a process has for itself (proc(5), `smaps_rollup`), in KiB.
fn private(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.map_or(0, |number| number.parse().unwrap())
}

fn input(folder: &Path, count: u64) {
    let lines: String = (1..=count).map(|number| format!("{number}\n")).collect();
    fs::write(folder.join("in"), lines).unwrap();
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

fn begun(folder: &Path, count: u64) {
    let begun = || fs::metadata(folder.join("begun")).map_or(0, |found| found.len());
    clock::poll(LIMIT, || (begun() >= count).then_some(())).expect("tasks begin");
}

fn worker_of(child: &Child) {
    let some = || (!workers(pid(child)).is_empty()).then_some(());
    clock::poll(LIMIT, some).expect("a worker starts");
}

fn end_of(child: &mut Child) -> ExitStatus {
    clock::poll(LIMIT, || child.try_wait().unwrap()).expect("the pool ends")
}

#[test]
fn all_workers_together_stay_within_the_budget() {
    let folder = folder();
    input(folder.path(), 40);
    let words = ["--budget", "200M", "-i", "in", "-o", "out"];
    let mut child = map(folder.path(), &[&words[..], &["tasks:grows"]].concat())
        .spawn()
        .unwrap();
    let mut most = 0;
    let status = clock::poll(LIMIT, || {
        most = most.max(tree(pid(&child)).into_iter().map(private).sum());
        child.try_wait().unwrap()
    });
    let status = status.expect("the pool ends");
    // Each task needs 80 MB: three at a time would need 240.
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    let failed: Vec<_> = results.values().filter(|it| it["ok"] != true).collect();
    assert!(failed.is_empty() && status.success(), "{failed:?}");
    assert_eq!(results.len(), 40);
    // `supervise` itself and its keeper are beside it.
    assert!(most < (200 + 20) << 10, "{most} KiB");
    assert!(most > 80 << 10, "{most} KiB: it was not looked at");
}

#[test]
fn a_killed_template_is_started_anew_and_no_task_is_blamed() {
    let folder = folder();
    input(folder.path(), 20_000);
    let words = ["-i", "in", "-o", "out", "tasks:brief"];
    let child = map(folder.path(), &words)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    worker_of(&child);
    let template = children(pid(&child))
        .into_iter()
        .flat_map(children)
        .next()
        .unwrap();
    kill(Pid::from_raw(template), Signal::SIGKILL).unwrap();
    let output = output_of(child);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("the template has ended").count(), 1, "{said}");
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    assert_eq!(results.len(), 20_000);
}

fn keeper_of(child: &Child) -> i32 {
    let is_keeper = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == "supervise-keep"
    };
    children(pid(child)).into_iter().find(is_keeper).unwrap()
}

#[test]
fn where_the_keeper_is_killed_all_is_started_anew() {
    let folder = folder();
    input(folder.path(), 20_000);
    let words = ["-i", "in", "-o", "out", "tasks:brief"];
    let child = map(folder.path(), &words)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    worker_of(&child);
    let keeper = keeper_of(&child);
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    let output = output_of(child);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("its keeper ended"), "{said}");
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    assert_eq!(results.len(), 20_000, "{said}");
}

#[test]
fn sigterm_finishes_what_is_under_way() {
    let folder = folder();
    input(folder.path(), 1000);
    let words = ["-i", "in", "-o", "out", "tasks:naps"];
    let mut child = map(folder.path(), &words).spawn().unwrap();
    begun(folder.path(), 2);
    kill(Pid::from_raw(pid(&child)), Signal::SIGTERM).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(143));
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    let begun = fs::metadata(folder.path().join("begun")).unwrap().len();
    assert_eq!(results.len() as u64, begun);
    assert!(results.values().all(|result| result["ok"] == true));
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let folder = folder();
    let words = ["--task-timeout", "100s", "tasks:faults"];
    let mut child = map(folder.path(), &words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nine sleeps for long.
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"9\n").unwrap();
    worker_of(&child);
    let all = tree(pid(&child));
    let supervise = Pid::from_raw(pid(&child));
    let term = || kill(supervise, Signal::SIGTERM);
    term().unwrap();
    // The first may not have been heard when the second comes, and two are one then.
    let status = clock::poll(LIMIT, || {
        let _ = term();
        child.try_wait().unwrap()
    });
    assert_eq!(status.expect("it ends at once").code(), Some(143));
    let left: Vec<_> = all.into_iter().filter(|it| is_alive(*it)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_task_is_retried_and_its_attempts_are_told() {
    let folder = folder();
    let (output, results) = run(folder.path(), 1, &["--retries", "2", "tasks:fails_twice"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(results[&1]["result"], 1);
    fs::remove_file(folder.path().join("tries")).unwrap();
    let (output, results) = run(folder.path(), 1, &["--retries", "1", "tasks:fails_twice"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(cause(&results[&1]), "exception");
    assert_eq!(results[&1]["error"]["attempts"], 2);
}

#[test]
fn a_child_that_a_task_left_behind_ends_with_the_pool() {
    let folder = folder();
    let (output, results) = run(folder.path(), 4, &["tasks:leaves_a_child"]);
    assert!(output.status.success(), "{output:?}");
    for result in results.values() {
        let left = i32::try_from(result["result"].as_i64().unwrap()).unwrap();
        assert!(!is_alive(left), "{left} lives on");
    }
}

#[test]
fn a_terminal_shows_a_bar() {
    let folder = folder();
    input(folder.path(), 6);
    let supervise = env!("CARGO_BIN_EXE_supervise");
    let line = format!("{supervise} map -n 2 -i in -o out tasks:naps");
    // script(1) is of Debian's base, and gives it a terminal.
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(folder.path())
        .env("RUNTIME_DIRECTORY", folder.path())
        // Without it no terminal is taken to draw.
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for part in [
        "%  ",
        " done, 0 failed, ",
        "/s, ",
        " left",
        "supervise: 6 done, 0 failed in ",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[test]
fn where_imports_start_threads_each_worker_imports_by_itself() {
    let folder = folder();
    let code = "import threading\n\
                threading.Thread(target=threading.Event().wait, daemon=True).start()\n\
                def count(_):\n    return threading.active_count()\n";
    fs::write(folder.path().join("threads.py"), code).unwrap();
    let words = "`threads` starts the thread Thread-1";
    for (start, threads, told) in [
        ("auto", 2, true),
        ("fresh", 2, false),
        ("template", 1, true),
    ] {
        let (output, results) = run(folder.path(), 4, &["--start", start, "threads:count"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{start}: {said}");
        assert_eq!(said.contains(words), told, "{start}: {said}");
        let all: Vec<_> = results.values().map(|it| it["result"].as_u64()).collect();
        assert_eq!(all, [Some(threads); 4], "{start}: {said}");
    }
}

#[test]
fn a_reader_that_has_all_its_results_may_close_the_output() {
    let folder = folder();
    let mut child = map(folder.path(), &["tasks:faults"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"100\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let result = lines.next().unwrap().unwrap();
    assert!(result.contains("\"ok\":true"), "{result}");
    drop(input);
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
