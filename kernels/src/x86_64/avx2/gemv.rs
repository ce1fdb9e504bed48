//! One token: the dot products of eight groups, a group a lane.

use super::add_pairs;
use crate::int8::{Group, PREFETCH_BYTES};
use crate::quant::Outlier;
use std::arch::x86_64::*;

/// Lane `i`: `Σ_k w[i][k]·x[i][k]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn eight_dots(w: &[Group; 8], x: &[Group; 8]) -> __m256i {
    let mut parts = [_mm256_setzero_si256(); 8];
    for ((part, w), x) in parts.iter_mut().zip(w).zip(x) {
        _mm_prefetch::<_MM_HINT_T1>(w.as_ptr().wrapping_add(PREFETCH_BYTES));
        *part = group_dot(w, x);
    }
    sum_each(&parts)
}

/// Lane `i`: `128·Σ_j w[i][4·quad + j]·high[j]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn outlier_dots(w: &[Group; 8], outliers: &[Outlier; 8]) -> __m256i {
    let (w, high) = outlier_quads(w, outliers);
    _mm256_slli_epi32::<7>(quad_dots(w, high))
}

/// Four bytes a lane, a group a lane: the weights that the outliers of eight groups meet, and the outliers' high parts.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn outlier_quads(w: &[Group; 8], outliers: &[Outlier; 8]) -> (__m256i, __m256i) {
    let w = |i: usize| i32::from_ne_bytes(outliers[i].quad_of(&w[i]).map(|w| w as u8));
    let high = |i: usize| outliers[i].high_bits();
    (
        _mm256_setr_epi32(w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7)),
        _mm256_setr_epi32(high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7)),
    )
}

/// Eight partial sums of one group's dot product `Σ_k w[k]·x[k]`.
#[inline]
#[target_feature(enable = "avx2")]
fn group_dot(w: &Group, x: &Group) -> __m256i {
    let part = |half: usize| {
        // SAFETY: both halves of 64 bytes.
        let (w, x) = unsafe {
            let at = |p: &Group| _mm256_loadu_si256(p.as_ptr().add(32 * half).cast());
            (at(w), at(x))
        };
        quad_dots(w, x)
    };
    _mm256_add_epi32(part(0), part(1))
}

/// Lane `i`: the dot product of four bytes of `w` and of `x`, of which none is −128.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn quad_dots(w: __m256i, x: __m256i) -> __m256i {
    // |w| ≤ 128 unsigned times ±x: 2·128·127 fits in i16.
    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    add_pairs(products)
}

/// Lane `i`: the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn sum_each(v: &[__m256i; 8]) -> __m256i {
    // Each step adds the halves of two vectors and puts the results side by side (`vphaddd` does the same, slower).
    let fold_pairs = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let fold_quads = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let low = fold_quads(fold_pairs(v[0], v[1]), fold_pairs(v[2], v[3]));
    let high = fold_quads(fold_pairs(v[4], v[5]), fold_pairs(v[6], v[7]));
    let (even, odd) =
        (_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high));
    _mm256_add_epi32(even, odd)
}
