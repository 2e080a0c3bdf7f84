//! The service's directory, and the thread that writes there. If the disk hangs or is full,
//! reports, events and history are lost; the supervisor never waits for it.

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

use crate::{private_dir::PrivateDir, supervisor::history::History, units::ReportId};

use super::{bounded::REPORT_MAX, events::EventFile, history};

/// Maximum reports in the queue for a slow disk.
const REPORTS: usize = 8;
/// Maximum reports and events in the queue.
const QUEUE: usize = 1024;
/// Time limit for writing the rest at the end.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// The thread only writes, and does not need the default of 2 MiB.
const STACK: usize = 64 << 10;

/// The supervisor's side.
#[derive(Debug)]
pub(super) struct Disk {
    directory: Arc<PrivateDir>,
    reports_max: usize,
    /// The number of reports in the queue.
    waiting: Arc<AtomicUsize>,
    /// Events that were left out since the last written line.
    missed: u64,
    /// The reports on disk, once the thread has written its queue.
    present: BTreeSet<ReportId>,
    /// The thread, started with the first job.
    thread: Option<WriterThread>,
    unwritten: Arc<AtomicU64>,
    /// A sender that stays open, so that the channel always has one.
    problem_sender: Sender<String>,
    problems: Receiver<String>,
}

#[derive(Debug)]
struct WriterThread {
    jobs: SyncSender<Job>,
    /// Is disconnected when the thread has ended.
    ended: Receiver<Infallible>,
}

#[derive(Debug)]
enum Job {
    Report {
        id: ReportId,
        text: String,
        /// Older reports to remove for this one.
        superseded: Vec<ReportId>,
    },
    /// An event's line, and the number of events left out before it.
    Event { line: String, missed: u64 },
    /// A copy, so that the thread does the work of writing it as text.
    History(Box<History>),
}

impl Disk {
    /// A prepared directory, and the reports in it.
    pub(super) fn new(
        directory: Arc<PrivateDir>,
        reports_max: usize,
        present: BTreeSet<ReportId>,
    ) -> Self {
        let (problem_sender, problems) = channel();
        Self {
            directory,
            reports_max,
            waiting: Arc::default(),
            missed: 0,
            present,
            thread: None,
            unwritten: Arc::default(),
            problem_sender,
            problems,
        }
    }

    /// Queues a report for writing and the oldest for removal, or counts it as unwritten. Never
    /// blocks.
    pub(super) fn write(&mut self, id: ReportId, text: String) {
        let mut present = self.present.clone();
        present.insert(id);
        let too_many = present.len().saturating_sub(self.reports_max);
        let superseded: Vec<_> = present.iter().take(too_many).copied().collect();
        present.retain(|id| !superseded.contains(id));
        let job = Job::Report {
            id,
            text,
            superseded,
        };
        if self.waiting.fetch_add(1, Relaxed) < REPORTS && self.send(job) {
            self.present = present;
        } else {
            self.waiting.fetch_sub(1, Relaxed);
            self.unwritten.fetch_add(1, Relaxed);
        }
    }

    /// Queues an event for writing. Never blocks. The file gets the number of events that could not
    /// be queued.
    pub(super) fn write_event(&mut self, line: String) {
        let missed = self.missed;
        if self.send(Job::Event { line, missed }) {
            self.missed = 0;
        } else {
            self.missed += 1;
        }
    }

    /// Queues the history for writing. Never blocks. If the queue is full, the next one is written.
    pub(super) fn write_history(&mut self, history: &History) {
        self.send(Job::History(Box::new(history.clone())));
    }

    /// Queues a job. False: the queue is full, or the thread has ended.
    fn send(&mut self, job: Job) -> bool {
        if self.thread.is_none() {
            self.start_thread();
        }
        let queued = self.thread.as_ref().map(|thread| thread.jobs.try_send(job));
        matches!(queued, Some(Ok(())))
    }

    /// Waits until all is written, for a second at most.
    pub(super) fn flush(&mut self) {
        if let Some(WriterThread { jobs, ended }) = self.thread.take() {
            drop(jobs);
            // The wait ends when the channel is disconnected, or at the time limit if the disk
            // hangs.
            let _ended = ended.recv_timeout(FLUSH_MAX);
        }
    }

    /// The next warning. A problem causes one warning, when it begins.
    pub(super) fn problem(&self) -> Option<String> {
        self.problems.try_recv().ok()
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten.load(Relaxed)
    }

    fn start_thread(&mut self) {
        let (jobs, jobs_to_do) = sync_channel(QUEUE);
        let (end, ended) = channel();
        let mut writer = Writer {
            directory: Arc::clone(&self.directory),
            events: EventFile::new(Arc::clone(&self.directory)),
            waiting: Arc::clone(&self.waiting),
            unwritten: Arc::clone(&self.unwritten),
            problem_sender: self.problem_sender.clone(),
            failing: false,
            history_failing: false,
        };
        let run = move || {
            // Dropped with the thread, which disconnects the channel.
            let _end: Sender<Infallible> = end;
            jobs_to_do.iter().for_each(|job| writer.carry_out(job));
        };
        let thread = thread::Builder::new()
            .name("reports".to_owned())
            .stack_size(STACK);
        match thread.spawn(run) {
            Ok(_) => self.thread = Some(WriterThread { jobs, ended }),
            Err(error) => {
                // The receiver exists until the thread has ended.
                let _told = self.problem_sender.send(format!("start a thread: {error}"));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The thread's side.
struct Writer {
    directory: Arc<PrivateDir>,
    events: EventFile,
    waiting: Arc<AtomicUsize>,
    unwritten: Arc<AtomicU64>,
    problem_sender: Sender<String>,
    failing: bool,
    /// The same for the history, which may need room when an event still fits.
    history_failing: bool,
}

impl Writer {
    fn carry_out(&mut self, job: Job) {
        let written = match job {
            Job::Report {
                id,
                text,
                superseded,
            } => {
                let written = self.write_report(id, &text, &superseded);
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
            Job::History(history) => {
                let written = history::write(&self.directory, &history)
                    .map_err(|error| format!("write the history: {error}"));
                return warn_once(&mut self.history_failing, &self.problem_sender, written);
            }
        };
        warn_once(&mut self.failing, &self.problem_sender, written);
    }

    fn write_report(
        &self,
        id: ReportId,
        text: &str,
        superseded: &[ReportId],
    ) -> Result<(), String> {
        for old in superseded.iter().filter(|old| **old != id) {
            // It may have been removed by hand.
            let _gone = self.directory.remove(&file_name(*old));
        }
        if superseded.contains(&id) {
            return Ok(());
        }
        let line = format!("{text}\n");
        self.directory
            .replace(&file_name(id), line.as_bytes(), 0o600)
            .map_err(|error| format!("write the report {error}"))
    }
}

/// Warns when a problem begins.
fn warn_once(failing: &mut bool, sender: &Sender<String>, written: Result<(), String>) {
    let was_failing = std::mem::replace(failing, written.is_err());
    if let (Err(why), false) = (written, was_failing) {
        // At the end the receiver may be gone.
        let _told = sender.send(why);
    }
}

/// Tries to write to the directory.
pub(super) fn check_writable(directory: &PrivateDir) -> io::Result<()> {
    directory.replace(".trial", b"", 0o600)?;
    directory.remove(".trial")
}

/// The reports in the directory. Removes reports that a crash has left half-written.
pub(super) fn list(directory: &PrivateDir) -> io::Result<BTreeSet<ReportId>> {
    let mut found = BTreeSet::new();
    for name in directory.names()? {
        let Some(name) = name.to_str() else { continue };
        if let Some(id) = id_in(name, "", ".json") {
            found.insert(id);
        } else if id_in(name, ".", ".json.half").is_some() {
            // The next report of that name replaces it in any case.
            let _gone = directory.remove(name);
        }
    }
    Ok(found)
}

/// Reads one report.
pub(super) fn read(directory: &PrivateDir, id: ReportId) -> io::Result<String> {
    // One byte more for the line feed.
    let length_max = u64::try_from(REPORT_MAX + 1).unwrap_or(u64::MAX);
    let text = directory.read(&file_name(id), length_max)?;
    String::from_utf8(text).map_err(io::Error::other)
}

fn file_name(id: ReportId) -> String {
    format!("{id}.json")
}

/// Parses the id in a file name: `r3.json` has the id r3; `r03.json` is not one of our files.
fn id_in(name: &str, before: &str, after: &str) -> Option<ReportId> {
    let text = name.strip_prefix(before)?.strip_suffix(after)?;
    let id: ReportId = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_loses_reports_and_never_blocks() {
        let home = tempfile::tempdir().unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut disk = Disk::new(directory, 2, BTreeSet::new());
        // Nothing is taken out of this queue.
        let (jobs, jobs_to_do) = sync_channel(2);
        let (_end, ended) = channel();
        disk.thread = Some(WriterThread { jobs, ended });
        for id in 1..=4 {
            disk.write(ReportId(id), "{}".to_owned());
        }
        assert_eq!(disk.unwritten(), 2);
        assert_eq!(jobs_to_do.try_iter().count(), 2);

        // A report that was not written removed no other; the next one removes the oldest.
        disk.write(ReportId(5), "{}".to_owned());
        let Job::Report { id, superseded, .. } = jobs_to_do.try_recv().unwrap() else {
            panic!("a report was sent");
        };
        assert_eq!((id, superseded), (ReportId(5), vec![ReportId(1)]));
    }

    #[test]
    fn events_that_a_slow_disk_loses_are_counted_before_the_next_event() {
        let home = tempfile::tempdir().unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut disk = Disk::new(directory, 2, BTreeSet::new());
        let (jobs, jobs_to_do) = sync_channel(1);
        let (_end, ended) = channel();
        disk.thread = Some(WriterThread { jobs, ended });
        for event in ["one", "two", "three"] {
            disk.write_event(event.to_owned());
        }
        let next = || match jobs_to_do.try_recv().unwrap() {
            Job::Event { line, missed } => (line, missed),
            Job::Report { .. } | Job::History(_) => panic!("an event was sent"),
        };
        assert_eq!(next(), ("one".to_owned(), 0));
        disk.write_event("four".to_owned());
        assert_eq!(next(), ("four".to_owned(), 2));
    }
}
