//! Exact looks, in a thread of their own: `smaps_rollup` takes about 20 ms a gigabyte, `smaps`
//! twice that, and the loop must not wait for it.

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

use super::{clock, procfs::Proc};
use crate::{
    supervisor::event::{Exact, Sample},
    units::{Bytes, WorkerId},
};

/// Whose memory to look at. There is at most one job a worker at a time: the decider sees to it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) worker: WorkerId,
    pub(super) pids: Vec<i32>,
    /// Maximum error of its private memory.
    pub(super) within: Bytes,
    /// Anonymous pages that its group was charged with when the look was asked for.
    pub(super) charged: Option<Bytes>,
}

/// The asking end.
#[derive(Debug)]
pub(super) struct Looker {
    jobs: Sender<Job>,
    seen: Receiver<(WorkerId, Option<Sample>)>,
    wake: Arc<EventFd>,
}

impl Looker {
    /// Starts the thread; it ends with its `Looker`.
    pub(super) fn start(proc: Proc) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let bell = Arc::clone(&wake);
        let (jobs, work) = channel::<Job>();
        let (done, seen) = channel();
        thread::Builder::new()
            .name("looker".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                for job in work {
                    let sample = look(&proc, &job);
                    if done.send((job.worker, sample)).is_err() {
                        return;
                    }
                    // A full counter means that the bell has rung already.
                    let _ = bell.write(1);
                }
            })?;
        Ok(Self { jobs, seen, wake })
    }

    /// Asks for a look; the answer comes by [`Looker::take`].
    pub(super) fn ask(&self, job: Job) {
        // The thread lives as long as we do.
        let _ = self.jobs.send(job);
    }

    /// The looks that are done; `None` where all processes were gone.
    pub(super) fn take(&self) -> Vec<(WorkerId, Option<Sample>)> {
        let _ = self.wake.read();
        self.seen.try_iter().collect()
    }
}

impl AsFd for Looker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// All processes of one worker together. Those that have gone are left out.
fn look(proc: &Proc, job: &Job) -> Option<Sample> {
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
        // RACE: the process may be gone between the two reads; then its figures are those of
        // nobody, and its end is on its way.
        let (Ok(seen), Ok(statm)) = (proc.exact(pid, within, shared), proc.statm(pid)) else {
            continue;
        };
        let Ok(resident) = statm.read() else { continue };
        sample.rss = sample.rss.plus(resident.resident);
        sample.anon = sample.anon.plus(resident.resident.minus(resident.shared));
        // Before Linux 4.5 all that is shared might be shared memory.
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
