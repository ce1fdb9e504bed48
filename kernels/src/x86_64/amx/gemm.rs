//! Many tokens: rows are packed into panels, and each panel meets every token, 16 rows × 16 tokens at a time.

use super::super::avx512vnni::{Avx512Vnni, pack_16_rows, transpose};
use super::tiles::{self, AMX_TILE_SIDE, AmxTile};
use crate::int8::{group_of_rows, prefetch_groups};
use crate::mat::MatMut;
use crate::quant::{GROUP, QMatrix, Quantized};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Tiles of 16 rows in a panel: what is transposed of 16 tokens serves them all.
const AMX_PANEL_TILES: usize = 4;
/// Rows in a panel.
const AMX_PANEL_ROWS: usize = AMX_PANEL_TILES * AMX_TILE_SIDE;

/// The most groups of each row in a panel: 64 rows × 32 groups are 128 KiB of weights, which stay in the second-level cache.
const AMX_PANEL_GROUPS: usize = 32;

/// The most groups of a panel that are multiplied together: their weights, 32 KiB, stay in the first-level cache.
const CHUNK_GROUPS: usize = 8;

/// A panel: 64 rows × up to 32 groups, packed, `[tile][group]`.
struct Panel {
    tiles: [[MaybeUninit<AmxTile>; AMX_PANEL_GROUPS]; AMX_PANEL_TILES],
    /// The weights' scales, 1 over what is stored.
    inverse: [[[f32; AMX_TILE_SIDE]; AMX_PANEL_GROUPS]; AMX_PANEL_TILES],
}

/// Of up to 8 groups of 16 tokens what is needed beside the values, `[group][token]`.
#[repr(C, align(64))]
struct TransposedTokens {
    scales: [[f32; AMX_TILE_SIDE]; CHUNK_GROUPS],
    /// The sums of the groups' values, negative.
    sums: [[i32; AMX_TILE_SIDE]; CHUNK_GROUPS],
    /// Outliers' high parts, and at which byte of a tile the weights of their quad begin.
    outliers: [[[i32; AMX_TILE_SIDE]; 2]; CHUNK_GROUPS],
}

/// `out[t][i] = w[rows.start + i] · x[t]`, for 16 tokens or more: panels of 64 rows × up to 32 groups are packed, and each
/// meets every token.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn gemm(w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    // SAFETY: the CPU has tiles and this process may use them, or this table would not be chosen.
    unsafe { tiles::configure() };
    let mut panel = Panel {
        tiles: [const { [const { MaybeUninit::uninit() }; AMX_PANEL_GROUPS] }; AMX_PANEL_TILES],
        inverse: [[[0.0; AMX_TILE_SIDE]; AMX_PANEL_GROUPS]; AMX_PANEL_TILES],
    };
    for first in rows.clone().step_by(AMX_PANEL_ROWS) {
        let panel_rows = first..(first + AMX_PANEL_ROWS).min(rows.end);
        let columns = panel_rows.start - rows.start..panel_rows.end - rows.start;
        for from in (0..groups).step_by(AMX_PANEL_GROUPS) {
            let panel_groups = from..(from + AMX_PANEL_GROUPS).min(groups);
            panel.pack(w, panel_rows.clone(), panel_groups.clone());
            panel.multiply(w, (first, panel_groups), x, &mut out, columns.clone());
        }
    }
    // SAFETY: as above.
    unsafe { tiles::release() };
}

impl Panel {
    /// Packs `groups` of up to 64 rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pack(&mut self, w: &QMatrix, rows: Range<usize>, groups: Range<usize>) {
        for (tile, first) in rows.clone().step_by(AMX_TILE_SIDE).enumerate() {
            for (i, g) in groups.clone().enumerate() {
                let group_of = group_of_rows(w, first..rows.end, g, &mut self.inverse[tile][i]);
                self.tiles[tile][i].write(pack_16_rows(&group_of));
            }
            // In a loop of its own: what has just been written in pieces cannot be read as a whole at once.
            for inverse in &mut self.inverse[tile][..groups.len()] {
                inverse.iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            }
        }
    }

    /// Multiplies `panel_groups` of the rows from `first` on, which are packed, with every token.
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply(
        &self,
        w: &QMatrix,
        (first, panel_groups): (usize, Range<usize>),
        x: &Quantized,
        out: &mut MatMut<f32>,
        columns: Range<usize>,
    ) {
        let k = Avx512Vnni::new();
        let groups = w.cols() / GROUP;
        let next = match panel_groups.end < groups {
            true => (first, panel_groups.end),
            false => (first + AMX_PANEL_ROWS, 0),
        };
        let rows_a_tile = AMX_PANEL_ROWS.div_ceil(x.tokens().div_ceil(AMX_TILE_SIDE));
        let chunk_groups = panel_groups.len().div_ceil(panel_groups.len().div_ceil(CHUNK_GROUPS));
        let mut tokens = TransposedTokens {
            scales: [[0.0; AMX_TILE_SIDE]; CHUNK_GROUPS],
            sums: [[0; AMX_TILE_SIDE]; CHUNK_GROUPS],
            outliers: [[[0; AMX_TILE_SIDE]; 2]; CHUNK_GROUPS],
        };
        for (i, unclamped) in (0..x.tokens()).step_by(AMX_TILE_SIDE).enumerate() {
            for row in (i * rows_a_tile..(i + 1) * rows_a_tile).take_while(|row| *row < AMX_PANEL_ROWS) {
                let from = (next.0 + row, next.1);
                prefetch_groups(k, w.values().as_chunks().0, groups, AMX_PANEL_GROUPS, from);
            }
            // The last tile begins with some tokens of the one before, whose sums are complete.
            let token = unclamped.min(x.tokens() - AMX_TILE_SIDE);
            for from in panel_groups.clone().step_by(chunk_groups) {
                let groups = from..(from + chunk_groups).min(panel_groups.end);
                tokens.fill(x, token, groups.clone());
                PanelChunk {
                    panel: self,
                    offset: from - panel_groups.start,
                    tokens: &tokens,
                    x,
                    token,
                    groups,
                    done: unclamped - token,
                }
                .multiply(out, columns.clone());
            }
        }
    }
}

impl TransposedTokens {
    /// Transposes what belongs to up to 8 `groups` of tokens `token..token + 16`.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    fn fill(&mut self, x: &Quantized, token: usize, groups: Range<usize>) {
        let (first, all) = (token * x.groups() + groups.start, x.groups());
        let last = first + (AMX_TILE_SIDE - 1) * all + groups.len();
        assert!(groups.len() <= CHUNK_GROUPS && last <= x.scales().len());
        assert!(last <= x.sums().len() && last <= x.outliers().len());
        let missing = CHUNK_GROUPS - groups.len();
        let (one_each, two_each) = (0xff >> missing, 0xffff >> (2 * missing));
        let mut scales_sums = [_mm512_setzero_si512(); AMX_TILE_SIDE];
        let mut outliers = [_mm512_setzero_si512(); AMX_TILE_SIDE];
        for t in 0..AMX_TILE_SIDE {
            let at = first + t * all;
            // SAFETY: the masks are of the groups, and the last ends in the slices.
            unsafe {
                let scales = _mm256_maskz_loadu_epi32(one_each, x.scales().as_ptr().add(at).cast());
                let sums = _mm256_maskz_loadu_epi32(one_each, x.sums().as_ptr().add(at));
                let sums = _mm256_sub_epi32(_mm256_setzero_si256(), sums);
                scales_sums[t] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(scales), sums);
                let v = _mm512_maskz_loadu_epi32(two_each, x.outliers().as_ptr().add(at).cast());
                // An outlier's second dword is its quad, 0..16; the mask keeps it in the tile whatever it was.
                let v = _mm512_mask_and_epi32(v, 0xaaaa, v, _mm512_set1_epi32(AMX_TILE_SIDE as i32 - 1));
                outliers[t] = _mm512_mask_slli_epi32::<6>(v, 0xaaaa, v);
            }
        }
        let to = std::ptr::from_mut(self).cast::<AmxTile>();
        // SAFETY: 16 vectors and 16 more, aligned as they are.
        unsafe {
            to.write(transpose(scales_sums));
            to.add(1).write(transpose(outliers));
        }
    }
}

/// Up to 8 groups of a panel, and the 16 tokens that they meet.
struct PanelChunk<'a> {
    panel: &'a Panel,
    /// The first of the groups, counted from the panel's first.
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

impl PanelChunk<'_> {
    /// Adds the products to `columns` of `out`; the first groups of a row replace what was there.
    ///
    /// Three steps overlap: while one group's dot products are scaled and summed, those of the next are stored, and those of
    /// the one after that computed. The CPU hardly overlaps them by itself: the tile instructions are laid between the
    /// others by hand.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
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
        let last = (self.token + AMX_TILE_SIDE - 1) * self.x.cols() + self.groups.end * GROUP;
        assert!(last <= self.x.values().len() && self.groups.end * GROUP <= self.x.cols());
        assert!(self.offset + self.groups.len() <= AMX_PANEL_GROUPS && self.groups.len() <= CHUNK_GROUPS);
        assert!(
            tiles <= AMX_PANEL_TILES && self.token + AMX_TILE_SIDE <= out.rows() && columns.end <= out.cols()
        );
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
        let at = self.token * self.x.cols() + (self.groups.start + g) * GROUP;
        // SAFETY: `check` has seen that these tokens and groups are there; `gemm` has configured the tiles.
        unsafe { tiles::load_values(self.x.values().as_ptr().wrapping_add(at), self.x.cols()) };
    }

    #[inline(always)]
    fn load_weights(&self, (tile, g): (usize, usize)) {
        // SAFETY: as many groups of as many tiles are packed; `gemm` has configured the tiles.
        unsafe { tiles::load_weights(self.panel.tiles[tile][self.offset + g].as_ptr()) };
    }

    /// One tile's dot products of one group, and what they are scaled with.
    ///
    /// # Safety
    /// `dots` must be initialised, `tile` and `g` among those that are packed.
    #[inline(always)]
    unsafe fn group_products(&self, tile: usize, g: usize, dots: *const AmxTile) -> GroupProducts<'_> {
        // SAFETY: the caller vouches for it.
        unsafe {
            GroupProducts {
                dots: &*dots,
                weights: self
                    .panel
                    .tiles
                    .get_unchecked(tile)
                    .get_unchecked(self.offset + g)
                    .assume_init_ref(),
                inverse: self.panel.inverse.get_unchecked(tile).get_unchecked(self.offset + g),
                scales: self.tokens.scales.get_unchecked(g),
                sums: self.tokens.sums.get_unchecked(g),
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
    fn new(chunk: &PanelChunk, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) -> Self {
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
    fn store(&self, chunk: &PanelChunk, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) {
        let (at, mask) = Self::place(chunk, out, columns, tile);
        for (t, sum) in self.0.iter().enumerate().skip(chunk.done) {
            // SAFETY: as in `new`.
            unsafe { _mm512_mask_storeu_ps(at.wrapping_add(t * out.stride()), mask, *sum) };
        }
    }

    /// Where in `out` the first token's lie, and a mask of the columns that are there.
    #[inline(always)]
    fn place(
        chunk: &PanelChunk,
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
    /// Σ(w + 128)·x, outliers' low parts only.
    dots: &'a AmxTile,
    weights: &'a AmxTile,
    /// A row each.
    inverse: &'a [f32; AMX_TILE_SIDE],
    /// A token each, as `sums` and `outliers`: see [`TransposedTokens`].
    scales: &'a [f32; AMX_TILE_SIDE],
    sums: &'a [i32; AMX_TILE_SIDE],
    outliers: &'a [[i32; AMX_TILE_SIDE]; 2],
}

impl GroupProducts<'_> {
    /// Takes 128·Σx off the dot products of `tokens`, puts the outliers in, scales them, and adds them to `to`, a token a
    /// register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add(&self, to: &mut [__m512; AMX_TILE_SIDE], tokens: Range<usize>) {
        // SAFETY: 16 floats.
        let inverse = unsafe { _mm512_loadu_ps(self.inverse.as_ptr()) };
        let [high, quad_bytes] = self.outliers;
        for t in tokens {
            // SAFETY: a multiple of 64 in the tile.
            let w = unsafe {
                *std::ptr::from_ref(self.weights).byte_add(quad_bytes[t] as usize).cast::<__m512i>()
            };
            let extra = _mm512_dpbusd_epi32(_mm512_set1_epi32(self.sums[t]), w, _mm512_set1_epi32(high[t]));
            let dots = _mm512_add_epi32(self.dots[t], _mm512_slli_epi32::<7>(extra));
            let scale = _mm512_mul_ps(inverse, _mm512_set1_ps(self.scales[t]));
            to[t] = _mm512_add_ps(to[t], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale));
            // SAFETY: it does nothing. The compiler would move the arithmetic away from between the tile instructions.
            unsafe { asm!("/* {} */", inout(zmm_reg) to[t], options(nostack, preserves_flags)) };
        }
    }
}
