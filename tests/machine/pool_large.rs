//! Tasks and results of `supervise map` that are about as large as the cap of a worker.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path, process::Output};

use serde_json::Value;

use crate::{
    pool::{cause, map, output_of, read, start},
    turn,
};

const TASKS: &str = "
def size(value):
    return len(value) if isinstance(value, str) else value

def text(megabytes):
    return 'x' * (megabytes << 20)

def fails_at_length(megabytes):
    raise ValueError('x' * (megabytes << 20))
";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large.py"), TASKS).unwrap();
    folder
}

/// Runs it over the lines of the file `in`. Returns the results by their ids.
fn run(folder: &Path, words: &[&str]) -> (Output, BTreeMap<u64, Value>) {
    let command = map(folder, &[&["-i", "in"], words].concat());
    let output = output_of(start(command, ""));
    let results = read(&output.stdout);
    (output, results)
}

/// Without a group RLIMIT_DATA enforces the cap, and Python raises MemoryError.
fn is_over_cap(result: &Value) -> bool {
    let by_rlimit = cause(result) == "exception" && result["error"]["type"] == "MemoryError";
    let by_kernel = cause(result) == "cap" && result["error"]["attempts"] == 2;
    by_rlimit || by_kernel
}

#[test]
fn a_line_over_the_cap_fails_with_cap_and_other_tasks_succeed() {
    let _turn = turn::beside();
    let folder = folder();
    let mut input = fs::File::create(folder.path().join("in")).unwrap();
    writeln!(input, "\"{}\"", "a".repeat(60 << 20)).unwrap();
    for number in 2..=200 {
        writeln!(input, "{number}").unwrap();
    }
    let (output, results) = run(folder.path(), &["--cap", "50M", "large:size"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(results.len(), 200, "{stderr}");
    let first = &results[&1];
    assert!(is_over_cap(first), "{first}");
    if cause(first) == "cap" {
        let message = first["error"]["message"].as_str().unwrap();
        let expected = "the worker reached its cap of 50M while it received the task's 60";
        assert!(message.starts_with(expected), "{message}");
    }
    for (id, result) in results.iter().skip(1) {
        assert_eq!(result["result"].as_u64(), Some(*id), "{result}");
    }
}

#[test]
fn a_result_over_the_cap_fails_with_cap_and_a_smaller_one_is_complete() {
    let _turn = turn::beside();
    for (function, of_40) in [("large:text", true), ("large:fails_at_length", false)] {
        let folder = folder();
        fs::write(folder.path().join("in"), "4\n40\n1\n").unwrap();
        let (output, results) = run(folder.path(), &["--cap", "60M", function]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(results.len(), 3, "{function}: {stderr}");
        assert!(
            is_over_cap(&results[&2]),
            "{function}: {}",
            results[&2]["error"]
        );
        for (id, megabytes) in [(1, 4_usize), (3, 1)] {
            let result = &results[&id];
            let text = if of_40 {
                &result["result"]
            } else {
                &result["error"]["message"]
            };
            let length = text.as_str().map(str::len);
            assert_eq!(length, Some(megabytes << 20), "{function}, {id}: {stderr}");
        }
    }
}

#[test]
fn a_worker_keeps_at_most_two_copies_of_a_large_line() {
    let _turn = turn::beside();
    let folder = folder();
    fs::write(
        folder.path().join("in"),
        format!("\"{}\"\n7\n", "a".repeat(45 << 20)),
    )
    .unwrap();
    // The bytes are decoded to text, and then the text is parsed.
    let (output, results) = run(folder.path(), &["--cap", "120M", "large:size"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(results.len(), 2, "{stderr}");
    for (id, length) in [(1, 45 << 20), (2, 7)] {
        assert_eq!(results[&id]["result"], length, "{}", results[&id]);
    }
}
