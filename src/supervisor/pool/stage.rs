//! The lifecycle of one worker as a state machine: every state with every step, in one table.
//!
//! | step \ state | boots | fails | serves | retires | leaves | killed |
//! |---|---|---|---|---|---|---|
//! | `on_ready` | serves | - | - | - | - | - |
//! | `on_initializer_failed` | fails | - | - | - | - | - |
//! | `retire` | - | - | retires | - | - | - |
//! | `on_idle` | - | - | - | leaves | - | - |
//! | `kill` | killed | killed | killed | killed | killed | - |
//!
//! `-`: nothing changes. When the process ends, the worker is removed, whatever its state.

use crate::{supervisor::cause::Cause, units::Timestamp};

/// The state of a worker. Each variant has only the data that exist in that state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// It is being forked, or starts.
    Boots,
    /// Its initializer has failed, and it exits.
    Fails,
    /// It takes tasks.
    Serves,
    /// It finishes its tasks, and then exits.
    Retires(Retirement),
    /// It has no tasks, and runs its exit handlers.
    Leaves(Retirement),
    /// The pool has killed it, and expects no result from it.
    Killed {
        why: Killed,
        /// Why it exited or was about to exit, if it did.
        retirement: Option<Retirement>,
    },
}

/// Why a worker exits after its tasks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Retirement {
    pub(super) cause: Cause,
    /// When it was retired. In `Leaves`: since when it has had no tasks.
    pub(super) since: Timestamp,
}

/// Why the pool has killed a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Killed {
    /// Its task ran past its time limit.
    Timeout,
    /// All workers together were over the budget.
    Budget,
    /// Its exit handlers took too long.
    Late,
}

impl Stage {
    /// Its initializer has returned.
    #[must_use]
    pub(super) const fn on_ready(self) -> Self {
        match self {
            Self::Boots => Self::Serves,
            Self::Fails
            | Self::Serves
            | Self::Retires(_)
            | Self::Leaves(_)
            | Self::Killed { .. } => self,
        }
    }

    /// Its initializer has failed.
    #[must_use]
    pub(super) const fn on_initializer_failed(self) -> Self {
        match self {
            Self::Boots => Self::Fails,
            Self::Fails
            | Self::Serves
            | Self::Retires(_)
            | Self::Leaves(_)
            | Self::Killed { .. } => self,
        }
    }

    /// It should be replaced, or the pool has no more tasks for it.
    #[must_use]
    pub(super) const fn retire(self, now: Timestamp, cause: Cause) -> Self {
        match self {
            Self::Serves => Self::Retires(Retirement { cause, since: now }),
            Self::Boots
            | Self::Fails
            | Self::Retires(_)
            | Self::Leaves(_)
            | Self::Killed { .. } => self,
        }
    }

    /// It has finished all tasks that it was sent.
    #[must_use]
    pub(super) const fn on_idle(self, now: Timestamp) -> Self {
        match self {
            Self::Retires(Retirement { cause, .. }) => {
                Self::Leaves(Retirement { cause, since: now })
            }
            Self::Boots | Self::Fails | Self::Serves | Self::Leaves(_) | Self::Killed { .. } => {
                self
            }
        }
    }

    /// It is sent SIGKILL.
    #[must_use]
    pub(super) const fn kill(self, why: Killed) -> Self {
        let retirement = match self {
            Self::Boots | Self::Fails | Self::Serves => None,
            Self::Retires(retirement) | Self::Leaves(retirement) => Some(retirement),
            Self::Killed { .. } => return self,
        };
        Self::Killed { why, retirement }
    }

    /// It has never taken tasks.
    pub(super) const fn is_starting(self) -> bool {
        matches!(self, Self::Boots | Self::Fails)
    }

    pub(super) const fn has_failed_to_start(self) -> bool {
        matches!(self, Self::Fails)
    }

    pub(super) const fn is_serving(self) -> bool {
        matches!(self, Self::Serves)
    }

    pub(super) const fn is_retiring(self) -> bool {
        matches!(self, Self::Retires(_))
    }

    /// When it began to run its exit handlers.
    pub(super) const fn leaves_since(self) -> Option<Timestamp> {
        match self {
            Self::Leaves(Retirement { since, .. }) => Some(since),
            Self::Boots | Self::Fails | Self::Serves | Self::Retires(_) | Self::Killed { .. } => {
                None
            }
        }
    }

    /// Why the pool has killed it, if it has.
    pub(super) const fn killed(self) -> Option<Killed> {
        match self {
            Self::Killed { why, .. } => Some(why),
            Self::Boots | Self::Fails | Self::Serves | Self::Retires(_) | Self::Leaves(_) => None,
        }
    }

    /// Why it was retired, and since when.
    pub(super) const fn retirement(self) -> Option<Retirement> {
        match self {
            Self::Retires(retirement) | Self::Leaves(retirement) => Some(retirement),
            Self::Killed { retirement, .. } => retirement,
            Self::Boots | Self::Fails | Self::Serves => None,
        }
    }

    /// Its state for `status`. A killed worker ends at once, and is shown in its last state.
    pub(super) const fn name(self) -> &'static str {
        match (self, self.retirement()) {
            (Self::Boots | Self::Fails, _) => "starting",
            (_, None) => "ready",
            (_, Some(_)) => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CAUSE: Cause = Cause::Age;
    const WHY: Killed = Killed::Timeout;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    const fn since(since: Timestamp) -> Retirement {
        Retirement {
            cause: CAUSE,
            since,
        }
    }

    const fn killed(retirement: Option<Retirement>) -> Stage {
        Stage::Killed {
            why: WHY,
            retirement,
        }
    }

    #[test]
    fn every_step_from_every_stage_follows_the_table() {
        let now = at(3);
        let (retired, left) = (since(at(1)), since(at(2)));
        let stages = [
            Stage::Boots,
            Stage::Fails,
            Stage::Serves,
            Stage::Retires(retired),
            Stage::Leaves(left),
            killed(Some(retired)),
        ];
        let [boots, fails, serves, retires, leaves, dead] = stages;
        // One row for each step, as in the table of the module.
        type Step = fn(Stage, Timestamp) -> Stage;
        let table: [(Step, [Stage; 6]); 5] = [
            (
                |stage, _| stage.on_ready(),
                [serves, fails, serves, retires, leaves, dead],
            ),
            (
                |stage, _| stage.on_initializer_failed(),
                [fails, fails, serves, retires, leaves, dead],
            ),
            (
                |stage, now| stage.retire(now, CAUSE),
                [
                    boots,
                    fails,
                    Stage::Retires(since(now)),
                    retires,
                    leaves,
                    dead,
                ],
            ),
            (
                Stage::on_idle,
                [
                    boots,
                    fails,
                    serves,
                    Stage::Leaves(since(now)),
                    leaves,
                    dead,
                ],
            ),
            (
                |stage, _| stage.kill(WHY),
                [
                    killed(None),
                    killed(None),
                    killed(None),
                    killed(Some(retired)),
                    killed(Some(left)),
                    dead,
                ],
            ),
        ];
        for (row, (step, wanted)) in table.into_iter().enumerate() {
            for (stage, wanted) in stages.into_iter().zip(wanted) {
                assert_eq!(step(stage, now), wanted, "row {row} from {stage:?}");
            }
        }
    }

    #[test]
    fn a_worker_is_killed_for_the_first_reason() {
        let late = Stage::Serves.kill(Killed::Budget).kill(Killed::Timeout);
        assert_eq!(late.killed(), Some(Killed::Budget));
    }
}
