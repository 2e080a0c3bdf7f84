//! Reports across restarts, broken files and disks that fail.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::json;

use super::*;

fn report(text: &str) -> Value {
    json!({ "worker": text })
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock" && name != "service.json")
        .collect();
    names.sort();
    names
}

fn open(path: &Path, most: usize) -> Kept {
    let place = Place {
        base: path.parent().unwrap().to_owned(),
        name: path.file_name().unwrap().to_str().unwrap().to_owned(),
        about: About::default(),
    };
    Kept::open(Some(place), most)
}

fn warnings(kept: &mut Kept) -> Vec<String> {
    std::iter::from_fn(|| kept.poll_warning()).collect()
}

#[test]
fn reports_survive_a_restart_and_ids_continue() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("state/shop");
    let mut kept = open(&place, 8);
    assert_eq!((kept.all().as_str(), kept.next_id()), ("[]", ReportId(1)));
    kept.keep(ReportId(1), report("w1"));
    kept.keep(ReportId(2), report("w2"));
    assert_eq!(warnings(&mut kept), [""; 0]);
    drop(kept);

    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(names(&place), ["r1.json", "r2.json"]);
    assert_eq!(mode(&place), 0o700);
    assert_eq!(mode(&place.join("r1.json")), 0o600);

    let kept = open(&place, 8);
    let expected = "[{\"id\":\"r1\",\"worker\":\"w1\"},{\"id\":\"r2\",\"worker\":\"w2\"}]";
    assert_eq!(
        (kept.all().as_str(), kept.next_id()),
        (expected, ReportId(3))
    );
    assert_eq!(
        kept.get(ReportId(2)),
        Some("{\"id\":\"r2\",\"worker\":\"w2\"}")
    );
    assert_eq!(kept.get(ReportId(3)), None);
    assert_eq!(kept.unwritten(), 0);
}

#[test]
fn only_the_newest_reports_are_kept_in_memory_and_on_disk() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("shop");
    let open = |most| open(&place, most);
    let mut kept = open(3);
    // Fewer than the maximum in the queue for the disk.
    for id in 4..=10 {
        kept.keep(ReportId(id), report("w1"));
    }
    let ids = |kept: &Kept| kept.reports.keys().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(ids(&kept), [8, 9, 10]);
    drop(kept);
    assert_eq!(names(&place), ["r10.json", "r8.json", "r9.json"]);

    // The maximum is lower from now on.
    let mut kept = open(2);
    assert_eq!(ids(&kept), [9, 10]);
    kept.keep(kept.next_id(), report("w1"));
    drop(kept);
    assert_eq!(names(&place), ["r10.json", "r11.json"]);
}

#[test]
fn a_broken_file_is_skipped_and_its_id_is_not_used_again() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("shop");
    fs::create_dir(&place).unwrap();
    let file = |name: &str, text: &str| fs::write(place.join(name), text).unwrap();
    file("r1.json", "{\"id\":\"r1\"}\n");
    file("r2.json", "{\"id\":");
    file("r3.json", &format!("{{\"id\":\"{}\"}}", "x".repeat(70_000)));
    fs::create_dir(place.join("r4.json")).unwrap();
    file("r5.json", "[]");
    file(".r6.json.half", "{");
    file("notes.txt", "not ours");
    file("r007.json", "not ours");
    let mut kept = open(&place, 8);
    assert_eq!(kept.all(), "[{\"id\":\"r1\"}]");
    assert_eq!(kept.next_id(), ReportId(6));
    let shown = place.display();
    assert_eq!(
        warnings(&mut kept),
        [
            format!("{shown}/r5.json is left out: it is not a report"),
            format!("{shown}/r4.json is left out: {shown}/r4.json: it is not a regular file"),
            format!("{shown}/r3.json is left out: {shown}/r3.json: it is longer than 65537 bytes"),
            format!("{shown}: 1 more reports cannot be read"),
        ]
    );
    // The half-written report of a crash is removed; files of other programs are not.
    assert!(!names(&place).contains(&".r6.json.half".to_owned()));
    assert!(names(&place).contains(&"r007.json".to_owned()));
}

#[test]
fn reports_are_kept_in_memory_without_a_usable_directory() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let mut kept = open(&file.join("reports"), 8);
    let said = warnings(&mut kept);
    assert_eq!(said.len(), 1, "{said:?}");
    let expected = format!("keep reports and events in {}/reports: ", file.display());
    assert!(said[0].starts_with(&expected), "{said:?}");
    assert!(
        said[0].ends_with("they are lost when this process ends"),
        "{said:?}"
    );
    kept.keep(kept.next_id(), report("w1"));
    assert_eq!(kept.all(), "[{\"id\":\"r1\",\"worker\":\"w1\"}]");

    let mut kept = Kept::open(None, 8);
    kept.keep(ReportId(1), report("w1"));
    assert_eq!(warnings(&mut kept), [""; 0]);
    assert!(kept.get(ReportId(1)).is_some());
}

#[test]
fn a_disk_that_fails_later_causes_one_warning_and_lost_reports_are_counted() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("reports");
    let mut kept = open(&place, 8);
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "a file where the directory was").unwrap();
    kept.keep(ReportId(1), report("w1"));
    kept.keep(ReportId(2), report("w1"));
    let disk = kept.disk.as_mut().unwrap();
    disk.flush();
    let said = warnings(&mut kept);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("write the report "), "{said:?}");
    assert_eq!(kept.unwritten(), 2);
    assert!(kept.get(ReportId(2)).is_some());
}
