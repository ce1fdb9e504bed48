//! AVX2 (with F16C): 16 lanes are two registers. A product of bytes does not saturate where one side
//! is |w| and w's sign is moved over to x.

use crate::half::f16;
use crate::int8::{
    self, GEMM_PANEL_ROWS, Group, GroupsX16, Int8, PREFETCH_BYTES, Run, TokenGroups, any_outlier,
};
use crate::mat::MatMut;
use crate::quant::{GROUP, Outlier, QMatrix, Quantized};
use crate::scalar::LANES;
use crate::simd::Simd;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Exists only on a CPU with the features of [`Avx2::new`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    #[target_feature(enable = "avx2,f16c")]
    pub(crate) fn new() -> Self {
        Self(())
    }
}

pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

crate::table::table!(Avx2, [target_feature(enable = "avx2,f16c")]);

/// Runs intrinsics.
macro_rules! isa {
    ($($body:tt)*) => {
        // SAFETY: the token proves that the CPU has the features; pointers come from references to whole arrays.
        unsafe { $($body)* }
    };
}

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
    fn add_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        halves!(_mm256_add_epi32, a, b)
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

/// One group of 32 rows, for products of an unsigned byte and a signed one.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct PanelGroup {
    /// `[k / 4][row]`: four values of one row.
    quads: [Quad; GROUP / 4],
    /// `Σ|w|` of the negative values of each row.
    negative: [i32; GEMM_PANEL_ROWS],
}

/// Four values of each row.
#[derive(Clone, Copy)]
struct Quad {
    /// Unsigned: `|−128|` is 128.
    magnitudes: [[u8; 4]; GEMM_PANEL_ROWS],
    /// −1 for negative values, 0 for others.
    signs: [[i8; 4]; GEMM_PANEL_ROWS],
}

// SAFETY: `pack` writes every row of every k.
unsafe impl Int8 for Avx2 {
    type Lanes = Self;
    type PanelGroup = PanelGroup;
    const GEMV_TOKENS: usize = 4;
    const TILE_TOKENS: usize = 4;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> [__m256i; 2] {
        let ([w0, w1], [x0, x1]) = (halves_of(w), halves_of(x));
        isa!([eight_dots(w0, x0), eight_dots(w1, x1)])
    }

    #[inline(always)]
    fn correct(self, [d0, d1]: [__m256i; 2], w: &[Group; LANES], x: &GroupsX16) -> [__m256i; 2] {
        let Some(outliers) = x.outliers else { return [d0, d1] };
        let ([w0, w1], [o0, o1]) = (halves_of(w), halves_of(outliers));
        isa!([_mm256_add_epi32(d0, outlier_dots(w0, o0)), _mm256_add_epi32(d1, outlier_dots(w1, o1))])
    }

    #[inline(always)]
    fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        isa!(gemm(self, w, rows, x, out))
    }

    #[inline(always)]
    fn multiply_run(self, run: &Run, out: &mut [f32]) {
        isa!(multiply_run(self, run, out))
    }

    #[inline(always)]
    fn pack(self, rows: &[&Group; GEMM_PANEL_ROWS], panel: &mut MaybeUninit<PanelGroup>) {
        isa!(pack(rows, panel))
    }

    #[inline(always)]
    fn tile<const N: usize>(
        self,
        panel: &[PanelGroup],
        inverse: &[[f32; GEMM_PANEL_ROWS]],
        x: &[TokenGroups; N],
        acc: &mut [[f32; GEMM_PANEL_ROWS]; N],
    ) {
        isa!(tile(panel, inverse, x, acc))
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,f16c")]
fn gemm(k: Avx2, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    int8::gemm(k, w, rows, x, out);
}

#[inline(never)]
#[target_feature(enable = "avx2,f16c")]
fn multiply_run(k: Avx2, run: &Run, out: &mut [f32]) {
    int8::multiply_run(k, run, out);
}

/// The first eight and the last eight of sixteen.
#[inline(always)]
pub(super) fn halves_of<T>(x: &[T; LANES]) -> [&[T; 8]; 2] {
    let [low, high] = x.as_chunks().0 else { unreachable!("16 are twice 8") };
    [low, high]
}

/// 8 × 8 transposes of quads.
#[target_feature(enable = "avx2")]
fn pack(rows: &[&Group; GEMM_PANEL_ROWS], panel: &mut MaybeUninit<PanelGroup>) {
    let panel = panel.as_mut_ptr();
    for (i, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
        let mut negative = _mm256_setzero_si256();
        for half in 0..2 {
            let mut block = [_mm256_setzero_ps(); 8];
            for (block, row) in block.iter_mut().zip(rows) {
                // SAFETY: half of the 64 bytes.
                *block = unsafe { _mm256_loadu_ps(row.as_ptr().add(32 * half).cast()) };
            }
            for (k, column) in transpose(&block).into_iter().enumerate() {
                let w = _mm256_castps_si256(column);
                let (magnitudes, signs) = (_mm256_abs_epi8(w), _mm256_cmpgt_epi8(_mm256_setzero_si256(), w));
                // At most 16 times 2·128.
                let pairs = _mm256_maddubs_epi16(_mm256_and_si256(magnitudes, signs), _mm256_set1_epi8(1));
                negative = _mm256_add_epi16(negative, pairs);
                // SAFETY: quad 8·half + k of eight of the 32 rows, aligned as PanelGroup is.
                unsafe {
                    let quad = &raw mut (*panel).quads[8 * half + k];
                    _mm256_store_si256((&raw mut (*quad).magnitudes).cast::<__m256i>().add(i), magnitudes);
                    _mm256_store_si256((&raw mut (*quad).signs).cast::<__m256i>().add(i), signs);
                }
            }
        }
        let negative = _mm256_madd_epi16(negative, _mm256_set1_epi16(1));
        // SAFETY: eight of the 32 rows, aligned as PanelGroup is.
        unsafe { _mm256_store_si256((&raw mut (*panel).negative).cast::<__m256i>().add(i), negative) };
    }
}

/// 16 rows at a time, or the sums would not fit the registers.
#[target_feature(enable = "avx2")]
fn tile<const N: usize>(
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
                    add_outlier(&panel.quads[outlier.index()], half, outlier, &mut dots[t]);
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
                            // Where w is negative this is −x − 1: |w| is missing, which the sum had from the start.
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

/// `acc[r] += dots[r] · (inverse[r] · x_scale)` for half of a panel's rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_scaled(
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

/// Adds the high parts' products, 128 times, to the sums of half a panel's rows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_outlier(quad: &Quad, half: usize, outlier: &Outlier, dots: &mut [__m256i; 2]) {
    let high = _mm256_set1_epi32(outlier.high_bits());
    let (magnitudes, signs) = (load(&quad.magnitudes, half), load(&quad.signs, half));
    for i in 0..2 {
        let high = _mm256_sub_epi8(_mm256_xor_si256(high, signs[i]), signs[i]);
        let products = add_pairs(_mm256_maddubs_epi16(magnitudes[i], high));
        dots[i] = _mm256_add_epi32(dots[i], _mm256_slli_epi32::<7>(products));
    }
}

/// The sums of pairs of i16.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(v: __m256i) -> __m256i {
    _mm256_madd_epi16(v, _mm256_set1_epi16(1))
}

/// Four bytes of each of half a panel's rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load<T>(rows: &[T; GEMM_PANEL_ROWS], half: usize) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: 16 rows.
    unsafe {
        let at = rows.as_ptr().add(16 * half).cast::<__m256i>();
        [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))]
    }
}

/// The dot products of eight groups.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_dots(w: &[Group; 8], x: &[Group; 8]) -> __m256i {
    let mut parts = [_mm256_setzero_si256(); 8];
    for ((part, w), x) in parts.iter_mut().zip(w).zip(x) {
        _mm_prefetch::<_MM_HINT_T1>(w.as_ptr().wrapping_add(PREFETCH_BYTES));
        *part = group_dot(w, x);
    }
    sum_each(&parts)
}

/// `128·Σ_j w[4·quad + j]·high[j]` of eight groups.
#[inline]
#[target_feature(enable = "avx2")]
fn outlier_dots(w: &[Group; 8], outliers: &[Outlier; 8]) -> __m256i {
    let (w, high) = quads(w, outliers);
    _mm256_slli_epi32::<7>(quad_dots(w, high))
}

/// The weights that the outliers of eight groups meet, and the outliers' high parts.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn quads(w: &[Group; 8], outliers: &[Outlier; 8]) -> (__m256i, __m256i) {
    let w = |i: usize| i32::from_ne_bytes(outliers[i].quad_of(&w[i]).map(|w| w as u8));
    let high = |i: usize| outliers[i].high_bits();
    (
        _mm256_setr_epi32(w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7)),
        _mm256_setr_epi32(high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7)),
    )
}

/// Eight partial sums of one group's dot product.
#[inline]
#[target_feature(enable = "avx2")]
fn group_dot(w: &Group, x: &Group) -> __m256i {
    let part = |half: usize| {
        // SAFETY: both halves of 64 bytes.
        let (w, x) = unsafe {
            let at = |p: &Group| _mm256_loadu_si256(p.as_ptr().add(32 * half).cast());
            (at(w), at(x))
        };
        quad_dots(w, x)
    };
    _mm256_add_epi32(part(0), part(1))
}

/// The dot products of eight quads; no byte of `x` is −128.
#[inline]
#[target_feature(enable = "avx2")]
fn quad_dots(w: __m256i, x: __m256i) -> __m256i {
    // |w| ≤ 128 unsigned times ±x: 2·128·127 fits in i16.
    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    add_pairs(products)
}

/// Lane `i`: the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_each(v: &[__m256i; 8]) -> __m256i {
    // Each step adds the halves of two vectors and puts the results side by side (`vphaddd` does the same, slower).
    let pair = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let quad = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (low, high) = (quad(pair(v[0], v[1]), pair(v[2], v[3])), quad(pair(v[4], v[5]), pair(v[6], v[7])));
    let (even, odd) =
        (_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high));
    _mm256_add_epi32(even, odd)
}

/// Lane `i` of vector `j` becomes lane `j` of vector `i`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(v: &[__m256; 8]) -> [__m256; 8] {
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
