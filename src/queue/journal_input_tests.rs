//! What a journal keeps, and of which input it is.

use std::io::{Write as _, pipe};

use super::{
    super::{
        Format, Given, Lines, Order, START_FAILED, Sink as _, Source as _, Verdict,
        lines::KEPT_MAX,
        tests::{Paper, begun, wait},
    },
    tests::{Place, Run, outcome, run},
};

#[test]
fn another_input_is_refused_wherever_it_differs() {
    let place = Place::new();
    let only = Some(&[2, 3, 5][..]);
    let first = Run {
        only,
        ..run(place.create().unwrap(), "1\n2\n3\n4\n5\n6\n")
    };
    first.go().unwrap();
    let before = place.text();
    for (other, told) in [
        ("0\n2\n3\n4\n5\n6\n", "one of the lines 1 to 2 differs"),
        ("1\n2\n0\n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n\n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n3 \n4\n5\n6\n", "line 3 differs"),
        ("1\n2\n3\n5\n6\n", "one of the lines 4 to 5 differs"),
        ("1\n2\n3\n4\n55", "one of the lines 4 to 5 differs"),
        (
            "1\n2\n3\n4\n",
            "it ends after line 4, and line 5 has a result",
        ),
        ("", "it ends after line 0, and line 5 has a result"),
    ] {
        let error = run(place.resume(false).unwrap(), other).go().unwrap_err();
        let told = format!("it is the journal of another input: {told}");
        assert_eq!(
            error.to_string(),
            format!("{}: {told}", place.path.display())
        );
        assert_eq!(place.text(), before);
    }
    // Of what comes after the last result nothing is known, and nothing was done.
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
fn a_long_input_is_known_to_its_end() {
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
fn what_is_to_be_done_before_the_last_that_is_done_is_bounded() {
    let place = Place::new();
    // Of these lines, which are too much together, the last is done.
    let line = format!("\"{}\"\n", "x".repeat(KEPT_MAX / 8));
    let input = line.repeat(10);
    let only = Some(&[10][..]);
    let first = Run {
        only,
        ..run(place.create().unwrap(), &input)
    };
    first.go().unwrap();
    // A file is read twice, a pipe cannot be.
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

#[test]
fn an_input_in_pieces_is_known_again() {
    let place = Place::new();
    run(place.create().unwrap(), "1\n2\n3\n").go().unwrap();
    let journal = place.resume(false).unwrap();
    let (input, mut output) = pipe().unwrap();
    for piece in ["1", "\n2\n", "3\n4\n"] {
        output.write_all(piece.as_bytes()).unwrap();
    }
    let mut lines = Lines::start(input, Format::Json, Some(&journal)).unwrap();
    let mut given = Vec::new();
    assert!(wait(|cx| lines.poll_tasks(cx, 9, &mut given)).unwrap());
    assert_eq!(given.iter().map(Given::seq).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_task_for_which_no_worker_could_be_started_is_done_again() {
    let place = Place::new();
    let journal = place.create().unwrap();
    let paper = Paper::default();
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
