//! How many files we may have open (getrlimit(2), `RLIMIT_NOFILE`), what the command gets of it,
//! and what is done when there are no more.
//!
//! Each worker that is held takes two or three descriptors. Some stay free at all times: for
//! clients of the control socket, for the next start, and for the files that are opened for a
//! moment. A worker for whom there is no room is capped all the same, for that takes none, and is
//! held as soon as there is.

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

/// We ask for no more: it is enough for 20,000 workers.
pub const MOST: u64 = 65_536;
/// How many we may have open, once our limit is raised.
pub fn most() -> u64 {
    let hard = rlimit::now(0, "nofile").map_or(None, |now| now.hard);
    hard.unwrap_or(MOST).min(MOST)
}

/// So many stay free, or a quarter where there are few at all.
const RESERVE: u64 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct OpenFiles {
    limit: u64,
    /// The soft limit that we were started with, which the command gets; `None`: it is unlimited.
    given: Option<u64>,
    waiting: Vec<Waiting>,
    /// It was told that workers wait.
    told: bool,
}

/// A worker that is not held for want of descriptors.
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
    /// Raises our soft limit. `handed` is what the binary that this process was before has told: it
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

    /// An operator may have given us more (prlimit(1)).
    fn raise_again(&mut self) {
        let Ok(now) = rlimit::now(0, "nofile") else {
            return;
        };
        let wanted = now.hard.unwrap_or(MOST).min(MOST);
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

    /// Those who wait, by their processes.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (i32, WorkerId)> {
        (self.waiting.iter()).map(|waiting| (waiting.pid, waiting.worker))
    }

    fn forget(&mut self, worker: WorkerId) {
        self.waiting.retain(|waiting| waiting.worker != worker);
    }
}

impl Host {
    /// There is no room for this worker: it waits, capped and not watched.
    pub(super) fn wait_for_room(&mut self, worker: WorkerId, pid: i32, cap: Option<Bytes>) {
        // Nothing of the group stays open, and it holds its cap all the same.
        drop(self.make_worker_group(worker, pid, cap));
        if self.groups.caps() == CapMechanism::Rlimit {
            // One that has ended needs none.
            let _ = rlimit::set_rail(&self.proc, pid, cap);
        }
        self.files.waiting.push(Waiting { worker, pid, cap });
        self.upkeep.soon();
    }

    /// Holds those who wait, as far as there is room now, and tells when that has begun and ended.
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

    /// Whether it waited.
    pub(super) fn forget_waiting(&mut self, worker: WorkerId) -> bool {
        let before = self.files.waiting.len();
        self.files.forget(worker);
        self.files.waiting.len() < before
    }

    /// One who waits, held for a moment: the reserve has room for that.
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
