//! Int4 panels on NEON: `tbl` looks the codes up, 16 at a time, and what a part of 16 columns gives is multiplied with its scales
//! in i32.

use super::neon::add_quads;
use crate::int4::{Int4Panel, Oct};
use crate::int8::{TokenGroups, any_outlier};
use crate::panels::PANEL_ROWS;
use std::arch::aarch64::*;

/// See [`Int8::int4_dots`](crate::int8::Int8::int4_dots). Eight rows at a time, or the sums would not fit the registers.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn int4_dots<const N: usize>(
    w: &Int4Panel,
    x: &[TokenGroups; N],
    g: usize,
) -> [[int32x4_t; 4]; N] {
    let table = table(w);
    let mut dots = [[vdupq_n_s32(0); 4]; N];
    for (part, octs) in w.nibbles[g].as_chunks::<2>().0.iter().enumerate() {
        let scales = PartScales::new(w, g, part);
        let [first, second] = [codes(table, &octs[0]), codes(table, &octs[1])];
        for half in 0..2 {
            for (dots, x) in dots.iter_mut().zip(x) {
                let mut sums = [vdupq_n_s32(0); 4];
                for (i, [even, odd]) in [first, second].into_iter().enumerate() {
                    add_quads(&mut sums, (eight_rows(even, half), eight_rows(odd, half)), x, g, 2 * part + i);
                }
                let rows = [vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])];
                for (i, sum) in rows.into_iter().enumerate() {
                    let quarter = 2 * half + i;
                    dots[quarter] = scales.add(dots[quarter], sum, x.part_sums[g][part], quarter);
                }
            }
        }
    }
    add_outliers(&mut dots, w, x, g);
    dots
}

/// The codes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn table(w: &Int4Panel) -> int8x16_t {
    // SAFETY: 16 codes.
    unsafe { vld1q_s8(w.codes.signed.as_ptr()) }
}

/// The codes of an oct, its first quad and its second: four rows a register.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn codes(table: int8x16_t, oct: &Oct) -> [int8x16x4_t; 2] {
    // SAFETY: 16 rows of four bytes.
    let bytes = unsafe { vld1q_u8_x4(oct.as_ptr().cast()) };
    let mask = vdupq_n_u8(15);
    let low = |bytes| vqtbl1q_s8(table, vandq_u8(bytes, mask));
    let high = |bytes| vqtbl1q_s8(table, vshrq_n_u8::<4>(bytes));
    [
        int8x16x4_t(low(bytes.0), low(bytes.1), low(bytes.2), low(bytes.3)),
        int8x16x4_t(high(bytes.0), high(bytes.1), high(bytes.2), high(bytes.3)),
    ]
}

/// Rows 0..8 (`half` 0) or 8..16 (1) of a quad.
#[inline]
#[target_feature(enable = "neon")]
fn eight_rows(quad: int8x16x4_t, half: usize) -> int8x16x2_t {
    if half == 0 { int8x16x2_t(quad.0, quad.1) } else { int8x16x2_t(quad.2, quad.3) }
}

/// What a part of 16 rows is scaled with, and what is taken off.
pub(super) struct PartScales {
    scales: [int32x4_t; 4],
    minimums: [int32x4_t; 4],
}

impl PartScales {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn new(w: &Int4Panel, g: usize, part: usize) -> Self {
        let (scales, minimums) = w.part(g, part);
        Self { scales: widen(&scales), minimums: widen(&minimums) }
    }

    /// Adds `sum · scale − part_sum · minimum` of four rows.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add(&self, dots: int32x4_t, sum: int32x4_t, part_sum: i16, quarter: usize) -> int32x4_t {
        let dots = vmlaq_s32(dots, sum, self.scales[quarter]);
        vmlsq_n_s32(dots, self.minimums[quarter], part_sum.into())
    }
}

/// 16 values in i32.
#[inline]
#[target_feature(enable = "neon")]
fn widen(x: &[i16; PANEL_ROWS]) -> [int32x4_t; 4] {
    let mut wide = [vdupq_n_s32(0); 4];
    for (wide, x) in wide.iter_mut().zip(x.as_chunks::<4>().0) {
        // SAFETY: four values.
        *wide = vmovl_s16(unsafe { vld1_s16(x.as_ptr()) });
    }
    wide
}

/// Adds what the outliers' high parts add to the dot products.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_outliers<const N: usize>(
    dots: &mut [[int32x4_t; 4]; N],
    w: &Int4Panel,
    x: &[TokenGroups; N],
    g: usize,
) {
    for (dots, x) in dots.iter_mut().zip(x) {
        let outlier = &x.outliers[g];
        if any_outlier([outlier]) {
            let extra = w.outlier_dots(g, outlier);
            for (dots, extra) in dots.iter_mut().zip(extra.as_chunks::<4>().0) {
                // SAFETY: four sums.
                *dots = vaddq_s32(*dots, unsafe { vld1q_s32(extra.as_ptr()) });
            }
        }
    }
}
