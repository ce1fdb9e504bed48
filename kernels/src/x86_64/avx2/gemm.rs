//! A panel of 16 rows: packing it, and the dot products of a group with up to 8 tokens.

use super::gemv::quad_dots;
use super::{Avx2, add_pairs};
use crate::int8::{Group, TokenGroups, any_outlier};
use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::simd::isa;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Transposes the quads of 16 rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn pack(rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
    let packed = packed.as_mut_ptr().cast::<__m256i>();
    for (i, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
        for half in 0..2 {
            for (k, quads) in transpose_quads(rows, half).into_iter().enumerate() {
                // SAFETY: quad 8·half + k of eight of the 16 rows.
                unsafe { _mm256_storeu_si256(packed.add(2 * (8 * half + k) + i), quads) };
            }
        }
    }
}

/// One half (0 or 1) of the quads of eight rows: lane `r` of vector `k` is quad `8·half + k` of row `r`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_quads(rows: &[&Group; 8], half: usize) -> [__m256i; 8] {
    let mut quads = [_mm256_setzero_ps(); 8];
    for (quads, row) in quads.iter_mut().zip(rows) {
        // SAFETY: half of the 64 bytes.
        *quads = unsafe { _mm256_loadu_ps(row.as_ptr().add(32 * half).cast()) };
    }
    let mut columns = [_mm256_setzero_si256(); 8];
    for (column, v) in columns.iter_mut().zip(transpose(&quads)) {
        *column = _mm256_castps_si256(v);
    }
    columns
}

/// See [`Int8::panel_dots`](crate::int8::Int8::panel_dots). Eight rows at a time, so that the sums of eight tokens fit the
/// registers: the second time the group comes from the first-level cache.
#[inline(always)]
pub(super) fn panel_dots<const N: usize>(
    _: Avx2,
    w: &PanelGroup,
    x: &[TokenGroups; N],
    g: usize,
) -> [[__m256i; 2]; N] {
    let zero = isa!(_mm256_setzero_si256());
    let mut dots = [[zero; 2]; N];
    for half in 0..2 {
        let mut sums = [zero; N];
        let mut negative = zero;
        // Two at a time: the loop's own instructions would take a tenth of what the CPU can issue.
        for (q, quads) in w.as_chunks::<2>().0.iter().enumerate() {
            for (i, quad) in quads.iter().enumerate() {
                let w = load(quad, half);
                let (magnitudes, signs) = isa!((_mm256_abs_epi8(w), _mm256_cmpgt_epi8(zero, w)));
                negative = isa!(_mm256_add_epi16(negative, _mm256_maddubs_epi16(magnitudes, signs)));
                for t in 0..N {
                    let quad = x[t].values[g].as_chunks::<4>().0[2 * q + i];
                    isa!({
                        let x = _mm256_set1_epi32(i32::from_ne_bytes(quad.map(|x| x as u8)));
                        // Where w is negative this is −x − 1: its product lacks |w|, which `negative` has.
                        let product = _mm256_maddubs_epi16(magnitudes, _mm256_xor_si256(x, signs));
                        sums[t] = _mm256_add_epi32(sums[t], add_pairs(product));
                    })
                }
            }
        }
        // At most 32 times 128 a lane until here.
        let negative = isa!(add_pairs(negative));
        for (dots, sum) in dots.iter_mut().zip(sums) {
            dots[half] = isa!(_mm256_sub_epi32(sum, negative));
        }
    }
    if any_outlier(x.iter().map(|x| &x.outliers[g])) {
        // One by one: what is worked out for a token costs more than a branch that was not foreseen.
        for t in 0..N {
            let outlier = &x[t].outliers[g];
            if outlier.high_bits() != 0 {
                let (quad, high) = (&w[outlier.quad_index()], isa!(_mm256_set1_epi32(outlier.high_bits())));
                for (half, dots) in dots[t].iter_mut().enumerate() {
                    isa!({
                        let products = quad_dots(load(quad, half), high);
                        *dots = _mm256_add_epi32(*dots, _mm256_slli_epi32::<7>(products));
                    })
                }
            }
        }
    }
    dots
}

/// See [`Int8::nonnegative_dots`](crate::int8::Int8::nonnegative_dots): these are unsigned bytes as they are, no sign need be moved.
#[inline(always)]
pub(super) fn nonnegative_dots<const N: usize>(
    _: Avx2,
    w: &PanelGroup,
    x: &[TokenGroups; N],
    g: usize,
) -> [[__m256i; 2]; N] {
    let zero = isa!(_mm256_setzero_si256());
    let mut dots = [[zero; 2]; N];
    for half in 0..2 {
        let mut sums = [zero; N];
        for (q, quads) in w.as_chunks::<2>().0.iter().enumerate() {
            for (i, quad) in quads.iter().enumerate() {
                let w = load(quad, half);
                for t in 0..N {
                    let quad = x[t].values[g].as_chunks::<4>().0[2 * q + i];
                    isa!({
                        let x = _mm256_set1_epi32(i32::from_ne_bytes(quad.map(|x| x as u8)));
                        sums[t] = _mm256_add_epi32(sums[t], add_pairs(_mm256_maddubs_epi16(x, w)));
                    })
                }
            }
        }
        for (dots, sum) in dots.iter_mut().zip(sums) {
            dots[half] = sum;
        }
    }
    dots
}

/// One quad of half a panel's rows (0: 0..8, 1: 8..16).
#[inline(always)]
fn load(quad: &[[i8; 4]; PANEL_ROWS], half: usize) -> __m256i {
    isa!(_mm256_loadu_si256(quad.as_ptr().cast::<__m256i>().add(half)))
}

/// Lane `i` of vector `j` becomes lane `j` of vector `i`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(v: &[__m256; 8]) -> [__m256; 8] {
    // Lanes 4q + j of rows 0..4 (then 4..8) in half q, for j = 0..4.
    let four = |v: &[__m256]| {
        let (a, b) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
        let (c, d) = (_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
        let (low, high) =
            (_mm256_shuffle_ps::<0b01_00_01_00>(a, c), _mm256_shuffle_ps::<0b11_10_11_10>(a, c));
        [low, high, _mm256_shuffle_ps::<0b01_00_01_00>(b, d), _mm256_shuffle_ps::<0b11_10_11_10>(b, d)]
    };
    let (a, b) = (four(&v[..4]), four(&v[4..]));
    let low = |j: usize| _mm256_permute2f128_ps::<0x20>(a[j], b[j]);
    let high = |j: usize| _mm256_permute2f128_ps::<0x31>(a[j], b[j]);
    [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
}
