//! Tests of the comparison of a resumed run's input with the journal, and of the results that the
//! journal keeps.

use std::{
    fs,
    io::{self, Chain, Read, Write, pipe},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    super::{
        Format, Given, Input, Lines, Order, START_FAILED, Sink as _, Source as _, Verdict,
        lines::KEPT_MAX,
        tests::{MemoryOutput, begun, wait},
    },
    tests::{Place, Run, outcome, run},
};

#[test]
fn a_different_input_is_refused_and_the_message_names_the_line() {
    let place = Place::new();
    let only = Some(&[2, 3, 5][..]);
    let first = Run {
        only,
        ..run(place.create().unwrap(), "1\n2\n3\n4\n5\n6\n")
    };
    first.go().unwrap();
    let before = place.text();
    for (other, difference) in [
        ("0\n2\n3\n4\n5\n6\n", "one of the lines 1 to 2 differs"),
        ("12\n\n3\n4\n5\n6\n", "one of the lines 1 to 2 differs"),
        ("1\n2\n0\n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n\n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n3 \n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n3\n5\n6\n", "one of the lines 4 to 5 differs"),
        ("1\n2\n3\n4\n55", "one of the lines 4 to 5 differs"),
        (
            "1\n2\n3\n4\n",
            "this input ends after line 4, but the journal has a result for line 5",
        ),
        (
            "",
            "this input ends after line 0, but the journal has a result for line 5",
        ),
    ] {
        let error = run(place.resume(false).unwrap(), other).go().unwrap_err();
        let message = format!("it is the journal of another input: {difference}");
        assert_eq!(
            error.to_string(),
            format!("{}: {message}", place.path.display())
        );
        assert_eq!(place.text(), before);
    }
    // The journal has no hashes of the lines after the last result, so these may change.
    for other in ["1\n2\n3\n4\n5", "1\n2\n3\n4\n5\n0\n7\n"] {
        let journal = place.resume(false).unwrap();
        let never = Run {
            only: Some(&[]),
            ..run(journal, other)
        };
        assert_eq!(never.go().unwrap().0[..2], [1, 4], "{other}");
    }
}

#[test]
fn a_change_at_the_end_of_a_long_input_is_found() {
    let place = Place::new();
    let line = format!("\"{}\"\n", "x".repeat(2000));
    let input = line.repeat(1000);
    run(place.create().unwrap(), &input).go().unwrap();
    let last = input.len() - 3;
    let other = format!("{}y{}", &input[..last], &input[last + 1..]);
    let error = run(place.resume(false).unwrap(), &other).go().unwrap_err();
    assert!(
        error.to_string().ends_with(": line 1000 differs"),
        "{error}"
    );
    let (given, out) = run(place.resume(false).unwrap(), &input).go().unwrap();
    assert_eq!((given.len(), out.len()), (0, 1000));
}

#[test]
fn an_input_with_too_many_unfinished_lines_is_read_twice_and_a_pipe_is_refused() {
    let place = Place::new();
    // Only the last line has a result, and the lines before it are too large to keep in memory.
    let line = format!("\"{}\"\n", "x".repeat(KEPT_MAX / 8));
    let input = line.repeat(10);
    let only = Some(&[10][..]);
    let first = Run {
        only,
        ..run(place.create().unwrap(), &input)
    };
    first.go().unwrap();
    // A file is read twice. A pipe cannot be.
    let (given, out) = run(place.resume(false).unwrap(), &input).go().unwrap();
    assert_eq!((given.len(), out.len()), (9, 10));
    let lines = place.text();
    let first = lines.lines().take(2).map(|line| format!("{line}\n"));
    place.write(first.collect::<String>());
    let (piped, mut output) = pipe().unwrap();
    let writer = std::thread::spawn(move || {
        let _ = output.write_all(input.as_bytes());
    });
    let journal = place.resume(false).unwrap();
    let error = Lines::start(piped, Format::Json, Some(&journal)).unwrap_err();
    assert!(error.to_string().ends_with("--input FILE"), "{error}");
    writer.join().unwrap();
}

impl<A: Read, B: Read> Input for Chain<A, B> {}

#[test]
fn an_input_that_arrives_in_pieces_is_recognized() {
    let place = Place::new();
    run(place.create().unwrap(), "1\n2\n3\n").go().unwrap();
    let journal = place.resume(false).unwrap();
    // Each read ends where a piece ends.
    let input = "1".as_bytes().chain(&b"\n2\n"[..]).chain(&b"3\n4\n"[..]);
    let mut lines = Lines::start(input, Format::Json, Some(&journal)).unwrap();
    let mut given = Vec::new();
    while wait(|cx| lines.poll_tasks(cx, 9, &mut given)).unwrap() {}
    assert_eq!(given.iter().map(Given::seq).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_task_that_failed_because_no_worker_started_runs_again() {
    let place = Place::new();
    let journal = place.create().unwrap();
    let paper = MemoryOutput::default();
    let mut results = begun(paper.clone(), Order::AsTheyEnd, Some(journal), 1..3);
    let mut lost = outcome(1, None);
    if let Verdict::Failed(failure) = &mut lost.verdict {
        START_FAILED.clone_into(&mut failure.cause);
    }
    results.put(lost);
    results.put(outcome(2, None));
    wait(|cx| results.poll_finish(cx)).unwrap();
    let written = paper.0.lock().unwrap().clone();
    assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 2);
    let journal = place.resume(false).unwrap();
    assert!(journal.done().contains(2) && !journal.done().contains(1));
    assert_eq!(journal.failed(), 1);
    drop(journal);
    assert_eq!(place.resume(true).unwrap().failed(), 0, "it is done again");
}

#[test]
fn a_result_is_in_the_journal_before_it_is_in_the_output() {
    /// Records, at each write, the number of written lines and the last line of the journal.
    struct Watched(PathBuf, usize, Arc<Mutex<Vec<(usize, String)>>>);
    impl Write for Watched {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += bytes.iter().filter(|byte| **byte == b'\n').count();
            let text = fs::read_to_string(&self.0)?;
            let last = text.lines().last().unwrap_or_default().to_owned();
            self.2.lock().unwrap().push((self.1, last));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    let journal = place.create().unwrap();
    let seen = Arc::default();
    let output = Watched(place.path.clone(), 0, Arc::clone(&seen));
    let mut results = begun(output, Order::AsTheyEnd, Some(journal), 1..200);
    for seq in 1..200 {
        results.put(outcome(seq, Some("0")));
    }
    wait(|cx| results.poll_finish(cx)).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.last().unwrap().0, 199);
    for (count, last) in &*seen {
        assert!(last.contains(&format!(",\"line\":{count},")), "{last}");
    }
}
