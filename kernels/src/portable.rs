//! For any CPU: the `wide` crate's vectors, compiled for what the target guarantees (SSE2 on x86-64, NEON on aarch64).

use crate::half::f16;
use crate::int4::Int4Panel;
use crate::int8::{Group, GroupsX16, Int8, TokenGroups};
use crate::panels::{PANEL_ROWS, PanelGroup, QUADS};
use crate::quant::{GROUP, Outlier, PARTS, QUAD};
use crate::scalar::{self, LANES};
use crate::simd::Simd;
use std::array::from_fn;
use std::mem::MaybeUninit;
use wide::{f32x16, i8x16, i16x16, i32x8, i32x16};

/// Exists on any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable(());

impl Portable {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

crate::table::table!(Portable, [inline(never)]);

/// f16 → f32, exactly, in steps that the compiler can take for many values at once.
#[inline(always)]
fn widen_f16(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // Exponent and mantissa in f32's places; the exponents' biases differ by 112.
    let magnitude = (f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude | special | (bits & 0x8000) << 16)
}

/// f32 → f16, ties to even, in steps that the compiler can take for many values at once.
#[inline(always)]
fn narrow_f16(x: f32) -> f16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Half an f16 mantissa step, a little less where the result is even, and the biases' difference.
    let normal = (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23)) >> 13;
    // Adding ½ leaves multiples of 2⁻²⁴, the subnormal step, in the low mantissa bits.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let infinite = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let overflows = magnitude >= 0x477f_f000;
    f16::from_bits((if overflows { infinite } else { finite } | (bits >> 16 & 0x8000)) as u16)
}

fn to_bits(v: f32x16) -> i32x16 {
    i32x16::from_ne_bytes(v.to_ne_bytes())
}

fn from_bits(v: i32x16) -> f32x16 {
    f32x16::from_ne_bytes(v.to_ne_bytes())
}

impl Simd for Portable {
    type F32 = f32x16;
    type I32 = i32x16;
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> f32x16 {
        f32x16::splat(v)
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> f32x16 {
        f32x16::new(*x)
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> f32x16 {
        f32x16::new(x.map(widen_f16))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> f32x16 {
        i32x16::from_i16x16(i16x16::from_i8x16(i8x16::new(*x))).round_float()
    }
    #[inline(always)]
    fn store(self, v: f32x16, out: &mut [f32; LANES]) {
        *out = v.to_array();
    }
    #[inline(always)]
    fn store_f16(self, v: f32x16, out: &mut [f16; LANES]) {
        *out = v.to_array().map(narrow_f16);
    }
    #[inline(always)]
    fn add(self, a: f32x16, b: f32x16) -> f32x16 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x16, b: f32x16) -> f32x16 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x16, b: f32x16) -> f32x16 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x16, b: f32x16) -> f32x16 {
        a / b
    }
    #[inline(always)]
    fn max(self, a: f32x16, b: f32x16) -> f32x16 {
        a.simd_gt(b).select(a, b)
    }
    #[inline(always)]
    fn min(self, a: f32x16, b: f32x16) -> f32x16 {
        a.simd_lt(b).select(a, b)
    }
    #[inline(always)]
    fn keep_where_ge(self, v: f32x16, x: f32x16, bound: f32x16) -> f32x16 {
        v & x.simd_ge(bound)
    }
    #[inline(always)]
    fn mask_gt(self, a: f32x16, b: f32x16) -> u16 {
        a.simd_gt(b).to_bitmask() as u16
    }
    #[inline(always)]
    fn any_eq(self, a: f32x16, b: f32x16) -> bool {
        a.simd_eq(b).any()
    }
    #[inline(always)]
    fn exponent(self, v: f32x16, bias: i32) -> f32x16 {
        from_bits((to_bits(v) + i32x16::splat(bias)) << 23)
    }
    #[inline(always)]
    fn fold_add(self, v: f32x16) -> f32 {
        scalar::fold(v.to_array(), |a, b| a + b)
    }
    #[inline(always)]
    fn abs_bits(self, v: f32x16) -> i32x16 {
        to_bits(v) & i32x16::splat(0x7fff_ffff)
    }
    #[inline(always)]
    fn round(self, v: f32x16) -> i32x16 {
        // The sum rounds to an integer, ties to even, and shows it in its low mantissa bits.
        let magic = f32x16::splat(scalar::EXP_ROUND);
        to_bits(v + magic) - to_bits(magic)
    }
    #[inline(always)]
    fn to_f32(self, v: i32x16) -> f32x16 {
        v.round_float()
    }
    #[inline(always)]
    fn max_i32(self, a: i32x16, b: i32x16) -> i32x16 {
        a.max(b)
    }
    #[inline(always)]
    fn sum_i32(self, v: i32x16) -> i32 {
        v.to_array().into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn largest_i32(self, v: i32x16) -> i32 {
        v.reduce_max()
    }
    #[inline(always)]
    fn store_i32(self, v: i32x16, out: &mut [i32; LANES]) {
        *out = v.to_array();
    }
    #[inline(always)]
    fn store_i8(self, v: i32x16, out: &mut [i8; LANES]) {
        *out = v.to_array().map(|v| v as i8);
    }
}

// SAFETY: `pack` writes every quad.
unsafe impl Int8 for Portable {
    type Lanes = Self;
    const GEMV_TOKENS: usize = 8;
    const TILE_TOKENS: usize = 4;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> i32x16 {
        i32x16::new(from_fn(|i| dot(&w[i], &x[i])))
    }

    #[inline(always)]
    fn correct(self, dots: i32x16, w: &[Group; LANES], x: &GroupsX16) -> i32x16 {
        match x.outliers {
            Some(outliers) => dots + i32x16::new(from_fn(|i| outliers[i].dot(&w[i]))),
            None => dots,
        }
    }

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        let packed = packed.write([[[0; 4]; PANEL_ROWS]; QUADS]);
        for (r, row) in rows.iter().enumerate() {
            for (packed, quad) in packed.iter_mut().zip(row.as_chunks().0) {
                packed[r] = *quad;
            }
        }
    }

    /// Four rows at a time: more would not fit the registers.
    #[inline(always)]
    fn panel_dots<const N: usize>(self, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [i32x16; N] {
        let mut dots = [[0; PANEL_ROWS]; N];
        let mut wide = [[0; GROUP]; N];
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = widen(&x.values[g], &x.outliers[g]);
        }
        for first in (0..PANEL_ROWS).step_by(4) {
            let pairs = pairs_of_4_rows(w, first, &wide);
            for (dots, pairs) in dots.iter_mut().zip(pairs) {
                for (dot, pair) in dots[first..].iter_mut().zip(pairs.to_array().as_chunks().0) {
                    let [even, odd]: [i32; 2] = *pair;
                    *dot = even + odd;
                }
            }
        }
        dots.map(i32x16::new)
    }

    /// With whole weights: they fit in i16, and their products with whole activations add up in i32.
    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [i32x16; N] {
        let mut dots = [[0; PANEL_ROWS]; N];
        let mut wide = [[0; GROUP]; N];
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = widen(&x.values[g], &x.outliers[g]);
        }
        let codes = w.codes_of(g);
        let (mut scales, mut minimums) = ([[0; PANEL_ROWS]; PARTS], [[0; PANEL_ROWS]; PARTS]);
        for part in 0..PARTS {
            (scales[part], minimums[part]) = w.part(g, part);
        }
        for first in (0..PANEL_ROWS).step_by(4) {
            let mut pairs = [i32x8::splat(0); N];
            for (q, codes) in codes.iter().enumerate() {
                let (scales, minimums) = (&scales[q / PARTS], &minimums[q / PARTS]);
                let w = i16x16::new(from_fn(|i| {
                    let r = first + i / QUAD;
                    (scales[r].wrapping_mul(i16::from(codes[r][i % QUAD]))).wrapping_sub(minimums[r])
                }));
                for (pairs, x) in pairs.iter_mut().zip(&wide) {
                    let quad = x.as_chunks::<QUAD>().0[q];
                    *pairs += w.dot(i16x16::new(from_fn(|i| quad[i % QUAD])));
                }
            }
            for (dots, pairs) in dots.iter_mut().zip(pairs) {
                for (dot, pair) in dots[first..].iter_mut().zip(pairs.to_array().as_chunks().0) {
                    let [even, odd]: [i32; 2] = *pair;
                    *dot = even.wrapping_add(odd);
                }
            }
        }
        dots.map(i32x16::new)
    }
}

/// A group's 64 values as i16, those of its outlier whole: low part + 128·high.
#[inline(always)]
fn widen(x: &Group, outlier: &Outlier) -> [i16; GROUP] {
    let mut wide = x.map(i16::from);
    wide.as_chunks_mut().0[outlier.quad_index()] = outlier.join(x);
    wide
}

/// The dot products of rows `first..first + 4` with `N` tokens, each in two parts that lie side by side.
#[inline(always)]
fn pairs_of_4_rows<const N: usize>(w: &PanelGroup, first: usize, x: &[[i16; GROUP]; N]) -> [i32x8; N] {
    let mut dots = [i32x8::splat(0); N];
    for (q, w) in w.iter().enumerate() {
        let w: [i8; 16] = from_fn(|i| w[first + i / 4][i % 4]);
        let w = i16x16::from_i8x16(i8x16::new(w));
        for (dot, x) in dots.iter_mut().zip(x) {
            let quad = x.as_chunks::<4>().0[q];
            *dot += w.dot(i16x16::new(from_fn(|i| quad[i % 4])));
        }
    }
    dots
}

/// `Σ_k w[k]·x[k]`
#[inline(always)]
fn dot(w: &Group, x: &Group) -> i32 {
    let (w, x) = (w.as_chunks::<16>().0, x.as_chunks::<16>().0);
    let parts = from_fn(|i| i16x16::from_i8x16(i8x16::new(w[i])).dot(i16x16::from_i8x16(i8x16::new(x[i]))));
    let [a, b, c, d]: [i32x8; 4] = parts;
    ((a + b) + (c + d)).reduce_add()
}
