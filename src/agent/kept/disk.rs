//! The service's directory, and the one thread that writes there: a disk that hangs or is full
//! costs reports and events and never the supervisor's time.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::{private_dir::PrivateDir, units::ReportId};

use super::{bounded::LONGEST, events::EventFile};

/// So many reports wait for a slow disk.
const REPORTS: usize = 8;
/// Maximum reports and events that wait together.
const QUEUE: usize = 1024;
/// At the end the disk has as long.
const FAREWELL: Duration = Duration::from_secs(1);
/// The thread only writes; the default of 2 MiB would be mapped for nothing.
const STACK: usize = 64 << 10;

/// The near end.
#[derive(Debug)]
pub(super) struct Disk {
    directory: Arc<PrivateDir>,
    most: usize,
    /// Reports that wait.
    waiting: Arc<AtomicUsize>,
    /// Events that were left out since the last written line.
    missed: u64,
    /// What is there, or will be when the thread has caught up.
    present: BTreeSet<ReportId>,
    /// Started with the first report.
    scribe: Option<Scribe>,
    unwritten: Arc<AtomicU64>,
    /// Kept, so that the far end always has somebody to tell.
    telling: Sender<String>,
    troubles: Receiver<String>,
}

#[derive(Debug)]
struct Scribe {
    jobs: SyncSender<Job>,
    /// Disconnected when the thread has ended.
    ended: Receiver<Infallible>,
}

#[derive(Debug)]
enum Job {
    Report {
        id: ReportId,
        text: String,
        /// Older reports that are removed for it.
        gone: Vec<ReportId>,
    },
    /// An event's line, and the number of events left out before it.
    Event { line: String, missed: u64 },
}

impl Disk {
    /// A directory that is prepared, and the reports that are in it.
    pub(super) fn new(
        directory: Arc<PrivateDir>,
        most: usize,
        present: BTreeSet<ReportId>,
    ) -> Self {
        let (telling, troubles) = channel();
        Self {
            directory,
            most,
            waiting: Arc::default(),
            missed: 0,
            present,
            scribe: None,
            unwritten: Arc::default(),
            telling,
            troubles,
        }
    }

    /// Has a report written and the oldest removed, or counts it as unwritten. Never blocks.
    pub(super) fn write(&mut self, id: ReportId, text: String) {
        let mut present = self.present.clone();
        present.insert(id);
        let too_many = present.len().saturating_sub(self.most);
        let gone: Vec<_> = present.iter().take(too_many).copied().collect();
        present.retain(|id| !gone.contains(id));
        let job = Job::Report { id, text, gone };
        if self.waiting.fetch_add(1, Relaxed) < REPORTS && self.send(job) {
            self.present = present;
        } else {
            self.waiting.fetch_sub(1, Relaxed);
            self.unwritten.fetch_add(1, Relaxed);
        }
    }

    /// Has an event written. Never blocks: what cannot be written now is counted in the file.
    pub(super) fn write_event(&mut self, line: String) {
        let missed = self.missed;
        if self.send(Job::Event { line, missed }) {
            self.missed = 0;
        } else {
            self.missed += 1;
        }
    }

    fn send(&mut self, job: Job) -> bool {
        if self.scribe.is_none() {
            self.start();
        }
        let taken = self.scribe.as_ref().map(|scribe| scribe.jobs.try_send(job));
        matches!(taken, Some(Ok(())))
    }

    /// Waits until all is written, for a second at most.
    pub(super) fn flush(&mut self) {
        if let Some(Scribe { jobs, ended }) = self.scribe.take() {
            drop(jobs);
            // Disconnected is what is waited for; a disk that hangs is not.
            let _ended = ended.recv_timeout(FAREWELL);
        }
    }

    /// What went wrong, told once for each time that it began.
    pub(super) fn trouble(&self) -> Option<String> {
        self.troubles.try_recv().ok()
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten.load(Relaxed)
    }

    fn start(&mut self) {
        let (jobs, taken) = sync_channel(QUEUE);
        let (end, ended) = channel();
        let mut far = Far {
            directory: Arc::clone(&self.directory),
            events: EventFile::new(Arc::clone(&self.directory)),
            waiting: Arc::clone(&self.waiting),
            unwritten: Arc::clone(&self.unwritten),
            telling: self.telling.clone(),
            failing: false,
        };
        let run = move || {
            // Dropped with the thread, which tells the near end.
            let _end: Sender<Infallible> = end;
            taken.iter().for_each(|job| far.carry_out(job));
        };
        let thread = thread::Builder::new()
            .name("reports".to_owned())
            .stack_size(STACK);
        match thread.spawn(run) {
            Ok(_) => self.scribe = Some(Scribe { jobs, ended }),
            Err(error) => {
                // The near end is here to hear it.
                let _told = self.telling.send(format!("start a thread: {error}"));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The far end, in its thread.
struct Far {
    directory: Arc<PrivateDir>,
    events: EventFile,
    waiting: Arc<AtomicUsize>,
    unwritten: Arc<AtomicU64>,
    telling: Sender<String>,
    failing: bool,
}

impl Far {
    fn carry_out(&mut self, job: Job) {
        let written = match job {
            Job::Report { id, text, gone } => {
                let written = self.report(id, &text, &gone);
                self.waiting.fetch_sub(1, Relaxed);
                if written.is_err() {
                    self.unwritten.fetch_add(1, Relaxed);
                }
                written
            }
            Job::Event { line, missed } => self
                .events
                .write(&line, missed)
                .map_err(|error| format!("write the events: {error}")),
        };
        let Err(why) = written else {
            self.failing = false;
            return;
        };
        if !self.failing {
            self.failing = true;
            // At the end nobody may listen any more.
            let _told = self.telling.send(why);
        }
    }

    fn report(&self, id: ReportId, text: &str, gone: &[ReportId]) -> Result<(), String> {
        for old in gone.iter().filter(|old| **old != id) {
            // It may have been removed by hand.
            let _gone = self.directory.remove(&file_name(*old));
        }
        if gone.contains(&id) {
            return Ok(());
        }
        let line = format!("{text}\n");
        self.directory
            .replace(&file_name(id), line.as_bytes(), 0o600)
            .map_err(|error| format!("write the report {error}"))
    }
}

/// Tries out the directory.
pub(super) fn try_out(directory: &PrivateDir) -> io::Result<()> {
    directory.replace(".trial", b"", 0o600)?;
    directory.remove(".trial")
}

/// The reports in the directory. What a crash left half written is removed.
pub(super) fn list(directory: &PrivateDir) -> io::Result<BTreeSet<ReportId>> {
    let mut found = BTreeSet::new();
    for name in directory.names()? {
        let Some(name) = name.to_str() else { continue };
        if let Some(id) = id_in(name, "", ".json") {
            found.insert(id);
        } else if id_in(name, ".", ".json.half").is_some() {
            // The next one of that name replaces it in any case.
            let _gone = directory.remove(name);
        }
    }
    Ok(found)
}

/// One report as it was written.
pub(super) fn read(directory: &PrivateDir, id: ReportId) -> io::Result<String> {
    // One byte more for the line feed.
    let most = u64::try_from(LONGEST + 1).unwrap_or(u64::MAX);
    let text = directory.read(&file_name(id), most)?;
    String::from_utf8(text).map_err(io::Error::other)
}

fn file_name(id: ReportId) -> String {
    format!("{id}.json")
}

/// `r3.json` has the id r3; `r03.json` is not ours.
fn id_in(name: &str, before: &str, after: &str) -> Option<ReportId> {
    let text = name.strip_prefix(before)?.strip_suffix(after)?;
    let id: ReportId = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_does_not_keep_up_costs_reports_and_no_time() {
        let home = tempfile::tempdir().unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut disk = Disk::new(directory, 2, BTreeSet::new());
        // Nobody takes what is in this queue.
        let (jobs, taken) = sync_channel(2);
        let (_end, ended) = channel();
        disk.scribe = Some(Scribe { jobs, ended });
        for id in 1..=4 {
            disk.write(ReportId(id), "{}".to_owned());
        }
        assert_eq!(disk.unwritten(), 2);
        assert_eq!(taken.try_iter().count(), 2);

        // What was not written removed nothing; the next one makes up for it.
        disk.write(ReportId(5), "{}".to_owned());
        let Job::Report { id, gone, .. } = taken.try_recv().unwrap() else {
            panic!("a report was sent");
        };
        assert_eq!((id, gone), (ReportId(5), vec![ReportId(1)]));
    }

    #[test]
    fn events_that_a_slow_disk_did_not_take_are_counted_before_the_next_one() {
        let home = tempfile::tempdir().unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut disk = Disk::new(directory, 2, BTreeSet::new());
        let (jobs, taken) = sync_channel(1);
        let (_end, ended) = channel();
        disk.scribe = Some(Scribe { jobs, ended });
        for event in ["one", "two", "three"] {
            disk.write_event(event.to_owned());
        }
        let next = || match taken.try_recv().unwrap() {
            Job::Event { line, missed } => (line, missed),
            Job::Report { .. } => panic!("an event was sent"),
        };
        assert_eq!(next(), ("one".to_owned(), 0));
        disk.write_event("four".to_owned());
        assert_eq!(next(), ("four".to_owned(), 2));
    }
}
