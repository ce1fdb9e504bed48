//! NEON with the dot product instructions: `sdot` multiplies 16 pairs of signed bytes and adds each four to an i32.
//! Everything but the int8 matmul is [`neon`](super::neon)'s.

use super::int4;
use super::neon::{self, Neon};
use crate::attention;
use crate::attention::int8::{Int8Span, SpanBuffers, SpanQueries, SpanResult};
use crate::int4::{Int4Matrix, Int4Panel};
use crate::int8::{self, Group, GroupsX16, Int8, TokenGroups};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelGroup, PanelMatrix};
use crate::quant::{Outlier, QMatrix, QUAD, Quantized};
use crate::scalar::LANES;
use crate::simd::isa;
use crate::table::Table;
use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Exists only on a CPU with the features of [`DotProd::new`].
#[derive(Clone, Copy)]
struct DotProd(());

impl DotProd {
    #[target_feature(enable = "neon,dotprod")]
    fn new() -> Self {
        Self(())
    }
}

pub(crate) fn is_available() -> bool {
    neon::is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
}

pub(crate) static TABLE: Table = Table { matmul_i8, matmul_panels, matmul_int4, attn_span_i8, ..neon::TABLE };

#[target_feature(enable = "neon,dotprod")]
fn attn_span_i8(
    queries: &SpanQueries,
    span: &Int8Span,
    seen: &[Range<usize>],
    buffers: &mut SpanBuffers,
    result: SpanResult,
) {
    attention::int8::attn_span_i8(DotProd::new(), queries, span, seen, buffers, result);
}

#[target_feature(enable = "neon,dotprod")]
fn matmul_i8(w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    int8::matmul_i8(DotProd::new(), w, rows, x, out);
}

#[target_feature(enable = "neon,dotprod")]
fn matmul_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    int8::matmul_panels(DotProd::new(), w, rows, x, out);
}

#[target_feature(enable = "neon,dotprod")]
fn matmul_int4(w: &Int4Matrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    int8::matmul_int4(DotProd::new(), w, rows, x, out);
}

// SAFETY: `pack` writes every quad.
unsafe impl Int8 for DotProd {
    type Lanes = Neon;
    const GEMV_TOKENS: usize = 4;
    const TILE_TOKENS: usize = 4;

    #[inline(always)]
    fn lanes(self) -> Neon {
        isa!(Neon::new())
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> [int32x4_t; 4] {
        let mut dots = isa!([vdupq_n_s32(0); 4]);
        let groups = w.as_chunks::<4>().0.iter().zip(x.as_chunks::<4>().0);
        for (dots, (w, x)) in dots.iter_mut().zip(groups) {
            *dots = isa!(neon::sum_each([
                group_dot(&w[0], &x[0]),
                group_dot(&w[1], &x[1]),
                group_dot(&w[2], &x[2]),
                group_dot(&w[3], &x[3]),
            ]));
        }
        dots
    }

    #[inline(always)]
    fn correct(self, dots: [int32x4_t; 4], w: &[Group; LANES], x: &GroupsX16) -> [int32x4_t; 4] {
        isa!(neon::add_outliers(dots, w, x.outliers))
    }

    int8::own_functions!(DotProd, [target_feature(enable = "neon,dotprod")]);

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        isa!(neon::pack(rows, packed))
    }

    #[inline(always)]
    fn panel_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [[int32x4_t; 4]; N] {
        isa!(panel_dots(w, x, g))
    }

    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [[int32x4_t; 4]; N] {
        let mut dots = isa!([[vdupq_n_s32(0); 4]; N]);
        for half in 0..2 {
            neon::put_half(&mut dots, half, isa!(int4_dots_of_8_rows(w, half, x, g)));
        }
        dots
    }
}

/// See [`Int8::panel_dots`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn panel_dots<const N: usize>(w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [[int32x4_t; 4]; N] {
    let mut dots = [[vdupq_n_s32(0); 4]; N];
    for (dots, x) in dots.iter_mut().zip(x) {
        let outlier = &x.outliers[g];
        if !outlier.is_none() {
            *dots = outlier_rows(&w[outlier.quad_index()], outlier);
        }
    }
    for (k, w) in w.as_chunks::<4>().0.iter().enumerate() {
        let mut quads = [vdupq_n_s8(0); N];
        for (quads, x) in quads.iter_mut().zip(x) {
            // SAFETY: 16 of 64 values.
            *quads = unsafe { vld1q_s8(x.values[g].as_ptr().add(16 * k)) };
        }
        step::<0, N>(load(&w[0]), &quads, &mut dots);
        step::<1, N>(load(&w[1]), &quads, &mut dots);
        step::<2, N>(load(&w[2]), &quads, &mut dots);
        step::<3, N>(load(&w[3]), &quads, &mut dots);
    }
    dots
}

/// See [`Int8::int4_dots`]: those of rows 0..8 (`half` 0) or 8..16 (1), or the sums would not fit the registers.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn int4_dots_of_8_rows<const N: usize>(
    w: &Int4Panel,
    half: usize,
    x: &[TokenGroups; N],
    g: usize,
) -> [[int32x4_t; 2]; N] {
    let table = int4::table(w);
    let mut dots = [[vdupq_n_s32(0); 2]; N];
    for (part, octs) in w.nibbles[g].as_chunks::<2>().0.iter().enumerate() {
        let scales = int4::PartScales::new(w, g, part, half);
        let [[a, b], [c, d]] = [int4::codes(table, &octs[0], half), int4::codes(table, &octs[1], half)];
        for (dots, x) in dots.iter_mut().zip(x) {
            // SAFETY: 16 of 64 values.
            let quads = unsafe { vld1q_s8(x.values[g].as_ptr().add(16 * part)) };
            let mut sums = [vdupq_n_s32(0); 2];
            add_quad::<0>(&mut sums, a, quads);
            add_quad::<1>(&mut sums, b, quads);
            add_quad::<2>(&mut sums, c, quads);
            add_quad::<3>(&mut sums, d, quads);
            *dots = scales.add(*dots, sums, x.part_sums[g][part]);
        }
    }
    int4::add_outliers(&mut dots, w, half, x, g);
    dots
}

/// Adds to `sums` the products of one quad of eight rows with quad `LANE` of a token's 16 values.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_quad<const LANE: i32>(sums: &mut [int32x4_t; 2], w: int8x16x2_t, quads: int8x16_t) {
    sums[0] = sdot_lane::<LANE>(sums[0], w.0, quads);
    sums[1] = sdot_lane::<LANE>(sums[1], w.1, quads);
}

/// `128·Σ_j w[r][j]·high[j]` of 16 rows, a row a lane.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn outlier_rows(w: &[[i8; QUAD]; PANEL_ROWS], outlier: &Outlier) -> [int32x4_t; 4] {
    let high = vreinterpretq_s8_s32(vdupq_n_s32(outlier.high_bits()));
    let mut dots = [vdupq_n_s32(0); 4];
    for (dots, w) in dots.iter_mut().zip(w.as_chunks::<4>().0) {
        // SAFETY: four rows of four bytes.
        *dots = vshlq_n_s32::<7>(sdot(*dots, unsafe { vld1q_s8(w.as_ptr().cast()) }, high));
    }
    dots
}

/// One quad of a panel's 16 rows.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(quad: &[[i8; QUAD]; PANEL_ROWS]) -> int8x16x4_t {
    // SAFETY: 16 rows of four bytes.
    unsafe { vld1q_s8_x4(quad.as_ptr().cast()) }
}

/// Adds to `dots` the products of one quad of 16 rows with quad `LANE` of each token's 16 values.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const LANE: i32, const N: usize>(
    w: int8x16x4_t,
    quads: &[int8x16_t; N],
    dots: &mut [[int32x4_t; 4]; N],
) {
    for (dots, quads) in dots.iter_mut().zip(quads) {
        dots[0] = sdot_lane::<LANE>(dots[0], w.0, *quads);
        dots[1] = sdot_lane::<LANE>(dots[1], w.1, *quads);
        dots[2] = sdot_lane::<LANE>(dots[2], w.2, *quads);
        dots[3] = sdot_lane::<LANE>(dots[3], w.3, *quads);
    }
}

/// Four partial sums of `Σ_k w[k]·x[k]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn group_dot(w: &Group, x: &Group) -> int32x4_t {
    let mut sum = vdupq_n_s32(0);
    for (w, x) in w.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0) {
        // SAFETY: 16 bytes each.
        sum = unsafe { sdot(sum, vld1q_s8(w.as_ptr()), vld1q_s8(x.as_ptr())) };
    }
    sum
}

/// `acc[i] += Σ_j a[4i + j]·b[4i + j]`: `vdotq_s32`, which stable Rust does not have yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the features are switched on; the instruction touches registers only.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// `acc[i] += Σ_j a[4i + j]·b[4·LANE + j]`: `vdotq_laneq_s32`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_lane<const LANE: i32>(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the features are switched on; the instruction touches registers only.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) acc, in(vreg) a, in(vreg) b, const LANE,
             options(pure, nomem, nostack, preserves_flags));
    }
    acc
}
