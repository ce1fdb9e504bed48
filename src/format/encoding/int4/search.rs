//! The int4 form of weights that lie on no grid: a scale for each 16 columns of a row, sought so that the error, squared and
//! weighted with the importance of its column, is least.

use torchless_kernels::PANEL_ROWS;

use super::{Encoded, EncodedRow, Kind, append_panel, begin};
use crate::parallel::spread::spread;

/// Columns that share a scale.
pub(super) const PART: usize = 16;

/// The codes, in ascending order. They are closer where weights are more frequent: what Lloyd's algorithm arrives at from the
/// weights of a trained model, each 16 scaled to fit. A table of their own for each tensor lowers the error by less than 1 %.
/// They are lopsided, and a negative scale mirrors them: that is worth a seventh of the error.
pub(super) const CODES: [i8; 16] = [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27];

/// Where to look for a group's scale: its largest value is a code of 31 times one of these, before the fit.
const STRETCHES: [f32; 8] = [0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1];

/// Appends rows of finite values, `[rows][cols]`: whole panels of them, or the tensor's last. `importance` is what the error of
/// each column weighs; without it all weigh the same.
pub(crate) fn encode_weighted(rows: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut Encoded) {
    begin(&CODES, out);
    let mut encoded: Vec<Option<EncodedRow>> = Vec::new();
    encoded.resize_with(rows.len() / cols, || None);
    spread(encoded.iter_mut().zip(rows.chunks(cols)), |(encoded, row)| {
        *encoded = Some(encode_row(row, importance));
    });
    let encoded: Vec<_> = encoded.into_iter().flatten().collect();
    for panel in encoded.chunks(PANEL_ROWS) {
        append_panel(panel, Kind::Fine, cols, out);
    }
}

fn encode_row(row: &[f32], importance: Option<&[f32]>) -> EncodedRow {
    let parts = row.as_chunks::<PART>().0;
    let weights_of = |i: usize| importance.map_or([1.0; PART], |weights| weights.as_chunks().0[i]);
    let wanted: Vec<f32> = (0..).zip(parts).map(|(i, part)| best_scale(part, &weights_of(i))).collect();
    let row_scale = wanted.iter().fold(0.0f32, |max, scale| max.max(scale.abs())) / 127.0;
    let mut encoded = EncodedRow {
        nibbles: Vec::with_capacity(row.len()),
        scales: Vec::with_capacity(parts.len()),
        row_scale,
    };
    for (part, wanted) in parts.iter().zip(wanted) {
        // 0 / 0 is none: then it is 0.
        let scale = (wanted / row_scale).round_ties_even() as i16;
        encoded.scales.push(scale);
        encoded.nibbles.extend(nearest(part, inverse(f32::from(scale) * row_scale)));
    }
    encoded
}

/// The scale at which 16 weights have the least error: the best of some, each with the codes it gives fitted to the weights.
pub(super) fn best_scale(part: &[f32; PART], importance: &[f32; PART]) -> f32 {
    let largest = part.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let (mut best, mut best_gain) = (0.0, 0.0);
    for stretch in STRETCHES {
        for sign in [1.0, -1.0] {
            let inverse = inverse(sign * largest * stretch / 31.0);
            let codes = nearest_codes(part, inverse);
            let (mut product, mut square) = ([0.0; 4], [0.0; 4]);
            for i in 0..PART {
                let weighted = importance[i] * codes[i];
                product[i % 4] += weighted * part[i];
                square[i % 4] += weighted * codes[i];
            }
            let [product, square] = [product, square].map(|[a, b, c, d]| (a + c) + (b + d));
            // The error is Σ h·w² less this.
            let gain = product * (product / square);
            if gain > best_gain {
                (best, best_gain) = (product / square, gain);
            }
        }
    }
    best
}

/// 1 over a scale; 0 where that is not finite.
pub(super) fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The codes nearest to weights divided by a scale.
#[inline]
fn nearest_codes<const N: usize>(part: &[f32; N], inverse: f32) -> [f32; N] {
    let scaled = part.map(|value| value * inverse);
    let mut codes = [f32::from(CODES[0]); N];
    for pair in CODES.windows(2) {
        let [low, high] = [f32::from(pair[0]), f32::from(pair[1])];
        let (middle, step) = ((low + high) / 2.0, (high - low).to_bits());
        for (code, scaled) in codes.iter_mut().zip(&scaled) {
            // Without a branch, so that the compiler takes several at once.
            *code += f32::from_bits(u32::from(*scaled > middle).wrapping_neg() & step);
        }
    }
    codes
}

/// Which of the table the codes nearest to weights divided by a scale are.
pub(super) fn nearest<const N: usize>(part: &[f32; N], inverse: f32) -> [u8; N] {
    let codes = nearest_codes(part, inverse);
    codes.map(|code| CODES.partition_point(|c| f32::from(*c) < code) as u8)
}
