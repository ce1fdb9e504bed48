//! VNNI on 256 bits: `vpdpbusd` multiplies 32 pairs of bytes. Everything but the int8 matmul is [`avx2`](super::avx2)'s.
//!
//! The instruction has two encodings: AVX-VNNI, for CPUs without AVX-512 (Intel's from Alder Lake on), and AVX-512's for
//! vectors of 256 bits. A CPU that has only the latter runs these kernels as well, which is how they are tested on it.

use super::avx2::{self, Avx2, halves_of, sum_each};
use crate::attention;
use crate::attention::int8::{Int8Span, SpanBuffers, SpanQueries, SpanResult};
use crate::int4::{Int4Matrix, Int4Panel};
use crate::int8::{
    self, Ahead, Group, GroupsX16, Int8, PREFETCH_BYTES, Run, TilePanel, TokenGroups, any_outlier,
};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelGroup, PanelMatrix};
use crate::quant::{Outlier, QMatrix, Quantized};
use crate::scalar::LANES;
use crate::simd::isa;
use crate::table::Table;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The kernels in the encoding this CPU has.
pub(crate) fn table() -> Option<&'static Table> {
    if !avx2::is_available() {
        None
    } else if is_x86_feature_detected!("avxvnni") {
        Some(&vex::TABLE)
    } else if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni") {
        Some(&evex::TABLE)
    } else {
        None
    }
}

/// One of the two encodings; its values exist only on a CPU that has it.
pub(super) trait Encoding: Copy {
    /// The token of the float lanes, which are the same in both encodings.
    fn lanes(self) -> Avx2;

    /// `vpdpwssd`: adds to each i32 of `sum` the products of two i16 with two others.
    fn dot_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i;

    /// `vpdpbusd`: adds to each i32 of `sum` the products of four unsigned bytes with four signed ones.
    fn dot(self, sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i;

    /// [`int8::gemm`], compiled for this encoding.
    fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>);

    /// [`int8::multiply_run`], compiled for this encoding.
    fn multiply_run(self, run: &Run, out: &mut [f32]);

    /// [`int8::multiply_tile`], compiled for this encoding.
    fn tile<P: TilePanel<Vnni<Self>>, const N: usize>(
        self,
        panel: &P,
        ahead: Ahead,
        x: &[TokenGroups; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    );
}

/// Defines an encoding with its table: what has to stand inside functions that carry its features.
macro_rules! encoding {
    ($module:ident, $token:ident, $features:literal, $dot:ident, $dot_pairs:ident) => {
        mod $module {
            use super::*;

            /// Exists only on a CPU with the features of [`Self::new`].
            #[derive(Clone, Copy)]
            pub(in super::super) struct $token(Avx2);

            impl $token {
                #[target_feature(enable = $features)]
                pub(in super::super) fn new() -> Self {
                    Self(Avx2::new())
                }
            }

            impl Encoding for $token {
                #[inline(always)]
                fn lanes(self) -> Avx2 {
                    self.0
                }
                #[inline(always)]
                fn dot(self, sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
                    isa!($dot(sum, unsigned, signed))
                }
                #[inline(always)]
                fn dot_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                    isa!($dot_pairs(sum, a, b))
                }
                #[inline(always)]
                fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
                    isa!(gemm(Vnni(self), w, rows, x, out))
                }
                #[inline(always)]
                fn multiply_run(self, run: &Run, out: &mut [f32]) {
                    isa!(multiply_run(Vnni(self), run, out))
                }
                #[inline(always)]
                fn tile<P: TilePanel<Vnni<Self>>, const N: usize>(
                    self,
                    panel: &P,
                    ahead: Ahead,
                    x: &[TokenGroups; N],
                    acc: &mut [[f32; PANEL_ROWS]; N],
                ) {
                    isa!(tile(Vnni(self), panel, ahead, x, acc))
                }
            }

            pub(super) static TABLE: Table =
                Table { matmul_i8, matmul_panels, matmul_int4, attn_span_i8, ..avx2::TABLE };

            #[target_feature(enable = $features)]
            fn attn_span_i8(
                queries: &SpanQueries,
                span: &Int8Span,
                seen: &[Range<usize>],
                buffers: &mut SpanBuffers,
                result: SpanResult,
            ) {
                attention::int8::attn_span_i8(Vnni($token::new()), queries, span, seen, buffers, result);
            }

            #[target_feature(enable = $features)]
            fn matmul_i8(w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
                int8::matmul_i8(Vnni($token::new()), w, rows, x, out);
            }

            #[target_feature(enable = $features)]
            fn matmul_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
                int8::matmul_panels(Vnni($token::new()), w, rows, x, out);
            }

            #[target_feature(enable = $features)]
            fn matmul_int4(w: &Int4Matrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
                int8::matmul_int4(Vnni($token::new()), w, rows, x, out);
            }

            #[inline(never)]
            #[target_feature(enable = $features)]
            fn gemm(k: Vnni<$token>, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
                int8::gemm(k, w, rows, x, out);
            }

            #[inline(never)]
            #[target_feature(enable = $features)]
            fn multiply_run(k: Vnni<$token>, run: &Run, out: &mut [f32]) {
                int8::multiply_run(k, run, out);
            }

            #[inline(never)]
            #[target_feature(enable = $features)]
            fn tile<P: TilePanel<Vnni<$token>>, const N: usize>(
                k: Vnni<$token>,
                panel: &P,
                ahead: Ahead,
                x: &[TokenGroups; N],
                acc: &mut [[f32; PANEL_ROWS]; N],
            ) {
                int8::multiply_tile(k, panel, ahead, x, acc);
            }
        }
    };
}

encoding!(vex, Vex, "avx2,f16c,avxvnni", _mm256_dpbusd_avx_epi32, _mm256_dpwssd_avx_epi32);
encoding!(evex, Evex, "avx2,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32, _mm256_dpwssd_epi32);

pub(super) use evex::Evex;

/// The int8 matmul in an encoding.
#[derive(Clone, Copy)]
pub(super) struct Vnni<E>(pub(super) E);

// SAFETY: `pack` writes every quad.
unsafe impl<E: Encoding> Int8 for Vnni<E> {
    type Lanes = Avx2;
    const GEMV_TOKENS: usize = 3;
    const TILE_TOKENS: usize = 6;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self.0.lanes()
    }

    /// With 128 added to each weight.
    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> [__m256i; 2] {
        let ([w0, w1], [x0, x1]) = (halves_of(w), halves_of(x));
        [self.eight_dots(w0, x0), self.eight_dots(w1, x1)]
    }

    /// Takes 128·Σx off and puts the outliers in.
    #[inline(always)]
    fn correct(self, dots: [__m256i; 2], w: &[Group; LANES], x: &GroupsX16) -> [__m256i; 2] {
        let sums = halves_of(x.sums);
        let mut corrected = dots;
        for (half, dots) in corrected.iter_mut().enumerate() {
            isa!({
                let mut sums = _mm256_loadu_si256(sums[half].as_ptr().cast());
                if let Some(outliers) = x.outliers {
                    let outliers = self.outlier_dots(halves_of(w)[half], halves_of(outliers)[half]);
                    sums = _mm256_sub_epi32(sums, outliers);
                }
                *dots = _mm256_sub_epi32(*dots, _mm256_slli_epi32::<7>(sums));
            })
        }
        corrected
    }

    #[inline(always)]
    fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        self.0.gemm(w, rows, x, out);
    }

    #[inline(always)]
    fn multiply_run(self, run: &Run, out: &mut [f32]) {
        self.0.multiply_run(run, out);
    }

    #[inline(always)]
    fn tile<P: TilePanel<Self>, const N: usize>(
        self,
        panel: &P,
        ahead: Ahead,
        x: &[TokenGroups; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    ) {
        self.0.tile(panel, ahead, x, acc);
    }

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        isa!(avx2::pack(rows, packed))
    }

    #[inline(always)]
    fn panel_dots<const N: usize>(self, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [[__m256i; 2]; N] {
        // The weights get 128 added: start at −128·Σx, plus what the outliers' high parts add.
        let mut dots = isa!([[_mm256_setzero_si256(); 2]; N]);
        if any_outlier(x.iter().map(|x| &x.outliers[g])) {
            for (dots, x) in dots.iter_mut().zip(x) {
                *dots = self.initial_dots(w, x.sums[g], &x.outliers[g]);
            }
        } else {
            for (dots, x) in dots.iter_mut().zip(x) {
                *dots = isa!([_mm256_set1_epi32(x.sums[g] * -128); 2]);
            }
        }
        let mut values = [&x[0].values[g]; N];
        for (values, x) in values.iter_mut().zip(x) {
            *values = &x.values[g];
        }
        for (q, w) in w.iter().enumerate() {
            let w = load(w);
            for (dots, values) in dots.iter_mut().zip(values) {
                // SAFETY: the q-th four of 64 bytes.
                let x = unsafe { values.as_ptr().cast::<i32>().add(q).read_unaligned() };
                let x = isa!(_mm256_set1_epi32(x));
                for (dots, w) in dots.iter_mut().zip(w) {
                    *dots = self.0.dot(*dots, w, x);
                }
            }
        }
        dots
    }

    #[inline(always)]
    fn nonnegative_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [[__m256i; 2]; N] {
        let mut dots = isa!([[_mm256_setzero_si256(); 2]; N]);
        for (q, w) in w.iter().enumerate() {
            let at = w.as_ptr().cast::<__m256i>();
            let w = isa!([_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))]);
            for t in 0..N {
                let quad = x[t].values[g].as_chunks::<4>().0[q];
                let x = isa!(_mm256_set1_epi32(i32::from_ne_bytes(quad.map(|x| x as u8))));
                dots[t] = [self.0.dot(dots[t][0], x, w[0]), self.0.dot(dots[t][1], x, w[1])];
            }
        }
        dots
    }

    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [[__m256i; 2]; N] {
        avx2::int4_dots(
            w,
            x,
            g,
            #[inline(always)]
            |sum, a, b| self.0.dot_pairs(sum, a, b),
        )
    }
}

impl<E: Encoding> Vnni<E> {
    /// Lane `i`: `Σ_k (w[i][k] + 128)·x[i][k]`.
    #[inline(always)]
    fn eight_dots(self, w: &[Group; 8], x: &[Group; 8]) -> __m256i {
        let mut parts = isa!([_mm256_setzero_si256(); 8]);
        for ((part, w), x) in parts.iter_mut().zip(w).zip(x) {
            isa!(_mm_prefetch::<_MM_HINT_T1>(w.as_ptr().wrapping_add(PREFETCH_BYTES)));
            for (w, x) in w.as_chunks::<32>().0.iter().zip(x.as_chunks::<32>().0) {
                let (w, x) =
                    isa!((_mm256_loadu_si256(w.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().cast())));
                *part = self.0.dot(*part, add_128(w), x);
            }
        }
        isa!(sum_each(&parts))
    }

    /// Lane `i`: `Σ_j high[j]·(w[i][4·quad + j] + 128)`.
    #[inline(always)]
    fn outlier_dots(self, w: &[Group; 8], outliers: &[Outlier; 8]) -> __m256i {
        let (w, high) = isa!(avx2::outlier_quads(w, outliers));
        self.0.dot(isa!(_mm256_setzero_si256()), add_128(w), high)
    }

    /// `128·(Σ_j (w[r][4·quad + j] + 128)·high[j] − sum)` of a panel's rows, a row a lane: what their dot products with a token
    /// start from.
    #[inline(always)]
    fn initial_dots(self, w: &PanelGroup, sum: i32, outlier: &Outlier) -> [__m256i; 2] {
        isa!({
            let (high, sum) = (_mm256_set1_epi32(outlier.high_bits()), _mm256_set1_epi32(-sum));
            let w = load(&w[outlier.quad_index()]);
            [
                _mm256_slli_epi32::<7>(self.0.dot(sum, w[0], high)),
                _mm256_slli_epi32::<7>(self.0.dot(sum, w[1], high)),
            ]
        })
    }
}

/// One quad of a panel's 16 rows, 128 added to each byte.
#[inline(always)]
fn load(quad: &[[i8; 4]; PANEL_ROWS]) -> [__m256i; 2] {
    isa!({
        let at = quad.as_ptr().cast::<__m256i>();
        [add_128(_mm256_loadu_si256(at)), add_128(_mm256_loadu_si256(at.add(1)))]
    })
}

/// −128..127 becomes 0..255.
#[inline(always)]
fn add_128(w: __m256i) -> __m256i {
    isa!(_mm256_xor_si256(w, _mm256_set1_epi8(-128)))
}
