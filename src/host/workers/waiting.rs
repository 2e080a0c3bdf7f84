//! Workers that wait for a free descriptor: they have a cap, but are not tracked yet.

use super::Workers;
use crate::{
    host::{
        cgroup::ServiceGroups,
        context::Context,
        held::HeldId,
        process::{open_files::Waiting, pidfd::PidFd, rlimit},
    },
    supervisor::input::{CapMechanism, Ended, Input, Oom},
    units::Timestamp,
};

impl Workers {
    /// Puts a worker with its cap on the list of workers that wait for a free descriptor.
    pub(super) fn wait_for_room(
        &mut self,
        context: &mut Context,
        groups: &ServiceGroups,
        waiting: Waiting,
    ) {
        let Waiting { id, pid, cap } = waiting;
        // The group keeps the cap without an open descriptor.
        drop(groups.make_worker_group(context, id, pid, cap));
        if groups.caps() == CapMechanism::Rlimit {
            // This fails for a process that has ended, which needs no cap.
            let _ = rlimit::set_cap(context.proc(), pid, cap);
        }
        self.files.wait(waiting);
        self.is_urgent = true;
    }

    /// Tracks the waiting workers that descriptors are free for. Reports when they have waited for
    /// long, and when none waits any more.
    pub(in crate::host) fn hold_waiting(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        now: Timestamp,
    ) {
        for waiting in self.files.begin_round() {
            let is_gone = PidFd::open(waiting.pid)
                .is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH));
            if is_gone {
                self.end_unheld(context, groups, waiting.id);
            } else if self.files.has_room(context.watches()) {
                self.files.forget(waiting.id);
                self.adopt(context, groups, waiting);
            }
        }
        if let Some((workers, limit)) = self.files.end_round(now) {
            context.tell(Input::Unwatched { workers, limit });
        }
    }

    /// Handles a worker whose process ended before it was held; its master has reaped it.
    pub(super) fn end_unheld(
        &mut self,
        context: &mut Context,
        groups: &mut ServiceGroups,
        id: HeldId,
    ) {
        // The group that was made while it waited.
        if self.files.forget(id)
            && let Ok(group) = groups.groups().leaf(&id.to_string())
        {
            groups.retire(group);
            self.is_urgent = true;
        }
        self.tell_end(context, id, (Ended::Unseen, Oom::No, None));
    }
}
