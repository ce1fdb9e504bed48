//! The float kernels, written once for 16 lanes: each function does what the one of the same name in
//! [`crate::scalar`] does, in the same order.
//!
//! Everything here is `#[inline(always)]`, closures included: the code must end up inside the function that has the
//! instruction set's features switched on, or the intrinsics would become calls.

use crate::half::f16;
use crate::int4::Int4Matrix;
use crate::mat::MatMut;
use crate::panels::PanelMatrix;
use crate::quant::{GROUP, Outlier, PARTS, QMatrix, QUAD, QuantizedGroup, QuantizedRow, TINY};
use crate::scalar::{
    self, EXP_LN2_HI, EXP_LN2_LO, EXP_MAX, EXP_MIN, EXP_POLY, EXP_ROUND, LANES, OUTLIER_RATIO,
};
use crate::simd::Simd;

/// The start of `[T::default(); N]` replaced by `x`.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default, const N: usize>(x: &[T]) -> [T; N] {
    let mut whole = [T::default(); N];
    whole[..x.len()].copy_from_slice(x);
    whole
}

/// `x = f(x)`, element by element.
#[inline(always)]
pub(crate) fn update<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::F32) -> S::F32) {
    let (vectors, tail) = x.as_chunks_mut();
    for x in vectors {
        s.store(f(s.load(x)), x);
    }
    if !tail.is_empty() {
        let mut last = padded(tail);
        s.store(f(s.load(&last)), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// `x = f(x, y)`, element by element.
#[inline(always)]
pub(crate) fn update2<S: Simd>(s: S, x: &mut [f32], y: &[f32], f: impl Fn(S::F32, S::F32) -> S::F32) {
    let (vectors, tail) = x.as_chunks_mut();
    let (y_vectors, y_tail) = y.as_chunks();
    for (x, y) in vectors.iter_mut().zip(y_vectors) {
        s.store(f(s.load(x), s.load(y)), x);
    }
    if !tail.is_empty() {
        let mut last = padded(tail);
        s.store(f(s.load(&last), s.load(&padded(y_tail))), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// `out = f(x, y)`, element by element.
#[inline(always)]
pub(crate) fn map2<S: Simd>(
    s: S,
    x: &[f32],
    y: &[f32],
    out: &mut [f32],
    f: impl Fn(S::F32, S::F32) -> S::F32,
) {
    let (vectors, tail) = out.as_chunks_mut();
    let ((x_vectors, x_tail), (y_vectors, y_tail)) = (x.as_chunks(), y.as_chunks());
    for (out, (x, y)) in vectors.iter_mut().zip(x_vectors.iter().zip(y_vectors)) {
        s.store(f(s.load(x), s.load(y)), out);
    }
    if !tail.is_empty() {
        let mut last = [0.0; LANES];
        s.store(f(s.load(&padded(x_tail)), s.load(&padded(y_tail))), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// The 16 running sums of `Σ a[i]·b[i]`. A padded lane adds +0, which changes nothing: no running sum is ever −0.
#[inline(always)]
fn dot_lanes<S: Simd>(s: S, a: &[f32], b: &[f32]) -> S::F32 {
    let ((a_vectors, a_tail), (b_vectors, b_tail)) = (a.as_chunks(), b.as_chunks());
    let mut acc = s.splat(0.0);
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        acc = s.add(acc, s.mul(s.load(a), s.load(b)));
    }
    if !a_tail.is_empty() {
        acc = s.add(acc, s.mul(s.load(&padded(a_tail)), s.load(&padded(b_tail))));
    }
    acc
}

#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let clamped = s.min(x, s.splat(EXP_MAX));
    let shifted = s.add(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)), s.splat(EXP_ROUND));
    let n = s.sub(shifted, s.splat(EXP_ROUND));
    let r = s.sub(clamped, s.mul(n, s.splat(EXP_LN2_HI)));
    let r = s.sub(r, s.mul(n, s.splat(EXP_LN2_LO)));
    let mut p = s.splat(EXP_POLY[0]);
    for &c in &EXP_POLY[1..] {
        p = s.add(s.mul(p, r), s.splat(c));
    }
    let p = s.mul(p, s.mul(r, r));
    let p = s.add(s.add(p, r), s.splat(1.0));
    let scale = s.exponent(shifted, 127i32.wrapping_sub(EXP_ROUND.to_bits() as i32));
    s.keep_where_ge(s.mul(p, scale), x, s.splat(EXP_MIN))
}

#[inline(always)]
pub(crate) fn quantize<S: Simd>(s: S, x: &[f32], out: QuantizedRow) {
    quantize_groups(
        s,
        x.len(),
        out,
        #[inline(always)]
        |at, n| load_group(s, &x[at..at + n]),
    );
}

/// Up to 64 values, padded with zeros, which change neither the maximum nor the sum of a group.
#[inline(always)]
pub(crate) fn load_group<S: Simd>(s: S, x: &[f32]) -> [S::F32; 4] {
    match x.as_chunks::<LANES>() {
        ([a, b, c, d], []) => [s.load(a), s.load(b), s.load(c), s.load(d)],
        _ => {
            let last: [f32; GROUP] = padded(x);
            let [a, b, c, d] = last.as_chunks::<LANES>().0 else { unreachable!("64 values are 4 vectors") };
            [s.load(a), s.load(b), s.load(c), s.load(d)]
        }
    }
}

/// Quantises `len` values; `group(start, n)` gives values `start..start + n`, 64 or what is left of them.
#[inline(always)]
pub(crate) fn quantize_groups<S: Simd>(
    s: S,
    len: usize,
    mut out: QuantizedRow,
    group: impl Fn(usize, usize) -> [S::F32; 4],
) {
    let whole = len / GROUP;
    for g in 0..whole {
        let x = group(g * GROUP, GROUP);
        let quantized = quantize_group(s, x, &mut out.values.as_chunks_mut::<GROUP>().0[g]);
        out.set(g, quantized);
    }
    let tail = whole * GROUP..len;
    if !tail.is_empty() {
        let mut values = [0; GROUP];
        let quantized = quantize_group(s, group(tail.start, tail.len()), &mut values);
        out.set(whole, quantized);
        out.values[tail.clone()].copy_from_slice(&values[..tail.len()]);
    }
}

#[inline(always)]
fn quantize_group<S: Simd>(s: S, x: [S::F32; 4], q: &mut [i8; GROUP]) -> QuantizedGroup {
    let absmax = f32::from_bits(largest_bits(s, &x));
    if !absmax.is_finite() || absmax < TINY {
        q.fill(0);
        return QuantizedGroup::zeros(if absmax < TINY { 0.0 } else { f32::NAN });
    }
    let outlier = outlier_quad(s, &x, absmax);
    let limit = match outlier {
        Some(quad) => scalar::max(largest_outside(s, &x, quad), absmax / 128.0),
        None => absmax,
    };
    let inverse = s.splat(127.0 / limit);
    let mut sums = [0; PARTS];
    let mut whole = [0; GROUP];
    let parts = q.as_chunks_mut().0.iter_mut().zip(whole.as_chunks_mut().0);
    for ((x, sum), (q, whole)) in x.iter().zip(&mut sums).zip(parts) {
        let rounded = s.round(s.mul(*x, inverse));
        s.store_i8(rounded, q);
        s.store_i32(rounded, whole);
        *sum = s.sum_i32(rounded);
    }
    let outlier = match outlier {
        Some(quad) => {
            let values = whole[quad * QUAD..].iter().copied();
            Outlier::split(values, quad, &mut q[quad * QUAD..])
        }
        None => Outlier::default(),
    };
    QuantizedGroup::new(limit / 127.0, sums, outlier)
}

/// The bits of the largest absolute value. As integers these order as the floats do, and a NaN lies above infinity.
#[inline(always)]
fn largest_bits<S: Simd>(s: S, [a, b, c, d]: &[S::F32; 4]) -> u32 {
    let (ab, cd) = (s.max_i32(s.abs_bits(*a), s.abs_bits(*b)), s.max_i32(s.abs_bits(*c), s.abs_bits(*d)));
    s.largest_i32(s.max_i32(ab, cd)) as u32
}

/// The quad that holds every value above `absmax / 1.5`, if a single one does.
///
/// This is the test of the reference, which compares `1.5 · rest` with `absmax` for the largest value outside the quad:
/// rounding keeps order, so that one value decides here too.
#[inline(always)]
fn outlier_quad<S: Simd>(s: S, x: &[S::F32; 4], absmax: f32) -> Option<usize> {
    let mut large = 0u64;
    for (i, x) in x.iter().enumerate() {
        let x = s.mul(*x, s.splat(OUTLIER_RATIO));
        let (above, below) = (s.mask_gt(x, s.splat(absmax)), s.mask_gt(s.splat(-absmax), x));
        large |= u64::from(above | below) << (LANES * i);
    }
    let quad = large.trailing_zeros() as usize / QUAD;
    (large >> (quad * QUAD) < 1 << QUAD).then_some(quad)
}

/// Ones, but for a quad of zeros in the middle: a window of 64 masks any quad of a group.
const OUTSIDE: [f32; 2 * GROUP - QUAD] = {
    let mut ones = [1.0; 2 * GROUP - QUAD];
    let mut i = GROUP - QUAD;
    while i < GROUP {
        ones[i] = 0.0;
        i += 1;
    }
    ones
};

/// The largest absolute value outside quad `quad`; all values must be finite.
#[inline(always)]
fn largest_outside<S: Simd>(s: S, x: &[S::F32; 4], quad: usize) -> f32 {
    let mut x = *x;
    for (x, ones) in x.iter_mut().zip(OUTSIDE[GROUP - QUAD - quad * QUAD..].as_chunks().0) {
        *x = s.mul(*x, s.load(ones));
    }
    f32::from_bits(largest_bits(s, &x))
}

#[inline(always)]
pub(crate) fn dequantize_row<S: Simd>(s: S, w: &QMatrix, row: usize, out: &mut [f32]) {
    if !w.is_aligned() {
        return scalar::dequantize_row(w, row, out);
    }
    let groups = w.cols() / GROUP;
    let values = w.values()[row * w.cols()..][..w.cols()].as_chunks::<GROUP>().0;
    let scales = &w.scales()[row * groups..][..groups];
    for ((out, q), scale) in out.as_chunks_mut::<GROUP>().0.iter_mut().zip(values).zip(scales) {
        let inverse = s.splat(1.0 / scale);
        for (out, q) in out.as_chunks_mut().0.iter_mut().zip(q.as_chunks().0) {
            s.store(s.mul(s.load_i8(q), inverse), out);
        }
    }
}

#[inline(always)]
pub(crate) fn dequantize_panel_row<S: Simd>(s: S, w: &PanelMatrix, row: usize, out: &mut [f32]) {
    for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let (values, scale) = w.group(row, g);
        let scale = s.splat(scale.to_f32());
        for (out, q) in out.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
            s.store(s.mul(s.load_i8(q), scale), out);
        }
    }
}

#[inline(always)]
pub(crate) fn dequantize_int4_row<S: Simd>(s: S, w: &Int4Matrix, row: usize, out: &mut [f32]) {
    let row_scale = s.splat(w.row_scale(row));
    for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        for (part, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let mut whole = [0.0; LANES];
            for (k, whole) in whole.iter_mut().enumerate() {
                *whole = w.weight(row, g * GROUP + part * LANES + k) as f32;
            }
            s.store(s.mul(s.load(&whole), row_scale), out);
        }
    }
}

#[inline(always)]
pub(crate) fn matmul_f32<S: Simd>(s: S, w: &[f32], x: &[f32], cols: usize, mut out: MatMut<f32>) {
    let (rows, tokens) = (out.cols(), out.rows());
    for i in 0..rows {
        for t in 0..tokens {
            let lanes = dot_lanes(s, &w[i * cols..][..cols], &x[t * cols..][..cols]);
            out.row(t)[i] = s.fold_add(lanes);
        }
    }
}

#[inline(always)]
fn rms_inverse<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (s.fold_add(dot_lanes(s, x, x)) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let inverse = s.splat(rms_inverse(s, x, eps));
    map2(
        s,
        x,
        weight,
        out,
        #[inline(always)]
        |x, w| s.mul(s.mul(x, inverse), w),
    );
}

#[inline(always)]
pub(crate) fn rms_norm_quantize<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: QuantizedRow) {
    let inverse = s.splat(rms_inverse(s, x, eps));
    quantize_groups(
        s,
        x.len(),
        out,
        #[inline(always)]
        |at, n| {
            let (mut x, w) = (load_group(s, &x[at..at + n]), load_group(s, &weight[at..at + n]));
            for (x, w) in x.iter_mut().zip(&w) {
                *x = s.mul(s.mul(*x, inverse), *w);
            }
            x
        },
    );
}

#[inline(always)]
pub(crate) fn rope<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let ((cos_vectors, cos_tail), (sin_vectors, sin_tail)) = (cos.as_chunks(), sin.as_chunks());
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (low, high) = head.split_at_mut(cos.len());
        let ((low, low_tail), (high, high_tail)) = (low.as_chunks_mut(), high.as_chunks_mut());
        for ((a, b), (c, d)) in low.iter_mut().zip(high).zip(cos_vectors.iter().zip(sin_vectors)) {
            rotate(s, a, b, c, d);
        }
        let n = low_tail.len();
        if n > 0 {
            let (mut a, mut b) = (padded(low_tail), padded(high_tail));
            rotate(s, &mut a, &mut b, &padded(cos_tail), &padded(sin_tail));
            low_tail.copy_from_slice(&a[..n]);
            high_tail.copy_from_slice(&b[..n]);
        }
    }
}

/// 16 lanes of [`rope`]: `(low, high)` rotated by the angles whose cosines and sines are given.
#[inline(always)]
fn rotate<S: Simd>(
    s: S,
    low: &mut [f32; LANES],
    high: &mut [f32; LANES],
    cos: &[f32; LANES],
    sin: &[f32; LANES],
) {
    let (a, b, cos, sin) = (s.load(low), s.load(high), s.load(cos), s.load(sin));
    s.store(s.sub(s.mul(a, cos), s.mul(b, sin)), low);
    s.store(s.add(s.mul(b, cos), s.mul(a, sin)), high);
}

#[inline(always)]
pub(crate) fn add<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    update2(
        s,
        x,
        y,
        #[inline(always)]
        |x, y| s.add(x, y),
    );
}

#[inline(always)]
pub(crate) fn mul<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    update2(
        s,
        x,
        y,
        #[inline(always)]
        |x, y| s.mul(x, y),
    );
}

#[inline(always)]
pub(crate) fn scale<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    update(
        s,
        x,
        #[inline(always)]
        |x| s.mul(x, factor),
    );
}

#[inline(always)]
pub(crate) fn narrow_f16<S: Simd>(s: S, x: &[f32], out: &mut [f16]) {
    let ((x, x_tail), (out, out_tail)) = (x.as_chunks(), out.as_chunks_mut());
    for (x, out) in x.iter().zip(out) {
        s.store_f16(s.load(x), out);
    }
    if !x_tail.is_empty() {
        let mut last = [f16::ZERO; LANES];
        s.store_f16(s.load(&padded(x_tail)), &mut last);
        out_tail.copy_from_slice(&last[..x_tail.len()]);
    }
}

#[inline(always)]
pub(crate) fn argmax<S: Simd>(s: S, x: &[f32]) -> usize {
    let (vectors, tail) = x.as_chunks();
    // `max(x, best)` keeps the best where x is NaN.
    let mut best = s.splat(f32::NEG_INFINITY);
    for x in vectors {
        best = s.max(s.load(x), best);
    }
    let mut lanes = [0.0; LANES];
    s.store(best, &mut lanes);
    let best = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |best, &x| scalar::max(x, best));
    if best == f32::NEG_INFINITY {
        return 0;
    }
    let target = s.splat(best);
    let vector = vectors.iter().position(
        #[inline(always)]
        |x| s.any_eq(s.load(x), target),
    );
    let start = vector.unwrap_or(vectors.len()) * LANES;
    start + x[start..].iter().position(|&x| x == best).unwrap_or(0)
}
