//! The limit of open files (getrlimit(2), `RLIMIT_NOFILE`): ours, the command's, and what happens
//! when ours is reached.
//!
//! Each tracked worker takes two or three descriptors. A reserve stays free: for clients of the
//! control socket, for the next start, and for files that are open for a moment only. A worker
//! without a free descriptor still gets its cap, which takes none, and is tracked as soon as
//! descriptors are free.

use std::{
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use super::{pidfd::PidFd, rlimit};
use crate::{
    host::held::HeldId,
    supervisor::spec::Rlimit,
    units::{Bytes, Timestamp},
};

/// The highest limit that we set. It is enough for 20,000 workers.
pub const LIMIT_MAX: u64 = 65_536;
/// Our limit of open files, once it is raised.
pub fn raised_limit() -> u64 {
    limit_for(rlimit::get(0, "nofile").map_or(None, |now| now.hard))
}

fn limit_for(hard: Option<u64>) -> u64 {
    hard.unwrap_or(LIMIT_MAX).min(LIMIT_MAX)
}

/// Waiting is reported after this time. Clients and new workers need descriptors for a moment only.
const REPORT_AFTER: Duration = Duration::from_secs(1);

/// Descriptors in the reserve. The reserve is at most a quarter of the limit.
const RESERVE: u64 = 64;

/// Our limit, and the workers that wait for descriptors.
#[derive(Debug)]
pub(in crate::host) struct OpenFiles {
    limit: u64,
    /// The soft limit that we were started with, which the command gets. `None`: unlimited.
    given: Option<u64>,
    waiting: Vec<Waiting>,
    /// Since when there have been waiting workers.
    since: Option<Timestamp>,
    /// Whether waiting workers were reported.
    reported: bool,
}

/// A worker that is not tracked, because no descriptors are free.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(in crate::host) struct Waiting {
    pub(in crate::host) id: HeldId,
    pub(in crate::host) pid: i32,
    pub(in crate::host) cap: Option<Bytes>,
}

/// The state that the new binary needs.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(in crate::host) struct OpenFilesState {
    given: Option<u64>,
    waiting: Vec<Waiting>,
}

impl OpenFiles {
    /// Raises our soft limit. `state` comes from the previous binary of this process, which has
    /// raised the limit already.
    pub(in crate::host) fn raise(state: Option<OpenFilesState>) -> Self {
        let now = rlimit::get(0, "nofile").map_or(None, |now| now.soft);
        let state = state.unwrap_or(OpenFilesState {
            given: now,
            waiting: Vec::new(),
        });
        let mut files = Self {
            limit: 0,
            given: state.given,
            waiting: state.waiting,
            since: None,
            reported: false,
        };
        files.raise_again();
        files
    }

    /// Follows the hard limit, which an operator may have raised (prlimit(1)).
    fn raise_again(&mut self) {
        let Ok(now) = rlimit::get(0, "nofile") else {
            return;
        };
        let wanted = limit_for(now.hard);
        let new = Rlimit {
            soft: Some(wanted),
            hard: now.hard,
        };
        let raised = now.soft == Some(wanted) || rlimit::set(0, "nofile", new).is_ok();
        self.limit = if raised {
            wanted
        } else {
            now.soft.unwrap_or(LIMIT_MAX)
        };
    }

    /// The soft limit of the command. `None`: unlimited.
    pub(in crate::host) const fn given(&self) -> Option<u64> {
        self.given
    }

    pub(in crate::host) fn hand_over(&self) -> OpenFilesState {
        OpenFilesState {
            given: self.given,
            waiting: self.waiting.clone(),
        }
    }

    /// Whether a descriptor that was just opened leaves the reserve free. The kernel assigns the
    /// lowest number that is not in use (open(2)).
    pub(in crate::host) fn leaves_reserve(&self, opened: &impl AsFd) -> bool {
        let number = u64::try_from(opened.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        number.saturating_add(RESERVE.min(self.limit / 4)) < self.limit
    }

    /// Whether one more descriptor can be opened without using the reserve.
    pub(in crate::host) fn has_room(&self, any: &impl AsFd) -> bool {
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

    /// The processes that wait.
    pub(in crate::host) fn waiting(&self) -> impl Iterator<Item = (i32, HeldId)> {
        (self.waiting.iter()).map(|waiting| (waiting.pid, waiting.id))
    }

    /// Adds a waiting worker.
    pub(in crate::host) fn wait(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Removes a waiting worker. Returns whether it waited.
    pub(in crate::host) fn forget(&mut self, id: HeldId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.waiting.len() < before
    }

    /// The waiting workers, some of which may find a free descriptor now.
    pub(in crate::host) fn begin_round(&mut self) -> Vec<Waiting> {
        if !self.waiting.is_empty() || self.reported {
            self.raise_again();
        }
        self.waiting.clone()
    }

    /// The number of waiting workers and the limit, if a report is due: some have waited for long,
    /// or the reported waiting has ended.
    pub(in crate::host) fn end_round(&mut self, now: Timestamp) -> Option<(u32, u64)> {
        if self.waiting.is_empty() {
            self.since = None;
        } else {
            self.since.get_or_insert(now);
        }
        let report = match self.since {
            Some(since) => self.reported || now.since(since) >= REPORT_AFTER,
            None => false,
        };
        let workers = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let changed = report != self.reported;
        self.reported = report;
        changed.then_some((workers, self.limit))
    }

    /// The process of a waiting worker, held for a moment with a descriptor of the reserve.
    pub(in crate::host) fn waiting_process(&self, id: HeldId) -> Option<PidFd> {
        let mut all = self.waiting.iter();
        let waiting = all.find(|waiting| waiting.id == id)?;
        PidFd::open(waiting.pid).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WorkerId;

    #[test]
    fn a_descriptor_is_opened_only_if_the_reserve_stays_free() {
        let files = |limit| OpenFiles {
            limit,
            given: Some(limit),
            waiting: Vec::new(),
            since: None,
            reported: false,
        };
        let any = std::fs::File::open("/dev/null").unwrap();
        let number = u64::try_from(any.as_fd().as_raw_fd()).unwrap();
        for (limit, has_room) in [
            (number + 65, true),
            (number + 64, false),
            (number + 1, false),
            (LIMIT_MAX, true),
        ] {
            // The reserve is smaller if the limit is low.
            let has_room = has_room || number + limit / 4 < limit;
            assert_eq!(
                files(limit).leaves_reserve(&any),
                has_room,
                "{number} of {limit}"
            );
        }
        assert!(files(LIMIT_MAX).has_room(&any));
        assert!(!files(1).has_room(&any));
    }

    #[test]
    fn waiting_is_reported_once_it_has_lasted() {
        let mut files = OpenFiles::raise(None);
        let limit = files.limit;
        let id = HeldId::from(WorkerId::FIRST);
        let mut at = |millis, waits| {
            files.forget(id);
            if waits {
                let (pid, cap) = (1, None);
                files.wait(Waiting { id, pid, cap });
            }
            files.end_round(Timestamp::default().later(Duration::from_millis(millis)))
        };
        // A client takes the descriptor for a moment.
        assert_eq!(at(0, true), None);
        assert_eq!(at(900, false), None);
        assert_eq!(at(950, true), None);
        assert_eq!(at(1900, true), None);
        assert_eq!(at(1950, true), Some((1, limit)));
        assert_eq!(at(2950, true), None);
        assert_eq!(at(2960, false), Some((0, limit)));
        assert_eq!(at(2970, true), None);
    }
}
