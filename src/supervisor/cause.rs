//! Causes of ends: the class of each, and reading them back.

use std::str::FromStr;

use crate::units::Signal;

use super::report::Cause;

/// The class a cause belongs to. Code that treats causes differently asks for the class, so that a
/// new cause is decided upon in one place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// We replaced a healthy worker for a soft limit.
    Planned,
    /// The kernel killed it for memory.
    Kernel,
    /// The program ended by itself, or never came to serve.
    Own,
    /// An operator wanted it.
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

    /// The worker was replaced on purpose. A stop replaces nothing.
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

    /// The end was on purpose, or the program was done: no reason for a warning.
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
        let unknown = || format!("`{text}` is no cause");
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
    use crate::supervisor::event::{Ended, Oom};

    #[test]
    fn every_cause_reads_back() {
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
        assert!("fat".parse::<Cause>().is_err());
    }

    #[test]
    fn the_kernel_at_the_budget_is_no_planned_recycle() {
        let at_budget = Cause::of(Ended::Signal(Signal::KILL), Oom::Budget);
        assert_eq!(at_budget, Cause::BudgetKill);
        assert_eq!(at_budget.class(), Class::Kernel);
        assert!(!at_budget.is_recycle() && !at_budget.is_expected());
        assert!(Cause::Budget.is_recycle() && Cause::Budget.is_expected());
        assert!(!Cause::Stop.is_recycle() && Cause::Stop.is_expected());
        assert!(Cause::Exit(0).is_expected() && !Cause::Exit(0).is_recycle());
    }
}
