//! Two regressions. The short one soon shows a route that has begun to keep memory, and one that
//! has filled a cache. The long one shows a small leak, because its error is several times smaller.
//!
//! The long one forgets a route as soon as the short one contradicts it. Otherwise a route that has
//! filled a cache would be accused for an hour, and a new leak would be hidden.

use std::time::Duration;

use super::regression::{Coefficient, Regression};
use crate::units::Timestamp;

/// A window counts half as much after this time, in the short and in the long regression.
const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(15 * 60);
/// The time between two comparisons. Each takes about a millisecond.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// After a column was forgotten, it is not compared for this time: the short regression still knows
/// older windows than the long one.
const NOT_COMPARED: Duration = Duration::from_secs(4 * 60);

#[derive(Debug)]
pub(super) struct Estimate {
    short: Regression,
    long: Regression,
    compared_at: Timestamp,
    /// When the long regression has last forgotten each column.
    forgotten_at: Vec<Timestamp>,
}

impl Estimate {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            short: Regression::new(columns, SHORT),
            long: Regression::new(columns, LONG),
            compared_at: Timestamp::ZERO,
            forgotten_at: vec![Timestamp::ZERO; columns],
        }
    }

    /// Adds a window: the number of requests of each column that had any, and the growth.
    pub(super) fn add(&mut self, now: Timestamp, requests: &[(usize, f64)], growth: f64) {
        self.short.add(now, requests, growth);
        self.long.add(now, requests, growth);
        if now.since(self.compared_at) < COMPARE_EVERY {
            return;
        }
        self.compared_at = now;
        for (column, (short, long)) in self.pairs().into_iter().enumerate() {
            let is_old = now.since(self.forgotten_at[column]) >= NOT_COMPARED;
            if is_old && short.is_not(long.value) {
                self.long.forget(column, long.value);
                self.forgotten_at[column] = now;
            }
        }
    }

    /// Bytes for each request of each column.
    pub(super) fn coefficients(&self) -> Vec<Coefficient> {
        // Where the two differ, the long one has the newer windows, because it has forgotten.
        let better = |(short, long): (Coefficient, Coefficient)| {
            if long.is_not(short.value) || long.error < short.error {
                long
            } else {
                short
            }
        };
        self.pairs().into_iter().map(better).collect()
    }

    fn pairs(&self) -> Vec<(Coefficient, Coefficient)> {
        let short = self.short.coefficients().into_iter();
        short.zip(self.long.coefficients()).collect()
    }
}
