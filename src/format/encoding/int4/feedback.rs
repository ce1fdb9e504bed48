//! The int4 form of weights with feedback of errors (GPTQ, Frantar et al. 2022; in the form of LDLQ, Chee et al. 2023): what a
//! column is rounded off by is made up for by the columns that come after it, as far as their activations go together.
//!
//! With `H = Σ x·xᵀ` over the activations of a text, the squared error of a row's products with them is `e·H·eᵀ`, `e` what its
//! weights are off by. `H = L·Lᵀ` makes that a sum over columns `k` of `L[k][k]²·(e[k] + Σ_{j>k} e[j]·L[j][k] / L[k][k])²`: so from
//! the last column to the first, each is rounded towards its weight and what the columns behind it left over.

use torchless_kernels::{MatMut, PANEL_ROWS, Strided, add_product};

use super::search::{CODES, PART, best_scale, inverse, nearest};
use super::{Encoded, EncodedRow, Kind, append_panel, begin};
use crate::parallel::spread::spread;

/// Columns that are done one by one before what they leave is carried to all others at once.
const BLOCK: usize = 128;

/// Rows that a thread takes through a matrix together.
const ROWS: usize = 2 * PANEL_ROWS;

/// Added to `H`'s diagonal, as a share of its mean: columns that a text does not tell apart are left alone.
const DAMPING: f32 = 0.01;

/// What errors of a matrix's columns cost, and how one makes up for others.
pub(crate) struct Feedback {
    n: usize,
    /// `[n][n]`, below the diagonal: `L[j][k] / L[k][k]`.
    carried: Vec<f32>,
    /// `L[k][k]²`
    weights: Vec<f32>,
}

impl Feedback {
    /// From `H`, `[n][n]` and symmetric, of which the part on and below the diagonal is read. `None` if it says nothing.
    pub fn new(mut h: Vec<f32>, n: usize) -> Option<Self> {
        let mean = (0..n).map(|i| h[i * n + i]).sum::<f32>() / n as f32;
        if !mean.is_normal() {
            return None;
        }
        for i in 0..n {
            h[i * n + i] += DAMPING * mean;
        }
        factor(&mut h, n);
        let diagonal: Vec<f32> = (0..n).map(|i| h[i * n + i]).collect();
        if diagonal.iter().any(|value| !value.is_normal()) {
            return None;
        }
        spread(h.chunks_mut(n), |row| row.iter_mut().zip(&diagonal).for_each(|(value, own)| *value /= own));
        Some(Self { n, carried: h, weights: diagonal.iter().map(|value| value * value).collect() })
    }
}

/// `H = L·Lᵀ`: replaces what is on and below the diagonal by `L` (Cholesky), a block of columns at a time.
fn factor(h: &mut [f32], n: usize) {
    for first in (0..n).step_by(BLOCK) {
        let last = (first + BLOCK).min(n);
        let above: Vec<f32> =
            h[first * n..last * n].chunks(n).flat_map(|row| &row[..first]).copied().collect();
        let above = Strided::new(&above, [last - first, first], [first, 1]).transposed();
        // What the columns before take off.
        spread(h[first * n..].chunks_mut(ROWS * n), |rows| {
            let count = rows.len() / n;
            let before: Vec<f32> = rows.chunks(n).flat_map(|row| &row[..first]).copied().collect();
            let before = Strided::new(&before, [count, first], [first, 1]);
            let (_, columns) = MatMut::new(rows, count, n).split_cols(first);
            add_product(-1.0, before, above, columns.split_cols(last - first).0);
        });
        for j in first..last {
            let (done, rest) = h[first * n..].split_at_mut((j - first) * n);
            let (row, _) = rest.split_at_mut(n);
            solve_row(done, row, first..j, n);
            let square: f64 = row[first..j].iter().map(|value| f64::from(*value).powi(2)).sum();
            row[j] = (f64::from(row[j]) - square).sqrt() as f32;
        }
        let (done, rest) = h[first * n..].split_at_mut((last - first) * n);
        spread(rest.chunks_mut(n), |row| solve_row(done, row, first..last, n));
    }
}

/// One row of `L` in some columns, from the rows of those columns: `done` begins with row `columns.start`.
fn solve_row(done: &[f32], row: &mut [f32], columns: std::ops::Range<usize>, n: usize) {
    for k in columns.clone() {
        let other = &done[(k - columns.start) * n..][..n];
        let dot: f32 = row[columns.start..k].iter().zip(&other[columns.start..k]).map(|(a, b)| a * b).sum();
        row[k] = (row[k] - dot) / other[k];
    }
}

/// Appends rows of finite values, `[rows][cols]`: whole panels of them, or the tensor's last.
pub(crate) fn encode_with_feedback(rows: &[f32], feedback: &Feedback, out: &mut Encoded) {
    let cols = feedback.n;
    begin(&CODES, out);
    let mut encoded: Vec<Vec<EncodedRow>> = Vec::new();
    encoded.resize_with(rows.len().div_ceil(ROWS * cols), Vec::new);
    spread(encoded.iter_mut().zip(rows.chunks(ROWS * cols)), |(encoded, rows)| {
        *encoded = encode_rows(rows, feedback);
    });
    let encoded: Vec<_> = encoded.into_iter().flatten().collect();
    for panel in encoded.chunks(PANEL_ROWS) {
        append_panel(panel, Kind::Fine, cols, out);
    }
}

fn encode_rows(rows: &[f32], feedback: &Feedback) -> Vec<EncodedRow> {
    let cols = feedback.n;
    let count = rows.len() / cols;
    let empty = |row: &[f32]| EncodedRow {
        nibbles: vec![0; cols],
        scales: vec![0; cols / PART],
        row_scale: row_scale(row, feedback),
    };
    let mut encoded: Vec<_> = rows.chunks(cols).map(empty).collect();
    // The weights, and what the columns behind left over.
    let mut wanted = rows.to_vec();
    let mut errors = vec![0.0; count * BLOCK];
    for first in (0..cols).step_by(BLOCK).rev() {
        let last = (first + BLOCK).min(cols);
        let width = last - first;
        let every = encoded.iter_mut().zip(wanted.chunks_mut(cols)).zip(rows.chunks(cols));
        for (((encoded, wanted), row), errors) in every.zip(errors.chunks_mut(width)) {
            for start in (first..last).step_by(PART).rev() {
                encode_part(encoded, wanted, row, start, first, errors, feedback);
            }
        }
        let carried = Strided::new(&feedback.carried[first * cols..], [width, first], [cols, 1]);
        let errors = Strided::new(&errors, [count, width], [width, 1]);
        add_product(1.0, errors, carried, MatMut::new(&mut wanted, count, cols).split_cols(first).0);
    }
    encoded
}

/// The scale of a row, as wide as the scales are without feedback.
fn row_scale(row: &[f32], feedback: &Feedback) -> f32 {
    let parts = row.as_chunks().0.iter().zip(feedback.weights.as_chunks().0);
    parts.map(|(part, weights)| best_scale(part, weights).abs()).fold(0.0, f32::max) / 127.0
}

/// Columns `start..start + 16` of a row, from the last to the first; carries what each is off by to those from `first` on.
fn encode_part(
    encoded: &mut EncodedRow,
    wanted: &mut [f32],
    row: &[f32],
    start: usize,
    first: usize,
    errors: &mut [f32],
    feedback: &Feedback,
) {
    let Some(weights) = feedback.weights[start..].first_chunk() else { return };
    let Some(part) = wanted[start..].first_chunk() else { return };
    let whole = (best_scale(part, weights) / encoded.row_scale).round_ties_even().clamp(-127.0, 127.0);
    // 0 / 0 is none: then it is 0.
    let scale = f32::from(whole as i16) * encoded.row_scale;
    encoded.scales[start / PART] = whole as i16;
    for j in (start..start + PART).rev() {
        let nibble = nearest(&[wanted[j]; 1], inverse(scale))[0];
        encoded.nibbles[j] = nibble;
        let error = row[j] - f32::from(CODES[usize::from(nibble)]) * scale;
        errors[j - first] = error;
        let carried = &feedback.carried[j * feedback.n..][first..j];
        for (wanted, carried) in wanted[first..j].iter_mut().zip(carried) {
            *wanted += error * carried;
        }
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use torchless_kernels::Kernels;

    use super::super::encode_weighted;
    use super::*;
    use crate::format::encoding::Dtype;

    /// Values of a bell curve, roughly.
    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| (0..4).map(|_| uniform()).sum()).collect()
    }

    /// `Σ x·xᵀ` of activations of which each is its neighbour's, in part.
    fn correlated(n: usize, tokens: usize) -> Vec<f32> {
        let mut h = vec![0.0; n * n];
        for t in 0..tokens {
            let mut x = random(n, t as u64);
            for i in 1..n {
                x[i] = 0.8 * x[i - 1] + 0.6 * x[i];
            }
            for i in 0..n {
                for j in 0..n {
                    h[i * n + j] += x[i] * x[j];
                }
            }
        }
        h
    }

    #[test]
    fn a_factor_times_itself_is_the_matrix() {
        // More than a block, and no multiple of one.
        let n = 300;
        let mut h = correlated(n, 2 * n);
        (0..n).for_each(|i| h[i * n + i] += 1.0);
        let mut l = h.clone();
        factor(&mut l, n);
        for i in 0..n {
            for j in 0..=i {
                let sum: f64 = (0..=j).map(|k| f64::from(l[i * n + k]) * f64::from(l[j * n + k])).sum();
                assert_relative_eq!(sum as f32, h[i * n + j], epsilon = 1e-2, max_relative = 1e-3);
            }
        }
    }

    fn decoded(encoded: &Encoded, shape: (usize, usize)) -> Vec<f32> {
        let scales = [&encoded.front[..], &encoded.scales].concat();
        let scales: Vec<u64> = scales.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        let scales: &[u8] = bytemuck::cast_slice(&scales);
        let encoding = Dtype::Int4.encoding();
        encoding.verify(&encoded.data, scales, shape).unwrap();
        let weight = encoding.weight(&encoded.data, scales, shape, false);
        let mut out = vec![0.0; shape.0 * shape.1];
        for (row, out) in out.chunks_mut(shape.1).enumerate() {
            Kernels::detect().weight_row(&weight, row, out);
        }
        out
    }

    /// `Σ e·H·eᵀ` over rows.
    fn cost(weights: &[f32], found: &[f32], h: &[f32], n: usize) -> f64 {
        let mut sum = 0.0;
        for (row, found) in weights.chunks(n).zip(found.chunks(n)) {
            let e: Vec<f32> = row.iter().zip(found).map(|(a, b)| a - b).collect();
            for i in 0..n {
                let he: f32 = h[i * n..(i + 1) * n].iter().zip(&e).map(|(h, e)| h * e).sum();
                sum += f64::from(e[i] * he);
            }
        }
        sum
    }

    #[test]
    fn feedback_takes_off_most_of_what_correlated_errors_cost() {
        let (rows, n) = (50, 320);
        let (weights, h) = (random(rows * n, 99), correlated(n, 3 * n));
        let feedback = Feedback::new(h.clone(), n).unwrap();
        let mut with = Encoded::default();
        encode_with_feedback(&weights, &feedback, &mut with);
        let mut without = Encoded::default();
        encode_weighted(&weights, n, None, &mut without);
        let [with, without] =
            [with, without].map(|encoded| cost(&weights, &decoded(&encoded, (rows, n)), &h, n));
        assert!(with < 0.5 * without, "{with} with feedback, {without} without");
    }

    /// Columns that have nothing to do with each other: then there is nothing to make up for.
    #[test]
    fn without_correlation_it_is_the_search_alone() {
        let (rows, n) = (35, 192);
        let weights = random(rows * n, 5);
        let mut h = vec![0.0; n * n];
        (0..n).for_each(|i| h[i * n + i] = 4.0);
        let feedback = Feedback::new(h, n).unwrap();
        let (mut with, mut without) = (Encoded::default(), Encoded::default());
        encode_with_feedback(&weights, &feedback, &mut with);
        encode_weighted(&weights, n, Some(&feedback.weights), &mut without);
        assert_eq!(with.scales, without.scales);
        assert!(with.data == without.data && with.front == without.front);
    }

    #[test]
    fn a_text_that_says_nothing_gives_no_feedback() {
        assert!(Feedback::new(vec![0.0; 64 * 64], 64).is_none());
        assert!(Feedback::new(vec![f32::NAN; 64 * 64], 64).is_none());
    }
}
