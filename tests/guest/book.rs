//! What was checked, and what came out.

use std::fmt::Display;

/// The checks of all scenarios.
#[derive(Debug, Default)]
pub(crate) struct Book {
    scenario: &'static str,
    passed: u32,
    failed: u32,
}

impl Book {
    /// The checks that follow belong to this scenario.
    pub(crate) fn open(&mut self, scenario: &'static str) {
        self.scenario = scenario;
    }

    /// One check, with the figures it rests on.
    pub(crate) fn check(&mut self, what: &str, holds: bool, figures: impl Display) {
        let word = if holds { "ok  " } else { "FAIL" };
        println!("{word} {}: {what}: {figures}", self.scenario);
        *(if holds {
            &mut self.passed
        } else {
            &mut self.failed
        }) += 1;
    }

    /// Two things that are to be the same.
    pub(crate) fn same<T: PartialEq + Display>(&mut self, what: &str, is: T, wanted: T) {
        let figures = if is == wanted {
            is.to_string()
        } else {
            format!("{is}, and {wanted} was to be")
        };
        self.check(what, is == wanted, figures);
    }

    /// What was measured and is no matter of right and wrong.
    pub(crate) fn note(&self, what: &str, figures: impl Display) {
        println!("     {}: {what}: {figures}", self.scenario);
    }

    /// The closing line; whether all is well.
    pub(crate) fn close(&self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}
