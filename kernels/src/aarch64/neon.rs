//! NEON as every aarch64 CPU has it: 16 lanes are four registers. `smull` and `smlal` add two products of bytes in
//! i16 (2·128·127 fits), `sadalp` adds pairs of those to i32.

use super::int4;
use crate::half::f16;
use crate::int4::Int4Panel;
use crate::int8::{self, Group, GroupsX16, Int8, TokenGroups, any_outlier};
use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::quant::{GROUP, Outlier, QUAD};
use crate::scalar::LANES;
use crate::simd::{Simd, isa};
use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;

/// Exists only on a CPU with the features of [`Neon::new`].
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    #[target_feature(enable = "neon")]
    pub(crate) fn new() -> Self {
        Self(())
    }
}

pub(crate) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

crate::table::table!(Neon, [target_feature(enable = "neon")]);

/// All four quarters of a vector.
macro_rules! quarters {
    ($op:expr, $a:expr $(, $b:expr)*) => {
        isa!([$op($a[0] $(, $b[0])*), $op($a[1] $(, $b[1])*), $op($a[2] $(, $b[2])*), $op($a[3] $(, $b[3])*)])
    };
}

type F32 = [float32x4_t; 4];
type I32 = [int32x4_t; 4];

impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> F32 {
        isa!([vdupq_n_f32(v); 4])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F32 {
        let x = x.as_ptr();
        isa!([vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))])
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> F32 {
        let x = x.as_ptr().cast::<u16>();
        let halves = isa!([vld1_u16(x), vld1_u16(x.add(4)), vld1_u16(x.add(8)), vld1_u16(x.add(12))]);
        quarters!(widen_f16, halves)
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> F32 {
        isa!({
            let x = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            let quarters = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            self.to_f32(quarters)
        })
    }
    #[inline(always)]
    fn store(self, v: F32, out: &mut [f32; LANES]) {
        for (v, out) in v.iter().zip(out.as_chunks_mut::<4>().0) {
            isa!(vst1q_f32(out.as_mut_ptr(), *v));
        }
    }
    #[inline(always)]
    fn store_f16(self, v: F32, out: &mut [f16; LANES]) {
        for (v, out) in v.iter().zip(out.as_chunks_mut::<4>().0) {
            isa!(vst1_u16(out.as_mut_ptr().cast(), narrow_f16(*v)));
        }
    }
    #[inline(always)]
    fn add(self, a: F32, b: F32) -> F32 {
        quarters!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        quarters!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F32, b: F32) -> F32 {
        quarters!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: F32, b: F32) -> F32 {
        quarters!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        let greater = quarters!(vcgtq_f32, a, b);
        quarters!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        let less = quarters!(vcltq_f32, a, b);
        quarters!(vbslq_f32, less, a, b)
    }
    #[inline(always)]
    fn keep_where_ge(self, v: F32, x: F32, bound: F32) -> F32 {
        let keep = quarters!(vcgeq_f32, x, bound);
        quarters!(vbslq_f32, keep, v, self.splat(0.0))
    }
    #[inline(always)]
    fn mask_gt(self, a: F32, b: F32) -> u16 {
        let greater = quarters!(vcgtq_f32, a, b);
        let mut mask = 0;
        for (i, greater) in greater.into_iter().enumerate() {
            let bits = isa!(vandq_u32(greater, vld1q_u32([1, 2, 4, 8].as_ptr())));
            mask |= isa!(vaddvq_u32(bits)) << (4 * i);
        }
        mask as u16
    }
    #[inline(always)]
    fn any_eq(self, a: F32, b: F32) -> bool {
        let equal = quarters!(vceqq_f32, a, b);
        isa!(vmaxvq_u32(vorrq_u32(vorrq_u32(equal[0], equal[1]), vorrq_u32(equal[2], equal[3]))) != 0)
    }
    #[inline(always)]
    fn exponent(self, v: F32, bias: i32) -> F32 {
        let bias = isa!([vdupq_n_s32(bias); 4]);
        let bits = quarters!(vreinterpretq_s32_f32, v);
        let biased = quarters!(vaddq_s32, bits, bias);
        let shifted = quarters!(vshlq_n_s32::<23>, biased);
        quarters!(vreinterpretq_f32_s32, shifted)
    }
    #[inline(always)]
    fn fold_add(self, v: F32) -> f32 {
        isa!({
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        })
    }
    #[inline(always)]
    fn abs_bits(self, v: F32) -> I32 {
        let mask = isa!([vdupq_n_s32(0x7fff_ffff); 4]);
        let bits = quarters!(vreinterpretq_s32_f32, v);
        quarters!(vandq_s32, bits, mask)
    }
    #[inline(always)]
    fn round(self, v: F32) -> I32 {
        quarters!(vcvtnq_s32_f32, v)
    }
    #[inline(always)]
    fn to_f32(self, v: I32) -> F32 {
        quarters!(vcvtq_f32_s32, v)
    }
    #[inline(always)]
    fn max_i32(self, a: I32, b: I32) -> I32 {
        quarters!(vmaxq_s32, a, b)
    }
    #[inline(always)]
    fn sum_i32(self, v: I32) -> i32 {
        isa!(vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))))
    }
    #[inline(always)]
    fn largest_i32(self, v: I32) -> i32 {
        isa!(vmaxvq_s32(vmaxq_s32(vmaxq_s32(v[0], v[1]), vmaxq_s32(v[2], v[3]))))
    }
    #[inline(always)]
    fn store_i32(self, v: I32, out: &mut [i32; LANES]) {
        for (v, out) in v.iter().zip(out.as_chunks_mut::<4>().0) {
            isa!(vst1q_s32(out.as_mut_ptr(), *v));
        }
    }
    #[inline(always)]
    fn store_i8(self, v: I32, out: &mut [i8; LANES]) {
        isa!({
            let low = vmovn_s16(vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])));
            let high = vmovn_s16(vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3])));
            vst1q_s8(out.as_mut_ptr(), vcombine_s8(low, high));
        })
    }
}

/// `fcvtl`: the intrinsic is younger than the oldest compiler this crate supports.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(x: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: the instruction is part of NEON and touches registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// `fcvtn`: see [`widen_f16`].
#[inline]
#[target_feature(enable = "neon")]
fn narrow_f16(x: float32x4_t) -> uint16x4_t {
    let narrow;
    // SAFETY: the instruction is part of NEON and touches registers only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) narrow, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    narrow
}

// SAFETY: `pack` writes every quad.
unsafe impl Int8 for Neon {
    type Lanes = Self;
    const GEMV_TOKENS: usize = 4;
    const TILE_TOKENS: usize = 4;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> I32 {
        let mut dots = isa!([vdupq_n_s32(0); 4]);
        let groups = w.as_chunks::<4>().0.iter().zip(x.as_chunks::<4>().0);
        for (dots, (w, x)) in dots.iter_mut().zip(groups) {
            *dots = isa!(sum_each([
                group_dot(&w[0], &x[0]),
                group_dot(&w[1], &x[1]),
                group_dot(&w[2], &x[2]),
                group_dot(&w[3], &x[3]),
            ]));
        }
        dots
    }

    #[inline(always)]
    fn correct(self, dots: I32, w: &[Group; LANES], x: &GroupsX16) -> I32 {
        isa!(add_outliers(dots, w, x.outliers))
    }

    int8::own_functions!(Neon, [target_feature(enable = "neon")]);

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        isa!(pack(rows, packed))
    }

    /// Eight rows at a time, or the sums would not fit the registers.
    #[inline(always)]
    fn panel_dots<const N: usize>(self, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [I32; N] {
        let mut dots = isa!([[vdupq_n_s32(0); 4]; N]);
        for half in 0..2 {
            put_half(&mut dots, half, isa!(dots_of_8_rows(w, 8 * half, x, g)));
        }
        dots
    }

    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [I32; N] {
        let mut dots = isa!([[vdupq_n_s32(0); 4]; N]);
        for half in 0..2 {
            put_half(&mut dots, half, isa!(int4::dots_of_8_rows(w, half, x, g)));
        }
        dots
    }
}

/// Puts what eight rows gave where it belongs in that of 16.
#[inline(always)]
pub(super) fn put_half<const N: usize>(dots: &mut [I32; N], half: usize, rows: [[int32x4_t; 2]; N]) {
    for (dots, [low, high]) in dots.iter_mut().zip(rows) {
        (dots[2 * half], dots[2 * half + 1]) = (low, high);
    }
}

/// Adds `128·Σ_j w[i][4·quad + j]·high[j]` to lane `i` of the 16.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_outliers(mut dots: I32, w: &[Group; LANES], outliers: Option<&[Outlier; LANES]>) -> I32 {
    let Some(outliers) = outliers.filter(|outliers| any_outlier(*outliers)) else { return dots };
    let mut extra = [0; LANES];
    for ((extra, w), outlier) in extra.iter_mut().zip(w).zip(outliers) {
        *extra = outlier.dot(w);
    }
    for (dots, extra) in dots.iter_mut().zip(extra.as_chunks::<4>().0) {
        // SAFETY: four sums.
        *dots = vaddq_s32(*dots, unsafe { vld1q_s32(extra.as_ptr()) });
    }
    dots
}

/// Four partial sums of `Σ_k w[k]·x[k]`.
#[inline]
#[target_feature(enable = "neon")]
fn group_dot(w: &Group, x: &Group) -> int32x4_t {
    let mut sum = vdupq_n_s32(0);
    for (w, x) in w.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0) {
        // SAFETY: 16 bytes each.
        let (w, x) = unsafe { (vld1q_s8(w.as_ptr()), vld1q_s8(x.as_ptr())) };
        let products = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        sum = vpadalq_s16(sum, vmlal_s8(products, vget_high_s8(w), vget_high_s8(x)));
    }
    sum
}

/// Lane `i`: the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sum_each(v: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))
}

/// The dot products of group `g` of rows `first..first + 8` of a panel with `N` tokens, a row a lane.
#[inline]
#[target_feature(enable = "neon")]
fn dots_of_8_rows<const N: usize>(
    w: &PanelGroup,
    first: usize,
    x: &[TokenGroups; N],
    g: usize,
) -> [[int32x4_t; 2]; N] {
    // Two rows a register, two lanes a row.
    let mut sums = [[vdupq_n_s32(0); 4]; N];
    for (k, w) in w.as_chunks::<2>().0.iter().enumerate() {
        // Rows in pairs, for an even and an odd quad.
        // SAFETY: rows first..first + 8 of 16, four bytes each.
        let [even, odd] = unsafe { [0, 1].map(|i: usize| vld1q_s8_x2(w[i].as_ptr().add(first).cast())) };
        for (sums, x) in sums.iter_mut().zip(x) {
            add_quads(sums, (even, odd), x, g, k);
        }
    }
    for (sums, x) in sums.iter_mut().zip(x) {
        let outlier = &x.outliers[g];
        if !outlier.is_none() {
            add_outlier(&w[outlier.quad_index()], first, outlier, sums);
        }
    }
    let mut dots = [[vdupq_n_s32(0); 2]; N];
    for (dots, sums) in dots.iter_mut().zip(&sums) {
        *dots = [vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])];
    }
    dots
}

/// Adds the products of two quads of eight rows with quads `2·k` and `2·k + 1` of a token's group: two rows a register, two
/// lanes a row. Two products of each are added in i16.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_quads(
    sums: &mut [int32x4_t; 4],
    (even, odd): (int8x16x2_t, int8x16x2_t),
    x: &TokenGroups,
    g: usize,
    k: usize,
) {
    // SAFETY: eight of 64 values.
    let quads = unsafe { vld1_s32(x.values[g].as_ptr().add(8 * k).cast()) };
    let x_even = vreinterpret_s8_s32(vdup_lane_s32::<0>(quads));
    let x_odd = vreinterpret_s8_s32(vdup_lane_s32::<1>(quads));
    let mut add = |i: usize, even: int8x8_t, odd: int8x8_t| {
        sums[i] = vpadalq_s16(sums[i], vmlal_s8(vmull_s8(even, x_even), odd, x_odd));
    };
    add(0, vget_low_s8(even.0), vget_low_s8(odd.0));
    add(1, vget_high_s8(even.0), vget_high_s8(odd.0));
    add(2, vget_low_s8(even.1), vget_low_s8(odd.1));
    add(3, vget_high_s8(even.1), vget_high_s8(odd.1));
}

/// Adds `128·Σ_j w[r][j]·high[j]` to the sums of eight rows: two rows a register, two lanes a row.
#[inline]
#[target_feature(enable = "neon")]
fn add_outlier(w: &[[i8; QUAD]; PANEL_ROWS], first: usize, outlier: &Outlier, sums: &mut [int32x4_t; 4]) {
    let high = vreinterpret_s8_s32(vdup_n_s32(outlier.high_bits()));
    for (sums, w) in sums.iter_mut().zip(w[first..].as_chunks::<2>().0) {
        // SAFETY: two rows of four bytes.
        let products = vmull_s8(unsafe { vld1_s8(w.as_ptr().cast()) }, high);
        *sums = vaddq_s32(*sums, vshlq_n_s32::<7>(vpaddlq_s16(products)));
    }
}

/// 4 × 4 transposes of quads.
#[target_feature(enable = "neon")]
pub(super) fn pack(rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
    let packed = packed.as_mut_ptr().cast::<f32>();
    for (i, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
        for j in 0..GROUP / 16 {
            let mut quads = [vdupq_n_f32(0.0); 4];
            for (quads, row) in quads.iter_mut().zip(rows) {
                // SAFETY: 16 of the 64 bytes.
                *quads = vreinterpretq_f32_s8(unsafe { vld1q_s8(row.as_ptr().add(16 * j)) });
            }
            for (k, column) in transpose(quads).into_iter().enumerate() {
                // SAFETY: quad 4·j + k of four of the 16 rows.
                unsafe { vst1q_f32(packed.add((4 * j + k) * PANEL_ROWS + 4 * i), column) };
            }
        }
    }
}

/// Lane `i` of vector `j` becomes lane `j` of vector `i`.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let wide = |v| vreinterpretq_f64_f32(v);
    let (a, b) = (wide(vtrn1q_f32(v[0], v[1])), wide(vtrn2q_f32(v[0], v[1])));
    let (c, d) = (wide(vtrn1q_f32(v[2], v[3])), wide(vtrn2q_f32(v[2], v[3])));
    let back = |v| vreinterpretq_f32_f64(v);
    [back(vtrn1q_f64(a, c)), back(vtrn1q_f64(b, d)), back(vtrn2q_f64(a, c)), back(vtrn2q_f64(b, d))]
}
