//! The limit of open files (getrlimit(2), `RLIMIT_NOFILE`): ours, the command's, and what happens
//! when ours is reached.
//!
//! Each worker that is held takes two or three descriptors. Some stay free at all times: for
//! clients of the control socket, for the next start, and for files that are opened for a moment. A
//! worker without a free descriptor is capped all the same, because a cap takes none, and is held
//! as soon as descriptors are free.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use super::{Host, pidfd::PidFd, rlimit};
use crate::{
    supervisor::{
        event::{CapMechanism, Ended, Event, Oom},
        spec::Rlimit,
    },
    units::{Bytes, WorkerId},
};

/// The highest limit that we set: it is enough for 20,000 workers.
pub const MOST: u64 = 65_536;
/// How many we may have open, once our limit is raised.
pub fn most() -> u64 {
    wanted(rlimit::now(0, "nofile").map_or(None, |now| now.hard))
}

fn wanted(hard: Option<u64>) -> u64 {
    hard.unwrap_or(MOST).min(MOST)
}

/// Descriptors that stay free, but at most a quarter of the limit.
const RESERVE: u64 = 64;

/// Our limit, and the workers that wait for descriptors.
#[derive(Debug)]
pub(super) struct OpenFiles {
    limit: u64,
    /// The soft limit that we were started with, which the command gets; `None`: it is unlimited.
    given: Option<u64>,
    waiting: Vec<Waiting>,
    /// It was reported that workers wait.
    told: bool,
}

/// A worker that is not held, because no descriptors are free.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Waiting {
    pub(super) worker: WorkerId,
    pub(super) pid: i32,
    pub(super) cap: Option<Bytes>,
}

/// What a successor needs to know.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct HandedFiles {
    given: Option<u64>,
    waiting: Vec<Waiting>,
}

impl OpenFiles {
    /// Raises our soft limit. `handed` comes from the binary that this process was before, which
    /// has raised the limit already.
    pub(super) fn raise(handed: Option<HandedFiles>) -> Self {
        let now = rlimit::now(0, "nofile").map_or(None, |now| now.soft);
        let handed = handed.unwrap_or(HandedFiles {
            given: now,
            waiting: Vec::new(),
        });
        let mut files = Self {
            limit: 0,
            given: handed.given,
            waiting: handed.waiting,
            told: false,
        };
        files.raise_again();
        files
    }

    /// Follows the hard limit, which an operator may have raised (prlimit(1)).
    fn raise_again(&mut self) {
        let Ok(now) = rlimit::now(0, "nofile") else {
            return;
        };
        let wanted = wanted(now.hard);
        let new = Rlimit {
            soft: Some(wanted),
            hard: now.hard,
        };
        let raised = now.soft == Some(wanted) || rlimit::set(0, "nofile", new).is_ok();
        self.limit = if raised {
            wanted
        } else {
            now.soft.unwrap_or(MOST)
        };
    }

    /// The soft limit of the command; `None`: it is unlimited.
    pub(super) const fn given(&self) -> Option<u64> {
        self.given
    }

    pub(super) fn hand_over(&self) -> HandedFiles {
        HandedFiles {
            given: self.given,
            waiting: self.waiting.clone(),
        }
    }

    /// A descriptor that was just opened leaves the reserve free: the kernel gives the lowest
    /// number that is not in use (open(2)).
    pub(super) fn leaves_reserve(&self, opened: &impl AsFd) -> bool {
        let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        number.saturating_add(RESERVE.min(self.limit / 4)) < self.limit
    }

    /// Whether one more could be opened that leaves the reserve free.
    pub(super) fn has_room(&self, any: &impl AsFd) -> bool {
        match fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(0)) {
            Ok(copy) => {
                #[expect(unsafe_code, reason = "fcntl(2) gives a number")]
                // SAFETY: the kernel has just given it to us.
                let copy = unsafe { OwnedFd::from_raw_fd(copy) };
                self.leaves_reserve(&copy)
            }
            Err(_) => false,
        }
    }

    /// The processes of waiting workers.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (i32, WorkerId)> {
        (self.waiting.iter()).map(|waiting| (waiting.pid, waiting.worker))
    }

    fn forget(&mut self, worker: WorkerId) {
        self.waiting.retain(|waiting| waiting.worker != worker);
    }
}

impl Host {
    /// Lets a worker wait for a free descriptor, capped and not watched.
    pub(super) fn wait_for_room(&mut self, worker: WorkerId, pid: i32, cap: Option<Bytes>) {
        // The group keeps its cap without an open descriptor.
        drop(self.make_worker_group(worker, pid, cap));
        if self.groups.caps() == CapMechanism::Rlimit {
            // One that has ended needs none.
            let _ = rlimit::set_rail(&self.proc, pid, cap);
        }
        self.files.waiting.push(Waiting { worker, pid, cap });
        self.upkeep.soon();
    }

    /// Holds the waiting workers that there is room for, and reports when waiting begins and ends.
    pub(super) fn hold_waiting(&mut self) {
        if self.files.waiting.is_empty() && !self.files.told {
            return;
        }
        self.files.raise_again();
        for waiting in self.files.waiting.clone() {
            let is_gone = PidFd::open(waiting.pid)
                .is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH));
            if is_gone {
                self.ended_unheld(waiting.worker);
            } else if self.files.has_room(&self.epoll.0) {
                self.files.forget(waiting.worker);
                self.adopt(waiting.worker, waiting.pid, waiting.cap);
            }
        }
        let workers = u32::try_from(self.files.waiting.len()).unwrap_or(u32::MAX);
        if (workers > 0) != self.files.told {
            self.files.told = workers > 0;
            let limit = self.files.limit;
            self.events.push_back(Event::Unwatched { workers, limit });
        }
    }

    /// A worker's process ended before it was held, and its master has buried it.
    pub(super) fn ended_unheld(&mut self, worker: WorkerId) {
        // The group that it may have had while it waited.
        if self.forget_waiting(worker)
            && let Ok(group) = self.groups.leaf(&worker.to_string())
        {
            self.gone.push(group);
            self.upkeep.soon();
        }
        self.events.push_back(Event::WorkerEnded {
            worker,
            ended: Ended::Unseen,
            oom: Oom::No,
            peak: None,
        });
    }

    /// Returns whether the worker waited.
    pub(super) fn forget_waiting(&mut self, worker: WorkerId) -> bool {
        let before = self.files.waiting.len();
        self.files.forget(worker);
        self.files.waiting.len() < before
    }

    /// The process of a waiting worker, held for a moment with a descriptor of the reserve.
    pub(super) fn waiting_process(&self, worker: WorkerId) -> Option<PidFd> {
        let mut all = self.files.waiting.iter();
        let waiting = all.find(|waiting| waiting.worker == worker)?;
        PidFd::open(waiting.pid).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_stay_free_at_all_times() {
        let files = |limit| OpenFiles {
            limit,
            given: Some(limit),
            waiting: Vec::new(),
            told: false,
        };
        let any = std::fs::File::open("/dev/null").unwrap();
        let number = u64::try_from(any.as_fd().as_raw_fd()).unwrap();
        for (limit, has_room) in [
            (number + 65, true),
            (number + 64, false),
            (number + 1, false),
            (MOST, true),
        ] {
            // Where there are few at all, fewer are kept.
            let has_room = has_room || number + limit / 4 < limit;
            assert_eq!(
                files(limit).leaves_reserve(&any),
                has_room,
                "{number} of {limit}"
            );
        }
        assert!(files(MOST).has_room(&any));
        assert!(!files(1).has_room(&any));
    }
}
