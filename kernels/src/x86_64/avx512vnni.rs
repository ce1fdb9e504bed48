//! AVX-512 with VNNI: 16 lanes are one register, and `vpdpbusd` multiplies 64 pairs of bytes.

use crate::half::f16;
use crate::int8::{Block, Group, Int8, PANEL_ROWS};
use crate::scalar::LANES;
use crate::simd::Simd;
use std::arch::x86_64::*;

/// Exists only on a CPU with the features of [`Avx512Vnni::new`].
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(crate) fn new() -> Self {
        Self(())
    }
}

pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

crate::table::table!(
    Avx512Vnni,
    [target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
);

/// Runs intrinsics.
macro_rules! isa {
    ($($body:tt)*) => {
        // SAFETY: the token proves that the CPU has the features; pointers come from references to whole arrays.
        unsafe { $($body)* }
    };
}

impl Simd for Avx512Vnni {
    type F32 = __m512;
    type I32 = __m512i;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        isa!(_mm512_set1_ps(v))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        isa!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        isa!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> __m512 {
        isa!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        isa!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn store_f16(self, v: __m512, out: &mut [f16; LANES]) {
        isa!(_mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn keep_where_ge(self, v: __m512, x: __m512, bound: __m512) -> __m512 {
        isa!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound), v))
    }
    #[inline(always)]
    fn any_eq(self, a: __m512, b: __m512) -> bool {
        isa!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) != 0)
    }
    #[inline(always)]
    fn exponent(self, v: __m512, bias: i32) -> __m512 {
        isa!({
            let biased = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(bias));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn fold_add(self, v: __m512) -> f32 {
        isa!({
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn abs_bits(self, v: __m512) -> __m512i {
        isa!(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff)))
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512i {
        isa!(_mm512_cvtps_epi32(v))
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        isa!(_mm512_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_i32(self, a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn sum_i32(self, v: __m512i) -> i32 {
        isa!(_mm512_reduce_add_epi32(v))
    }
    #[inline(always)]
    fn largest_i32(self, v: __m512i) -> i32 {
        isa!(_mm512_reduce_max_epi32(v))
    }
    #[inline(always)]
    fn store_i8(self, v: __m512i, out: &mut [i8; LANES]) {
        isa!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)))
    }
}

/// `[k / 4][row]`: four bytes of one row, 128 added to each.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Panel([[u32; PANEL_ROWS]; 16]);

impl Int8 for Avx512Vnni {
    type Lanes = Self;
    type Panel = Panel;
    const GEMV_TOKENS: usize = 2;
    const TILE_TOKENS: usize = 6;
    const EMPTY: Panel = Panel([[0; PANEL_ROWS]; 16]);

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES], sums: &[i32; LANES]) -> __m512i {
        isa!({
            let flip = _mm512_set1_epi8(-128);
            let parts = std::array::from_fn(
                #[inline(always)]
                |i| {
                    let w = _mm512_xor_si512(_mm512_loadu_si512(w[i].as_ptr().cast()), flip);
                    _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_loadu_si512(x[i].as_ptr().cast()))
                },
            );
            // Each w was 128 too large: take 128·Σx off.
            let excess = _mm512_slli_epi32::<7>(_mm512_loadu_si512(sums.as_ptr().cast()));
            _mm512_sub_epi32(sum_each(parts), excess)
        })
    }

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], panel: &mut Panel) {
        for (r, row) in rows.iter().enumerate() {
            for (k, quad) in row.as_chunks::<4>().0.iter().enumerate() {
                panel.0[k][r] = u32::from_le_bytes(quad.map(|q| q as u8 ^ 0x80));
            }
        }
    }

    #[inline(always)]
    fn tile<const N: usize>(
        self,
        panel: &[Panel],
        inverse: &[[f32; PANEL_ROWS]],
        x: &[Block; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    ) {
        isa!({
            let load = |row: &[f32; PANEL_ROWS], half: usize| _mm512_loadu_ps(row.as_ptr().add(16 * half));
            let mut sums: [[__m512; 2]; N] = std::array::from_fn(|t| [load(&acc[t], 0), load(&acc[t], 1)]);
            for (g, (panel, inverse)) in panel.iter().zip(inverse).enumerate() {
                // Each w is 128 too large: start at −128·Σx.
                let mut dots: [[__m512i; 2]; N] = std::array::from_fn(|t| {
                    let start = _mm512_set1_epi32(x[t].sums[g] * -128);
                    [start, start]
                });
                for (k, w) in panel.0.iter().enumerate() {
                    let w: [_; 2] = std::array::from_fn(|i| _mm512_load_si512(w.as_ptr().add(16 * i).cast()));
                    for (dots, x) in dots.iter_mut().zip(x) {
                        let x = x.values[g].as_ptr().add(4 * k).cast::<i32>().read_unaligned();
                        let x = _mm512_set1_epi32(x);
                        for (dot, w) in dots.iter_mut().zip(w) {
                            *dot = _mm512_dpbusd_epi32(*dot, w, x);
                        }
                    }
                }
                for t in 0..N {
                    let x_scale = _mm512_set1_ps(x[t].scales[g]);
                    for i in 0..2 {
                        let scale = _mm512_mul_ps(load(inverse, i), x_scale);
                        sums[t][i] =
                            _mm512_add_ps(sums[t][i], _mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][i]), scale));
                    }
                }
            }
            for (acc, sums) in acc.iter_mut().zip(sums) {
                for (i, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(acc.as_mut_ptr().add(16 * i), sum);
                }
            }
        })
    }
}

/// Lane `i`: the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_each(v: [__m512i; 16]) -> __m512i {
    // Each step adds the two halves of two vectors and puts the results side by side: 16 → 8 → 4 → 2 → 1 vectors.
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let quad = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let eight = |a, b| {
        _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
        )
    };
    let q: [__m512i; 4] =
        std::array::from_fn(|i| quad(pair(v[4 * i], v[4 * i + 1]), pair(v[4 * i + 2], v[4 * i + 3])));
    eight(eight(q[0], q[1]), eight(q[2], q[3]))
}
