//! Why a worker or the server ended: the causes, and the class of each.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    event::Limits,
    input::{Ended, Oom},
};
use crate::units::{Bytes, Signal};

/// Why a worker ended or should be replaced (DESIGN §4).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Cause {
    /// Its memory passed the ceiling.
    Ceiling,
    /// The kernel killed it at its cap.
    Cap,
    /// The kernel killed it at a limit above the service.
    Oom,
    /// The whole service came close to the budget, and this was its largest worker.
    Budget,
    /// The kernel killed it because the whole service was over the budget.
    BudgetKill,
    /// It reached its maximum number of tasks.
    Tasks,
    /// It reached its maximum age.
    Age,
    /// An operator wanted it replaced.
    Request,
    /// The service was reloaded.
    Reload,
    /// There were more workers than wanted.
    Scale,
    /// It exited by itself with this status.
    Exit(i32),
    /// A signal ended it that the supervisor did not send.
    Signal(Signal),
    /// It could not be started.
    StartFailed,
    /// It was not ready within `ready.timeout`, and was then killed by its server.
    Unready,
    /// It was killed because its task ran past the time limit.
    Hung,
    /// The service or its server stopped.
    Stop,
    /// It ended by itself, and it is unknown how.
    Unseen,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Ceiling => "ceiling",
            Self::Cap => "cap",
            Self::Oom => "oom",
            Self::Budget => "budget",
            Self::BudgetKill => "budget-kill",
            Self::Tasks => "tasks",
            Self::Age => "age",
            Self::Request => "request",
            Self::Reload => "reload",
            Self::Scale => "scale",
            Self::Exit(status) => return write!(f, "exit:{status}"),
            Self::Signal(signal) => return write!(f, "signal:{signal}"),
            Self::StartFailed => "start-failed",
            Self::Unready => "unready",
            Self::Hung => "hung",
            Self::Stop => "stop",
            Self::Unseen => "exit:unseen",
        };
        f.write_str(word)
    }
}

impl Cause {
    /// The cause of an end that the supervisor did not ask for.
    pub const fn of(ended: Ended, oom: Oom) -> Self {
        match (oom, ended) {
            (Oom::Cap, _) => Self::Cap,
            (Oom::Budget, _) => Self::BudgetKill,
            (Oom::Elsewhere, _) => Self::Oom,
            (Oom::No, Ended::Exit(status)) => Self::Exit(status),
            (Oom::No, Ended::Signal(signal)) => Self::Signal(signal),
            (Oom::No, Ended::Unseen) => Self::Unseen,
        }
    }
}

/// The class of a cause. Code that treats causes differently uses the class, so that a new cause
/// needs a decision in one place only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// The supervisor replaced a healthy worker for a soft limit.
    Planned,
    /// The kernel killed the worker for memory.
    Kernel,
    /// The program ended by itself, or was never ready.
    Own,
    /// An operator asked for it.
    Operator,
}

impl Cause {
    /// The class of this cause.
    pub const fn class(self) -> Class {
        match self {
            Self::Ceiling | Self::Budget | Self::Tasks | Self::Age => Class::Planned,
            Self::Cap | Self::Oom | Self::BudgetKill => Class::Kernel,
            Self::Exit(_)
            | Self::Signal(_)
            | Self::Unseen
            | Self::StartFailed
            | Self::Unready
            | Self::Hung => Class::Own,
            Self::Request | Self::Reload | Self::Scale | Self::Stop => Class::Operator,
        }
    }

    /// Whether the worker was replaced on purpose. A stop does not replace workers.
    pub const fn is_recycle(self) -> bool {
        matches!(self.class(), Class::Planned | Class::Operator) && !matches!(self, Self::Stop)
    }

    /// What happened, for a sentence: `status 3`, `signal SEGV`, `a kill at its cap`.
    pub fn in_words(self) -> String {
        match self {
            Self::Exit(status) => format!("status {status}"),
            Self::Signal(signal) => format!("signal {signal}"),
            Self::Unseen => "an unknown status".to_owned(),
            Self::Cap => "a kill at its cap".to_owned(),
            Self::Oom => "a kill for a memory limit above the service".to_owned(),
            Self::BudgetKill => "a kill at the budget".to_owned(),
            Self::StartFailed => "a start that failed".to_owned(),
            Self::Ceiling
            | Self::Budget
            | Self::Tasks
            | Self::Age
            | Self::Request
            | Self::Reload
            | Self::Scale
            | Self::Unready
            | Self::Hung
            | Self::Stop => format!("cause {self}"),
        }
    }

    /// What happened to a worker: `exited with status 3`, `reached its cap`.
    pub fn as_verb(self) -> String {
        match (self, self.class()) {
            (Self::Exit(status), _) => format!("exited with status {status}"),
            (Self::Signal(signal), _) => format!("was ended by {signal}"),
            (Self::Cap, _) => "reached its cap".to_owned(),
            (Self::BudgetKill, _) => "was killed at the budget".to_owned(),
            (_, Class::Planned | Class::Kernel | Class::Own | Class::Operator) => {
                format!("ended ({self})")
            }
        }
    }

    /// The limit that a worker has met if it ended for this cause.
    pub const fn limit(self, limits: &Limits) -> Option<Bytes> {
        match self {
            Self::Ceiling => limits.ceiling.bytes,
            Self::Cap => limits.cap.bytes,
            Self::Budget | Self::BudgetKill => limits.budget.bytes,
            Self::Oom
            | Self::Tasks
            | Self::Age
            | Self::Request
            | Self::Reload
            | Self::Scale
            | Self::Exit(_)
            | Self::Signal(_)
            | Self::StartFailed
            | Self::Unready
            | Self::Hung
            | Self::Stop
            | Self::Unseen => None,
        }
    }

    /// Whether the end was on purpose, or the program has finished. Other ends cause a warning.
    pub const fn is_expected(self) -> bool {
        match self.class() {
            Class::Planned | Class::Operator => true,
            Class::Own => matches!(self, Self::Exit(0)),
            Class::Kernel => false,
        }
    }
}

impl FromStr for Cause {
    type Err = String;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, String> {
        const WORDS: [Cause; 15] = [
            Cause::Ceiling,
            Cause::Cap,
            Cause::Oom,
            Cause::Budget,
            Cause::BudgetKill,
            Cause::Tasks,
            Cause::Age,
            Cause::Request,
            Cause::Reload,
            Cause::Scale,
            Cause::StartFailed,
            Cause::Unready,
            Cause::Hung,
            Cause::Stop,
            Cause::Unseen,
        ];
        let unknown = || format!("`{text}` is not a cause");
        if let Some(cause) = WORDS.iter().find(|cause| cause.to_string() == text) {
            return Ok(*cause);
        }
        match text.split_once(':') {
            Some(("exit", status)) => status.parse().map(Self::Exit).map_err(|_| unknown()),
            Some(("signal", name)) => name.parse::<Signal>().map(Self::Signal),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_can_be_parsed_from_its_text() {
        for text in [
            "ceiling",
            "cap",
            "oom",
            "budget",
            "budget-kill",
            "tasks",
            "age",
            "request",
            "reload",
            "scale",
            "start-failed",
            "unready",
            "hung",
            "stop",
            "exit:unseen",
            "exit:3",
            "signal:KILL",
        ] {
            let cause: Cause = text.parse().unwrap();
            assert_eq!(cause.to_string(), text);
        }
        assert!("exit:x".parse::<Cause>().is_err());
        assert!("other".parse::<Cause>().is_err());
    }

    #[test]
    fn a_kill_at_the_budget_is_not_a_planned_recycle() {
        let at_budget = Cause::of(Ended::Signal(Signal::KILL), Oom::Budget);
        assert_eq!(at_budget, Cause::BudgetKill);
        assert_eq!(at_budget.class(), Class::Kernel);
        assert!(!at_budget.is_recycle() && !at_budget.is_expected());
        assert!(Cause::Budget.is_recycle() && Cause::Budget.is_expected());
        assert!(!Cause::Stop.is_recycle() && Cause::Stop.is_expected());
        assert!(Cause::Exit(0).is_expected() && !Cause::Exit(0).is_recycle());
    }
}
