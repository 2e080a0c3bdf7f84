//! The output of tasks: no line is lost, late, or labelled with another task, even if a task dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::Output,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use serde_json::Value;

use crate::{
    clock,
    pool::{cause, map, map_by_one, output_of, run, run_numbers, start, workers},
    proc, turn,
};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

const TASKS: &str = "
import ctypes, fcntl, io, multiprocessing, os, signal, subprocess, sys, termios
import threading, time

libc = ctypes.CDLL(None)
captured = sys.stdout
failed = []

def until(name):
    while not os.path.exists(name):
        time.sleep(0.01)

def steps(value):
    print('step 1')
    until('go')
    print('step 2')
    return value

def dots(value):
    if value == 1:
        print('half', value, end='', flush=True)
        left = bytearray(b'more')
        while any(left):
            fcntl.ioctl(1, termios.FIONREAD, left)
    if value == 2:
        until('go')
    return value

def dies(value):
    # All tasks but the first end their worker.
    print('loading', value)
    print('at', value, end='', flush=True)
    ends = {
        2: lambda: os._exit(3),
        3: lambda: ctypes.string_at(0),
        4: lambda: time.sleep(1000),
        5: lambda: os.kill(os.getpid(), signal.SIGKILL),
        6: lambda: sys.exit(4),
        7: lambda: len(bytearray(400 << 20)),
    }
    return ends.get(value, int)()

def ways(value):
    way = value % 8
    if way == 1:
        print('print', value)
    if way == 2:
        os.write(1, b'write %d\\n' % value)
    if way == 3:
        libc.printf(b'printf %d\\n', value)
    if way == 4:
        print('dots', value, end='')
    if way == 5:
        sys.stdout.buffer.write(b'bytes %d' % value)
    if way == 6:
        captured.write('captured %d\\n' % value)
    if way == 7 and value % 16 == 7:
        subprocess.run(['echo', 'child', str(value)], check=True)
    return value

def much(value):
    if value > 1:
        print('small', value)
        return value
    line = 'x' * 990
    for number in range(200_000):
        print(number, line)
    return value

def part(number):
    print('part', number)
    return number

def forks(value):
    print('line of', value)
    print('half', value, end='')
    if value % 4 == 0:
        with multiprocessing.get_context('fork').Pool(2) as pool:
            pool.map(part, range(value, value + 4), 1)
    pid = os.fork()
    if pid == 0:
        if value % 4 == 1:
            print('child', value)
            raise SystemExit(0)
        if value % 4 == 2:
            print('child', value, end='')
            return 'not the answer of the worker'
        if value % 4 == 3:
            raise ValueError('not an error of the worker')
        os._exit(0)
    os.waitpid(pid, 0)
    return value

def beat():
    while True:
        try:
            print('beat')
        except BaseException as error:
            failed.append(repr(error))

def beats(value):
    if threading.active_count() == 1:
        sys.setswitchinterval(1e-6)
        threading.Thread(target=beat, daemon=True).start()
    # The result is large, so that the thread prints while results are sent.
    return ['x' * 200_000, *failed[:3]]

def stream(value):
    out = sys.stdout
    if value == 1:
        assert out.fileno() == 1 and out.writable() and not out.isatty() and not out.seekable()
        assert out.line_buffering and out.encoding == 'utf-8' and out.name == '<stdout>', out
        out.buffer.write(b'raw\\xff\\n')
        out.reconfigure(line_buffering=False)
        out.reconfigure(line_buffering=True)
    if value == 2:
        # When this wrapper is collected it closes the buffer.
        io.TextIOWrapper(out.buffer, encoding='utf-8').write('wrapped')
    if value == 3:
        out.close()
    if value == 4:
        # Some programs that share the descriptor leave it non-blocking.
        os.set_blocking(1, False)
        print('long ' + 'y' * (8 << 20))
    if value == 5:
        print('\\ud800 \\N{EURO SIGN}')
        os.close(1)
    if value == 6:
        sys.stdout = io.TextIOWrapper(out.detach(), encoding='utf-8')
    print('then', value)
    return value

def outlived(value):
    if value == 1:
        os.mkfifo('late')
        open('pid', 'w').write(str(os.getpid()))
        script = 'echo early; until [ -e go ]; do sleep 0.01; done; echo late; echo done > late'
        subprocess.Popen(['sh', '-c', script])
    if value == 2:
        while os.path.exists('/proc/' + open('pid').read()):
            time.sleep(0.01)
        open('go', 'w').close()
        assert open('late').read() == 'done\\n'
    return value

def initial():
    print('begun')

def same(value):
    return value

def endless(value):
    while True:
        print('z' * 1000)
";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tasks.py"), TASKS).unwrap();
    folder
}

/// Runs one worker over the numbers up to `count`.
fn run_by_one(folder: &Path, count: u64, words: &[&str]) -> (Output, BTreeMap<u64, Value>) {
    run_numbers(map_by_one(folder, words), count)
}

/// Reads lines in a thread as they arrive.
fn read_lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let _ = sender.send(line.unwrap());
        }
    });
    lines
}

fn said(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

/// The lines of each task.
fn lines(said: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in said.lines() {
        if let Some((task, line)) = line
            .strip_prefix("[task ")
            .and_then(|it| it.split_once("] "))
        {
            all.entry(task).or_default().push(line);
        }
    }
    all
}

#[test]
fn a_line_is_forwarded_while_its_task_runs() {
    let folder = folder();
    let task = "{\"id\": \"a\", \"args\": 1}\n";
    let mut child = start(map(folder.path(), &["tasks:steps"]), task);
    let said = read_lines(child.stderr.take().unwrap());
    assert_eq!(said.recv_timeout(LIMIT).unwrap(), "[task \"a\"] step 1");
    fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(said.recv_timeout(LIMIT).unwrap(), "[task \"a\"] step 2");
    assert!(output_of(child).status.success());
}

#[test]
fn a_line_without_a_line_feed_is_forwarded_when_its_task_ends() {
    let folder = folder();
    let mut child = start(map_by_one(folder.path(), &["tasks:dots"]), "1\n2\n");
    let said = read_lines(child.stderr.take().unwrap());
    assert_eq!(said.recv_timeout(LIMIT).unwrap(), "[task 1] half 1");
    fs::write(folder.path().join("go"), "").unwrap();
    assert!(output_of(child).status.success());
}

#[test]
fn lines_printed_before_a_worker_dies_are_forwarded() {
    let _turn = turn::beside();
    let folder = folder();
    let limits = ["--cap", "100M", "--task-timeout", "3s"];
    let words = [&limits[..], &["--oom-retries", "0", "tasks:dies"]].concat();
    let (output, results) = run(folder.path(), 7, &words);
    assert_eq!(results.len(), 7);
    for (id, expected) in [
        (1, "none"),
        (2, "exit:3"),
        (3, "signal:SEGV"),
        (4, "timeout"),
        (5, "signal:KILL"),
        (6, "exit:4"),
    ] {
        assert_eq!(cause(&results[&id]), expected, "{}", results[&id]);
    }
    let lines = lines(said(&output));
    for id in 1..=7 {
        let expected = [format!("loading {id}"), format!("at {id}")];
        assert_eq!(lines[&*id.to_string()], expected, "{}", said(&output));
    }
}

#[test]
fn each_line_has_the_id_of_its_task_however_it_is_printed() {
    let _turn = turn::beside();
    const COUNT: u64 = 4000;
    let folder = folder();
    for start in ["auto", "fresh"] {
        let (output, results) = run(folder.path(), COUNT, &["--start", start, "tasks:ways"]);
        assert_eq!(results.len() as u64, COUNT, "{}", said(&output));
        let lines = lines(said(&output));
        let mut ways = [
            "", "print", "write", "printf", "dots", "bytes", "captured", "child",
        ];
        for id in 1..=COUNT {
            ways[7] = if id % 16 == 7 { "child" } else { "" };
            let way = ways[usize::try_from(id % 8).unwrap()];
            let expected: Vec<String> = [format!("{way} {id}")].into();
            let printed = lines.get(&*id.to_string());
            if way.is_empty() {
                assert_eq!(printed, None, "{id}");
            } else {
                assert_eq!(*printed.unwrap(), expected, "{id}");
            }
        }
    }
}

/// The peak of the resident memory of a process, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn output_larger_than_the_cap_keeps_its_order_in_bounded_memory_and_does_not_delay_results() {
    let _turn = turn::beside();
    const COUNT: usize = 1000;
    let folder = folder();
    let tasks: String = (1..=COUNT)
        .map(|number| format!("{{\"id\": \"t{number}\", \"args\": {number}}}\n"))
        .collect();
    // With a larger batch, tasks would wait behind the task that waits for the reader.
    let words = ["--cap", "60M", "--batch", "1", "tasks:much"];
    let mut child = start(map(folder.path(), &words), tasks);
    // Standard error is not read yet: the task that prints waits, and the other tasks end.
    let results = read_lines(child.stdout.take().unwrap());
    for _ in 2..=COUNT {
        let result = results.recv_timeout(LIMIT).expect("a result");
        assert!(result.contains("\"ok\":true"), "{result}");
    }
    let (mut count, mut small) = (0, BTreeSet::new());
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let (task, rest) = line
            .strip_prefix("[task \"t")
            .unwrap()
            .split_once("\"] ")
            .unwrap();
        if let Some(number) = rest.strip_prefix("small ") {
            assert_eq!(task, number);
            assert!(small.insert(number.to_owned()), "{line}");
            continue;
        }
        let (number, rest) = rest.split_once(' ').unwrap();
        assert_eq!((task, number.parse()), ("1", Ok(count)), "{line}");
        assert!(rest.len() == 990 && rest.bytes().all(|byte| byte == b'x'));
        count += 1;
        if count == 199_000 {
            let held = peak(child.id());
            assert!(held < 40 * MIB, "{} MB are held", held / MIB);
        }
    }
    assert_eq!((count, small.len()), (200_000, COUNT - 1));
    let last = results.recv_timeout(LIMIT).unwrap();
    assert!(last.contains("\"ok\":true"), "{last}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn forked_children_print_once_and_send_no_results() {
    let _turn = turn::beside();
    const COUNT: u64 = 80;
    let folder = folder();
    let (output, results) = run(folder.path(), COUNT, &["tasks:forks"]);
    assert_eq!(results.len() as u64, COUNT, "{}", said(&output));
    let lines = lines(said(&output));
    for id in 1..=COUNT {
        let result = &results[&id];
        assert_eq!(result["result"].as_u64(), Some(id), "{result}");
        let half = format!("half {id}");
        let mut printed: Vec<&str> = lines[&*id.to_string()].clone();
        // The order of the lines of the children is random.
        for line in &mut printed {
            *line = line.strip_prefix(&*half).unwrap_or(line);
        }
        printed.sort_unstable();
        let mut expected = vec![format!("line of {id}")];
        expected.extend(match id % 4 {
            0 => (id..id + 4)
                .map(|number| format!("part {number}"))
                .collect(),
            1 | 2 => vec![format!("child {id}")],
            _ => vec![String::new()],
        });
        expected.sort_unstable();
        assert_eq!(printed, expected, "{id}");
        let halves = lines[&*id.to_string()]
            .iter()
            .filter(|it| it.starts_with(&half));
        assert_eq!(halves.count(), 1, "{id}");
    }
    let errors = said(&output).matches("ValueError: not an error of the worker");
    assert_eq!(errors.count() as u64, COUNT / 4);
}

#[test]
fn lines_and_results_are_complete_when_a_thread_prints_while_results_are_sent() {
    let _turn = turn::beside();
    const COUNT: u64 = 60;
    let folder = folder();
    let (output, results) = run_by_one(folder.path(), COUNT, &["tasks:beats"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(results.len() as u64, COUNT);
    for result in results.values() {
        let parts = result["result"].as_array().unwrap();
        assert_eq!(parts.len(), 1, "{:?}", parts.get(1));
    }
    let lines = lines(said(&output));
    // A task may end between a line and its line feed.
    let mut all = lines.values().flatten();
    assert!(all.all(|line| ["beat", ""].contains(line)));
}

#[test]
fn standard_output_is_an_ordinary_stream_in_each_task() {
    let folder = folder();
    let (output, results) = run_by_one(folder.path(), 7, &["tasks:stream"]);
    assert_eq!(results.len(), 7);
    for (id, result) in &results {
        // Only tasks that close it find it closed.
        assert_eq!(result["ok"] == true, ![2, 3].contains(id), "{result}");
    }
    let lines = lines(said(&output));
    assert_eq!(lines["1"], ["raw\u{fffd}", "then 1"]);
    assert_eq!(lines["2"], ["wrapped"]);
    assert_eq!(lines.get("3"), None);
    let (last, long) = lines["4"].split_last().unwrap();
    assert_eq!(*last, "then 4");
    assert!(long.iter().all(|piece| piece.len() <= 64 << 10));
    assert_eq!(long.concat().len(), "long ".len() + (8 << 20));
    assert_eq!(lines["5"], ["? \u{20ac}", "then 5"]);
    assert_eq!(lines["6"], ["then 6"]);
    assert_eq!(lines["7"], ["then 7"]);
}

#[test]
fn lines_of_a_process_that_outlives_its_task_have_the_id_of_that_task() {
    let folder = folder();
    let tasks = "{\"id\": \"a\", \"args\": 1}\n{\"id\": \"b\", \"args\": 2}\n";
    let words = ["--max-tasks", "1", "tasks:outlived"];
    let output = output_of(start(map_by_one(folder.path(), &words), tasks));
    assert!(output.status.success(), "{}", said(&output));
    // Each worker has its own pipe: lines of the second task cannot come between these.
    assert_eq!(lines(said(&output))["\"a\""], ["early", "late"]);
}

#[test]
fn lines_of_an_initializer_have_the_name_of_its_worker() {
    let folder = folder();
    let words = ["--initializer", "tasks:initial", "tasks:same"];
    let (output, _) = run_by_one(folder.path(), 3, &words);
    assert_eq!(said(&output), "[worker w1] begun\n");
}

#[test]
fn a_run_with_an_unread_full_standard_error_can_be_stopped() {
    let _turn = turn::beside();
    let folder = folder();
    let mut child = start(map(folder.path(), &["tasks:endless"]), "1\n2\n");
    let pid = i32::try_from(child.id()).unwrap();
    // If no worker uses any CPU for a while, both wait because standard error is full.
    let mut before = Vec::new();
    let mut still = 0;
    let stands = || {
        let now: Vec<u64> = workers(pid).into_iter().map(proc::cpu_nanos).collect();
        still = if now == before && now.len() == 2 {
            still + 1
        } else {
            0
        };
        before = now;
        (still > 20).then_some(())
    };
    clock::poll(LIMIT, stands).expect("standard error is full");
    let status = clock::poll(LIMIT, || {
        // Two pending signals are merged into one, so they are sent until it ends.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        child.try_wait().unwrap()
    });
    let _ = child.kill();
    assert_eq!(status.expect("it ends").code(), Some(143));
}
