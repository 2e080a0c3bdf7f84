//! Reports that are kept: the newest few, in memory and, where there is a place for them, on disk,
//! so that they outlive us. Nobody waits for the disk.

mod bounded;
mod disk;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::units::ReportId;

use disk::Disk;

/// So many files that cannot be read are named one by one.
const NAMED: usize = 3;

/// The reports that are kept.
#[derive(Debug)]
pub struct Kept {
    /// JSON objects by their id, the oldest first; never more than `most`.
    reports: BTreeMap<ReportId, String>,
    most: usize,
    /// The greatest id there ever was, as far as anybody remembers.
    newest: ReportId,
    disk: Option<Disk>,
    warnings: VecDeque<String>,
}

impl Kept {
    /// Takes up what is kept in `directory`, the newest `most` (at least 1). Without a directory,
    /// or with one that cannot be used, reports are kept in memory only.
    pub fn open(directory: Option<PathBuf>, most: usize) -> Self {
        let mut kept = Self {
            reports: BTreeMap::new(),
            most: most.max(1),
            newest: ReportId::default(),
            disk: None,
            warnings: VecDeque::new(),
        };
        if let Some(directory) = directory {
            kept.take_up(directory);
        }
        kept
    }

    /// Keeps a report: at most 64 KiB of it, and it says itself what was left out. The oldest
    /// beyond `most` goes. Its `id` is put into the document.
    pub fn keep(&mut self, id: ReportId, document: Value) {
        let text = bounded::text(id, document);
        if let Some(disk) = &mut self.disk {
            disk.write(id, text.clone());
        }
        self.newest = self.newest.max(id);
        self.reports.insert(id, text);
        while self.reports.len() > self.most {
            self.reports.pop_first();
        }
    }

    /// What went wrong since it was last asked, in words; nothing of it is an error.
    pub fn poll_warning(&mut self) -> Option<String> {
        let trouble = || self.disk.as_ref().and_then(Disk::trouble);
        self.warnings.pop_front().or_else(trouble)
    }

    /// An id that was never used, the one after the newest.
    pub const fn next_id(&self) -> ReportId {
        self.newest.next()
    }

    /// One report, a JSON object.
    pub fn get(&self, id: ReportId) -> Option<&str> {
        self.reports.get(&id).map(String::as_str)
    }

    /// All of them, a JSON array, newest last.
    pub fn all(&self) -> String {
        let all: Vec<_> = self.reports.values().map(String::as_str).collect();
        format!("[{}]", all.join(","))
    }

    /// So many of them are, or were, in memory only, for want of a disk that keeps up.
    pub fn unwritten(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::unwritten)
    }

    fn take_up(&mut self, directory: PathBuf) {
        let usable = disk::prepare(&directory);
        if let Err(error) = &usable {
            self.warnings.push_back(format!(
                "keep reports in {}: {error}; they end with this process",
                directory.display()
            ));
        }
        let Ok(found) = disk::list(&directory) else {
            return;
        };
        let ids: Vec<_> = found.iter().rev().take(self.most).copied().collect();
        let mut broken = Vec::new();
        for id in ids {
            match read(&directory, id) {
                Ok(text) => {
                    self.reports.insert(id, text);
                }
                Err(why) => broken.push(format!("{id}.json is left out: {why}")),
            }
        }
        self.warn_of(&directory, &broken);
        self.newest = found.last().copied().unwrap_or_default();
        if usable.is_ok() {
            self.disk = Some(Disk::new(directory, self.most, found));
        }
    }

    fn warn_of(&mut self, directory: &Path, broken: &[String]) {
        let place = directory.display();
        for one in broken.iter().take(NAMED) {
            self.warnings.push_back(format!("{place}/{one}"));
        }
        let others = broken.len().saturating_sub(NAMED);
        if others > 0 {
            let others = format!("{place}: {others} more reports cannot be read");
            self.warnings.push_back(others);
        }
    }
}

fn read(directory: &Path, id: ReportId) -> Result<String, String> {
    let text = disk::read(directory, id).map_err(|error| error.to_string())?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(_)) => Ok(text.trim().to_owned()),
        Ok(_) => Err("it is no report".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
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
            .collect();
        names.sort();
        names
    }

    fn warnings(kept: &mut Kept) -> Vec<String> {
        std::iter::from_fn(|| kept.poll_warning()).collect()
    }

    #[test]
    fn reports_survive_a_restart_and_ids_go_on() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("state/shop");
        let mut kept = Kept::open(Some(place.clone()), 8);
        assert_eq!((kept.all().as_str(), kept.next_id()), ("[]", ReportId(1)));
        kept.keep(ReportId(1), report("w1"));
        kept.keep(ReportId(2), report("w2"));
        assert_eq!(warnings(&mut kept), [""; 0]);
        drop(kept);

        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(names(&place), ["r1.json", "r2.json"]);
        assert_eq!(mode(&place), 0o700);
        assert_eq!(mode(&place.join("r1.json")), 0o600);

        let kept = Kept::open(Some(place), 8);
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
    fn only_the_newest_are_kept_in_memory_and_on_disk() {
        let home = tempfile::tempdir().unwrap();
        let open = |most| Kept::open(Some(home.path().to_owned()), most);
        let mut kept = open(3);
        // Fewer than may wait for the disk.
        for id in 4..=10 {
            kept.keep(ReportId(id), report("w1"));
        }
        let ids = |kept: &Kept| kept.reports.keys().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids(&kept), [8, 9, 10]);
        drop(kept);
        assert_eq!(names(home.path()), ["r10.json", "r8.json", "r9.json"]);

        // Fewer are wished for from now on.
        let mut kept = open(2);
        assert_eq!(ids(&kept), [9, 10]);
        kept.keep(kept.next_id(), report("w1"));
        drop(kept);
        assert_eq!(names(home.path()), ["r10.json", "r11.json"]);
    }

    #[test]
    fn a_broken_file_is_skipped_and_its_number_is_not_used_again() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
        file("r1.json", "{\"id\":\"r1\"}\n");
        file("r2.json", "{\"id\":");
        file("r3.json", &format!("{{\"id\":\"{}\"}}", "x".repeat(70_000)));
        fs::create_dir(home.path().join("r4.json")).unwrap();
        file("r5.json", "[]");
        file(".r6.tmp", "{");
        file("notes.txt", "not ours");
        file("r007.json", "not ours");
        let mut kept = Kept::open(Some(home.path().to_owned()), 8);
        assert_eq!(kept.all(), "[{\"id\":\"r1\"}]");
        assert_eq!(kept.next_id(), ReportId(6));
        let place = home.path().display();
        assert_eq!(
            warnings(&mut kept),
            [
                format!("{place}/r5.json is left out: it is no report"),
                format!("{place}/r4.json is left out: it is no file"),
                format!("{place}/r3.json is left out: it is longer than a report"),
                format!("{place}: 1 more reports cannot be read"),
            ]
        );
        // What a crash left is gone, what is not ours is not.
        assert!(!names(home.path()).contains(&".r6.tmp".to_owned()));
        assert!(names(home.path()).contains(&"r007.json".to_owned()));
    }

    #[test]
    fn without_a_usable_directory_reports_are_in_memory() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let mut kept = Kept::open(Some(file.join("reports")), 8);
        let said = warnings(&mut kept);
        assert_eq!(said.len(), 1, "{said:?}");
        let expected = format!("keep reports in {}/reports: ", file.display());
        assert!(said[0].starts_with(&expected), "{said:?}");
        assert!(said[0].ends_with("they end with this process"), "{said:?}");
        kept.keep(kept.next_id(), report("w1"));
        assert_eq!(kept.all(), "[{\"id\":\"r1\",\"worker\":\"w1\"}]");

        let mut kept = Kept::open(None, 8);
        kept.keep(ReportId(1), report("w1"));
        assert_eq!(warnings(&mut kept), [""; 0]);
        assert!(kept.get(ReportId(1)).is_some());
    }

    #[test]
    fn a_disk_that_fails_later_is_said_once_and_what_it_lost_is_counted() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("reports");
        let mut kept = Kept::open(Some(place.clone()), 8);
        fs::remove_dir(&place).unwrap();
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
}
