//! AVX-512 with VNNI: 16 lanes are one register, and `vpdpbusd` multiplies 64 pairs of bytes.

mod int4;

use super::avxvnni::{Evex, Vnni};
use crate::half::f16;
use crate::int4::Int4Panel;
use crate::int8::{self, Group, GroupsX16, Int8, TokenGroups, any_outlier};
use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::quant::Outlier;
use crate::scalar::LANES;
use crate::simd::{Simd, isa};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

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

impl Simd for Avx512Vnni {
    type F32 = __m512;
    type I32 = __m512i;
    const ACCUMULATORS: usize = 16;

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        isa!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }
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
    fn mask_gt(self, a: __m512, b: __m512) -> u16 {
        isa!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
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
    fn fold_max(self, v: __m512) -> f32 {
        isa!({
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
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
    fn store_i32(self, v: __m512i, out: &mut [i32; LANES]) {
        isa!(_mm512_storeu_si512(out.as_mut_ptr().cast(), v))
    }
    #[inline(always)]
    fn store_i8(self, v: __m512i, out: &mut [i8; LANES]) {
        isa!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)))
    }
}

// SAFETY: `pack` writes every quad.
unsafe impl Int8 for Avx512Vnni {
    type Lanes = Self;
    const GEMV_TOKENS: usize = 3;
    const TILE_TOKENS: usize = 12;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> __m512i {
        isa!(dots(w, x))
    }

    #[inline(always)]
    fn correct(self, dots: __m512i, w: &[Group; LANES], x: &GroupsX16) -> __m512i {
        isa!(correct(dots, w, x))
    }

    int8::own_functions!(
        Avx512Vnni,
        [target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    );

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        isa!(pack(rows, packed))
    }

    #[inline(always)]
    fn panel_dots<const N: usize>(self, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [__m512i; N] {
        panel_dots(self, w, x, g)
    }

    #[inline(always)]
    fn nonnegative_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [__m512i; N] {
        let mut dots = [isa!(_mm512_setzero_si512()); N];
        for (q, quad) in w.iter().enumerate() {
            let w = isa!(_mm512_loadu_si512(quad.as_ptr().cast()));
            for t in 0..N {
                let x = i32::from_ne_bytes(x[t].values[g].as_chunks::<4>().0[q].map(|x| x as u8));
                dots[t] = isa!(_mm512_dpbusd_epi32(dots[t], _mm512_set1_epi32(x), w));
            }
        }
        dots
    }

    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [__m512i; N] {
        int4::int4_dots(self, w, x, g)
    }
}

/// Lane `i`: `Σ_k (w[i][k] + 128)·x[i][k]`. In vectors of 32 bytes: half the lanes are half as much to add up, and 64 bytes
/// would not multiply faster on a CPU that takes two rounds for them.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512vl,avx512vnni")]
fn dots(w: &[Group; LANES], x: &[Group; LANES]) -> __m512i {
    join(Vnni(Evex::new()).dots(w, x))
}

/// Takes 128·Σx off and puts the outliers in.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx512bw")]
fn correct(dots: __m512i, w: &[Group; LANES], x: &GroupsX16) -> __m512i {
    // SAFETY: 16 sums.
    let mut sums = unsafe { _mm512_loadu_si512(x.sums.as_ptr().cast()) };
    if let Some(outliers) = x.outliers {
        sums = _mm512_sub_epi32(sums, outlier_dots(w, outliers));
    }
    _mm512_sub_epi32(dots, _mm512_slli_epi32::<7>(sums))
}

/// 16 lanes of twice eight.
#[inline]
#[target_feature(enable = "avx512f")]
fn join([low, high]: [__m256i; 2]) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Lane `i`: `Σ_j high[j]·(w[i][4·quad + j] + 128)`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx512bw")]
fn outlier_dots(w: &[Group; LANES], outliers: &[Outlier; LANES]) -> __m512i {
    // SAFETY: 16 outliers are twice 16 words.
    let (first, second) = unsafe {
        let words = outliers.as_ptr().cast::<i32>();
        (_mm512_loadu_si512(words.cast()), _mm512_loadu_si512(words.add(LANES).cast()))
    };
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let high = _mm512_permutex2var_epi32(first, even, second);
    // One by one: Zen 4 takes a gather apart into many more steps.
    let quad = |i: usize| i32::from_ne_bytes(outliers[i].quad_of(&w[i]).map(|w| w as u8));
    let eight = |first: usize| {
        let mut quads = _mm256_set1_epi32(quad(first));
        for i in 1..8 {
            quads = _mm256_mask_set1_epi32(quads, 1 << i, quad(first + i));
        }
        quads
    };
    let w = join([eight(0), eight(8)]);
    _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_xor_si512(w, _mm512_set1_epi8(-128)), high)
}

/// Transposes the quads of 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn pack(rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
    let mut v = [_mm512_setzero_si512(); PANEL_ROWS];
    for (v, row) in v.iter_mut().zip(rows) {
        // SAFETY: the 64 bytes of a group.
        *v = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    let packed = packed.as_mut_ptr().cast::<__m512i>();
    for (q, quads) in transpose(v).into_iter().enumerate() {
        // SAFETY: quad q of the 16 rows.
        unsafe { _mm512_storeu_si512(packed.add(q), quads) };
    }
}

/// Lane `i` of vector `j` becomes lane `j` of vector `i`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(v: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = v;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    // b[4i + j]: dword 4q + j of rows 4i..4i + 4 in each quarter q.
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // Then the quarters, as a 4 × 4 transpose for each j.
    let mut c = b;
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b01_00_01_00>(b[j], b[j + 4]);
        let high = _mm512_shuffle_i32x4::<0b11_10_11_10>(b[j], b[j + 4]);
        let low2 = _mm512_shuffle_i32x4::<0b01_00_01_00>(b[j + 8], b[j + 12]);
        let high2 = _mm512_shuffle_i32x4::<0b11_10_11_10>(b[j + 8], b[j + 12]);
        c[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low2);
        c[j + 4] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low2);
        c[j + 8] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high2);
        c[j + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high2);
    }
    c
}

/// See [`Int8::panel_dots`]. The weights get 128 added: the sums start at −128·Σx, plus what the outliers' high parts add.
#[inline(always)]
fn panel_dots<const N: usize>(_: Avx512Vnni, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [__m512i; N] {
    let mut dots = [isa!(_mm512_setzero_si512()); N];
    // One branch for all tokens: one for each is harder to predict than two instructions are slow.
    if any_outlier(x.iter().map(|x| &x.outliers[g])) {
        for t in 0..N {
            let outlier = &x[t].outliers[g];
            let w = load(&w[outlier.quad_index()]);
            isa!({
                let (high, sum) = (_mm512_set1_epi32(outlier.high_bits()), _mm512_set1_epi32(-x[t].sums[g]));
                dots[t] = _mm512_slli_epi32::<7>(_mm512_dpbusd_epi32(sum, w, high));
            })
        }
    } else {
        for t in 0..N {
            dots[t] = isa!(_mm512_set1_epi32(x[t].sums[g] * -128));
        }
    }
    for (q, quad) in w.iter().enumerate() {
        // The next group's, into the first level: the CPU does not foresee it well enough.
        let next = quad.as_ptr().wrapping_byte_add(size_of::<PanelGroup>());
        isa!(_mm_prefetch::<_MM_HINT_T0>(next.cast()));
        let w = load(quad);
        for t in 0..N {
            let x = i32::from_ne_bytes(x[t].values[g].as_chunks::<4>().0[q].map(|x| x as u8));
            dots[t] = isa!(_mm512_dpbusd_epi32(dots[t], w, _mm512_set1_epi32(x)));
        }
    }
    dots
}

/// One quad of a panel's 16 rows, 128 added to each byte.
#[inline(always)]
fn load(quad: &[[i8; 4]; PANEL_ROWS]) -> __m512i {
    isa!(_mm512_xor_si512(_mm512_loadu_si512(quad.as_ptr().cast()), _mm512_set1_epi8(-128)))
}
