//! Exact samples, on a thread of its own: `smaps_rollup` takes about 20 ms a gigabyte, `smaps`
//! twice that, and the loop must not block for it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::procfs::Proc;
use crate::{
    host::{clock, held::HeldId},
    supervisor::input::{Exact, Sample},
    units::Bytes,
};

/// A worker whose memory to read. The decider requests one sample at a time for each worker.
#[derive(Debug)]
pub(in crate::host) struct Job {
    pub(in crate::host) id: HeldId,
    pub(in crate::host) pids: Vec<i32>,
    /// Maximum error of its private memory.
    pub(in crate::host) within: Bytes,
    /// The anonymous pages charged to its group at the time of the request.
    pub(in crate::host) charged: Option<Bytes>,
}

/// The requesting end.
#[derive(Debug)]
pub(in crate::host) struct SmapsSampler {
    jobs: Sender<Job>,
    finished: Receiver<(HeldId, Option<Sample>)>,
    /// Readable when samples are finished, to wake the loop.
    wake: Arc<EventFd>,
}

impl SmapsSampler {
    /// Starts the thread. It ends when this is dropped.
    pub(in crate::host) fn start(proc: Proc) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let waker = Arc::clone(&wake);
        let (jobs, work) = channel::<Job>();
        let (results, finished) = channel();
        thread::Builder::new()
            .name("smaps".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                for job in work {
                    let sample = read(&proc, &job);
                    if results.send((job.id, sample)).is_err() {
                        return;
                    }
                    // A full counter means that the loop is about to wake.
                    let _ = waker.write(1);
                }
            })?;
        Ok(Self {
            jobs,
            finished,
            wake,
        })
    }

    /// Requests a sample. [`SmapsSampler::take`] returns it.
    pub(in crate::host) fn request(&self, job: Job) {
        // The thread lives as long as this.
        let _ = self.jobs.send(job);
    }

    /// The finished samples. `None` if all processes were gone.
    pub(in crate::host) fn take(&self) -> Vec<(HeldId, Option<Sample>)> {
        let _ = self.wake.read();
        self.finished.try_iter().collect()
    }
}

impl AsFd for SmapsSampler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Reads all processes of one worker. Those that have ended are left out.
fn read(proc: &Proc, job: &Job) -> Option<Sample> {
    let begun = clock::now();
    let mut sample = Sample::default();
    let mut exact = Exact {
        charged: job.charged,
        ..Exact::default()
    };
    let count = u64::try_from(job.pids.len()).unwrap_or(1).max(1);
    let within = Bytes(job.within.get() / count);
    let shared = count > 1;
    exact.share = Some(Bytes::ZERO);
    for &pid in &job.pids {
        // RACE: the process may end between the two reads. It is left out then, and its end is
        // about to be reported.
        let (Ok(seen), Ok(statm)) = (proc.exact(pid, within, shared), proc.statm(pid)) else {
            continue;
        };
        let Ok(resident) = statm.read() else { continue };
        sample.rss = sample.rss.plus(resident.resident);
        sample.anon = sample.anon.plus(resident.resident.minus(resident.shared));
        // Before Linux 4.5, all shared pages count as shared memory.
        let shmem = proc.shmem(pid).unwrap_or(resident.shared);
        sample.shmem = sample.shmem.plus(shmem);
        exact.private = exact.private.plus(seen.private);
        exact.anon = exact.anon.plus(seen.anon);
        exact.pss = exact.pss.plus(seen.pss);
        exact.share = exact
            .share
            .zip(seen.share)
            .map(|(sum, share)| sum.plus(share));
        sample.processes += 1;
    }
    sample.at = clock::now();
    exact.took = sample.at.since(begun).max(Duration::from_micros(1));
    sample.exact = Some(exact);
    (sample.processes > 0).then_some(sample)
}
