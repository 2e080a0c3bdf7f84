//! The lifecycle of one worker as a state machine: every state with every step, in one table.
//!
//! | step \ state | starting | serving | draining |
//! |---|---|---|---|
//! | `Ready` | serving | - | - |
//! | `Noticed` | with the notice | with the notice | with the notice |
//! | `NoticeOver` | notice without a time | notice without a time | notice without a time |
//! | `Drain` | draining | draining | - |
//! | `Spared` | - | - | serving, as before the drain |
//! | `Extended` | - | - | draining, with more time, unless it was killed |
//! | `Overdue` | - | - | draining, killed |
//!
//! `-`: the step came late or twice, and changes nothing. When the process ends, the worker is
//! removed, whatever its state.

use serde::{Deserialize, Serialize};

use crate::supervisor::cause::Cause;
use crate::units::{Bytes, Timestamp};

/// The state of a worker. Each variant has only the data that exist in that state.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Life {
    /// It boots.
    Starting { notice: Option<Notice> },
    /// It serves.
    Serving {
        since: Timestamp,
        notice: Option<Notice>,
    },
    /// It was asked to finish its requests and exit.
    Draining(Drain),
}

/// The worker may exit soon, because its server was told to reload or to have one worker fewer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Notice {
    /// The cause of its exit, if it exits.
    pub(super) cause: Cause,
    /// Until this time the worker is expected to exit.
    pub(super) until: Option<Timestamp>,
}

/// A worker that finishes its requests and exits.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Drain {
    /// Why and how.
    pub(super) leave: Leave,
    /// When it was asked.
    pub(super) since: Timestamp,
    /// Its memory when it was asked: an interpreter that exits frees memory before its end.
    pub(super) memory: Bytes,
    /// It was killed.
    pub(super) killed: bool,
    /// When it became ready, in case it goes back to serving.
    pub(super) serving_since: Timestamp,
    pub(super) notice: Option<Notice>,
    /// Whether it has asked for more time.
    #[serde(default)]
    pub(super) extended: Extended,
}

/// Whether a process that stops has asked for more time (`EXTEND_TIMEOUT_USEC=` of sd_notify(3)).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Extended {
    /// It has not.
    #[default]
    No,
    /// It has, and it got this time.
    Granted,
    /// It has, and it got less: the most that `stop.extend_max` allows.
    Cut,
}

/// Why and how a worker is asked to exit.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Leave {
    pub(crate) cause: Cause,
    /// The limit it passed.
    pub(crate) limit: Option<Bytes>,
    /// When it is killed if it has not exited.
    pub(crate) until: Timestamp,
    pub(crate) by: By,
}

/// How a draining worker is made to exit.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum By {
    /// By a signal from the supervisor to the worker, or to the command that is the worker.
    Signal,
    /// By its server, which was asked to retire one worker.
    Server,
}

/// What can happen to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// It is ready to serve.
    Ready,
    /// It is expected to exit by this time, because of what its server was told.
    Noticed { cause: Cause, until: Timestamp },
    /// The time of the notice is over, and the worker has not exited.
    NoticeOver,
    /// It is asked to exit, while it holds this much memory.
    Drain { leave: Leave, memory: Bytes },
    /// It was expected to drain, but its server has retired another worker instead.
    Spared,
    /// It has asked for more time: its grace period is over at this time.
    Extended {
        until: Timestamp,
        extended: Extended,
    },
    /// Its grace period is over.
    Overdue,
}

impl Life {
    /// The state of a worker that was just discovered.
    pub(crate) const NEW: Self = Self::Starting { notice: None };

    /// The state after a step.
    pub(crate) const fn after(self, now: Timestamp, step: Step) -> Self {
        match (self, step) {
            (Self::Starting { notice }, Step::Ready) => Self::Serving { since: now, notice },
            (Self::Starting { notice }, Step::Drain { leave, memory }) => {
                Self::Draining(Drain::new(leave, now, memory, now, notice))
            }
            (Self::Serving { since, notice }, Step::Drain { leave, memory }) => {
                Self::Draining(Drain::new(leave, now, memory, since, notice))
            }
            (Self::Draining(drain), Step::Spared) => Self::Serving {
                since: drain.serving_since,
                notice: drain.notice,
            },
            (Self::Draining(drain), Step::Overdue) => Self::Draining(Drain {
                killed: true,
                ..drain
            }),
            (Self::Draining(drain), Step::Extended { until, extended }) if !drain.killed => {
                let leave = Leave {
                    until,
                    ..drain.leave
                };
                Self::Draining(Drain {
                    leave,
                    extended,
                    ..drain
                })
            }
            (_, Step::Noticed { cause, until }) => self.with(Some(Notice {
                cause,
                until: Some(until),
            })),
            (_, Step::NoticeOver) => match self.notice() {
                Some(Notice { cause, .. }) => self.with(Some(Notice { cause, until: None })),
                None => self,
            },
            (Self::Serving { .. } | Self::Draining(_), Step::Ready)
            | (Self::Draining(_), Step::Drain { .. } | Step::Extended { .. })
            | (
                Self::Starting { .. } | Self::Serving { .. },
                Step::Spared | Step::Extended { .. } | Step::Overdue,
            ) => self,
        }
    }

    const fn with(self, notice: Option<Notice>) -> Self {
        match self {
            Self::Starting { .. } => Self::Starting { notice },
            Self::Serving { since, .. } => Self::Serving { since, notice },
            Self::Draining(drain) => Self::Draining(Drain { notice, ..drain }),
        }
    }

    const fn notice(self) -> Option<Notice> {
        match self {
            Self::Starting { notice } | Self::Serving { notice, .. } => notice,
            Self::Draining(drain) => drain.notice,
        }
    }

    /// The cause of its exit, if it exits by itself because of a notice.
    pub(crate) fn expected(self) -> Option<Cause> {
        self.notice().map(|notice| notice.cause)
    }

    /// By when it is expected to exit because of a notice.
    pub(crate) fn leaves_by(self) -> Option<Timestamp> {
        self.notice().and_then(|notice| notice.until)
    }

    pub(crate) const fn is_starting(self) -> bool {
        matches!(self, Self::Starting { .. })
    }

    pub(crate) const fn is_serving(self) -> bool {
        matches!(self, Self::Serving { .. })
    }

    /// Since when it serves.
    pub(crate) const fn serving_since(self) -> Option<Timestamp> {
        match self {
            Self::Serving { since, .. } => Some(since),
            Self::Starting { .. } | Self::Draining(_) => None,
        }
    }

    pub(crate) const fn drain(self) -> Option<Drain> {
        match self {
            Self::Draining(drain) => Some(drain),
            Self::Starting { .. } | Self::Serving { .. } => None,
        }
    }

    /// For `status`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Serving { .. } => "ready",
            Self::Draining(_) => "draining",
        }
    }
}

impl Drain {
    const fn new(
        leave: Leave,
        since: Timestamp,
        memory: Bytes,
        serving_since: Timestamp,
        notice: Option<Notice>,
    ) -> Self {
        Self {
            leave,
            since,
            memory,
            killed: false,
            serving_since,
            notice,
            extended: Extended::No,
        }
    }

    pub(crate) const fn extended(&self) -> Extended {
        self.extended
    }

    pub(crate) const fn leave(&self) -> Leave {
        self.leave
    }

    pub(crate) const fn since(&self) -> Timestamp {
        self.since
    }

    pub(crate) const fn memory(&self) -> Bytes {
        self.memory
    }

    pub(crate) const fn is_killed(&self) -> bool {
        self.killed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().later(Duration::from_secs(seconds))
    }

    fn drain(by: By) -> Step {
        Step::Drain {
            leave: Leave {
                cause: Cause::Ceiling,
                limit: None,
                until: at(60),
                by,
            },
            memory: Bytes::mib(7),
        }
    }

    fn steps() -> [Step; 7] {
        [
            Step::Ready,
            Step::Noticed {
                cause: Cause::Reload,
                until: at(90),
            },
            Step::NoticeOver,
            drain(By::Server),
            Step::Spared,
            Step::Extended {
                until: at(120),
                extended: Extended::Granted,
            },
            Step::Overdue,
        ]
    }

    /// The table of the module. One row for each step: starting, serving, draining.
    const TABLE: [[&str; 3]; 7] = [
        ["ready", "-", "-"],
        ["starting", "ready", "draining"],
        ["-", "-", "-"],
        ["draining", "draining", "-"],
        ["-", "-", "ready"],
        ["-", "-", "draining"],
        ["-", "-", "draining"],
    ];

    #[test]
    fn every_step_from_every_state_follows_the_table() {
        let starting = Life::NEW;
        let serving = starting.after(at(1), Step::Ready);
        let draining = serving.after(at(2), drain(By::Server));
        for (step, row) in steps().into_iter().zip(TABLE) {
            for (life, wanted) in [starting, serving, draining].into_iter().zip(row) {
                let next = life.after(at(3), step);
                if wanted == "-" {
                    assert_eq!(next, life, "{step:?}");
                } else {
                    assert_eq!(next.name(), wanted, "{step:?} from {life:?}");
                    assert_ne!(next, life, "{step:?}");
                }
            }
        }
    }

    #[test]
    fn a_worker_that_was_killed_gets_no_more_time() {
        let steps = steps();
        let draining = Life::NEW.after(at(1), drain(By::Signal));
        let killed = draining.after(at(60), steps[6]);
        assert_eq!(killed.after(at(61), steps[5]), killed);
    }

    #[test]
    fn a_spared_worker_serves_as_before() {
        let serving = Life::NEW.after(at(1), Step::Ready);
        let noticed = serving.after(at(2), steps()[1]);
        let spared = noticed.after(at(3), drain(By::Server));
        assert_eq!(spared.after(at(4), Step::Spared), noticed);
    }

    #[test]
    fn a_notice_still_gives_the_cause_of_an_end_after_its_time() {
        let noticed = Life::NEW.after(at(1), steps()[1]);
        assert_eq!(noticed.leaves_by(), Some(at(90)));
        let over = noticed.after(at(91), Step::NoticeOver);
        assert_eq!(over.leaves_by(), None);
        assert_eq!(over.expected(), Some(Cause::Reload));
        assert!(over.is_starting());
    }
}
