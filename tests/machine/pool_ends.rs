//! A pool at its budget, with killed helper processes, and how it ends.

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
    turn,
};

/// A longer wait fails a test.
const LIMIT: Duration = Duration::from_secs(60);

fn tree(pid: i32) -> Vec<i32> {
    let below = children(pid).into_iter().flat_map(tree);
    std::iter::once(pid).chain(below).collect()
}

/// The private dirty memory of a process (proc(5), `smaps_rollup`), in KiB.
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

fn wait_for_begun(folder: &Path, count: u64) {
    let begun = || fs::metadata(folder.join("begun")).map_or(0, |found| found.len());
    clock::poll(LIMIT, || (begun() >= count).then_some(())).expect("tasks begin");
}

fn wait_for_worker(child: &Child) {
    let some = || (!workers(pid(child)).is_empty()).then_some(());
    clock::poll(LIMIT, some).expect("a worker starts");
}

fn end_of(child: &mut Child) -> ExitStatus {
    clock::poll(LIMIT, || child.try_wait().unwrap()).expect("the pool ends")
}

#[test]
fn the_memory_of_all_workers_stays_within_the_budget() {
    let _turn = turn::beside();
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
    // `supervise` itself and its keeper are counted here, but not in the budget.
    assert!(most < (200 + 20) << 10, "{most} KiB");
    assert!(most > 80 << 10, "{most} KiB: it was never sampled");
}

#[test]
fn a_killed_template_is_restarted_and_no_task_fails() {
    let _turn = turn::beside();
    let folder = folder();
    input(folder.path(), 20_000);
    let words = ["-i", "in", "-o", "out", "tasks:brief"];
    let child = map(folder.path(), &words)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_worker(&child);
    let template = children(pid(&child))
        .into_iter()
        .flat_map(children)
        .next()
        .unwrap();
    kill(Pid::from_raw(template), Signal::SIGKILL).unwrap();
    let output = output_of(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(
        stderr.matches("the template has ended").count(),
        1,
        "{stderr}"
    );
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
fn after_a_killed_keeper_all_processes_are_restarted_and_no_task_is_lost() {
    let _turn = turn::beside();
    let folder = folder();
    input(folder.path(), 20_000);
    let words = ["-i", "in", "-o", "out", "tasks:brief"];
    let child = map(folder.path(), &words)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_worker(&child);
    let keeper = keeper_of(&child);
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    let output = output_of(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("its keeper ended"), "{stderr}");
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    assert_eq!(results.len(), 20_000, "{stderr}");
}

#[test]
fn sigterm_finishes_running_tasks_and_starts_no_others() {
    let folder = folder();
    input(folder.path(), 1000);
    let words = ["-i", "in", "-o", "out", "tasks:naps"];
    let mut child = map(folder.path(), &words).spawn().unwrap();
    wait_for_begun(folder.path(), 2);
    kill(Pid::from_raw(pid(&child)), Signal::SIGTERM).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(143));
    let results = read(&fs::read(folder.path().join("out")).unwrap());
    let begun = fs::metadata(folder.path().join("begun")).unwrap().len();
    assert_eq!(results.len() as u64, begun);
    assert!(results.values().all(|result| result["ok"] == true));
}

#[test]
fn a_second_sigterm_ends_a_pool_immediately() {
    let _turn = turn::beside();
    let folder = folder();
    let words = ["--task-timeout", "100s", "tasks:faults"];
    let mut child = map(folder.path(), &words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Task 9 sleeps for a long time.
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"9\n").unwrap();
    wait_for_worker(&child);
    let all = tree(pid(&child));
    let supervise = Pid::from_raw(pid(&child));
    let term = || kill(supervise, Signal::SIGTERM);
    term().unwrap();
    // Two pending signals are merged into one, so they are sent until the pool ends.
    let status = clock::poll(LIMIT, || {
        let _ = term();
        child.try_wait().unwrap()
    });
    assert_eq!(status.expect("it ends immediately").code(), Some(143));
    let left: Vec<_> = all.into_iter().filter(|it| is_alive(*it)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_failed_task_is_retried_and_its_result_has_the_number_of_attempts() {
    let _turn = turn::beside();
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
fn a_child_process_left_behind_by_a_task_ends_with_the_pool() {
    let _turn = turn::beside();
    let folder = folder();
    let (output, results) = run(folder.path(), 4, &["tasks:leaves_a_child"]);
    assert!(output.status.success(), "{output:?}");
    for result in results.values() {
        let left = i32::try_from(result["result"].as_i64().unwrap()).unwrap();
        assert!(!is_alive(left), "{left} is still alive");
    }
}

#[test]
fn a_progress_bar_is_shown_on_a_terminal() {
    let _turn = turn::beside();
    let folder = folder();
    input(folder.path(), 6);
    let supervise = env!("CARGO_BIN_EXE_supervise");
    let line = format!("{supervise} map -n 2 -i in -o out tasks:naps");
    // script(1) is part of Debian's base system, and gives it a terminal.
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(folder.path())
        .env("RUNTIME_DIRECTORY", folder.path())
        .env("STATE_DIRECTORY", folder.path().join("state"))
        // Without TERM no bar is drawn.
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stderr}");
    for part in [
        "%  ",
        " done, 0 failed, ",
        "/s, ",
        " left",
        "supervise: 6 done, 0 failed in ",
    ] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

#[test]
fn if_imports_start_threads_each_worker_imports_by_itself() {
    let _turn = turn::beside();
    let folder = folder();
    let code = "import threading\n\
                threading.Thread(target=threading.Event().wait, daemon=True).start()\n\
                def count(_):\n    return threading.active_count()\n";
    fs::write(folder.path().join("threads.py"), code).unwrap();
    let words = "`threads` starts the thread Thread-1";
    for (start, threads, warns) in [
        ("auto", 2, true),
        ("fresh", 2, false),
        ("template", 1, true),
    ] {
        let (output, results) = run(folder.path(), 4, &["--start", start, "threads:count"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{start}: {stderr}");
        assert_eq!(stderr.contains(words), warns, "{start}: {stderr}");
        let all: Vec<_> = results.values().map(|it| it["result"].as_u64()).collect();
        assert_eq!(all, [Some(threads); 4], "{start}: {stderr}");
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
