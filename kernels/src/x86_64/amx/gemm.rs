//! Many tokens: 64 rows meet every token, 16 rows × 16 tokens at a time. Weights in panels are multiplied as they lie; rows are
//! packed into panels first.

use super::super::avx512vnni::{Avx512Vnni, transpose};
use super::tiles::{self, AMX_TILE_SIDE, AmxTile};
use crate::int8::{Packed, RowScales, prefetch_groups};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, Panel, PanelGroup, PanelMatrix, QUADS};
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::simd::Simd;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Panels that meet the tokens together: what is transposed of 16 tokens serves them all.
const STRIPE_PANELS: usize = 4;
/// Rows of these panels.
const STRIPE_ROWS: usize = STRIPE_PANELS * PANEL_ROWS;

/// The most groups of each row that meet the tokens together: 64 rows × 32 groups are 128 KiB of weights, which stay in the
/// second-level cache.
const STRIPE_GROUPS: usize = 32;

/// The most groups that are multiplied together: their weights, 32 KiB, stay in the first-level cache.
const CHUNK_GROUPS: usize = 8;

/// Of up to 8 groups of 16 tokens what is needed beside the values, `[group][token]`.
#[repr(C, align(64))]
struct TransposedTokens {
    scales: [[f32; AMX_TILE_SIDE]; CHUNK_GROUPS],
    /// −128 times the sum of an outlier's high parts: what adding 128 to the weights of its quad adds too much.
    biases: [[i32; AMX_TILE_SIDE]; CHUNK_GROUPS],
    /// Outliers' high parts, and at which byte of a panel's group the weights of their quad begin.
    outliers: [[[i32; AMX_TILE_SIDE]; 2]; CHUNK_GROUPS],
}

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more: stripes of 64 rows × up to 32 groups are packed, and each
/// meets every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm(w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let (k, groups) = (Avx512Vnni::new(), w.cols() / GROUP);
    // SAFETY: the CPU has tiles and this process may use them, or this table would not be chosen.
    unsafe { tiles::configure() };
    let mut packed = [const { Packed::<STRIPE_GROUPS>::new() }; STRIPE_PANELS];
    for first in rows.clone().step_by(STRIPE_ROWS) {
        let stripe = first..(first + STRIPE_ROWS).min(rows.end);
        let columns = stripe.start - rows.start..stripe.end - rows.start;
        for from in (0..groups).step_by(STRIPE_GROUPS) {
            let stripe_groups = from..(from + STRIPE_GROUPS).min(groups);
            let mut panels = [Panel { values: &[], scales: &[] }; STRIPE_PANELS];
            let panels = &mut panels[..stripe.len().div_ceil(PANEL_ROWS)];
            for (i, (panel, packed)) in panels.iter_mut().zip(&mut packed).enumerate() {
                packed.pack(k, w, first + i * PANEL_ROWS..stripe.end, stripe_groups.clone(), 0, |_| ());
                // SAFETY: these have just been packed.
                *panel = unsafe { packed.panel(0..stripe_groups.len()) };
            }
            let next = match stripe_groups.end < groups {
                true => (first, stripe_groups.end),
                false => (first + STRIPE_ROWS, 0),
            };
            multiply_stripe(panels, stripe_groups, x, &mut out, columns.clone(), |part, parts| {
                for row in share(STRIPE_ROWS, part, parts) {
                    let from = (next.0 + row, next.1);
                    prefetch_groups(k, w.values().as_chunks().0, groups, STRIPE_GROUPS, from);
                }
            });
        }
    }
    // SAFETY: as above.
    unsafe { tiles::release() };
}

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more, and whole panels but for the last: stripes of 4 panels × up to
/// 32 groups meet every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm_panels(w: &PanelMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let (k, groups) = (Avx512Vnni::new(), w.groups());
    // SAFETY: the CPU has tiles and this process may use them, or this table would not be chosen.
    unsafe { tiles::configure() };
    for first in rows.clone().step_by(STRIPE_ROWS) {
        let stripe = first..(first + STRIPE_ROWS).min(rows.end);
        let columns = stripe.start - rows.start..stripe.end - rows.start;
        for from in (0..groups).step_by(STRIPE_GROUPS) {
            let stripe_groups = from..(from + STRIPE_GROUPS).min(groups);
            let mut panels = [Panel { values: &[], scales: &[] }; STRIPE_PANELS];
            let panels = &mut panels[..stripe.len().div_ceil(PANEL_ROWS)];
            for (i, panel) in panels.iter_mut().enumerate() {
                let Panel { values, scales } = w.panel(first / PANEL_ROWS + i);
                let (values, scales) = (&values[stripe_groups.clone()], &scales[stripe_groups.clone()]);
                *panel = Panel { values, scales };
            }
            // The groups behind these; at the ends of rows those of the panels behind.
            let distance =
                if stripe_groups.end < groups { STRIPE_GROUPS } else { groups * STRIPE_PANELS - from };
            let ahead = &*panels;
            multiply_stripe(ahead, stripe_groups.clone(), x, &mut out, columns.clone(), |part, parts| {
                for panel in ahead {
                    let next = panel.values.as_ptr().wrapping_add(distance);
                    for line in share(STRIPE_GROUPS * QUADS, part, parts) {
                        k.prefetch(next.wrapping_byte_add(64 * line));
                    }
                }
            });
        }
    }
    // SAFETY: as above.
    unsafe { tiles::release() };
}

/// Part `part` of `0..n` in `parts` of equal size.
#[inline(always)]
fn share(n: usize, part: usize, parts: usize) -> Range<usize> {
    let size = n.div_ceil(parts);
    (part * size).min(n)..((part + 1) * size).min(n)
}

/// The products of up to 4 panels, which are `groups` of their rows, with every token. `ahead(part, parts)` is called before
/// each 16 tokens.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_stripe<S: RowScales>(
    panels: &[Panel<S>],
    groups: Range<usize>,
    x: &Quantized,
    out: &mut MatMut<f32>,
    columns: Range<usize>,
    ahead: impl Fn(usize, usize),
) {
    let chunk_groups = groups.len().div_ceil(groups.len().div_ceil(CHUNK_GROUPS));
    let mut tokens = TransposedTokens {
        scales: [[0.0; AMX_TILE_SIDE]; CHUNK_GROUPS],
        biases: [[0; AMX_TILE_SIDE]; CHUNK_GROUPS],
        outliers: [[[0; AMX_TILE_SIDE]; 2]; CHUNK_GROUPS],
    };
    let parts = x.tokens().div_ceil(AMX_TILE_SIDE);
    for part in 0..parts {
        ahead(part, parts);
        // The last tile begins with some tokens of the one before, whose sums are complete.
        let unclamped = part * AMX_TILE_SIDE;
        let token = unclamped.min(x.tokens() - AMX_TILE_SIDE);
        for from in groups.clone().step_by(chunk_groups) {
            let chunk = from..(from + chunk_groups).min(groups.end);
            tokens.fill(x, token, chunk.clone());
            PanelChunk {
                panels,
                offset: from - groups.start,
                tokens: &tokens,
                x,
                token,
                groups: chunk,
                done: unclamped - token,
            }
            .multiply(out, columns.clone());
        }
    }
}

impl TransposedTokens {
    /// Transposes what belongs to up to 8 `groups` of tokens `token..token + 16`.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512vnni")]
    fn fill(&mut self, x: &Quantized, token: usize, groups: Range<usize>) {
        let (first, all) = (token * x.groups() + groups.start, x.groups());
        let last = first + (AMX_TILE_SIDE - 1) * all + groups.len();
        assert!(groups.len() <= CHUNK_GROUPS && last <= x.scales().len() && last <= x.outliers().len());
        let missing = CHUNK_GROUPS - groups.len();
        let (one_each, two_each) = (0xff >> missing, 0xffff >> (2 * missing));
        let mut scales = [_mm512_setzero_si512(); AMX_TILE_SIDE];
        let mut outliers = [_mm512_setzero_si512(); AMX_TILE_SIDE];
        for t in 0..AMX_TILE_SIDE {
            let at = first + t * all;
            // SAFETY: the masks are of the groups, and the last ends in the slices.
            unsafe {
                scales[t] = _mm512_maskz_loadu_epi32(one_each, x.scales().as_ptr().add(at).cast());
                let v = _mm512_maskz_loadu_epi32(two_each, x.outliers().as_ptr().add(at).cast());
                // An outlier's second dword is its quad, 0..16; the mask keeps it in the group whatever it was.
                let v = _mm512_mask_and_epi32(v, 0xaaaa, v, _mm512_set1_epi32(QUADS as i32 - 1));
                outliers[t] = _mm512_mask_slli_epi32::<6>(v, 0xaaaa, v);
            }
        }
        let (scales, outliers) = (transpose(scales), transpose(outliers));
        for g in 0..CHUNK_GROUPS {
            let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-128), outliers[2 * g]);
            let biases = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
            // SAFETY: 16 values each.
            unsafe {
                _mm512_storeu_si512(self.scales[g].as_mut_ptr().cast(), scales[g]);
                _mm512_storeu_si512(self.biases[g].as_mut_ptr().cast(), biases);
                _mm512_storeu_si512(self.outliers[g][0].as_mut_ptr().cast(), outliers[2 * g]);
                _mm512_storeu_si512(self.outliers[g][1].as_mut_ptr().cast(), outliers[2 * g + 1]);
            }
        }
    }
}

/// Up to 8 groups of some panels, and the 16 tokens that they meet.
struct PanelChunk<'a, S> {
    panels: &'a [Panel<'a, S>],
    /// The first of the groups, counted from the panels' first.
    offset: usize,
    tokens: &'a TransposedTokens,
    x: &'a Quantized<'a>,
    /// The first of the tokens.
    token: usize,
    /// The groups, counted from a row's first.
    groups: Range<usize>,
    /// How many of the tokens have been done with the tile before.
    done: usize,
}

impl<S: RowScales> PanelChunk<'_, S> {
    /// Adds the products to `columns` of `out`; the first groups of a row replace what was there.
    ///
    /// Three steps overlap: while one group's dot products are scaled and summed, those of the next are stored, and those of
    /// the one after that computed. The CPU hardly overlaps them by itself: the tile instructions are laid between the
    /// others by hand.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply(&self, out: &mut MatMut<f32>, columns: Range<usize>) {
        let (groups, tiles) = (self.groups.len(), columns.len().div_ceil(AMX_TILE_SIDE));
        self.check(tiles, out, &columns);
        let after = |(tile, g)| if g + 1 < groups { (tile, g + 1) } else { (tile + 1, 0) };
        let mut products = [const { MaybeUninit::uninit() }; 2];
        // The tile and the group whose dot products were begun last.
        let mut begun = (0, 0);
        self.begin(begun);
        // SAFETY: `gemm` has configured the tiles; so below.
        unsafe { tiles::store_products(&mut products[0]) };
        begun = after(begun);
        if begun.0 < tiles {
            self.begin(begun);
        }
        let mut turn = 0;
        for tile in 0..tiles {
            let mut sums = TileSums::new(self, out, &columns, tile);
            for g in 0..groups {
                // SAFETY: stored in the turn before.
                let group = unsafe { self.group_products(tile, g, products[turn % 2].as_ptr()) };
                turn += 1;
                let store = begun.0 < tiles;
                begun = after(begun);
                let begin = begun.0 < tiles;
                if begin {
                    self.load_values(begun);
                }
                group.add(&mut sums.0, 0..4);
                if store {
                    // SAFETY: as above.
                    unsafe { tiles::store_products(&mut products[turn % 2]) };
                }
                group.add(&mut sums.0, 4..10);
                if begin {
                    self.load_weights(begun);
                }
                group.add(&mut sums.0, 10..14);
                if begin {
                    // SAFETY: as above.
                    unsafe { tiles::multiply() };
                }
                group.add(&mut sums.0, 14..16);
            }
            sums.store(self, out, &columns, tile);
        }
    }

    /// Asserts what the pointers of this chunk rest on.
    fn check(&self, tiles: usize, out: &MatMut<f32>, columns: &Range<usize>) {
        let last = (self.token + AMX_TILE_SIDE - 1) * self.x.stride() + self.groups.end * GROUP;
        assert!(last <= self.x.values().len() && self.groups.end * GROUP <= self.x.cols());
        let panel_groups = self.offset + self.groups.len();
        for Panel { values, scales } in self.panels {
            assert!(panel_groups <= values.len() && panel_groups <= scales.len());
        }
        assert!(self.groups.len() <= CHUNK_GROUPS && tiles <= self.panels.len());
        assert!(self.token + AMX_TILE_SIDE <= out.rows() && columns.end <= out.cols());
    }

    /// Begins with the dot products of a `(tile, group)`.
    #[inline(always)]
    fn begin(&self, at: (usize, usize)) {
        self.load_values(at);
        self.load_weights(at);
        // SAFETY: `gemm` has configured the tiles.
        unsafe { tiles::multiply() };
    }

    #[inline(always)]
    fn load_values(&self, (_, g): (usize, usize)) {
        let at = self.token * self.x.stride() + (self.groups.start + g) * GROUP;
        // SAFETY: `check` has seen that these tokens and groups are there; `gemm` has configured the tiles.
        unsafe { tiles::load_values(self.x.values().as_ptr().wrapping_add(at), self.x.stride()) };
    }

    #[inline(always)]
    fn load_weights(&self, (tile, g): (usize, usize)) {
        // SAFETY: `gemm` has configured the tiles.
        unsafe { tiles::load_weights(&self.panels[tile].values[self.offset + g]) };
    }

    /// One tile's dot products of one group, and what they are scaled with.
    ///
    /// # Safety
    /// `dots` must be initialised, `tile` and `g` among those that [`Self::check`] has seen.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_products(&self, tile: usize, g: usize, dots: *const AmxTile) -> GroupProducts<'_> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let panel = self.panels.get_unchecked(tile);
            GroupProducts {
                dots: &*dots,
                weights: panel.values.get_unchecked(self.offset + g),
                row_scales: panel.scales.get_unchecked(self.offset + g).load(Avx512Vnni::new()),
                scales: self.tokens.scales.get_unchecked(g),
                biases: self.tokens.biases.get_unchecked(g),
                outliers: self.tokens.outliers.get_unchecked(g),
            }
        }
    }
}

/// The sums of 16 tokens and 16 rows, a token a register.
struct TileSums([__m512; AMX_TILE_SIDE]);

impl TileSums {
    /// Of the groups before; zeros, if there are none.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new<S>(chunk: &PanelChunk<S>, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) -> Self {
        let mut sums = [_mm512_setzero_ps(); AMX_TILE_SIDE];
        if chunk.groups.start > 0 {
            let (at, mask) = Self::place(chunk, out, columns, tile);
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `check` has seen that the rows are there; the mask is of the columns.
                *sum = unsafe { _mm512_maskz_loadu_ps(mask, at.wrapping_add(t * out.stride())) };
            }
        }
        Self(sums)
    }

    /// Stores them, but for the tokens that have been done before.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<S>(&self, chunk: &PanelChunk<S>, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) {
        let (at, mask) = Self::place(chunk, out, columns, tile);
        for (t, sum) in self.0.iter().enumerate().skip(chunk.done) {
            // SAFETY: as in `new`.
            unsafe { _mm512_mask_storeu_ps(at.wrapping_add(t * out.stride()), mask, *sum) };
        }
    }

    /// Where in `out` the first token's lie, and a mask of the columns that are there.
    #[inline(always)]
    fn place<S>(
        chunk: &PanelChunk<S>,
        out: &mut MatMut<f32>,
        columns: &Range<usize>,
        tile: usize,
    ) -> (*mut f32, u16) {
        let first = columns.start + tile * AMX_TILE_SIDE;
        let mask = 0xffff >> (AMX_TILE_SIDE - (columns.end - first).min(AMX_TILE_SIDE));
        (out.as_mut_ptr().wrapping_add(chunk.token * out.stride() + first), mask)
    }
}

/// One group's dot products of 16 tokens and 16 rows, `[token][row]`, and what they are scaled with.
struct GroupProducts<'a> {
    /// Σw·x, outliers' low parts only.
    dots: &'a AmxTile,
    weights: &'a PanelGroup,
    /// A row a lane.
    row_scales: __m512,
    /// A token each, as `biases` and `outliers`: see [`TransposedTokens`].
    scales: &'a [f32; AMX_TILE_SIDE],
    biases: &'a [i32; AMX_TILE_SIDE],
    outliers: &'a [[i32; AMX_TILE_SIDE]; 2],
}

impl GroupProducts<'_> {
    /// Puts the outliers into the dot products of `tokens`, scales them, and adds them to `to`, a token a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(&self, to: &mut [__m512; AMX_TILE_SIDE], tokens: Range<usize>) {
        let [high, quad_bytes] = self.outliers;
        let flip = _mm512_set1_epi8(-128);
        for t in tokens {
            // SAFETY: a multiple of 64 in the group.
            let w = unsafe {
                let quad = std::ptr::from_ref(self.weights).byte_add(quad_bytes[t] as usize);
                _mm512_xor_si512(_mm512_loadu_si512(quad.cast()), flip)
            };
            let products =
                _mm512_dpbusd_epi32(_mm512_set1_epi32(self.biases[t]), w, _mm512_set1_epi32(high[t]));
            let dots = _mm512_add_epi32(self.dots[t], _mm512_slli_epi32::<7>(products));
            let scale = _mm512_mul_ps(self.row_scales, _mm512_set1_ps(self.scales[t]));
            to[t] = _mm512_add_ps(to[t], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale));
            // SAFETY: it does nothing. The compiler would move the arithmetic away from between the tile instructions.
            unsafe { asm!("/* {} */", inout(zmm_reg) to[t], options(nostack, preserves_flags)) };
        }
    }
}
