//! Tests of the written results, their order, and errors of the output.

use std::io::{BufRead as _, BufReader, PipeReader, Read as _, pipe};

use super::{
    super::tests::{MemoryOutput, begun, wait},
    *,
};

impl MemoryOutput {
    fn ids(&self) -> Vec<u64> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64();
        text.lines().map(|line| id(line).unwrap()).collect()
    }
}

fn done(seq: u64, result: impl Into<Vec<u8>>) -> Outcome {
    Outcome {
        seq,
        id: None,
        worker: None,
        micros: 0,
        peak: None,
        verdict: Verdict::Done(result.into().into()),
    }
}

fn has_room(results: &mut Results) -> bool {
    wait(|cx| Poll::Ready(results.poll_room(cx))).is_ready()
}

fn piped() -> (BufReader<PipeReader>, Results) {
    let (input, output) = pipe().unwrap();
    let results = begun(output, Order::AsTheyEnd, None, 0..0);
    (BufReader::new(input), results)
}

#[test]
fn results_are_written_at_once_in_the_order_of_ends() {
    let (mut input, mut results) = piped();
    for seq in [2, 3, 1] {
        results.expect(seq);
        results.put(done(seq, "[]"));
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        assert!(
            line.starts_with(&format!("{{\"id\":{seq},\"ok\":true,\"result\":[],")),
            "{line}"
        );
    }
    wait(|cx| results.poll_finish(cx)).unwrap();
    wait(|cx| results.poll_finish(cx)).unwrap();
    let mut rest = String::new();
    input.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn with_order_as_given_results_are_written_in_the_order_of_tasks() {
    let paper = MemoryOutput::default();
    let mut results = begun(paper.clone(), Order::AsGiven, None, 0..0);
    // Lines 2 and 4 are blank.
    [1, 3, 5, 6].iter().for_each(|seq| results.expect(*seq));
    [6, 3].iter().for_each(|seq| results.put(done(*seq, "1")));
    results.put(done(1, "1"));
    wait(|cx| {
        let room = results.poll_room(cx);
        if results.waiting.count > 1 {
            Poll::Pending
        } else {
            room
        }
    })
    .unwrap();
    assert_eq!(paper.ids(), [1, 3]);
    // The result of 5 never comes, because the run is aborted.
    results.expect(7);
    results.put(done(7, "1"));
    wait(|cx| results.poll_finish(cx)).unwrap();
    assert_eq!(paper.ids(), [1, 3, 6, 7]);
}

#[test]
fn there_is_no_room_while_a_reader_is_slow() {
    let (mut input, mut results) = piped();
    assert!(has_room(&mut results));
    for seq in 0..10_000 {
        results.put(done(seq, "0"));
    }
    assert!(!has_room(&mut results), "a pipe takes fewer");
    let reader = thread::spawn(move || {
        let mut all = String::new();
        input.read_to_string(&mut all).unwrap();
        all.lines().count()
    });
    wait(|cx| results.poll_room(cx)).unwrap();
    assert!(results.waiting.count <= WAIT_MAX);
    wait(|cx| results.poll_finish(cx)).unwrap();
    assert_eq!((results.waiting.count, results.waiting.bytes), (0, 0));
    drop(results);
    assert_eq!(reader.join().unwrap(), 10_000);
}

#[test]
fn there_is_no_room_after_a_few_large_results() {
    let (input, mut results) = piped();
    for seq in 0..3 {
        results.put(done(seq, vec![b'1'; 6 << 20]));
    }
    assert!(!has_room(&mut results));
    drop(input);
    assert!(wait(|cx| results.poll_room(cx)).is_err());
}

#[test]
fn an_output_without_a_reader_is_an_error() {
    let (input, mut results) = piped();
    drop(input);
    results.put(done(1, "1"));
    let error = wait(|cx| match results.poll_room(cx) {
        Poll::Ready(Ok(())) => Poll::Pending,
        other => other,
    });
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    results.put(done(2, "1"));
    let error = wait(|cx| results.poll_finish(cx)).unwrap_err();
    assert!(error.to_string().starts_with("write results: "), "{error}");
    assert!(wait(|cx| results.poll_room(cx)).is_err(), "and it stays so");
}

#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut results = begun(full, Order::AsTheyEnd, None, 0..0);
    results.put(done(1, "1"));
    let error = wait(|cx| results.poll_finish(cx)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn after_an_error_of_the_output_results_are_still_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (input, output) = pipe().unwrap();
    drop(input);
    let journal = Journal::create(&path, "a:b").unwrap();
    let mut results = begun(output, Order::AsTheyEnd, Some(journal), 1..4);
    results.put(done(1, "0"));
    wait(|cx| match results.poll_room(cx) {
        Poll::Ready(Ok(())) => Poll::Pending,
        other => other,
    })
    .unwrap_err();
    for seq in 2..4 {
        results.put(done(seq, "0"));
    }
    let error = wait(|cx| results.poll_finish(cx)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
}

#[test]
fn nothing_is_written_before_begin() {
    struct Touched(std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl Write for Touched {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.write(&[]).map(|_| ())
        }
    }
    for begins in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::create(&path, "a:b").unwrap();
        journal.input_check().send(vec![(1, 1)]);
        let count = std::sync::Arc::default();
        let output = Touched(std::sync::Arc::clone(&count));
        let mut results = Results::start(output, Order::AsTheyEnd, Some(journal)).unwrap();
        results.put(done(1, "0"));
        if begins {
            results.begin();
            results.begin();
        }
        wait(|cx| results.poll_finish(cx)).unwrap();
        let touched = count.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(touched > 0, begins, "{touched}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), if begins { 2 } else { 0 });
    }
}

#[test]
fn results_of_a_run_that_could_not_start_go_to_a_stream_and_not_to_the_journal() {
    for is_stream in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::create(&path, "a:b").unwrap();
        let paper = MemoryOutput::default();
        let results = Results::start(paper.clone(), Order::AsGiven, Some(journal)).unwrap();
        let mut results = results.with_stream(is_stream);
        results.put(done(1, "0"));
        results.give_up(b"");
        wait(|cx| results.poll_finish(cx)).unwrap();
        assert_eq!(paper.ids().len(), usize::from(is_stream));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}

#[test]
fn a_reader_that_closes_the_output_is_noticed_before_the_next_result() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let gone = ReaderGone(Box::pin(async move {
        let _ = receiver.await;
    }));
    let mut results =
        begun(MemoryOutput::default(), Order::AsTheyEnd, None, 0..0).with_reader_gone(Some(gone));
    wait(|cx| results.poll_room(cx)).unwrap();
    drop(sender);
    let error = wait(|cx| results.poll_room(cx)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(wait(|cx| results.poll_room(cx)).is_err(), "and it stays so");
}

#[test]
fn a_reader_that_closes_the_output_when_all_is_complete_is_not_an_error() {
    let gone = ReaderGone(Box::pin(std::future::ready(())));
    let mut results =
        begun(MemoryOutput::default(), Order::AsTheyEnd, None, 0..0).with_reader_gone(Some(gone));
    results.put(done(1, "1"));
    results.complete();
    wait(|cx| results.poll_finish(cx)).unwrap();
}
