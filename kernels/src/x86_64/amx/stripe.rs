//! A stripe, some groups of 64 rows, meets every token: 16 rows × 16 tokens at a time.

use super::super::avx512vnni::{Avx512Vnni, transpose};
use super::tiles::{self, AMX_TILE_SIDE, AmxTile};
use crate::int8::RowScales;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, Panel, PanelGroup, QUADS};
use crate::quant::{GROUP, Quantized};
use crate::simd::Simd;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Panels that meet the tokens together: what is transposed of 16 tokens serves them all.
pub(super) const STRIPE_PANELS: usize = 4;
/// Rows of these panels.
pub(super) const STRIPE_ROWS: usize = STRIPE_PANELS * PANEL_ROWS;

/// Some groups of up to 64 rows.
pub(super) struct Stripe {
    pub rows: Range<usize>,
    /// Of the output.
    pub columns: Range<usize>,
    /// Counted from a row's first.
    pub groups: Range<usize>,
    /// Groups of a row.
    pub row_groups: usize,
}

impl Stripe {
    /// Its panels, of which the last may lack rows.
    pub fn panels(&self) -> usize {
        self.rows.len().div_ceil(PANEL_ROWS)
    }

    /// Whether its groups are a row's last.
    pub fn ends_rows(&self) -> bool {
        self.groups.end == self.row_groups
    }
}

/// A panel's groups of a stripe, a weight of `BYTES` int8 numbers: one, or `256·first + second`.
#[derive(Clone, Copy)]
pub(super) struct StripePanel<'a, S, const BYTES: usize> {
    pub values: &'a [[PanelGroup; BYTES]],
    /// What the products of each group are multiplied with.
    pub scales: &'a [S],
    /// What those of whole rows are multiplied with.
    pub row_scales: Option<&'a [f32; PANEL_ROWS]>,
}

impl<S, const BYTES: usize> StripePanel<'_, S, BYTES> {
    /// No groups.
    pub const EMPTY: Self = Self { values: &[], scales: &[], row_scales: None };
}

impl<'a, S> From<Panel<'a, S>> for StripePanel<'a, S, 1> {
    fn from(Panel { values, scales }: Panel<'a, S>) -> Self {
        Self { values: values.as_chunks().0, scales, row_scales: None }
    }
}

/// The scales of groups whose rows have one for all groups.
#[derive(Clone, Copy)]
pub(super) struct Unscaled;

impl RowScales for Unscaled {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F32 {
        s.splat(1.0)
    }
}

/// The most groups that are multiplied together: their weights, 32 KiB of int8, stay in the first-level cache.
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

/// The products of a stripe's panels with every token. `ahead(part, parts)` is called before each 16 tokens.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply_stripe<S: RowScales, const BYTES: usize>(
    panels: &[StripePanel<S, BYTES>],
    stripe: &Stripe,
    x: &Quantized,
    out: &mut MatMut<f32>,
    ahead: impl Fn(usize, usize),
) {
    let groups = stripe.groups.clone();
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
            PanelChunk { panels, stripe, tokens: &tokens, x, token, groups: chunk, done: unclamped - token }
                .multiply(out);
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
struct PanelChunk<'a, S, const BYTES: usize> {
    panels: &'a [StripePanel<'a, S, BYTES>],
    stripe: &'a Stripe,
    tokens: &'a TransposedTokens,
    x: &'a Quantized<'a>,
    /// The first of the tokens.
    token: usize,
    /// The groups, counted from a row's first.
    groups: Range<usize>,
    /// How many of the tokens have been done with the tile before.
    done: usize,
}

impl<S: RowScales, const BYTES: usize> PanelChunk<'_, S, BYTES> {
    /// Adds the products to `out`; the first groups of a row replace what was there.
    ///
    /// Three steps overlap: while one group's dot products are scaled and summed, those of the next are stored, and those of
    /// the one after that computed. The CPU hardly overlaps them by itself: the tile instructions are laid between the
    /// others by hand.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply(&self, out: &mut MatMut<f32>) {
        let (groups, tiles) = (self.groups.len(), self.stripe.panels());
        self.check(tiles, out);
        let after = |(tile, g)| if g + 1 < groups { (tile, g + 1) } else { (tile + 1, 0) };
        let mut products = [const { MaybeUninit::uninit() }; 2];
        // The tile and the group whose dot products were begun last.
        let mut begun = (0, 0);
        self.begin(begun);
        // SAFETY: the tiles are configured while a stripe is multiplied; so below.
        unsafe { tiles::store_products(&mut products[0]) };
        begun = after(begun);
        if begun.0 < tiles {
            self.begin(begun);
        }
        let mut turn = 0;
        for tile in 0..tiles {
            let mut sums = TileSums::new(self, out, tile);
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
                    unsafe { tiles::multiply::<BYTES>() };
                }
                group.add(&mut sums.0, 14..16);
            }
            sums.store(self, out, tile);
        }
    }

    /// Asserts what the pointers of this chunk rest on.
    fn check(&self, tiles: usize, out: &MatMut<f32>) {
        let last = (self.token + AMX_TILE_SIDE - 1) * self.x.stride() + self.groups.end * GROUP;
        assert!(last <= self.x.values().len() && self.groups.end * GROUP <= self.x.cols());
        let panel_groups = self.offset() + self.groups.len();
        for StripePanel { values, scales, .. } in self.panels {
            assert!(panel_groups <= values.len() && panel_groups <= scales.len());
        }
        assert!(self.groups.len() <= CHUNK_GROUPS && tiles <= self.panels.len());
        assert!(self.token + AMX_TILE_SIDE <= out.rows() && self.stripe.columns.end <= out.cols());
    }

    /// The first of the groups, counted from the panels' first.
    #[inline(always)]
    fn offset(&self) -> usize {
        self.groups.start - self.stripe.groups.start
    }

    /// Begins with the dot products of a `(tile, group)`.
    #[inline(always)]
    fn begin(&self, at: (usize, usize)) {
        self.load_values(at);
        self.load_weights(at);
        // SAFETY: the tiles are configured.
        unsafe { tiles::multiply::<BYTES>() };
    }

    #[inline(always)]
    fn load_values(&self, (_, g): (usize, usize)) {
        let at = self.token * self.x.stride() + (self.groups.start + g) * GROUP;
        // SAFETY: `check` has seen that these tokens and groups are there; the tiles are configured.
        unsafe { tiles::load_values(self.x.values().as_ptr().wrapping_add(at), self.x.stride()) };
    }

    #[inline(always)]
    fn load_weights(&self, (tile, g): (usize, usize)) {
        // SAFETY: the tiles are configured.
        unsafe { tiles::load_weights(&self.panels[tile].values[self.offset() + g]) };
    }

    /// One tile's dot products of one group, and what they are scaled with.
    ///
    /// # Safety
    /// `dots` must be initialised, `tile` and `g` among those that [`Self::check`] has seen.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group_products(
        &self,
        tile: usize,
        g: usize,
        dots: *const [AmxTile; BYTES],
    ) -> GroupProducts<'_, BYTES> {
        // SAFETY: the caller vouches for it.
        unsafe {
            let panel = self.panels.get_unchecked(tile);
            GroupProducts {
                dots: &*dots,
                weights: panel.values.get_unchecked(self.offset() + g),
                row_scales: panel.scales.get_unchecked(self.offset() + g).load(Avx512Vnni::new()),
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
    fn new<S, const BYTES: usize>(chunk: &PanelChunk<S, BYTES>, out: &mut MatMut<f32>, tile: usize) -> Self {
        let mut sums = [_mm512_setzero_ps(); AMX_TILE_SIDE];
        if chunk.groups.start > 0 {
            let (at, mask) = Self::place(chunk, out, tile);
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `check` has seen that the rows are there; the mask is of the columns.
                *sum = unsafe { _mm512_maskz_loadu_ps(mask, at.wrapping_add(t * out.stride())) };
            }
        }
        Self(sums)
    }

    /// Stores them, but for the tokens that have been done before; with a row's last groups the products of whole rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<S, const BYTES: usize>(
        &mut self,
        chunk: &PanelChunk<S, BYTES>,
        out: &mut MatMut<f32>,
        tile: usize,
    ) {
        if let Some(scales) = chunk.panels[tile].row_scales
            && chunk.groups.end == chunk.stripe.row_groups
        {
            // SAFETY: 16 scales.
            let scales = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
            self.0.iter_mut().for_each(|sum| *sum = _mm512_mul_ps(*sum, scales));
        }
        let (at, mask) = Self::place(chunk, out, tile);
        for (t, sum) in self.0.iter().enumerate().skip(chunk.done) {
            // SAFETY: as in `new`.
            unsafe { _mm512_mask_storeu_ps(at.wrapping_add(t * out.stride()), mask, *sum) };
        }
    }

    /// Where in `out` the first token's lie, and a mask of the columns that are there.
    #[inline(always)]
    fn place<S, const BYTES: usize>(
        chunk: &PanelChunk<S, BYTES>,
        out: &mut MatMut<f32>,
        tile: usize,
    ) -> (*mut f32, u16) {
        let columns = &chunk.stripe.columns;
        let first = columns.start + tile * AMX_TILE_SIDE;
        let mask = 0xffff >> (AMX_TILE_SIDE - (columns.end - first).min(AMX_TILE_SIDE));
        (out.as_mut_ptr().wrapping_add(chunk.token * out.stride() + first), mask)
    }
}

/// One group's dot products of 16 tokens and 16 rows, `[token][row]`, and what they are scaled with.
struct GroupProducts<'a, const BYTES: usize> {
    /// Σw·x of the weights' bytes, outliers' low parts only.
    dots: &'a [AmxTile; BYTES],
    weights: &'a [PanelGroup; BYTES],
    /// A row a lane.
    row_scales: __m512,
    /// A token each, as `biases` and `outliers`: see [`TransposedTokens`].
    scales: &'a [f32; AMX_TILE_SIDE],
    biases: &'a [i32; AMX_TILE_SIDE],
    outliers: &'a [[i32; AMX_TILE_SIDE]; 2],
}

impl<const BYTES: usize> GroupProducts<'_, BYTES> {
    /// Puts the outliers into the dot products of `tokens`, scales them, and adds them to `to`, a token a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(&self, to: &mut [__m512; AMX_TILE_SIDE], tokens: Range<usize>) {
        let [high, quad_bytes] = self.outliers;
        let flip = _mm512_set1_epi8(-128);
        for t in tokens {
            let mut dots = _mm512_setzero_si512();
            for (weights, byte_dots) in self.weights.iter().zip(self.dots) {
                // SAFETY: a multiple of 64 in the group.
                let w = unsafe {
                    let quad = std::ptr::from_ref(weights).byte_add(quad_bytes[t] as usize);
                    _mm512_xor_si512(_mm512_loadu_si512(quad.cast()), flip)
                };
                let products =
                    _mm512_dpbusd_epi32(_mm512_set1_epi32(self.biases[t]), w, _mm512_set1_epi32(high[t]));
                let byte_dots = _mm512_add_epi32(byte_dots[t], _mm512_slli_epi32::<7>(products));
                dots = _mm512_add_epi32(_mm512_slli_epi32::<8>(dots), byte_dots);
            }
            let scale = _mm512_mul_ps(self.row_scales, _mm512_set1_ps(self.scales[t]));
            to[t] = _mm512_add_ps(to[t], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale));
            // SAFETY: it does nothing. The compiler would move the arithmetic away from between the tile instructions.
            unsafe { asm!("/* {} */", inout(zmm_reg) to[t], options(nostack, preserves_flags)) };
        }
    }
}
