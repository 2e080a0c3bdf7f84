//! The reports' directory, and the one thread that writes there: a disk that hangs or is full costs
//! reports and never the supervisor's time.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::units::ReportId;

use super::bounded::LONGEST;

/// So many reports wait for a slow disk.
const QUEUE: usize = 8;
/// At the end the disk has as long.
const FAREWELL: Duration = Duration::from_secs(1);
/// The thread only writes; the default of 2 MiB would be mapped for nothing.
const STACK: usize = 64 << 10;

/// The near end.
#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    most: usize,
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
struct Job {
    id: ReportId,
    text: String,
    /// Those that go in its place.
    gone: Vec<ReportId>,
}

impl Disk {
    /// A directory that is prepared, and the reports that are in it.
    pub(super) fn new(directory: PathBuf, most: usize, present: BTreeSet<ReportId>) -> Self {
        let (telling, troubles) = channel();
        Self {
            directory,
            most,
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
        if self.scribe.is_none() {
            self.start();
        }
        let job = Job { id, text, gone };
        let taken = self.scribe.as_ref().map(|scribe| scribe.jobs.try_send(job));
        if matches!(taken, Some(Ok(()))) {
            self.present = present;
        } else {
            self.unwritten.fetch_add(1, Relaxed);
        }
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
            directory: self.directory.clone(),
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
    directory: PathBuf,
    unwritten: Arc<AtomicU64>,
    telling: Sender<String>,
    failing: bool,
}

impl Far {
    fn carry_out(&mut self, job: Job) {
        for id in job.gone.iter().filter(|id| **id != job.id) {
            // It may have been removed by hand.
            let _gone = fs::remove_file(path(&self.directory, *id));
        }
        let written = if job.gone.contains(&job.id) {
            Ok(())
        } else {
            write(&self.directory, job.id, &job.text)
        };
        let Err(error) = written else {
            self.failing = false;
            return;
        };
        self.unwritten.fetch_add(1, Relaxed);
        if !self.failing {
            self.failing = true;
            let place = path(&self.directory, job.id);
            let why = format!("write the report {}: {error}", place.display());
            // At the end nobody may listen any more.
            let _told = self.telling.send(why);
        }
    }
}

/// Makes the directory and tries it out.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    make(directory)?;
    let trial = directory.join(".trial.tmp");
    create(&trial)?;
    fs::remove_file(trial)
}

/// The reports in the directory. What a crash left half written is removed.
pub(super) fn list(directory: &Path) -> io::Result<BTreeSet<ReportId>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(id) = id_in(name, "", ".json") {
            found.insert(id);
        } else if id_in(name, ".", ".tmp").is_some() {
            // The next one of that name replaces it in any case.
            let _gone = fs::remove_file(directory.join(name));
        }
    }
    Ok(found)
}

/// One report as it was written.
pub(super) fn read(directory: &Path, id: ReportId) -> io::Result<String> {
    let path = path(directory, id);
    // A pipe would not let us go.
    if !fs::symlink_metadata(&path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    let mut text = String::new();
    // One more for the line feed, and one to see that it is too long.
    File::open(path)?.take(most + 2).read_to_string(&mut text)?;
    if text.trim_end().len() > LONGEST {
        return Err(io::Error::other("it is longer than a report"));
    }
    Ok(text)
}

/// Whole or not at all.
fn write(directory: &Path, id: ReportId, text: &str) -> io::Result<()> {
    make(directory)?;
    let draft = directory.join(format!(".{id}.tmp"));
    let written = create(&draft)
        .and_then(|mut file| writeln!(file, "{text}"))
        .and_then(|()| fs::rename(&draft, path(directory, id)));
    if written.is_err() {
        // It may not even be there.
        let _gone = fs::remove_file(&draft);
    }
    written
}

fn make(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)
}

/// A new file that only we may read.
fn create(path: &Path) -> io::Result<File> {
    // What a crash left may have another mode, or be a link.
    let _gone = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn path(directory: &Path, id: ReportId) -> PathBuf {
    directory.join(format!("{id}.json"))
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
        let mut disk = Disk::new(home.path().to_owned(), 2, BTreeSet::new());
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
        let job = taken.try_recv().unwrap();
        assert_eq!((job.id, job.gone), (ReportId(5), vec![ReportId(1)]));
    }
}
