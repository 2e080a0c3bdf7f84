//! The checks and their results.

use std::fmt::Display;

/// The results of the checks of all scenarios.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    scenario: &'static str,
    passed: u32,
    failed: u32,
}

impl Checks {
    /// The checks that follow belong to this scenario.
    pub(crate) fn begin(&mut self, scenario: &'static str) {
        self.scenario = scenario;
    }

    /// Records and prints a check, with the figures it rests on.
    pub(crate) fn check(&mut self, what: &str, holds: bool, figures: impl Display) {
        let word = if holds { "ok  " } else { "FAIL" };
        println!("{word} {}: {what}: {figures}", self.scenario);
        *(if holds {
            &mut self.passed
        } else {
            &mut self.failed
        }) += 1;
    }

    /// Checks that two values are equal.
    pub(crate) fn equal<T: PartialEq + Display>(&mut self, what: &str, is: T, wanted: T) {
        let figures = if is == wanted {
            is.to_string()
        } else {
            format!("{is}, expected {wanted}")
        };
        self.check(what, is == wanted, figures);
    }

    /// Prints a measurement that is not checked.
    pub(crate) fn note(&self, what: &str, figures: impl Display) {
        println!("     {}: {what}: {figures}", self.scenario);
    }

    /// Prints the totals. Returns whether all checks passed.
    pub(crate) fn finish(&self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}
