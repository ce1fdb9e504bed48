//! Attention. A block is 64 positions, a span four blocks; both begin at multiples of the absolute position.

use super::{EXP_MIN, EXP_ROUND, LANES, exp, fold, max, narrow_i8, softcap, sum};
use crate::attention::block::Int8Keys;
use crate::attention::int8::{Int8Span, SpanQueries, SpanResult};
use crate::half::f16;
use crate::quant::GROUP;
use std::ops::Range;

/// Positions in a block of attention.
pub const BLOCK: usize = 64;

/// Blocks in a span.
pub const SPAN_BLOCKS: usize = 4;

/// Positions in a span.
pub const SPAN: usize = SPAN_BLOCKS * BLOCK;

/// A cache element: exact in f32.
pub(crate) trait Element: Copy {
    /// The value in f32.
    fn widen(self) -> f32;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// `scores[i][j] = Σ_d q[i][d]·keys[j / 16][d][j % 16]`, `d` in ascending order.
pub(crate) fn attn_scores<T: Element>(q: &[f32], keys: &[T], scores: &mut [[f32; BLOCK]]) {
    let width = q.len() / scores.len().max(1);
    for (scores, q) in scores.iter_mut().zip(q.chunks_exact(width.max(1))) {
        for (scores, keys) in scores.chunks_mut(LANES).zip(keys.chunks_exact(LANES * width)) {
            for (lane, score) in scores.iter_mut().enumerate() {
                *score =
                    q.iter().enumerate().fold(0.0, |sum, (d, q)| sum + q * keys[d * LANES + lane].widen());
            }
        }
    }
}

/// Replaces each score by `e^(score − max)`; returns the maximum, NaN not counted, and the sum of the results, 16 lanes.
pub fn softmax_block(scores: &mut [f32]) -> (f32, f32) {
    let max = largest(scores);
    for s in scores.iter_mut() {
        *s = exp(*s - max);
    }
    (max, sum(scores.len(), |i| scores[i]))
}

/// The largest of some scores, NaN not counted; −∞ where there are none.
fn largest(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (i, &s) in scores.iter().enumerate() {
        lanes[i % LANES] = max(s, lanes[i % LANES]);
    }
    fold(lanes, max)
}

/// `out[i][d] = out[i][d]·factors[i][0] + (Σ_j p[i][first + j]·values[j][d])·factors[i][1]`, `j` in ascending order.
pub(crate) fn attn_accumulate<T: Element>(
    p: &[[f32; BLOCK]],
    first: usize,
    values: &[T],
    factors: &[[f32; 2]],
    out: &mut [f32],
) {
    let width = out.len() / p.len().max(1);
    for ((out, p), factors) in out.chunks_exact_mut(width.max(1)).zip(p).zip(factors) {
        for (d, out) in out.iter_mut().enumerate() {
            let values = values.iter().skip(d).step_by(width);
            let sum = p[first..].iter().zip(values).fold(0.0, |sum, (p, v)| sum + p * v.widen());
            *out = *out * factors[0] + sum * factors[1];
        }
    }
}

/// `out = x`, exactly.
pub(crate) fn widen<T: Element>(x: &[T], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.widen();
    }
}

/// `a = a·a_factor + b·b_factor`: joins the outputs of two attention blocks.
pub fn attn_merge(a: &mut [f32], a_factor: f32, b: &[f32], b_factor: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = *a * a_factor + b * b_factor;
    }
}

/// What up to 256 int8 keys and values give some queries, of which query `t` may look at positions `seen[t]` of them.
///
/// A score is `(bias + dot_0) + dot_1 …`, with `bias = q · mean` in f32 (16 lanes) and `dot_g` the exact dot product of a group
/// of key and quantised query, times `(key_scale · query_scale)`. Probabilities are [`exp_short`] of a score less
/// the largest, and their sum is one over 16 lanes; of these, each times its value's scale, [`narrow_i8`] makes integers, 0..=127,
/// with a scale a block. What a query may not look at gets 0. The output is `Σ_block dot · scale`, where `dot` is the exact sum of 64 integers times values.
pub fn attn_span_i8(queries: &SpanQueries, span: &Int8Span, seen: &[Range<usize>], result: SpanResult) {
    let head_dim = result.output.len() / seen.len().max(1);
    for (t, seen) in seen.iter().enumerate() {
        let mut scores = [f32::NEG_INFINITY; SPAN];
        let scores = &mut scores[..span.keys.len() * BLOCK];
        for at in seen.clone() {
            scores[at] = score(queries, t, &span.keys[at / BLOCK], at % BLOCK);
            if let Some(cap) = queries.softcap {
                softcap(&mut scores[at..at + 1], cap);
            }
        }
        let max = largest(scores);
        scores.iter_mut().for_each(|score| *score = exp_short(*score - max));
        result.sums[t] = [max, sum(scores.len(), |i| scores[i])];
        let output = &mut result.output[t * head_dim..][..head_dim];
        output.fill(0.0);
        for (block, (p, values)) in scores.chunks(BLOCK).zip(span.values).enumerate() {
            let weight = |j| if seen.contains(&(block * BLOCK + j)) { p[j] * values.scales[j] } else { 0.0 };
            let p: [f32; BLOCK] = std::array::from_fn(weight);
            let mut weights = [0; BLOCK];
            let scale = narrow_i8(&p, &mut weights);
            for (d, output) in output.iter_mut().enumerate() {
                let products =
                    weights.iter().enumerate().map(|(j, w)| i32::from(*w) * i32::from(values.code(j, d)));
                *output += products.sum::<i32>() as f32 * scale;
            }
        }
    }
}

/// `e^x` for what is not above 0, relative error below 2⁻¹⁸ down to −2 and 2⁻¹⁶ below it: 0 below −87.3 and for NaN, and
/// exactly 1 of 0. Half as long as [`exp`], which a weight that is rounded to seven bits has no use for.
pub fn exp_short(x: f32) -> f32 {
    if x.is_nan() || x < EXP_MIN {
        return 0.0;
    }
    let x = x * std::f32::consts::LOG2_E;
    let shifted = x + EXP_ROUND;
    let fraction = x - (shifted - EXP_ROUND);
    let mut p = EXP_SHORT_POLY[0];
    for c in &EXP_SHORT_POLY[1..] {
        p = p * fraction + c;
    }
    let exponent = (shifted.to_bits() as i32).wrapping_sub(EXP_ROUND.to_bits() as i32);
    p * f32::from_bits(((exponent + 127) as u32) << 23)
}

/// `2^f` for `|f| ≤ ½`, the largest relative error made as small as it can be with a last coefficient of 1.
pub(crate) const EXP_SHORT_POLY: [f32; 5] = [0.009_582_852, 0.055_906_43, 0.240_240_99, 0.693_124_2, 1.0];

/// The score of query `t` with a block's position `at`.
fn score(queries: &SpanQueries, t: usize, keys: &Int8Keys, at: usize) -> f32 {
    let cols = queries.int8.cols();
    let query = &queries.f32[t * cols..][..cols];
    let mut score = sum(cols, |d| query[d] * keys.mean_at(d));
    for (g, outlier) in queries.int8.token_outliers(t).iter().enumerate() {
        let (key, scale) = keys.group(at, g);
        let values = &queries.int8.token_values(t)[g * GROUP..][..GROUP];
        let products = key.iter().zip(values).map(|(k, q)| i32::from(*k) * i32::from(*q));
        let dot = products.sum::<i32>() + outlier.dot(&key);
        score += dot as f32 * (scale * queries.int8.token_scales(t)[g]);
    }
    score
}
