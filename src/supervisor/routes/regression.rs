//! How much memory each route keeps for a request: a linear regression of the growth of workers in
//! windows of about a second on the number of requests of each route in that window.
//!
//! Only sums over the windows are kept, and older windows count less.
//!
//! The kernel updates the resident size of a process in batches of up to 256 KiB, and allocators
//! take memory in blocks. So a window shows too much or too little, and the next one the opposite.
//! Windows in which memory fell count like all others: without them every route would seem to
//! grow.

use std::time::Duration;

use super::matrix::{Factor, Matrix, non_negative};
use crate::units::Timestamp;

/// A coefficient is certain if it is this many times its standard error.
const CERTAIN: f64 = 4.0;
/// The coefficients are computed again after this time. They predict the growth in new windows, and
/// the error of the prediction shows how certain they are.
const SOLVE_EVERY: Duration = Duration::from_secs(2);
/// A column is certain only if it had requests in this many windows.
const CERTAIN_WINDOWS: f64 = 5.0;
/// The growth in a window is never more accurate: about 16 KiB.
const VARIANCE_MIN: f64 = 16e3 * 16e3;
/// Before there are this many windows for each column, the coefficients predict worse than zeros.
const WINDOWS_MIN: f64 = 2.0;
/// Windows are aged in steps of at least this, because many workers end a window at the same time.
const AGE_EVERY: Duration = Duration::from_millis(500);
/// Time without requests does not age the windows before by more than this.
const AGE_MAX: Duration = Duration::from_secs(2);

/// The sums over all windows, each with its weight.
#[derive(Debug)]
pub(super) struct Regression {
    /// A window counts half as much after this time.
    half_life: Duration,
    /// Of the products of numbers of requests.
    gram: Matrix,
    /// Of the products of a number of requests and the growth.
    right: Vec<f64>,
    /// The same as `gram`, with the square of the weight and of the error of the prediction.
    spread: Matrix,
    /// Of the squares of the errors of the prediction.
    errors: f64,
    /// Of the squares of the growth.
    squares: f64,
    /// Of the windows in which a column had requests.
    windows: Vec<f64>,
    /// Of the weights.
    weight: f64,
    /// Of the squares of the weights.
    weight_squared: f64,
    coefficients: Vec<f64>,
    solved_at: Timestamp,
    aged_to: Timestamp,
}

/// One coefficient: bytes for each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficient {
    pub(super) value: f64,
    /// Its standard error.
    pub(super) error: f64,
}

impl Coefficient {
    /// Nothing is known.
    pub(super) const UNKNOWN: Self = Self {
        value: 0.0,
        error: f64::INFINITY,
    };

    pub(super) fn is_certain(self) -> bool {
        self.value > 0.0 && self.value >= CERTAIN * self.error
    }

    /// It is certain that the value is another one.
    pub(super) fn is_not(self, value: f64) -> bool {
        (self.value - value).abs() > CERTAIN * self.error
    }
}

impl Regression {
    pub(super) fn new(columns: usize, half_life: Duration) -> Self {
        Self {
            half_life,
            gram: Matrix::new(columns),
            right: vec![0.0; columns],
            spread: Matrix::new(columns),
            errors: 0.0,
            squares: 0.0,
            windows: vec![0.0; columns],
            weight: 0.0,
            weight_squared: 0.0,
            coefficients: vec![0.0; columns],
            solved_at: Timestamp::ZERO,
            aged_to: Timestamp::ZERO,
        }
    }

    /// Adds a window: the number of requests of each column that had any, and the growth.
    pub(super) fn add(&mut self, now: Timestamp, requests: &[(usize, f64)], growth: f64) {
        self.age(now);
        let coefficients = &self.coefficients;
        let predicted: f64 = requests.iter().map(|(at, n)| coefficients[*at] * n).sum();
        let square = (growth - predicted).powi(2);
        self.gram.add_square(requests, 1.0);
        self.spread.add_square(requests, square);
        for (at, number) in requests {
            self.right[*at] += number * growth;
            self.windows[*at] += 1.0;
        }
        self.errors += square;
        self.squares += growth.powi(2);
        self.weight += 1.0;
        self.weight_squared += 1.0;
        if now.since(self.solved_at) >= SOLVE_EVERY {
            self.solved_at = now;
            let columns: f64 = self.seen().map(|_| WINDOWS_MIN).sum();
            if self.weight >= columns {
                self.coefficients = non_negative(&self.gram, &self.right);
            }
        }
    }

    /// The columns that had requests.
    fn seen(&self) -> impl Iterator<Item = usize> {
        (0..self.right.len()).filter(|at| self.gram.at(*at, *at) > 0.0)
    }

    fn age(&mut self, now: Timestamp) {
        let elapsed = now.since(self.aged_to).min(AGE_MAX);
        if elapsed < AGE_EVERY {
            return;
        }
        self.aged_to = now;
        let factor = 0.5_f64.powf(elapsed.as_secs_f64() / self.half_life.as_secs_f64());
        self.gram.scale(factor);
        self.right.iter_mut().for_each(|one| *one *= factor);
        self.spread.scale(factor * factor);
        self.errors *= factor;
        self.squares *= factor;
        self.windows.iter_mut().for_each(|one| *one *= factor);
        self.weight *= factor;
        self.weight_squared *= factor * factor;
    }

    /// Forgets what is known of a column. The growth that is attributed to it is taken out of all
    /// windows, so that it is not attributed to other columns.
    pub(super) fn forget(&mut self, column: usize, value: f64) {
        for (other, right) in self.right.iter_mut().enumerate() {
            *right -= value * self.gram.at(other, column);
        }
        self.right[column] = 0.0;
        self.windows[column] = 0.0;
        self.coefficients[column] = 0.0;
        self.gram.clear(column);
        self.spread.clear(column);
    }

    /// The coefficient of each column.
    ///
    /// The error is the larger of two. The first allows for the spread of the windows of a route: a
    /// route that kept much once, in one of its requests, is not certain to grow. The second is the
    /// usual one: routes that are always called together are not certain. Both are those of a fit
    /// in which coefficients may be negative, because the fit without negative ones shows only the
    /// routes that it has chosen.
    pub(super) fn coefficients(&self) -> Vec<Coefficient> {
        let mut found = vec![Coefficient::UNKNOWN; self.right.len()];
        let seen: Vec<usize> = self.seen().collect();
        let Some(factor) = Factor::of(&self.gram.part(&seen)) else {
            return found;
        };
        let values = non_negative(&self.gram, &self.right);
        let rights: Vec<f64> = seen.iter().map(|at| self.right[*at]).collect();
        let fitted = factor.solve(&rights);
        let explained: f64 = rights.iter().zip(&fitted).map(|(a, b)| a * b).sum();
        let count = self.weight.powi(2) / self.weight_squared;
        let columns: f64 = seen.iter().map(|_| 1.0).sum();
        let free = (count - columns).max(0.0) / count;
        let variance = ((self.squares - explained) / free / self.weight).max(VARIANCE_MIN);
        // The predictions were worse than this fit, because they were made with fewer windows.
        let part = variance * self.weight / self.errors;
        let spread = self.spread.part(&seen);
        for (place, at) in seen.iter().enumerate() {
            let mut unit = vec![0.0; seen.len()];
            unit[place] = 1.0;
            let inverse = factor.solve(&unit);
            let usual = variance * (self.weight_squared / self.weight) * inverse[place];
            let square = (part * spread.square_of(&inverse)).max(usual);
            let is_enough = self.windows[*at] >= CERTAIN_WINDOWS && square >= 0.0;
            found[*at] = Coefficient {
                value: values[*at],
                error: if is_enough {
                    square.sqrt()
                } else {
                    f64::INFINITY
                },
            };
        }
        found
    }
}
