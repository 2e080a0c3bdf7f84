//! Keeps the newest reports and the history in memory, and on disk if there is a directory for
//! them; and the most recent events on disk. The main loop never waits for the disk.

mod archive;
mod bounded;
mod disk;
mod events;
mod history;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    private_dir::{Claimed, Contents, PrivateDir},
    supervisor::{
        event::End,
        history::{History, Observation},
    },
    units::ReportId,
};

pub use archive::{About, Archive};
use disk::Disk;

/// Maximum unreadable files that are listed in warnings.
const NAMED: usize = 3;
/// A crash loses the history of this time at most.
const WRITE_EVERY_S: u64 = 60;

/// Where a service keeps its reports and events.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory of all services.
    pub base: PathBuf,
    /// The service's directory in `base`. A number is added while another service uses the name.
    pub name: String,
    /// The description of the service, for later readers.
    pub about: About,
}

/// The service's directory, for the next binary in an upgrade.
#[derive(Debug, Deserialize, Serialize)]
pub struct KeptState {
    name: String,
    lock: Option<RawFd>,
}

/// The kept reports.
#[derive(Debug)]
pub struct Kept {
    /// JSON objects by their id, the oldest first; never more than `reports_max`.
    reports: BTreeMap<ReportId, String>,
    reports_max: usize,
    /// The greatest id that is known to have been used.
    newest: ReportId,
    history: History,
    /// When the history is written next, in Unix seconds.
    history_due: u64,
    disk: Option<Disk>,
    /// Dropped after the disk, so that no other service claims the directory during a write.
    claimed: Option<Claimed>,
    warnings: VecDeque<String>,
}

impl Kept {
    /// Loads the newest `reports_max` reports of this place (at least 1). Without a place, or with
    /// an unusable one, reports are kept in memory only.
    pub fn open(place: Option<Place>, reports_max: usize) -> Self {
        Self::take_over(place, reports_max, None)
    }

    /// Like [`Kept::open`], in the directory that the previous binary of this process has claimed,
    /// with its open lock.
    pub fn take_over(
        place: Option<Place>,
        reports_max: usize,
        handed: Option<(KeptState, Option<OwnedFd>)>,
    ) -> Self {
        let mut kept = Self {
            reports: BTreeMap::new(),
            reports_max: reports_max.max(1),
            newest: ReportId::default(),
            history: History::default(),
            history_due: 0,
            disk: None,
            claimed: None,
            warnings: VecDeque::new(),
        };
        let Some(place) = place else { return kept };
        if let Err(error) = kept.load(&place, handed) {
            kept.warnings.push_back(format!(
                "keep reports and events in {}: {error}; they are lost when this process ends",
                place.base.join(&place.name).display()
            ));
        }
        kept
    }

    /// The state that the next binary needs to continue in the same directory.
    pub fn hand_over(&self) -> Option<KeptState> {
        let claimed = self.claimed.as_ref()?;
        Some(KeptState {
            name: claimed.name().to_owned(),
            lock: claimed.lock().map(File::as_raw_fd),
        })
    }

    /// Keeps an event, a JSON object in one line.
    pub fn keep_event(&mut self, line: String) {
        if let Some(disk) = &mut self.disk {
            disk.write_event(line);
        }
    }

    /// Keeps what was observed at `at`, in Unix seconds. The history is written each minute.
    pub fn observe(&mut self, at: u64, observation: &Observation) {
        self.history.observe(at, observation);
        // The clock may have been set back.
        let is_due = at >= self.history_due || at.saturating_add(WRITE_EVERY_S) < self.history_due;
        if is_due {
            self.history_due = at.saturating_add(WRITE_EVERY_S);
            self.write_history();
        }
    }

    /// Keeps the end of a worker, at `at` in Unix seconds.
    pub fn note_end(&mut self, at: u64, end: &End) {
        self.history.on_ended(at, end);
    }

    /// What was observed.
    pub const fn history(&self) -> &History {
        &self.history
    }

    fn write_history(&mut self) {
        if let Some(disk) = &mut self.disk
            && !self.history.is_empty()
        {
            disk.write_history(&self.history);
        }
    }

    /// Waits until everything is on disk, for a second at most.
    pub fn flush(&mut self) {
        self.write_history();
        if let Some(disk) = &mut self.disk {
            disk.flush();
        }
    }

    /// Keeps a report of at most 64 KiB; the report lists what was left out. The oldest report
    /// beyond `reports_max` is removed. The `id` is added to the document.
    pub fn keep(&mut self, id: ReportId, document: Value) {
        let text = bounded::text(id, document);
        if let Some(disk) = &mut self.disk {
            disk.write(id, text.clone());
        }
        self.newest = self.newest.max(id);
        self.reports.insert(id, text);
        while self.reports.len() > self.reports_max {
            self.reports.pop_first();
        }
    }

    /// The next warning.
    pub fn poll_warning(&mut self) -> Option<String> {
        let problem = || self.disk.as_ref().and_then(Disk::problem);
        self.warnings.pop_front().or_else(problem)
    }

    /// An unused id: the one after the newest.
    pub const fn next_id(&self) -> ReportId {
        self.newest.next()
    }

    /// One report, a JSON object.
    pub fn get(&self, id: ReportId) -> Option<&str> {
        self.reports.get(&id).map(String::as_str)
    }

    /// All reports as a JSON array, the newest last.
    pub fn all(&self) -> String {
        let all: Vec<_> = self.reports.values().map(String::as_str).collect();
        format!("[{}]", all.join(","))
    }

    /// The number of reports that were not written, because the disk was too slow.
    pub fn unwritten(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::unwritten)
    }

    fn load(
        &mut self,
        place: &Place,
        handed: Option<(KeptState, Option<OwnedFd>)>,
    ) -> io::Result<()> {
        let base = PrivateDir::make(&place.base, 0o700)?;
        let is_upgrade = handed.is_some();
        let claimed = match handed {
            Some((KeptState { name, .. }, lock)) => {
                base.claimed(&name, lock.map(File::from), Contents::Kept)?
            }
            None => base.claim(&place.name, 0o700, Contents::Kept)?,
        };
        let directory = Arc::new(claimed.directory().try_clone()?);
        let found = disk::list(&directory)?;
        let ids: Vec<_> = found.iter().rev().take(self.reports_max).copied().collect();
        let mut broken = Vec::new();
        for id in ids {
            match read(&directory, id) {
                Ok(text) => {
                    self.reports.insert(id, text);
                }
                Err(why) => broken.push(format!("{id}.json is left out: {why}")),
            }
        }
        self.warn_of(directory.path(), &broken);
        self.newest = found.last().copied().unwrap_or_default();
        self.load_history(&directory, is_upgrade);
        disk::check_writable(&directory)?;
        archive::describe(&directory, &place.about)?;
        self.claimed = Some(claimed);
        self.disk = Some(Disk::new(directory, self.reports_max, found));
        Ok(())
    }

    /// Continues with the history on disk. After an upgrade, the same workers still run.
    fn load_history(&mut self, directory: &PrivateDir, is_upgrade: bool) {
        match history::read(directory) {
            Ok(Some(history)) => self.history = history,
            Ok(None) => return,
            Err(why) => {
                let place = directory.path().join(history::FILE);
                let warning = format!("{} is left out: {why}", place.display());
                self.warnings.push_back(warning);
                return;
            }
        }
        if !is_upgrade {
            self.history.on_restarted();
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

fn read(directory: &PrivateDir, id: ReportId) -> Result<String, String> {
    let text = disk::read(directory, id).map_err(|error| error.to_string())?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(_)) => Ok(text.trim().to_owned()),
        Ok(_) => Err("it is not a report".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.flush();
    }
}

impl KeptState {
    /// The descriptor of the lock.
    pub const fn lock(&self) -> Option<RawFd> {
        self.lock
    }
}
