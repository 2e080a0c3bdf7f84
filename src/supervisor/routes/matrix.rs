//! Symmetric matrices, and least squares without negative results.

/// Added to each diagonal element, as a part of it. Without it, two routes that are always called
/// together would make the matrix singular.
const RIDGE: f64 = 1e-7;
/// A gradient below this part of the right-hand side is a rounding error.
const TOLERANCE: f64 = 1e-9;

/// A symmetric matrix, stored in full.
#[derive(Clone, Debug, Default)]
pub(super) struct Matrix {
    size: usize,
    cells: Vec<f64>,
}

impl Matrix {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            cells: vec![0.0; size * size],
        }
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f64 {
        self.cells[row * self.size + column]
    }

    pub(super) fn scale(&mut self, factor: f64) {
        self.cells.iter_mut().for_each(|cell| *cell *= factor);
    }

    /// Adds `weight` times the product of a sparse vector with itself.
    pub(super) fn add_square(&mut self, sparse: &[(usize, f64)], weight: f64) {
        for (row, one) in sparse {
            for (column, other) in sparse {
                self.cells[row * self.size + column] += weight * one * other;
            }
        }
    }

    /// Sets a row and the column of the same number to zero.
    pub(super) fn clear(&mut self, number: usize) {
        for other in 0..self.size {
            self.cells[number * self.size + other] = 0.0;
            self.cells[other * self.size + number] = 0.0;
        }
    }

    /// The rows and columns in `kept`.
    pub(super) fn part(&self, kept: &[usize]) -> Self {
        let cell = |(row, column)| self.at(row, column);
        let pairs = kept
            .iter()
            .flat_map(|row| kept.iter().map(|column| (*row, *column)));
        Self {
            size: kept.len(),
            cells: pairs.map(cell).collect(),
        }
    }

    /// The product with `vector` from both sides.
    pub(super) fn square_of(&self, vector: &[f64]) -> f64 {
        let rows = self.cells.chunks(self.size.max(1));
        let product = |row: &[f64]| row.iter().zip(vector).map(|(a, b)| a * b).sum::<f64>();
        rows.zip(vector).map(|(row, one)| one * product(row)).sum()
    }
}

/// The factor of a matrix by Cholesky's method: solves linear equations.
#[derive(Debug)]
pub(super) struct Factor {
    lower: Matrix,
}

impl Factor {
    /// `None`: the matrix has a zero or invalid element on its diagonal.
    pub(super) fn of(matrix: &Matrix) -> Option<Self> {
        let size = matrix.size;
        let mut lower = Matrix::new(size);
        for row in 0..size {
            for column in 0..=row {
                let known = (0..column).map(|k| lower.at(row, k) * lower.at(column, k));
                let rest = matrix.at(row, column) - known.sum::<f64>();
                lower.cells[row * size + column] = if row == column {
                    // Rounding errors must not make the root of a negative number.
                    let least = matrix.at(row, row) * RIDGE;
                    (rest + least).max(least).sqrt()
                } else {
                    rest / lower.at(column, column)
                };
            }
            let diagonal = lower.at(row, row);
            if diagonal.is_nan() || diagonal <= 0.0 {
                return None;
            }
        }
        Some(Self { lower })
    }

    /// The vector whose product with the matrix is `right`.
    pub(super) fn solve(&self, right: &[f64]) -> Vec<f64> {
        let (size, lower) = (self.lower.size, &self.lower);
        let mut vector = right.to_vec();
        for row in 0..size {
            let known = (0..row).map(|k| lower.at(row, k) * vector[k]).sum::<f64>();
            vector[row] = (vector[row] - known) / lower.at(row, row);
        }
        for row in (0..size).rev() {
            let known = (row + 1..size)
                .map(|k| lower.at(k, row) * vector[k])
                .sum::<f64>();
            vector[row] = (vector[row] - known) / lower.at(row, row);
        }
        vector
    }
}

/// The vector without negative elements whose product with `gram` is nearest to `right`, by the
/// method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).
pub(super) fn non_negative(gram: &Matrix, right: &[f64]) -> Vec<f64> {
    let size = gram.size;
    let mut found = vec![0.0; size];
    let mut positive: Vec<usize> = Vec::new();
    // The method ends by itself, except if rounding errors make it add and remove one element for
    // ever.
    for _ in 0..2 * size {
        let gradient = |one: usize| {
            let fitted: f64 = positive.iter().map(|k| gram.at(one, *k) * found[*k]).sum();
            (right[one] - fitted) / gram.at(one, one).sqrt()
        };
        let is_new = |one: &usize| gram.at(*one, *one) > 0.0 && !positive.contains(one);
        let steepest = (0..size).filter(is_new).map(|one| (gradient(one), one));
        let steepest = steepest.max_by(|(one, _), (other, _)| one.total_cmp(other));
        let Some((gradient, one)) = steepest else {
            break;
        };
        if gradient <= TOLERANCE * right[one].abs() / gram.at(one, one).sqrt() {
            break;
        }
        positive.push(one);
        while let Some(factor) = Factor::of(&gram.part(&positive)) {
            let rights: Vec<f64> = positive.iter().map(|k| right[*k]).collect();
            let wanted = factor.solve(&rights);
            let pairs = || positive.iter().copied().zip(wanted.iter().copied());
            let step = |(k, wanted): (usize, f64)| {
                (wanted <= 0.0).then(|| found[k] / (found[k] - wanted).max(f64::MIN_POSITIVE))
            };
            let Some(step) = pairs().filter_map(step).min_by(f64::total_cmp) else {
                pairs().for_each(|(k, wanted)| found[k] = wanted);
                break;
            };
            let moved: Vec<(usize, f64)> = pairs()
                .map(|(k, wanted)| (k, found[k] + step * (wanted - found[k])))
                .collect();
            let lowest = moved
                .iter()
                .map(|(_, value)| *value)
                .fold(f64::INFINITY, f64::min);
            for (k, value) in moved {
                // At least one element reaches zero in each step.
                found[k] = if value <= lowest.max(0.0) { 0.0 } else { value };
            }
            positive.retain(|k| found[*k] > 0.0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(rows: &[&[f64]]) -> Matrix {
        Matrix {
            size: rows.len(),
            cells: rows.concat(),
        }
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        let pairs = found.iter().zip(expected);
        let far = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found.len() == expected.len() && far < 1e-5, "{found:?}");
    }

    #[test]
    fn linear_equations_are_solved() {
        let matrix = matrix(&[&[4.0, 2.0], &[2.0, 3.0]]);
        let factor = Factor::of(&matrix).unwrap();
        assert_near(&factor.solve(&[10.0, 8.0]), &[1.75, 1.5]);
        assert!(Factor::of(&Matrix::new(2)).is_none());
    }

    #[test]
    fn results_that_would_be_negative_are_zero_and_the_others_are_fitted_without_them() {
        let gram = matrix(&[&[4.0, 2.0], &[2.0, 3.0]]);
        assert_near(&non_negative(&gram, &[10.0, 8.0]), &[1.75, 1.5]);
        // Without the limit it would be [3, -1].
        assert_near(&non_negative(&gram, &[10.0, 3.0]), &[2.5, 0.0]);
        assert_near(&non_negative(&gram, &[-1.0, -1.0]), &[0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn no_result_is_negative_and_none_could_be_better(
            cells in prop::collection::vec(-1.0..1.0, 30),
            wanted in prop::collection::vec(-1.0..1.0, 6),
        ) {
            let columns: Vec<&[f64]> = cells.chunks(6).collect();
            let product = |one: &[f64], other: &[f64]| -> f64 {
                one.iter().zip(other).map(|(a, b)| a * b).sum()
            };
            let mut gram = Matrix::new(5);
            for row in 0..6 {
                let cells = columns.iter().map(|column| column[row]);
                let sparse: Vec<_> = cells.enumerate().collect();
                gram.add_square(&sparse, 1.0);
            }
            let right: Vec<f64> = columns.iter().map(|column| product(column, &wanted)).collect();
            let found = non_negative(&gram, &right);
            for at in 0..5 {
                let gram: Vec<f64> = (0..5).map(|other| gram.at(at, other)).collect();
                let gradient = right[at] - product(&gram, &found);
                prop_assert!(found[at] >= 0.0 && gradient < 1e-4, "{found:?} {gradient}");
                prop_assert!(found[at] == 0.0 || gradient > -1e-4, "{found:?} {gradient}");
            }
        }
    }

    #[test]
    fn a_singular_matrix_and_columns_of_zeros_have_a_result() {
        let gram = matrix(&[&[1.0, 1.0, 0.0], &[1.0, 1.0, 0.0], &[0.0, 0.0, 0.0]]);
        let found = non_negative(&gram, &[3.0, 3.0, 0.0]);
        assert_near(&[found[0] + found[1], found[2]], &[3.0, 0.0]);
        assert!(non_negative(&Matrix::default(), &[]).is_empty());
    }
}
