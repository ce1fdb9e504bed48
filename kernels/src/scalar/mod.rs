//! The reference. It is the specification: every other instruction set returns the same bits.
//!
//! The rules that make this possible: a multiply and an add are rounded separately (never fused), the i32 dot product
//! of a group is exact in any order, groups are added in ascending order, and a float reduction keeps
//! [`LANES`] running values, element `i` going to lane `i % 16`, which are then folded 16 → 8 → 4 → 2 → 1.

mod attention;

pub use attention::*;

use crate::half::f16;
use crate::int4::Int4Matrix;
use crate::mat::MatMut;
use crate::panels::PanelMatrix;
use crate::quant::{
    GROUP, Outlier, PART, PARTS, QMatrix, QUAD, Quantized, QuantizedGroup, QuantizedRow, TINY, group_end,
};
use std::ops::Range;

/// Running values a float reduction keeps.
pub const LANES: usize = 16;

/// How many times as large as the rest of its group a quad's largest value must be for the quad to get 14 bits.
pub(crate) const OUTLIER_RATIO: f32 = 1.5;

/// Folds the lanes of a reduction: lane `i` takes lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
pub(crate) fn fold(mut lanes: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = op(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `Σ f(i)` over `0..n` in the fixed order.
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for i in 0..n {
        lanes[i % LANES] += f(i);
    }
    fold(lanes, |a, b| a + b)
}

/// The larger of two values; the second where the first is NaN, as the x86 instruction has it.
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Natural exponential, relative error below 2⁻²²: 0 below −87.3, e⁸⁸ above 88, 0 for NaN.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and the degree-6 polynomial of Cephes' `expf`.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() || x < EXP_MIN {
        return 0.0;
    }
    let x = if x < EXP_MAX { x } else { EXP_MAX };
    let shifted = x * std::f32::consts::LOG2_E + EXP_ROUND;
    let n = shifted - EXP_ROUND;
    let r = x - n * EXP_LN2_HI;
    let r = r - n * EXP_LN2_LO;
    let mut p = EXP_POLY[0];
    for c in &EXP_POLY[1..] {
        p = p * r + c;
    }
    let p = p * (r * r);
    let p = p + r;
    let p = p + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(EXP_ROUND.to_bits() as i32);
    p * f32::from_bits(((exponent + 127) as u32) << 23)
}

pub(crate) const EXP_MIN: f32 = -87.3;
pub(crate) const EXP_MAX: f32 = 88.0;
/// 1.5·2²³: adding it leaves the nearest integer in the low mantissa bits.
pub(crate) const EXP_ROUND: f32 = 12_582_912.0;
pub(crate) const EXP_LN2_HI: f32 = 0.693_359_4;
pub(crate) const EXP_LN2_LO: f32 = -2.121_944_4e-4;
pub(crate) const EXP_POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Quantises one token, or some whole groups of one.
///
/// A group that holds a NaN or an infinity gets a NaN scale (and zeros), so that it shows in every result.
pub fn quantize(x: &[f32], mut out: QuantizedRow) {
    for (g, x) in x.chunks(GROUP).enumerate() {
        let group = quantize_group(x, &mut out.values[g * GROUP..][..x.len()]);
        out.set(g, group);
    }
}

/// One group (64 values, or the short last one of a token): returns its scale, the sums of its values and its outlier.
///
/// A value is `round(x · (127 / limit))`, ties to even, and the scale `limit / 127`. The limit is the largest absolute
/// value, `top`; but where that is at least 1.5 times the largest outside its quad, `rest`, it is `rest`, or
/// `top / 128` if that is larger. Then the quad's values, up to 128·127, are split: `high = (v + 64) >> 7`, and what
/// is left, −64..=63, stays among the values.
fn quantize_group(x: &[f32], q: &mut [i8]) -> QuantizedGroup {
    let (mut top, mut rest, mut quad) = (0, 0, 0);
    for (j, x) in x.chunks(QUAD).enumerate() {
        // As integers the absolute values order as the floats do, and a NaN lies above infinity.
        let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        if largest > top {
            (rest, top, quad) = (top, largest, j);
        } else {
            rest = rest.max(largest);
        }
    }
    let absmax = f32::from_bits(top);
    if top >= f32::INFINITY.to_bits() || absmax < TINY {
        q.fill(0);
        return QuantizedGroup::zeros(if absmax < TINY { 0.0 } else { f32::NAN });
    }
    let rest = f32::from_bits(rest);
    let stands_out = absmax >= OUTLIER_RATIO * rest;
    let limit = if stands_out { max(rest, absmax / 128.0) } else { absmax };
    let inverse = 127.0 / limit;
    let values = x.iter().map(|x| (x * inverse).round_ties_even() as i32);
    for (q, v) in q.iter_mut().zip(values.clone()) {
        *q = v as i8;
    }
    let outlier = match stands_out {
        true => Outlier::split(values.clone().skip(quad * QUAD), quad, &mut q[quad * QUAD..]),
        false => Outlier::default(),
    };
    let mut sums = [0; PARTS];
    values.enumerate().for_each(|(k, v)| sums[k / PART] += v);
    QuantizedGroup::new(limit / 127.0, sums, outlier)
}

/// `out[t][i] = Σ_g (Σ_k w[rows.start + i][k]·x[t][k]) · (1/w_scale · x_scale)`, groups in ascending order.
///
/// Where `cols % 64 ≠ 0` a weight group and an activation group can end at different places: a piece is what lies in
/// one of each. An activation of a group's outlier is `x[t][k] + 128·high`: the sum stays exact in i32, and being below
/// 2²⁴ (60·128·127 + 4·128·16256) in f32 as well.
pub fn matmul_i8(w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    for t in 0..x.tokens() {
        let (xq, xs, xo) = (x.token_values(t), x.token_scales(t), x.token_outliers(t));
        for (out, row) in out.row(t).iter_mut().zip(rows.clone()) {
            *out = dot_i8(w, row, xq, xs, xo);
        }
    }
}

fn dot_i8(w: &QMatrix, row: usize, xq: &[i8], xs: &[f32], xo: &[Outlier]) -> f32 {
    let start = row * w.cols();
    let mut acc = 0.0;
    let mut k = 0;
    while k < w.cols() {
        let w_end = group_end(start + k, w.values().len()) - start;
        let end = w_end.min(group_end(k, w.cols()));
        let outlier = &xo[k / GROUP];
        let product = |k| {
            let x = i32::from(xq[k]) + outlier.extra(k % GROUP);
            i32::from(w.values()[start + k]) * x
        };
        let dot: i32 = (k..end).map(product).sum();
        let w_scale = 1.0 / w.scales()[(start + k) / GROUP];
        acc += dot as f32 * (w_scale * xs[k / GROUP]);
        k = end;
    }
    acc
}

/// `out[t][i] = Σ_g (Σ_k w[rows.start + i][k]·x[t][k]) · (w_scale · x_scale)`, groups in ascending order: as [`matmul_i8`], but
/// that the weights' scales multiply and no group runs across the end of a row.
pub fn matmul_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    for t in 0..x.tokens() {
        let (values, scales) = (x.token_values(t).as_chunks::<GROUP>().0, x.token_scales(t));
        for (out, row) in out.row(t).iter_mut().zip(rows.clone()) {
            *out = 0.0;
            for (g, outlier) in x.token_outliers(t).iter().enumerate() {
                let (w, w_scale) = w.group(row, g);
                let products = w.iter().zip(values[g]).map(|(w, x): (_, i8)| i32::from(*w) * i32::from(x));
                let dot = products.sum::<i32>() + outlier.dot(&w);
                *out += dot as f32 * (w_scale.to_f32() * scales[g]);
            }
        }
    }
}

/// `out[t][i] = (Σ_g (Σ_k w[rows.start + i][k]·x[t][k]) · x_scale) · row_scale`, groups in ascending order, where a weight is the
/// integer `scale·code − minimum` ([`Int4Matrix::weight`]).
///
/// The sum of a group stays exact in i32: 28672·(60·127 + 4·16256) is below 2³¹. It is rounded once, to f32.
pub fn matmul_int4(w: &Int4Matrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    for (i, row) in rows.enumerate() {
        (0..x.tokens()).for_each(|t| out.row(t)[i] = 0.0);
        for g in 0..x.groups() {
            let weights: [i32; GROUP] = std::array::from_fn(|k| w.weight(row, g * GROUP + k));
            for t in 0..x.tokens() {
                let (values, outlier) = (&x.token_values(t)[g * GROUP..], &x.token_outliers(t)[g]);
                let product = |k: usize| weights[k].wrapping_mul(i32::from(values[k]) + outlier.extra(k));
                let dot = (0..GROUP).map(product).fold(0, i32::wrapping_add);
                out.row(t)[i] += dot as f32 * x.token_scales(t)[g];
            }
        }
        (0..x.tokens()).for_each(|t| out.row(t)[i] *= w.row_scale(row));
    }
}

/// `out[c] = (scale·code − minimum) · row_scale`: one row in f32.
pub fn dequantize_int4_row(w: &Int4Matrix, row: usize, out: &mut [f32]) {
    for (c, out) in out.iter_mut().enumerate() {
        *out = w.weight(row, c) as f32 * w.row_scale(row);
    }
}

/// `out[c] = q[row][c] · scale`: one row in f32.
pub fn dequantize_panel_row(w: &PanelMatrix, row: usize, out: &mut [f32]) {
    for (g, out) in out.chunks_mut(GROUP).enumerate() {
        let (values, scale) = w.group(row, g);
        for (out, q) in out.iter_mut().zip(values) {
            *out = f32::from(q) * scale.to_f32();
        }
    }
}

/// `out[c] = values[row][c] · (1/scale)`: one row in f32, as the embedding needs it.
pub fn dequantize_row(w: &QMatrix, row: usize, out: &mut [f32]) {
    let start = row * w.cols();
    for (c, out) in out.iter_mut().enumerate() {
        *out = f32::from(w.values()[start + c]) * (1.0 / w.scales()[(start + c) / GROUP]);
    }
}

/// `Σ a[i]·b[i]`, 16 lanes.
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    sum(a.len(), |i| a[i] * b[i])
}

/// `out[t][i] = Σ_k w[i][k]·x[t][k]` with 16 lanes; `w` is `[out.cols][cols]`, `x` is `[out.rows][cols]`.
pub fn matmul_f32(w: &[f32], x: &[f32], cols: usize, mut out: MatMut<f32>) {
    for t in 0..out.rows() {
        for (i, out) in out.row(t).iter_mut().enumerate() {
            *out = dot_f32(&w[i * cols..][..cols], &x[t * cols..][..cols]);
        }
    }
}

/// `out = x · (1/√(mean(x²) + eps)) · weight` (Zhang & Sennrich 2019).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let inverse = rms_inverse(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}

fn rms_inverse(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt()
}

/// [`rms_norm`], then [`quantize`].
pub fn rms_norm_quantize(x: &[f32], weight: &[f32], eps: f32, mut out: QuantizedRow) {
    let inverse = rms_inverse(x, eps);
    let mut y = [0.0; GROUP];
    for (g, (x, w)) in x.chunks(GROUP).zip(weight.chunks(GROUP)).enumerate() {
        let y = &mut y[..x.len()];
        for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(w)) {
            *y = x * inverse * w;
        }
        let group = quantize_group(y, &mut out.values[g * GROUP..][..x.len()]);
        out.set(g, group);
    }
}

/// The function of a gated linear unit (Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `g / (1 + e⁻ᵍ)`: SwiGLU.
    Silu,
    /// `½g · (1 + tanh(√(2/π) · (g + 0.044715g³)))` (Hendrycks & Gimpel 2016): GeGLU with the approximation by tanh.
    Gelu,
}

/// `−2√(2/π)` and 0.044715 times that: `½ · (1 + tanh(y))` is `1 / (1 + e⁻²ʸ)`.
pub(crate) const GELU: [f32; 2] = [-1.595_769, -0.071_354_814];

impl Gate {
    fn of(self, g: f32) -> f32 {
        match self {
            Gate::Silu => g / (1.0 + exp(-g)),
            Gate::Gelu => g / (1.0 + exp(g * (GELU[0] + GELU[1] * (g * g)))),
        }
    }
}

/// `out = f(gate) · up`, where `f` is the gate's function.
pub fn glu(f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for (out, (&g, &u)) in out.iter_mut().zip(gate.iter().zip(up)) {
        *out = f.of(g) * u;
    }
}

/// `x = cap · tanh(x / cap)` (Gemma 2, arXiv 2408.00118).
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = (1.0 - 2.0 / (exp(*x * (2.0 / cap)) + 1.0)) * cap;
    }
}

/// [`glu`], then [`quantize`].
pub fn glu_quantize(f: Gate, gate: &[f32], up: &[f32], mut out: QuantizedRow) {
    let mut y = [0.0; GROUP];
    for (g, (gate, up)) in gate.chunks(GROUP).zip(up.chunks(GROUP)).enumerate() {
        let y = &mut y[..gate.len()];
        glu(f, gate, up, y);
        let group = quantize_group(y, &mut out.values[g * GROUP..][..y.len()]);
        out.set(g, group);
    }
}

/// Rotates each head of `x`, half-split: element `i` with element `i + head_dim/2`, by the angle whose cosine and
/// sine are `cos[i]` and `sin[i]` (Su et al. 2021).
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

/// `x *= y`, element by element.
pub fn mul(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `out = x · factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// Rounds to f16, ties to even; overflows to infinity.
pub fn narrow_f16(x: &[f32], out: &mut [f16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f16::from_f32(*x);
    }
}

/// Rounds to int8: `round(x · (127 / max|x|))`, ties to even; returns the scale `max|x| / 127`.
///
/// Zeros where the largest is below 2⁻¹⁰⁰; where it is not finite zeros as well, and a NaN scale.
pub fn narrow_i8(x: &[f32], out: &mut [i8]) -> f32 {
    let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let absmax = f32::from_bits(largest);
    if !absmax.is_finite() || absmax < TINY {
        out.fill(0);
        return if absmax < TINY { 0.0 } else { f32::NAN };
    }
    let inverse = 127.0 / absmax;
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x * inverse).round_ties_even() as i8;
    }
    absmax / 127.0
}

/// The position of the largest value, the lowest among equals; NaN counts as smallest, and 0 is the answer where
/// nothing is larger than −∞.
pub fn argmax(x: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &v) in x.iter().enumerate() {
        if v > best.1 {
            best = (i, v);
        }
    }
    best.0
}
