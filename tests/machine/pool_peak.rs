//! The `peak` of a result: the memory of its worker and its child processes, without mapped files.

use std::fs;

use crate::{
    pool::{cause, run},
    turn,
};

const TASKS: &str = "
import mmap, os, subprocess, sys, time

imported = time.monotonic()

def until_sampled():
    # `supervise` samples a task again when its age has grown by a quarter. Its age is less than
    # the time since the import.
    time.sleep(0.1 + (time.monotonic() - imported) / 2)

def gives_back(_):
    held = bytearray(150 << 20)
    del held

def child(_):
    subprocess.run([sys.executable, '-c', 'bytearray(150 << 20)'], check=True)

def children(_):
    code = 'held = bytearray(100 << 20); print(flush=True); input()'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    both = [subprocess.Popen([sys.executable, '-c', code], **pipes) for _ in range(2)]
    for one in both:
        one.stdout.readline()
    until_sampled()
    for one in both:
        one.communicate(b'\\n')

def maps(_):
    with open('file', 'rb') as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            for at in range(0, len(mapped), 4096):
                mapped[at]
            until_sampled()

def leaves(_):
    held = bytearray(150 << 20)
    until_sampled()
    os._exit(3)

def hangs(_):
    held = bytearray(150 << 20)
    time.sleep(1000)
";

/// The maximum memory of Python itself, in megabytes.
const PYTHON: f64 = 40.0;

#[test]
fn the_peak_includes_child_processes_and_excludes_mapped_files() {
    let _turn = turn::beside();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("peaks.py"), TASKS).unwrap();
    fs::write(folder.path().join("file"), vec![1; 200 << 20]).unwrap();
    for (task, megabytes, expected) in [
        ("gives_back", 150.0, "none"),
        ("child", 150.0, "none"),
        ("children", 200.0, "none"),
        ("maps", 0.0, "none"),
        ("leaves", 150.0, "exit:3"),
        ("hangs", 150.0, "timeout"),
    ] {
        let function = format!("peaks:{task}");
        let words = ["--task-timeout", "10s", &function];
        let (output, results) = run(folder.path(), 1, &words);
        let said = String::from_utf8_lossy(&output.stderr);
        let result = results.get(&1).expect(&said);
        assert_eq!(cause(result), expected, "{result}: {said}");
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let peak = result["peak"].as_u64().expect(task) as f64 / f64::from(1 << 20);
        let most = megabytes + PYTHON;
        assert!((megabytes..most).contains(&peak), "{task}: {peak}M: {said}");
    }
}
