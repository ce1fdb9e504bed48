//! The attention kernels, written once for 16 lanes: each does what the one of the same name in [`crate::scalar`] does.
//!
//! Keys lie in columns of 16 positions, `[positions / 16][head_dim][16]`: a lane is a position, and a score is a plain
//! sum over the features. Values lie one position after the other, `[positions][head_dim]`: a lane is a feature. So neither
//! needs a sum across lanes, and a tile of up to 4 queries shares every load. As in [`crate::float`], everything is `#[inline(always)]`.

use crate::float::{exp, padded, update2};
use crate::half::f16;
use crate::quant::TINY;
use crate::scalar::{self, BLOCK, LANES};
use crate::simd::Simd;

/// A cache element with a vector load.
pub(crate) trait Load: scalar::Element + Default {
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F32;
}

impl Load for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::F32 {
        s.load(x)
    }
}

impl Load for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f16; LANES]) -> S::F32 {
        s.load_f16(x)
    }
}

/// Defines the kernels of one cache element by name, as the table wants them.
macro_rules! for_element {
    ($element:ty, $scores:ident, $accumulate:ident, $widen:ident) => {
        #[inline(always)]
        pub(crate) fn $scores<S: Simd>(s: S, q: &[f32], keys: &[$element], scores: &mut [[f32; BLOCK]]) {
            attn_scores(s, q, keys, scores);
        }
        #[inline(always)]
        pub(crate) fn $accumulate<S: Simd>(
            s: S,
            p: &[[f32; BLOCK]],
            first: usize,
            values: &[$element],
            factors: &[[f32; 2]],
            out: &mut [f32],
        ) {
            attn_accumulate(s, p, first, values, factors, out);
        }
        #[inline(always)]
        pub(crate) fn $widen<S: Simd>(s: S, x: &[$element], out: &mut [f32]) {
            let ((x, x_tail), (out, out_tail)) = (x.as_chunks(), out.as_chunks_mut());
            for (x, out) in x.iter().zip(out) {
                s.store(<$element>::load(s, x), out);
            }
            for (x, out) in x_tail.iter().zip(out_tail) {
                *out = scalar::Element::widen(*x);
            }
        }
    };
}

for_element!(f32, attn_scores_f32, attn_accumulate_f32, widen_f32);
for_element!(f16, attn_scores_f16, attn_accumulate_f16, widen_f16);

/// Queries in a full tile.
const ATTENTION_TILE_QUERIES: usize = 4;

/// Accumulators of a tile of scores, queries × columns: 4 at the most, so that 4 queries meet one column at a time. Columns lie
/// `16·head_dim` elements apart, often a multiple of 4 KiB, and several that are read side by side displace each other in
/// the cache.
const fn score_accumulators<S: Simd>() -> usize {
    if S::ACCUMULATORS < ATTENTION_TILE_QUERIES { S::ACCUMULATORS } else { ATTENTION_TILE_QUERIES }
}

/// Accumulators of a tile of values, queries × vectors of 16 features: as many as the instruction set has, but no more than
/// for scores where values have to be widened, since widening then takes the time.
const fn value_accumulators<S: Simd, T>() -> usize {
    if size_of::<T>() < size_of::<f32>() { score_accumulators::<S>() } else { S::ACCUMULATORS }
}

/// Calls `$f::<S, T, N>` with `N = $queries`, 1 to 4.
macro_rules! by_tiles {
    ($queries:expr, $f:ident($($arg:expr),*)) => {
        match $queries {
            ATTENTION_TILE_QUERIES => $f::<S, T, 4>($($arg),*),
            3 => $f::<S, T, 3>($($arg),*),
            2 => $f::<S, T, 2>($($arg),*),
            _ => $f::<S, T, 1>($($arg),*),
        }
    };
}

#[inline(always)]
fn attn_scores<S: Simd, T: Load>(s: S, q: &[f32], keys: &[T], scores: &mut [[f32; BLOCK]]) {
    if scores.is_empty() {
        return;
    }
    let head_dim = q.len() / scores.len();
    let keys = keys.as_chunks().0;
    for (scores, q) in
        scores.chunks_mut(ATTENTION_TILE_QUERIES).zip(q.chunks(ATTENTION_TILE_QUERIES * head_dim))
    {
        by_tiles!(scores.len(), tile_scores(s, q, head_dim, keys, scores));
    }
}

/// The scores of `N` queries with all positions, as many columns at a time as [`score_accumulators`] allow.
#[inline(always)]
fn tile_scores<S: Simd, T: Load, const N: usize>(
    s: S,
    q: &[f32],
    head_dim: usize,
    keys: &[[T; LANES]],
    scores: &mut [[f32; BLOCK]],
) {
    let columns = keys.len() / head_dim;
    let mut at = 0;
    while at < columns {
        let keys = &keys[at * head_dim..];
        if N * 4 <= score_accumulators::<S>() && at + 4 <= columns {
            scores_columns::<S, T, N, 4>(s, q, head_dim, keys, scores, at);
            at += 4;
        } else if N * 2 <= score_accumulators::<S>() && at + 2 <= columns {
            scores_columns::<S, T, N, 2>(s, q, head_dim, keys, scores, at);
            at += 2;
        } else {
            scores_columns::<S, T, N, 1>(s, q, head_dim, keys, scores, at);
            at += 1;
        }
    }
}

/// The scores of `N` queries with `V` columns of 16 positions, the first of which is column `at`; `keys` begins there.
#[inline(always)]
fn scores_columns<S: Simd, T: Load, const N: usize, const V: usize>(
    s: S,
    q: &[f32],
    head_dim: usize,
    keys: &[[T; LANES]],
    scores: &mut [[f32; BLOCK]],
    at: usize,
) {
    // Of a length the compiler knows: a check inside the loop would cost it the registers.
    let queries: [&[f32]; N] = std::array::from_fn(|i| &q[i * head_dim..][..head_dim]);
    let columns: [&[[T; LANES]]; V] = std::array::from_fn(|i| &keys[i * head_dim..][..head_dim]);
    let mut acc = [[s.splat(0.0); V]; N];
    for d in 0..head_dim {
        let mut k = [s.splat(0.0); V];
        for (k, column) in k.iter_mut().zip(&columns) {
            *k = T::load(s, &column[d]);
            prefetch_next_block(s, &column[d], head_dim);
        }
        for (acc, query) in acc.iter_mut().zip(&queries) {
            let q = s.splat(query[d]);
            for (acc, k) in acc.iter_mut().zip(&k) {
                *acc = s.add(*acc, s.mul(q, *k));
            }
        }
    }
    for (acc, scores) in acc.iter().zip(scores) {
        for (acc, out) in acc.iter().zip(&mut scores.as_chunks_mut().0[at..]) {
            s.store(*acc, out);
        }
    }
}

#[inline(always)]
fn attn_accumulate<S: Simd, T: Load>(
    s: S,
    p: &[[f32; BLOCK]],
    first: usize,
    values: &[T],
    factors: &[[f32; 2]],
    out: &mut [f32],
) {
    if p.is_empty() {
        return;
    }
    let head_dim = out.len() / p.len();
    let tiles = p.chunks(ATTENTION_TILE_QUERIES).zip(factors.chunks(ATTENTION_TILE_QUERIES));
    for ((p, factors), out) in tiles.zip(out.chunks_mut(ATTENTION_TILE_QUERIES * head_dim)) {
        by_tiles!(p.len(), tile_accumulate(s, p, first, values, head_dim, factors, out));
    }
}

/// [`attn_accumulate`] for `N` queries, as many vectors of 16 features at a time as [`value_accumulators`] allow.
#[inline(always)]
fn tile_accumulate<S: Simd, T: Load, const N: usize>(
    s: S,
    p: &[[f32; BLOCK]],
    first: usize,
    values: &[T],
    head_dim: usize,
    factors: &[[f32; 2]],
    out: &mut [f32],
) {
    let positions = values.len() / head_dim;
    let rows: [&[f32]; N] = std::array::from_fn(|i| &p[i][first..][..positions]);
    let mut at = 0;
    while at < head_dim {
        if N * 4 <= value_accumulators::<S, T>() && at + 4 * LANES <= head_dim {
            accumulate_columns::<S, T, N, 4>(s, &rows, values, head_dim, at, factors, out);
            at += 4 * LANES;
        } else if N * 2 <= value_accumulators::<S, T>() && at + 2 * LANES <= head_dim {
            accumulate_columns::<S, T, N, 2>(s, &rows, values, head_dim, at, factors, out);
            at += 2 * LANES;
        } else if at + LANES <= head_dim {
            accumulate_columns::<S, T, N, 1>(s, &rows, values, head_dim, at, factors, out);
            at += LANES;
        } else {
            accumulate_tail::<S, T, N>(s, &rows, values, head_dim, at, factors, out);
            at = head_dim;
        }
    }
}

/// Prefetches the element that lies a block of 64 positions behind `at`, where the KV cache is read and not its f32 copy. A
/// block is a few pages, too short for the CPU's own prefetching.
#[inline(always)]
fn prefetch_next_block<S: Simd, T: Load>(s: S, at: &[T; LANES], head_dim: usize) {
    if size_of::<T>() < size_of::<f32>() {
        s.prefetch(at.as_ptr().wrapping_add(BLOCK * head_dim));
    }
}

/// Features `at..at + 16·V` of [`tile_accumulate`].
#[inline(always)]
fn accumulate_columns<S: Simd, T: Load, const N: usize, const V: usize>(
    s: S,
    p: &[&[f32]; N],
    values: &[T],
    head_dim: usize,
    at: usize,
    factors: &[[f32; 2]],
    out: &mut [f32],
) {
    let mut acc = [[s.splat(0.0); V]; N];
    for (j, row) in values.chunks_exact(head_dim).enumerate() {
        let mut v = [s.splat(0.0); V];
        for (v, row) in v.iter_mut().zip(row[at..at + V * LANES].as_chunks().0) {
            *v = T::load(s, row);
            prefetch_next_block(s, row, head_dim);
        }
        for (acc, p) in acc.iter_mut().zip(p) {
            let p = s.splat(p[j]);
            for (acc, v) in acc.iter_mut().zip(&v) {
                *acc = s.add(*acc, s.mul(p, *v));
            }
        }
    }
    for ((acc, factors), out) in acc.iter().zip(factors).zip(out.chunks_exact_mut(head_dim)) {
        let (old, new) = (s.splat(factors[0]), s.splat(factors[1]));
        for (acc, out) in acc.iter().zip(out[at..].as_chunks_mut().0) {
            s.store(s.add(s.mul(s.load(out), old), s.mul(*acc, new)), out);
        }
    }
}

/// The last features of [`tile_accumulate`], fewer than 16.
#[inline(always)]
fn accumulate_tail<S: Simd, T: Load, const N: usize>(
    s: S,
    p: &[&[f32]; N],
    values: &[T],
    head_dim: usize,
    at: usize,
    factors: &[[f32; 2]],
    out: &mut [f32],
) {
    for ((p, factors), out) in p.iter().zip(factors).zip(out.chunks_exact_mut(head_dim)) {
        let mut acc = s.splat(0.0);
        for (&p, row) in p.iter().zip(values.chunks_exact(head_dim)) {
            acc = s.add(acc, s.mul(s.splat(p), T::load(s, &padded(&row[at..]))));
        }
        let mut last = padded(&out[at..]);
        let (old, new) = (s.splat(factors[0]), s.splat(factors[1]));
        s.store(s.add(s.mul(s.load(&last), old), s.mul(acc, new)), &mut last);
        out[at..].copy_from_slice(&last[..head_dim - at]);
    }
}

#[inline(always)]
pub(crate) fn attn_merge<S: Simd>(s: S, a: &mut [f32], a_factor: f32, b: &[f32], b_factor: f32) {
    let (a_factor, b_factor) = (s.splat(a_factor), s.splat(b_factor));
    update2(
        s,
        a,
        b,
        #[inline(always)]
        |a, b| s.add(s.mul(a, a_factor), s.mul(b, b_factor)),
    );
}

#[inline(always)]
pub(crate) fn softmax_block<S: Simd>(s: S, scores: &mut [f32]) -> (f32, f32) {
    let max = largest(s, scores);
    let shift = s.splat(max);
    let mut sum = s.splat(0.0);
    let (vectors, tail) = scores.as_chunks_mut();
    for x in vectors {
        let e = exp(s, s.sub(s.load(x), shift));
        s.store(e, x);
        sum = s.add(sum, e);
    }
    if !tail.is_empty() {
        let mut last = padded(tail);
        s.store(exp(s, s.sub(s.load(&last), shift)), &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
        sum = s.add(sum, s.load(&padded(tail)));
    }
    (max, s.fold_add(sum))
}

/// The largest of some values, NaN not counted; −∞ where there are none.
#[inline(always)]
pub(super) fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (vectors, tail) = x.as_chunks();
    let mut acc = s.splat(f32::NEG_INFINITY);
    for x in vectors {
        acc = s.max(s.load(x), acc);
    }
    if !tail.is_empty() {
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..tail.len()].copy_from_slice(tail);
        acc = s.max(s.load(&last), acc);
    }
    s.fold_max(acc)
}

#[inline(always)]
pub(crate) fn narrow_i8<S: Simd>(s: S, x: &[f32], out: &mut [i8]) -> f32 {
    let (vectors, tail) = x.as_chunks();
    let mut largest = s.abs_bits(s.load(&padded(tail)));
    for x in vectors {
        largest = s.max_i32(largest, s.abs_bits(s.load(x)));
    }
    let absmax = f32::from_bits(s.largest_i32(largest) as u32);
    let (scale, inverse) = scale_of(absmax);
    if inverse == 0.0 {
        out.fill(0);
        return scale;
    }
    let inverse = s.splat(inverse);
    let (out_vectors, out_tail) = out.as_chunks_mut();
    for (x, out) in vectors.iter().zip(out_vectors) {
        s.store_i8(s.round(s.mul(s.load(x), inverse)), out);
    }
    let mut last = [0; LANES];
    s.store_i8(s.round(s.mul(s.load(&padded(tail)), inverse)), &mut last);
    out_tail.copy_from_slice(&last[..out_tail.len()]);
    scale
}

/// The scale of integers up to 127 where the largest value is `absmax`, and what a value is multiplied with; see
/// [`crate::scalar::narrow_i8`]. Of what is not finite the scale alone matters, which is NaN.
#[inline(always)]
pub(super) fn scale_of(absmax: f32) -> (f32, f32) {
    if absmax < TINY {
        (0.0, 0.0)
    } else if absmax.is_finite() {
        (absmax / 127.0, 127.0 / absmax)
    } else {
        (f32::NAN, 0.0)
    }
}
