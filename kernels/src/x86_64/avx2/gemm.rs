//! Many tokens: packing a panel's group, and the tile of 32 rows × up to 4 tokens.

use super::add_pairs;
use crate::int8::{GEMM_PANEL_ROWS, Group, TokenGroups, any_outlier};
use crate::quant::{GROUP, Outlier};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// One group of 32 rows, for products of an unsigned byte and a signed one.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct PanelGroup {
    /// `[k / 4][row]`: four values of one row.
    quads: [RowQuads; GROUP / 4],
    /// `Σ|w|` of the negative values of each row.
    negative: [i32; GEMM_PANEL_ROWS],
}

/// One quad of each row: signs and magnitudes.
#[derive(Clone, Copy)]
struct RowQuads {
    /// Unsigned: `|−128|` is 128.
    magnitudes: [[u8; 4]; GEMM_PANEL_ROWS],
    /// −1 for negative values, 0 for others.
    signs: [[i8; 4]; GEMM_PANEL_ROWS],
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pack(rows: &[&Group; GEMM_PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
    let packed = packed.as_mut_ptr();
    for (i, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
        let mut negative = _mm256_setzero_si256();
        for half in 0..2 {
            for (k, w) in transpose_quads(rows, half).into_iter().enumerate() {
                let (magnitudes, signs) = (_mm256_abs_epi8(w), _mm256_cmpgt_epi8(_mm256_setzero_si256(), w));
                // At most 16 times 2·128.
                let pairs = _mm256_maddubs_epi16(_mm256_and_si256(magnitudes, signs), _mm256_set1_epi8(1));
                negative = _mm256_add_epi16(negative, pairs);
                // SAFETY: quad 8·half + k of eight of the 32 rows, aligned as PanelGroup is.
                unsafe {
                    let quads = &raw mut (*packed).quads[8 * half + k];
                    _mm256_store_si256((&raw mut (*quads).magnitudes).cast::<__m256i>().add(i), magnitudes);
                    _mm256_store_si256((&raw mut (*quads).signs).cast::<__m256i>().add(i), signs);
                }
            }
        }
        let negative = _mm256_madd_epi16(negative, _mm256_set1_epi16(1));
        // SAFETY: eight of the 32 rows, aligned as PanelGroup is.
        unsafe { _mm256_store_si256((&raw mut (*packed).negative).cast::<__m256i>().add(i), negative) };
    }
}

/// One half (0 or 1) of the quads of eight rows: lane `r` of vector `k` is quad `8·half + k` of row `r`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn transpose_quads(rows: &[&Group; 8], half: usize) -> [__m256i; 8] {
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

/// See [`Int8::tile`](crate::int8::Int8::tile). 16 rows at a time, or the sums would not fit the registers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn tile<const N: usize>(
    panel: &[PanelGroup],
    inverse: &[[f32; GEMM_PANEL_ROWS]],
    x: &[TokenGroups; N],
    acc: &mut [[f32; GEMM_PANEL_ROWS]; N],
) {
    let groups = panel.len();
    assert_eq!(inverse.len(), groups);
    for x in x {
        assert_eq!((x.values.len(), x.scales.len(), x.outliers.len()), (groups, groups, groups));
    }
    for g in 0..groups {
        let (panel, inverse) = (&panel[g], &inverse[g]);
        let mut values = [std::ptr::null::<i32>(); N];
        for t in 0..N {
            values[t] = x[t].values[g].as_ptr().cast();
        }
        for half in 0..GEMM_PANEL_ROWS / 16 {
            let mut dots = [load(&panel.negative, half); N];
            if any_outlier(x.iter().map(|x| &x.outliers[g])) {
                for t in 0..N {
                    let outlier = &x[t].outliers[g];
                    add_outlier(&panel.quads[outlier.quad_index()], half, outlier, &mut dots[t]);
                }
            }
            // Two at a time: the loop's own instructions would take a tenth of what the CPU can issue.
            for (k, quads) in panel.quads.as_chunks::<2>().0.iter().enumerate() {
                for (i, quad) in quads.iter().enumerate() {
                    let (magnitudes, signs) = (load(&quad.magnitudes, half), load(&quad.signs, half));
                    for t in 0..N {
                        // SAFETY: four of the 64 bytes.
                        let x = _mm256_set1_epi32(unsafe { values[t].add(2 * k + i).read_unaligned() });
                        for ((dots, magnitudes), signs) in dots[t].iter_mut().zip(magnitudes).zip(signs) {
                            // Where w is negative this is −x − 1: the |w| that its product lacks was in the sum from the start.
                            let x = _mm256_xor_si256(x, signs);
                            let product = add_pairs(_mm256_maddubs_epi16(magnitudes, x));
                            *dots = _mm256_add_epi32(*dots, product);
                        }
                    }
                }
            }
            for (t, dots) in dots.iter().enumerate() {
                add_scaled(dots, inverse, x[t].scales[g], half, &mut acc[t]);
            }
        }
    }
}

/// `acc[r] += dots[r] · (inverse[r] · x_scale)` for half a panel's rows (0: 0..16, 1: 16..32).
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn add_scaled(
    dots: &[__m256i; 2],
    inverse: &[f32; GEMM_PANEL_ROWS],
    x_scale: f32,
    half: usize,
    acc: &mut [f32; GEMM_PANEL_ROWS],
) {
    let x_scale = _mm256_set1_ps(x_scale);
    let (inverse, acc) = (&inverse[16 * half..][..16], &mut acc[16 * half..][..16]);
    for (i, dots) in dots.iter().enumerate() {
        // SAFETY: eight of the 16 rows.
        unsafe {
            let acc = acc.as_mut_ptr().add(8 * i);
            let scale = _mm256_mul_ps(_mm256_loadu_ps(inverse.as_ptr().add(8 * i)), x_scale);
            let product = _mm256_mul_ps(_mm256_cvtepi32_ps(*dots), scale);
            _mm256_storeu_ps(acc, _mm256_add_ps(_mm256_loadu_ps(acc), product));
        }
    }
}

/// Adds `128·Σ_j w[r][j]·high[j]` to the dot products of half a panel's rows, a row a lane.
#[inline]
#[target_feature(enable = "avx2")]
fn add_outlier(quads: &RowQuads, half: usize, outlier: &Outlier, dots: &mut [__m256i; 2]) {
    let high = _mm256_set1_epi32(outlier.high_bits());
    let (magnitudes, signs) = (load(&quads.magnitudes, half), load(&quads.signs, half));
    for i in 0..2 {
        let high = _mm256_sub_epi8(_mm256_xor_si256(high, signs[i]), signs[i]);
        let products = add_pairs(_mm256_maddubs_epi16(magnitudes[i], high));
        dots[i] = _mm256_add_epi32(dots[i], _mm256_slli_epi32::<7>(products));
    }
}

/// Four bytes of each of half a panel's rows (0: 0..16, 1: 16..32).
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::x86_64) fn load<T>(rows: &[T; GEMM_PANEL_ROWS], half: usize) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: 16 rows.
    unsafe {
        let at = rows.as_ptr().add(16 * half).cast::<__m256i>();
        [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))]
    }
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
