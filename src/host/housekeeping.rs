//! Periodic tasks: removing groups, reading limits again, and measuring the server itself.

use std::time::Duration;

use super::Host;
use crate::units::Timestamp;

/// Interval between two rounds.
const EVERY: Duration = Duration::from_secs(1);
/// After this, a group whose last process is still ending is tried again.
const SOON: Duration = Duration::from_millis(50);

/// A task, and the number of rounds from one run of it to the next.
type Task = (u64, fn(&mut Host, Timestamp));

/// All tasks, in the order in which a round runs them.
const TASKS: [Task; 8] = [
    (1, |host, _| host.cgroups.remove_ended()),
    (1, Host::search_for_server),
    (1, |host, now| host.processes.kill_late_keeper(now)),
    (1, |host, now| {
        let (context, groups) = (&mut host.context, &mut host.cgroups);
        host.workers.hold_waiting(context, groups, now);
    }),
    (1, Host::tell_leftovers),
    (1, |host, _| host.tell_server_memory()),
    (1, |host, _| host.tell_charges()),
    (5, |host, _| host.cgroups.tell_available(&mut host.context)),
];

/// When the next round is due.
#[derive(Debug)]
pub(super) struct Housekeeping {
    next: Timestamp,
    /// The number of the last round.
    round: u64,
}

impl Housekeeping {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self {
            next: now,
            round: 0,
        }
    }

    pub(super) const fn deadline(&self) -> Timestamp {
        self.next
    }

    /// The tasks that are due now. `is_urgent`: something has happened that should not wait for the
    /// next regular round.
    pub(super) fn due(
        &mut self,
        now: Timestamp,
        is_urgent: bool,
    ) -> impl Iterator<Item = fn(&mut Host, Timestamp)> + use<> {
        if is_urgent {
            self.next = self.next.min(now.later(SOON));
        }
        let is_due = now >= self.next;
        if is_due {
            self.next = now.next_multiple(EVERY);
            self.round += 1;
        }
        let round = self.round;
        let due = move |(every, _): &Task| is_due && round.is_multiple_of(*every);
        TASKS.into_iter().filter(due).map(|(_, task)| task)
    }
}
