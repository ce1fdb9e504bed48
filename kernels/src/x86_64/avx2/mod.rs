//! AVX2 (with F16C): 16 lanes are two registers. `vpmaddubsw` multiplies unsigned bytes with signed ones and saturates sums
//! of two products at i16; where one side is |w| and w's sign is moved over to x, none is so large.

mod gemm;
mod gemv;
mod int4;
mod lanes;

pub(super) use gemm::pack;
pub(super) use gemv::{outlier_quads, sum_each};
pub(super) use int4::int4_dots;

use crate::int4::Int4Panel;
use crate::int8::{self, Group, GroupsX16, Int8, TokenGroups};
use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::scalar::LANES;
use crate::simd::isa;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

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

// SAFETY: `pack` writes every quad.
unsafe impl Int8 for Avx2 {
    type Lanes = Self;
    const GEMV_TOKENS: usize = 4;
    const TILE_TOKENS: usize = 8;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> [__m256i; 2] {
        let ([w0, w1], [x0, x1]) = (halves_of(w), halves_of(x));
        isa!([gemv::eight_dots(w0, x0), gemv::eight_dots(w1, x1)])
    }

    #[inline(always)]
    fn correct(self, [d0, d1]: [__m256i; 2], w: &[Group; LANES], x: &GroupsX16) -> [__m256i; 2] {
        let Some(outliers) = x.outliers else { return [d0, d1] };
        let ([w0, w1], [o0, o1]) = (halves_of(w), halves_of(outliers));
        isa!([
            _mm256_add_epi32(d0, gemv::outlier_dots(w0, o0)),
            _mm256_add_epi32(d1, gemv::outlier_dots(w1, o1))
        ])
    }

    int8::own_functions!(Avx2, [target_feature(enable = "avx2,f16c")]);

    #[inline(always)]
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>) {
        isa!(gemm::pack(rows, packed))
    }

    #[inline(always)]
    fn panel_dots<const N: usize>(self, w: &PanelGroup, x: &[TokenGroups; N], g: usize) -> [[__m256i; 2]; N] {
        gemm::panel_dots(self, w, x, g)
    }

    #[inline(always)]
    fn nonnegative_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [[__m256i; 2]; N] {
        gemm::nonnegative_dots(self, w, x, g)
    }

    #[inline(always)]
    fn int4_dots<const N: usize>(self, w: &Int4Panel, x: &[TokenGroups; N], g: usize) -> [[__m256i; 2]; N] {
        int4_dots(
            w,
            x,
            g,
            #[inline(always)]
            |sum, a, b| isa!(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b))),
        )
    }
}

/// The first eight and the last eight of 16.
#[inline(always)]
pub(super) fn halves_of<T>(x: &[T; LANES]) -> [&[T; 8]; 2] {
    let [low, high] = x.as_chunks().0 else { unreachable!("16 are twice 8") };
    [low, high]
}

/// The sums of pairs of i16.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(v: __m256i) -> __m256i {
    _mm256_madd_epi16(v, _mm256_set1_epi16(1))
}
