//! Int4 panels on NEON: `tbl` looks the codes up, 16 at a time, and what a part of 16 columns gives is multiplied with its scales
//! in i32. Eight rows at a time, or the sums would not fit the registers.

use super::neon::add_quads;
use crate::int4::{Int4Panel, Oct};
use crate::int8::TokenGroups;
use crate::quant::{Outlier, PART, QUAD};
use crate::simd::isa;
use std::arch::aarch64::*;

/// See [`Int8::int4_dots`](crate::int8::Int8::int4_dots): those of rows 0..8 (`half` 0) or 8..16 (1).
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn dots_of_8_rows<const N: usize>(
    w: &Int4Panel,
    half: usize,
    x: &[TokenGroups; N],
    g: usize,
) -> [[int32x4_t; 2]; N] {
    let table = table(w);
    let mut dots = [[vdupq_n_s32(0); 2]; N];
    for (part, octs) in w.nibbles[g].as_chunks::<2>().0.iter().enumerate() {
        let scales = PartScales::new(w, g, part, half);
        let [[a, b], [c, d]] = [codes(table, &octs[0], half), codes(table, &octs[1], half)];
        for (dots, x) in dots.iter_mut().zip(x) {
            // Two rows a register, two lanes a row.
            let mut sums = [vdupq_n_s32(0); 4];
            add_quads(&mut sums, (a, b), x, g, 2 * part);
            add_quads(&mut sums, (c, d), x, g, 2 * part + 1);
            let sums = [vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])];
            *dots = scales.add(*dots, sums, x.part_sums[g][part]);
        }
    }
    add_outliers(&mut dots, w, half, x, g);
    dots
}

/// The codes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn table(w: &Int4Panel) -> int8x16_t {
    // SAFETY: 16 codes.
    unsafe { vld1q_s8(w.codes.signed.as_ptr()) }
}

/// The codes of half an oct's rows, its first quad and its second: four rows a register.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn codes(table: int8x16_t, oct: &Oct, half: usize) -> [int8x16x2_t; 2] {
    // SAFETY: eight of 16 rows of four bytes.
    let bytes = unsafe { vld1q_u8_x2(oct.as_ptr().add(8 * half).cast()) };
    let mask = vdupq_n_u8(15);
    let (low0, low1) = (vandq_u8(bytes.0, mask), vandq_u8(bytes.1, mask));
    let (high0, high1) = (vshrq_n_u8::<4>(bytes.0), vshrq_n_u8::<4>(bytes.1));
    [
        int8x16x2_t(vqtbl1q_s8(table, low0), vqtbl1q_s8(table, low1)),
        int8x16x2_t(vqtbl1q_s8(table, high0), vqtbl1q_s8(table, high1)),
    ]
}

/// What a part of eight rows is scaled with, and what is taken off.
pub(super) struct PartScales {
    scales: [int32x4_t; 2],
    minimums: [int32x4_t; 2],
}

impl PartScales {
    /// Always inlined: a call for every 16 columns would be dear.
    #[inline(always)]
    pub(super) fn new(w: &Int4Panel, g: usize, part: usize, half: usize) -> Self {
        let (scales, minimums) = w.part(g, part);
        isa!(Self {
            scales: widen(scales.as_chunks().0[half]),
            minimums: widen(minimums.as_chunks().0[half])
        })
    }

    /// Adds `sums · scale − part_sum · minimum`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add(&self, dots: [int32x4_t; 2], sums: [int32x4_t; 2], part_sum: i16) -> [int32x4_t; 2] {
        let low = vmlaq_s32(dots[0], sums[0], self.scales[0]);
        let high = vmlaq_s32(dots[1], sums[1], self.scales[1]);
        [
            vmlsq_n_s32(low, self.minimums[0], part_sum.into()),
            vmlsq_n_s32(high, self.minimums[1], part_sum.into()),
        ]
    }
}

/// Eight values in i32.
#[inline]
#[target_feature(enable = "neon")]
fn widen(x: [i16; 8]) -> [int32x4_t; 2] {
    // SAFETY: eight values.
    let x = unsafe { vld1q_s16(x.as_ptr()) };
    [vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x)]
}

/// Adds what the outliers' high parts add to the dot products of eight rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_outliers<const N: usize>(
    dots: &mut [[int32x4_t; 2]; N],
    w: &Int4Panel,
    half: usize,
    x: &[TokenGroups; N],
    g: usize,
) {
    for (dots, x) in dots.iter_mut().zip(x) {
        let outlier = &x.outliers[g];
        if !outlier.is_none() {
            let [low, high] = outlier_dots(w, half, outlier, g);
            *dots = [vaddq_s32(dots[0], low), vaddq_s32(dots[1], high)];
        }
    }
}

/// `128·Σ_j high[j]·w[4·quad + j]` of eight rows.
#[inline]
#[target_feature(enable = "neon")]
fn outlier_dots(w: &Int4Panel, half: usize, outlier: &Outlier, g: usize) -> [int32x4_t; 2] {
    let quad = outlier.quad_index();
    let [first, second] = codes(table(w), &w.nibbles[g][quad / 2], half);
    let codes = if quad.is_multiple_of(2) { first } else { second };
    let high = vreinterpretq_s8_s32(vdupq_n_s32(outlier.high_bits()));
    let sums = [sum_quads(codes.0, high), sum_quads(codes.1, high)];
    let sum = outlier.high.into_iter().map(i16::from).sum();
    let [low, high] = PartScales::new(w, g, quad * QUAD / PART, half).add([vdupq_n_s32(0); 2], sums, sum);
    [vshlq_n_s32::<7>(low), vshlq_n_s32::<7>(high)]
}

/// Lane `i`: `Σ_j a[4i + j]·b[4i + j]`.
#[inline]
#[target_feature(enable = "neon")]
fn sum_quads(a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    let high = vpaddlq_s16(vmull_high_s8(a, b));
    vpaddq_s32(low, high)
}
