//! Tests of runs that stop early and are resumed.

use std::{fs, io::Cursor};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    super::tests::{MemoryOutput, begun, wait},
    super::{
        Detail, Failure, Format, Given, Lines, Order, Outcome, Results, Sink, Source, Verdict,
    },
    *,
};

/// A temporary folder with the path of a journal, which need not exist.
pub(super) struct Place {
    pub(super) path: PathBuf,
    _folder: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            path: folder.path().join("the.journal"),
            _folder: folder,
        }
    }

    pub(super) fn create(&self) -> io::Result<Journal> {
        Journal::create(&self.path, "etl:convert")
    }

    pub(super) fn resume(&self, retry_failed: bool) -> io::Result<Journal> {
        Journal::resume(&self.path, "etl:convert", retry_failed)
    }

    pub(super) fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    pub(super) fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(&self.path, text).unwrap();
    }

    /// The error of an attempt to resume, without the path.
    fn resume_error(&self) -> String {
        let error = self.resume(false).unwrap_err().to_string();
        let name = format!("{}: ", self.path.display());
        error.strip_prefix(&name).expect(&error).to_owned()
    }
}

pub(super) fn outcome(seq: u64, result: Option<&str>) -> Outcome {
    let failure = || Failure {
        cause: "cap".into(),
        attempts: 1,
        detail: Detail::Message("too large".into()),
    };
    Outcome {
        seq,
        id: None,
        worker: None,
        micros: 0,
        peak: None,
        verdict: match result {
            Some(result) => Verdict::Done(result.as_bytes().into()),
            None => Verdict::Failed(failure()),
        },
    }
}

/// The tasks in the output, and whether they succeeded.
type Out = Vec<(u64, bool)>;

/// A run over an input.
pub(super) struct Run<'a> {
    pub(super) journal: Journal,
    pub(super) input: &'a str,
    pub(super) order: Order,
    /// The tasks that fail.
    pub(super) fails: &'a [u64],
    /// The tasks that end, in this order; `None`: all tasks.
    pub(super) only: Option<&'a [u64]>,
}

impl Run<'_> {
    /// Runs the tasks. Returns the tasks that were read from the input, and the results in the
    /// output.
    pub(super) fn go(self) -> io::Result<(Vec<u64>, Out)> {
        let input = Cursor::new(self.input.to_owned());
        let mut lines = Lines::start(input, Format::Json, Some(&self.journal))?;
        let paper = MemoryOutput::default();
        let mut results = Results::start(paper.clone(), self.order, Some(self.journal))?;
        results.begin();
        let mut given = Vec::new();
        let read = loop {
            match wait(|cx| lines.poll_tasks(cx, 7, &mut given)) {
                Ok(true) => {}
                other => break other,
            }
        };
        if read.is_err() {
            wait(|cx| results.poll_finish(cx))?;
        }
        read?;
        let seqs: Vec<_> = given.iter().map(Given::seq).collect();
        seqs.iter().for_each(|seq| results.expect(*seq));
        for seq in self.only.unwrap_or(&seqs) {
            let is_bad = self.fails.contains(seq);
            results.put(outcome(*seq, (!is_bad).then_some("0")));
        }
        wait(|cx| results.poll_finish(cx))?;
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let out = text.lines().map(|line| {
            assert!(!line.contains("\"line\""), "{line}");
            let value: serde_json::Value = serde_json::from_str(line).expect(line);
            (
                value["id"].as_u64().unwrap(),
                value["ok"].as_bool().unwrap(),
            )
        });
        Ok((seqs, out.collect()))
    }
}

pub(super) fn run(journal: Journal, input: &str) -> Run<'_> {
    Run {
        journal,
        input,
        order: Order::AsTheyEnd,
        fails: &[],
        only: None,
    }
}

#[test]
fn a_journal_has_a_header_and_a_line_for_each_result() {
    let place = Place::new();
    let fails = Run {
        fails: &[3],
        ..run(place.create().unwrap(), "1\n\n3")
    };
    fails.go().unwrap();
    let header = "{\"journal\":2,\"task\":\"etl:convert\",\"sum\":\"";
    let text = place.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with(header), "{text}");
    for (line, start) in [
        (1, "{\"id\":1,\"ok\":true,"),
        (2, "{\"id\":3,\"ok\":false,"),
    ] {
        let value: serde_json::Value = serde_json::from_str(lines[line]).unwrap();
        assert!(lines[line].starts_with(start), "{text}");
        assert_eq!(value["line"], value["id"]);
        assert!(value["input"].is_string() && value["sum"].is_string());
    }
}

#[test]
fn a_new_journal_does_not_replace_a_file() {
    let place = Place::new();
    place.write("");
    drop(place.create().unwrap());
    place.write("mine");
    let error = place.create().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let message = "already exists. hint: continue it with --resume, or remove it";
    assert_eq!(
        error.to_string(),
        format!("{}: {message}", place.path.display())
    );
    assert_eq!(place.text(), "mine");
}

#[test]
fn a_second_run_with_the_same_journal_is_refused() {
    let place = Place::new();
    let mut results = {
        let journal = place.create().unwrap();
        begun(io::sink(), Order::AsTheyEnd, Some(journal), 0..0)
    };
    for error in [place.create().unwrap_err(), place.resume(true).unwrap_err()] {
        let message = "another run is writing this journal";
        assert_eq!(
            error.to_string(),
            format!("{}: {message}", place.path.display())
        );
    }
    wait(|cx| results.poll_finish(cx)).unwrap();
    drop(place.resume(false).unwrap());
}

#[test]
fn finished_tasks_do_not_run_again_and_their_results_are_written_first() {
    let place = Place::new();
    let cut = Run {
        only: Some(&[4, 2]),
        ..run(place.create().unwrap(), "1\n2\n3\n4\n")
    };
    assert_eq!(
        cut.go().unwrap(),
        (vec![1, 2, 3, 4], vec![(4, true), (2, true)])
    );
    // The input has one more line.
    let (given, out) = run(place.resume(false).unwrap(), "1\n2\n3\n4\n5\n")
        .go()
        .unwrap();
    assert_eq!(given, [1, 3, 5]);
    assert_eq!(
        out.iter().map(|one| one.0).collect::<Vec<_>>(),
        [4, 2, 1, 3, 5]
    );
    let (given, out) = run(place.resume(false).unwrap(), "1\n2\n3\n4\n5\n")
        .go()
        .unwrap();
    assert_eq!((given.len(), out.len()), (0, 5));
}

#[test]
fn failed_tasks_run_again_with_retry_failed() {
    let place = Place::new();
    let input = "1\n2\n3\n";
    let first = Run {
        fails: &[1, 3],
        ..run(place.create().unwrap(), input)
    };
    assert_eq!(first.go().unwrap().1, [(1, false), (2, true), (3, false)]);
    let (given, out) = run(place.resume(false).unwrap(), input).go().unwrap();
    assert_eq!(
        (given, out),
        (vec![], vec![(1, false), (2, true), (3, false)])
    );
    let second = Run {
        fails: &[3],
        ..run(place.resume(true).unwrap(), input)
    };
    assert_eq!(
        second.go().unwrap(),
        (vec![1, 3], vec![(2, true), (1, true), (3, false)])
    );
    // The last record of each task counts.
    let (given, out) = run(place.resume(false).unwrap(), input).go().unwrap();
    assert_eq!(
        (given, out),
        (vec![], vec![(2, true), (1, true), (3, false)])
    );
    assert_eq!(run(place.resume(true).unwrap(), input).go().unwrap().0, [3]);
}

#[test]
fn with_order_as_given_results_of_an_earlier_run_are_written_at_their_place() {
    let place = Place::new();
    let input = "1\n2\n3\n4\n5\n6\n7\n";
    let cut = Run {
        only: Some(&[7, 5, 2]),
        ..run(place.create().unwrap(), input)
    };
    cut.go().unwrap();
    let order = Order::AsGiven;
    let only: &[u64] = &[6, 1, 4, 3];
    let again = Run {
        order,
        only: Some(only),
        ..run(place.resume(false).unwrap(), input)
    };
    let (given, out) = again.go().unwrap();
    assert_eq!(given, [1, 3, 4, 6]);
    let seqs: Vec<_> = out.iter().map(|one| one.0).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_incomplete_last_line_of_any_length_is_removed() {
    let whole = Place::new();
    let input = "1\n2\n";
    run(whole.create().unwrap(), input).go().unwrap();
    let text = whole.text();
    let header = text.find('\n').unwrap() + 1;
    let first = header + text[header..].find('\n').unwrap() + 1;
    for end in 0..=text.len() {
        let place = Place::new();
        place.write(&text[..end]);
        let journal = place
            .resume(false)
            .unwrap_or_else(|error| panic!("{end}: {error}"));
        let kept = [0, header, first, text.len()]
            .into_iter()
            .rev()
            .find(|kept| *kept <= end);
        assert_eq!(journal.end, kept.unwrap() as u64, "{end}");
        assert_eq!(
            place.text(),
            text[..end],
            "nothing is written before `begin`"
        );
        assert_eq!(run(journal, input).go().unwrap().1.len(), 2, "{end}");
        assert_eq!(place.text(), text, "{end}");
    }
    for garbage in [
        "\0\0\0\0",
        "\0\0\n",
        "{\"id\":1,\"ok\":true}\n",
        "[],\"line\":9}\n",
    ] {
        whole.write(format!("{text}{garbage}"));
        let journal = whole.resume(false).unwrap();
        assert_eq!(journal.done().count(), 2, "{garbage:?}");
        run(journal, input).go().unwrap();
        assert_eq!(whole.text(), text);
    }
}

#[test]
fn the_number_of_a_corrupted_line_is_reported() {
    let place = Place::new();
    run(place.create().unwrap(), "1\n2\n3\n").go().unwrap();
    let whole = place.text();
    let message = "is corrupted. hint: delete that line; its task then runs again";
    for (from, to, line) in [
        ("{\"id\":1,", "{\"id\":7,", 2),
        ("{\"id\":2,", "{\"id\":,", 3),
        ("\"line\":2,", "\"line\":3,", 3),
        ("{\"id\":3,", "{\"id\":4,", 4),
        ("3,\"ok\":true", "3,\"ok\":false", 4),
    ] {
        let text = whole.replace(from, to);
        assert_ne!(text, whole);
        place.write(&text);
        assert_eq!(
            place.resume_error(),
            format!("line {line} {message}"),
            "{from}"
        );
        assert_eq!(place.text(), text, "the file is not changed");
        // The hint of the message works.
        let without = |(at, _): &(usize, &str)| at + 1 != line;
        let lines = text.lines().enumerate().filter(without);
        place.write(
            lines
                .map(|(_, line)| format!("{line}\n"))
                .collect::<String>(),
        );
        let again = run(place.resume(false).unwrap(), "1\n2\n3\n").go().unwrap();
        assert_eq!((again.0.len(), again.1.len()), (1, 3));
    }
    place.write(whole.replace("etl:convert", "etl:konvert"));
    assert_eq!(place.resume_error(), "line 1 (the header) is corrupted");
}

#[test]
fn a_file_that_is_not_a_journal_of_this_task_is_not_changed() {
    let place = Place::new();
    for foreign in ["x", "{\"id\":1}\n", "{\"a\"", "\n"] {
        place.write(foreign);
        assert_eq!(place.resume_error(), "it is not a journal");
        assert_eq!(place.text(), foreign);
    }
    place.write("{\"journal\":2}\n");
    assert_eq!(place.resume_error(), "line 1 (the header) is corrupted");
    // A journal in the format of the previous version.
    let old = "{\"journal\":1,\"task\":\"etl:convert\",\"input\":{\"bytes\":0,\"hash\":\"\"}}\n\
               {\"id\":1,\"ok\":true,\"result\":1,\"line\":1}\n";
    place.write(old);
    let message = "it has journal format 1, and this `supervise` uses format 2. hint: ";
    assert!(
        place.resume_error().starts_with(message),
        "{}",
        place.resume_error()
    );
    assert_eq!(place.text(), old);
    let other = Journal::create(&place.path.with_extension("other"), "etl:other").unwrap();
    let other_path = other.path.clone();
    run(other, "").go().unwrap();
    place.write(fs::read(other_path).unwrap());
    assert_eq!(
        place.resume_error(),
        "it is the journal of `etl:other`, not of `etl:convert`"
    );
    let nowhere = place.path.join("nowhere");
    assert!(
        Journal::create(&nowhere, "a")
            .unwrap_err()
            .to_string()
            .contains("nowhere: ")
    );
}

#[test]
fn an_error_of_a_journal_that_cannot_be_written_has_its_path() {
    // The write fails at the header (the disk is full) or at the first record.
    for has_header in [false, true] {
        let place = Place::new();
        let mut journal = place.create().unwrap();
        let full = fs::OpenOptions::new()
            .append(true)
            .read(true)
            .open("/dev/full");
        (journal.file, journal.end) = if has_header {
            (File::open(&place.path).unwrap(), 1)
        } else {
            (full.unwrap(), 0)
        };
        let paper = MemoryOutput::default();
        let mut results = begun(paper.clone(), Order::AsTheyEnd, Some(journal), 1..3);
        results.put(outcome(1, Some("0")));
        let error = wait(|cx| match results.poll_room(cx) {
            std::task::Poll::Ready(Ok(())) => std::task::Poll::Pending,
            other => other,
        });
        let error = error.unwrap_err();
        let is_full = error.kind() == io::ErrorKind::StorageFull;
        assert_ne!(is_full, has_header, "{error}");
        assert!(error.to_string().contains("the.journal: "), "{error}");
        results.put(outcome(2, Some("0")));
        assert!(wait(|cx| results.poll_finish(cx)).is_err());
        let written = paper.0.lock().unwrap().clone();
        assert_eq!(written, b"", "a result without a record is not written");
    }
}

#[test]
fn records_are_synced_within_a_second_and_not_after_each_write() {
    let mut journal = Place::new().create().unwrap();
    assert_eq!(journal.sync_in(), None);
    journal.append(b"1\n").unwrap();
    let time = journal.sync_in().unwrap();
    assert!(Duration::ZERO < time && time <= SYNC_EVERY, "{time:?}");
    journal.unsynced = now().checked_sub(SYNC_EVERY);
    assert_eq!(journal.sync_in(), Some(Duration::ZERO));
    journal.append(b"2\n").unwrap();
    assert_eq!(journal.sync_in(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Several runs, each stopped at a random point and with random failures.
    #[test]
    fn after_several_stopped_runs_each_result_is_written_once(
        runs in prop::collection::vec(
            (prop::collection::vec(1_u64..12, 0..6), 0_usize..8, any::<bool>(), 0_usize..90),
            1..5,
        ),
        is_ordered in any::<bool>(),
    ) {
        let place = Place::new();
        let input: String = (1..12).map(|seq| format!("{seq}\n")).collect();
        let order = if is_ordered { Order::AsGiven } else { Order::AsTheyEnd };
        let mut rights: BTreeMap<u64, bool> = BTreeMap::new();
        for (fails, length, retry, torn) in runs {
            let journal = place.resume(retry).unwrap();
            let expected: Vec<_> = (1..12)
                .filter(|seq| !rights.get(seq).is_some_and(|ok| *ok || !retry))
                .collect();
            let mut ends = expected.clone();
            ends.reverse();
            ends.truncate(length);
            let only = Some(ends.as_slice());
            let one = Run { fails: &fails, only, order, ..run(journal, &input) };
            let (given, out) = one.go().unwrap();
            prop_assert_eq!(&given, &expected);
            let mut seen = BTreeMap::new();
            for (seq, ok) in out {
                prop_assert!(seen.insert(seq, ok).is_none(), "{} twice", seq);
            }
            if retry {
                rights.retain(|_, ok| *ok);
            }
            rights.extend(ends.iter().map(|seq| (*seq, !fails.contains(seq))));
            prop_assert_eq!(&seen, &rights);
            // A failed task that a run with `retry` did not finish is still failed in the journal.
            let text = place.text();
            rights = text.lines().skip(1).map(|line| {
                let line = format!("{line}\n");
                let seq = record::read(line.as_bytes()).unwrap().line;
                (seq, line.contains("\"ok\":true"))
            }).collect();
            place.write(format!("{text}{}", &text[..torn.min(text.find('\n').unwrap())]));
        }
    }
}
