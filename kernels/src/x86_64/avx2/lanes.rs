//! 16 lanes as two registers: what the float kernels are written in.

use super::Avx2;
use crate::half::f16;
use crate::scalar::LANES;
use crate::simd::{Simd, isa};
use std::arch::x86_64::*;

/// Both halves of a vector.
macro_rules! halves {
    ($op:expr, $a:expr $(, $b:expr)*) => {
        isa!([$op($a[0] $(, $b[0])*), $op($a[1] $(, $b[1])*)])
    };
}

impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type I32 = [__m256i; 2];
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        isa!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [__m256; 2] {
        isa!([_mm256_set1_ps(v); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> [__m256; 2] {
        isa!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> [__m256; 2] {
        let at = x.as_ptr().cast::<__m128i>();
        isa!([_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))])
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> [__m256; 2] {
        isa!({
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_unpackhi_epi64(x, x);
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
        })
    }
    #[inline(always)]
    fn store(self, v: [__m256; 2], out: &mut [f32; LANES]) {
        isa!({
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v[1]);
        })
    }
    #[inline(always)]
    fn store_f16(self, v: [__m256; 2], out: &mut [f16; LANES]) {
        let at = out.as_mut_ptr().cast::<__m128i>();
        isa!({
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        })
    }
    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn keep_where_ge(self, v: [__m256; 2], x: [__m256; 2], bound: [__m256; 2]) -> [__m256; 2] {
        let keep = halves!(_mm256_cmp_ps::<_CMP_GE_OQ>, x, bound);
        halves!(_mm256_and_ps, v, keep)
    }
    #[inline(always)]
    fn mask_gt(self, a: [__m256; 2], b: [__m256; 2]) -> u16 {
        let greater = halves!(_mm256_cmp_ps::<_CMP_GT_OQ>, a, b);
        let [low, high] = halves!(_mm256_movemask_ps, greater);
        (low | high << 8) as u16
    }
    #[inline(always)]
    fn any_eq(self, a: [__m256; 2], b: [__m256; 2]) -> bool {
        let equal = halves!(_mm256_cmp_ps::<_CMP_EQ_OQ>, a, b);
        isa!(_mm256_movemask_ps(_mm256_or_ps(equal[0], equal[1])) != 0)
    }
    #[inline(always)]
    fn exponent(self, v: [__m256; 2], bias: i32) -> [__m256; 2] {
        let bias = isa!(_mm256_set1_epi32(bias));
        let bits = halves!(_mm256_castps_si256, v);
        let biased = halves!(_mm256_add_epi32, bits, [bias; 2]);
        let shifted = halves!(_mm256_slli_epi32::<23>, biased);
        halves!(_mm256_castsi256_ps, shifted)
    }
    #[inline(always)]
    fn fold_add(self, v: [__m256; 2]) -> f32 {
        isa!({
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn fold_max(self, v: [__m256; 2]) -> f32 {
        isa!({
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn abs_bits(self, v: [__m256; 2]) -> [__m256i; 2] {
        let mask = isa!(_mm256_set1_epi32(0x7fff_ffff));
        let bits = halves!(_mm256_castps_si256, v);
        halves!(_mm256_and_si256, bits, [mask; 2])
    }
    #[inline(always)]
    fn round(self, v: [__m256; 2]) -> [__m256i; 2] {
        halves!(_mm256_cvtps_epi32, v)
    }
    #[inline(always)]
    fn to_f32(self, v: [__m256i; 2]) -> [__m256; 2] {
        halves!(_mm256_cvtepi32_ps, v)
    }
    #[inline(always)]
    fn max_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        halves!(_mm256_max_epi32, a, b)
    }
    #[inline(always)]
    fn sum_i32(self, v: [__m256i; 2]) -> i32 {
        isa!({
            let v = _mm256_add_epi32(v[0], v[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<1>(v)))
        })
    }
    #[inline(always)]
    fn largest_i32(self, v: [__m256i; 2]) -> i32 {
        isa!({
            let v = _mm256_max_epi32(v[0], v[1]);
            let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_max_epi32(v, _mm_unpackhi_epi64(v, v));
            _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32::<1>(v)))
        })
    }
    #[inline(always)]
    fn store_i32(self, v: [__m256i; 2], out: &mut [i32; LANES]) {
        isa!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), v[1]);
        })
    }
    #[inline(always)]
    fn store_i8(self, v: [__m256i; 2], out: &mut [i8; LANES]) {
        isa!({
            // i16 of both: lanes 0–3, 8–11 | 4–7, 12–15.
            let v = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let v = _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storeu_si128(out.as_mut_ptr().cast(), v)
        })
    }
}
