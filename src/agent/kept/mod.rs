//! Reports that are kept: the newest few, in memory and, where there is a place for them, on disk,
//! so that they outlive us; and the last events, on disk. The loop never waits for it.

mod archive;
mod bounded;
mod disk;
mod events;
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
    units::ReportId,
};

pub use archive::{About, Archive};
use disk::Disk;

/// So many files that cannot be read are named one by one.
const NAMED: usize = 3;

/// Where a service keeps its reports and events.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory of all services.
    pub base: PathBuf,
    /// The service's directory in `base`; a number is added while another service uses it.
    pub name: String,
    /// The service, for later readers.
    pub about: About,
}

/// The service's directory, for a successor.
#[derive(Debug, Deserialize, Serialize)]
pub struct Handed {
    name: String,
    lock: Option<RawFd>,
}

/// The reports that are kept.
#[derive(Debug)]
pub struct Kept {
    /// JSON objects by their id, the oldest first; never more than `most`.
    reports: BTreeMap<ReportId, String>,
    most: usize,
    /// The greatest id there ever was, as far as anybody remembers.
    newest: ReportId,
    disk: Option<Disk>,
    /// Dropped after the disk, so that no other service claims the directory during a write.
    claimed: Option<Claimed>,
    warnings: VecDeque<String>,
}

impl Kept {
    /// Takes up what is kept there, the newest `most` (at least 1). Without a place, or with one
    /// that cannot be used, reports are kept in memory only.
    pub fn open(place: Option<Place>, most: usize) -> Self {
        Self::take_over(place, most, None)
    }

    /// As [`Kept::open`], in the directory that a predecessor in this process has claimed, with the
    /// lock that it left open.
    pub fn take_over(
        place: Option<Place>,
        most: usize,
        handed: Option<(Handed, Option<OwnedFd>)>,
    ) -> Self {
        let mut kept = Self {
            reports: BTreeMap::new(),
            most: most.max(1),
            newest: ReportId::default(),
            disk: None,
            claimed: None,
            warnings: VecDeque::new(),
        };
        let Some(place) = place else { return kept };
        if let Err(error) = kept.take_up(&place, handed) {
            kept.warnings.push_back(format!(
                "keep reports and events in {}: {error}; they are lost when this process ends",
                place.base.join(&place.name).display()
            ));
        }
        kept
    }

    /// What a successor needs to go on in the same directory.
    pub fn hand_over(&self) -> Option<Handed> {
        let claimed = self.claimed.as_ref()?;
        Some(Handed {
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

    /// Waits until all is on disk, for a second at most.
    pub fn flush(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.flush();
        }
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

    fn take_up(
        &mut self,
        place: &Place,
        handed: Option<(Handed, Option<OwnedFd>)>,
    ) -> io::Result<()> {
        let base = PrivateDir::make(&place.base, 0o700)?;
        let claimed = match handed {
            Some((Handed { name, .. }, lock)) => {
                base.claimed(&name, lock.map(File::from), Contents::Kept)?
            }
            None => base.claim(&place.name, 0o700, Contents::Kept)?,
        };
        let directory = Arc::new(claimed.directory().again()?);
        let found = disk::list(&directory)?;
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
        self.warn_of(directory.path(), &broken);
        self.newest = found.last().copied().unwrap_or_default();
        disk::try_out(&directory)?;
        archive::describe(&directory, &place.about)?;
        self.claimed = Some(claimed);
        self.disk = Some(Disk::new(directory, self.most, found));
        Ok(())
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
        Ok(_) => Err("it is no report".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Handed {
    /// The descriptor of the lock.
    pub const fn lock(&self) -> Option<RawFd> {
        self.lock
    }
}
