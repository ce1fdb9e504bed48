//! The int8 matmul, written once around what each instruction set does its own way: the dot products of groups.
//!
//! What multiplies is one loop, [`tile`]: a panel of 16 rows meets some tokens. Weights in panels go through it as they lie
//! ([`panels`]). Of weights in rows many tokens want a panel packed first ([`gemm`]); few tokens read the rows in the order they
//! lie in memory ([`gemv`]). DESIGN.md has the loops in pseudo-code, and a glossary.

mod gemm;
mod gemv;
mod panels;
mod tile;

pub(crate) use gemm::gemm;
#[cfg(target_arch = "x86_64")]
pub(crate) use gemm::{Packed, prefetch_groups};
#[cfg(target_arch = "x86_64")]
pub(crate) use gemv::PREFETCH_BYTES;
pub(crate) use gemv::{GroupsX16, Run, multiply_run};
pub(crate) use panels::{matmul_int4, matmul_panels};
#[cfg(target_arch = "x86_64")]
pub(crate) use tile::RowScales;
pub(crate) use tile::{Ahead, TilePanel, multiply_tile, tokens};

use crate::attention::int8::{self as attention, SpanQueries, TileOfSpan};
use crate::int4::Int4Panel;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::quant::{GROUP, Outlier, PARTS, QMatrix, Quantized};
use crate::scalar::{self, LANES};
use crate::simd::Simd;
use gemv::gemv;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of rows, at the most, that some tokens meet in [`gemv`] one after the other: they stay in the second-level
/// cache from one token to the next.
const STRIP_BYTES: usize = 128 << 10;

/// The 64 values of a group.
pub(crate) type Group = [i8; GROUP];

/// What an instruction set brings to an int8 matmul.
///
/// # Safety
/// [`Int8::pack`] must initialise what it packs into.
pub(crate) unsafe trait Int8: Copy {
    /// Its float lanes.
    type Lanes: Simd;
    /// The most tokens that go through [`gemv`] one by one.
    const GEMV_TOKENS: usize;
    /// Tokens in a full tile, at most 12.
    const TILE_TOKENS: usize;
    /// The token of the float lanes.
    fn lanes(self) -> Self::Lanes;

    /// 16 dot products, a group a lane: lane `i` is `Σ_k w[i][k]·x[i][k]`, or a value from which [`Int8::correct`]
    /// makes that. Reads `w` from memory for the first time, and so prefetches what lies [`PREFETCH_BYTES`] behind it.
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> <Self::Lanes as Simd>::I32;

    /// The exact dot products of 16 groups, a group a lane: takes off from `dots` what [`Int8::dots`] added to each weight,
    /// and adds what the outliers of `x` add.
    fn correct(
        self,
        dots: <Self::Lanes as Simd>::I32,
        w: &[Group; LANES],
        x: &GroupsX16,
    ) -> <Self::Lanes as Simd>::I32;

    /// [`gemm`], in a function of its own: a single token should not pay for its stack.
    #[inline(always)]
    fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        gemm(self, w, rows, x, out);
    }

    /// [`multiply_run`], in a function of its own: its registers are its own too.
    #[inline(always)]
    fn multiply_run(self, run: &Run, out: &mut [f32]) {
        multiply_run(self, run, out);
    }

    /// [`multiply_tile`], in a function of its own for each number of tokens.
    #[inline(always)]
    fn tile<P: TilePanel<Self>, const N: usize>(
        self,
        panel: &P,
        ahead: Ahead,
        x: &[TokenGroups; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    ) {
        multiply_tile(self, panel, ahead, x, acc);
    }

    /// [`attention::scores`], in a function of its own for each number of queries.
    #[inline(always)]
    fn span_scores<const N: usize>(
        self,
        tile: &TileOfSpan,
        queries: &SpanQueries,
        panels: Range<usize>,
        scores: &mut [f32],
    ) {
        attention::scores::<Self, N>(self, tile, queries, panels, scores);
    }

    /// [`attention::values`], in a function of its own for each number of queries.
    #[inline(always)]
    fn span_values<const N: usize>(
        self,
        tile: &TileOfSpan,
        weights: &[i8],
        scales: &[f32],
        output: &mut [f32],
    ) {
        attention::values::<Self, N>(self, tile, weights, scales, output);
    }

    /// Packs one group of each of 16 rows: initialises `packed`.
    fn pack(self, rows: &[&Group; PANEL_ROWS], packed: &mut MaybeUninit<PanelGroup>);

    /// The exact dot products of a panel's group with group `g` of each token, a row a lane.
    fn panel_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [<Self::Lanes as Simd>::I32; N];

    /// [`Int8::panel_dots`] with values of 0..=127 that have no outliers, whose sums need not be there.
    #[inline(always)]
    fn nonnegative_dots<const N: usize>(
        self,
        w: &PanelGroup,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [<Self::Lanes as Simd>::I32; N] {
        self.panel_dots(w, x, g)
    }

    /// The exact dot products of an int4 panel's group `g` with that of each token, a row a lane, before the rows' scales.
    fn int4_dots<const N: usize>(
        self,
        w: &Int4Panel,
        x: &[TokenGroups; N],
        g: usize,
    ) -> [<Self::Lanes as Simd>::I32; N];
}

/// Some consecutive groups of one token.
#[derive(Clone, Copy)]
pub(crate) struct TokenGroups<'a> {
    pub values: &'a [Group],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
    /// Of each 16 values, without outliers' high parts.
    pub part_sums: &'a [[i16; PARTS]],
    pub outliers: &'a [Outlier],
}

impl<'a> TokenGroups<'a> {
    #[inline(always)]
    fn new(x: &Quantized<'a>, token: usize, groups: Range<usize>) -> Self {
        let (values, scales) = (x.token_values(token).as_chunks().0, x.token_scales(token));
        let (sums, part_sums) = (x.token_sums(token), x.token_part_sums(token));
        let outliers = x.token_outliers(token);
        Self {
            values: &values[groups.clone()],
            scales: &scales[groups.clone()],
            sums: &sums[groups.clone()],
            part_sums: &part_sums[groups.clone()],
            outliers: &outliers[groups],
        }
    }
}

#[inline(always)]
pub(crate) fn matmul_i8<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    // `gemv` reads 16 groups at a time.
    let min_rows = LANES.div_ceil((w.cols() / GROUP).max(1));
    if !w.is_aligned() || w.cols() == 0 || x.tokens() <= K::GEMV_TOKENS && rows.len() < min_rows {
        scalar::matmul_i8(w, rows, x, out);
    } else if x.tokens() <= K::GEMV_TOKENS {
        let strip_rows = match x.tokens() {
            1 => rows.len(),
            // The second token finds the rows in the cache.
            _ => (STRIP_BYTES / w.cols()).next_multiple_of(PANEL_ROWS),
        };
        for first in rows.clone().step_by(strip_rows) {
            let end = (first + strip_rows).min(rows.end);
            let strip = first.min(end - min_rows)..end;
            for t in 0..x.tokens() {
                let out = &mut out.row(t)[strip.start - rows.start..strip.end - rows.start];
                gemv(k, w, strip.clone(), x, t, out);
            }
        }
    } else {
        k.gemm(w, rows, x, out);
    }
}

/// Whether any of some groups has an outlier.
#[inline(always)]
pub(crate) fn any_outlier<'a>(outliers: impl IntoIterator<Item = &'a Outlier>) -> bool {
    // Without a branch for each.
    outliers.into_iter().fold(0, |any, outlier| any | outlier.high_bits()) != 0
}

/// # Safety
/// Every element must have been written.
#[inline(always)]
pub(crate) unsafe fn assume_init<T>(x: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: the layouts are the same, and the caller says that the elements are initialised.
    unsafe { &*(std::ptr::from_ref(x) as *const [T]) }
}

/// `own_functions!(Token, [attribute]);` within `impl Int8 for Token`: [`Int8::gemm`], [`Int8::multiply_run`] and
/// [`Int8::tile`] in functions that are not inlined, and that carry `attribute`, a `target_feature` with the features of
/// `Token::new`.
macro_rules! own_functions {
    ($token:ty, $attribute:tt) => {
        #[inline(always)]
        fn gemm(
            self,
            w: &$crate::QMatrix,
            rows: std::ops::Range<usize>,
            x: &$crate::Quantized,
            out: $crate::MatMut<f32>,
        ) {
            #[inline(never)]
            #$attribute
            fn gemm(
                k: $token,
                w: &$crate::QMatrix,
                rows: std::ops::Range<usize>,
                x: &$crate::Quantized,
                out: $crate::MatMut<f32>,
            ) {
                $crate::int8::gemm(k, w, rows, x, out);
            }
            $crate::simd::isa!(gemm(self, w, rows, x, out))
        }

        #[inline(always)]
        fn multiply_run(self, run: &$crate::int8::Run, out: &mut [f32]) {
            #[inline(never)]
            #$attribute
            fn multiply_run(k: $token, run: &$crate::int8::Run, out: &mut [f32]) {
                $crate::int8::multiply_run(k, run, out);
            }
            $crate::simd::isa!(multiply_run(self, run, out))
        }

        #[inline(always)]
        fn tile<P: $crate::int8::TilePanel<Self>, const N: usize>(
            self,
            panel: &P,
            ahead: $crate::int8::Ahead,
            x: &[$crate::int8::TokenGroups; N],
            acc: &mut [[f32; $crate::PANEL_ROWS]; N],
        ) {
            #[inline(never)]
            #$attribute
            fn tile<P: $crate::int8::TilePanel<$token>, const N: usize>(
                k: $token,
                panel: &P,
                ahead: $crate::int8::Ahead,
                x: &[$crate::int8::TokenGroups; N],
                acc: &mut [[f32; $crate::PANEL_ROWS]; N],
            ) {
                $crate::int8::multiply_tile(k, panel, ahead, x, acc);
            }
            $crate::simd::isa!(tile(self, panel, ahead, x, acc))
        }

        #[inline(always)]
        fn span_scores<const N: usize>(
            self,
            tile: &$crate::attention::int8::TileOfSpan,
            queries: &$crate::SpanQueries,
            panels: std::ops::Range<usize>,
            scores: &mut [f32],
        ) {
            #[inline(never)]
            #$attribute
            fn span_scores<const N: usize>(
                k: $token,
                tile: &$crate::attention::int8::TileOfSpan,
                queries: &$crate::SpanQueries,
                panels: std::ops::Range<usize>,
                scores: &mut [f32],
            ) {
                $crate::attention::int8::scores::<_, N>(k, tile, queries, panels, scores);
            }
            $crate::simd::isa!(span_scores::<N>(self, tile, queries, panels, scores))
        }

        #[inline(always)]
        fn span_values<const N: usize>(
            self,
            tile: &$crate::attention::int8::TileOfSpan,
            weights: &[i8],
            scales: &[f32],
            output: &mut [f32],
        ) {
            #[inline(never)]
            #$attribute
            fn span_values<const N: usize>(
                k: $token,
                tile: &$crate::attention::int8::TileOfSpan,
                weights: &[i8],
                scales: &[f32],
                output: &mut [f32],
            ) {
                $crate::attention::int8::values::<_, N>(k, tile, weights, scales, output);
            }
            $crate::simd::isa!(span_values::<N>(self, tile, weights, scales, output))
        }
    };
}

#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_imports))]
pub(crate) use own_functions;
