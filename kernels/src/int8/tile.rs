//! A panel of 16 rows meets some tokens: the one loop that multiplies, for weights that lie in panels and for rows that were
//! packed into one, from one token to many.

use super::{Int8, TokenGroups};
use crate::half::f16;
use crate::int4::Int4Panel;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, Panel};
use crate::quant::Quantized;
use crate::simd::Simd;
use std::ops::Range;

/// What the 16 rows of a group are multiplied with.
pub(crate) trait RowScales {
    /// In f32, a row a lane.
    fn load<S: Simd>(&self, s: S) -> S::F32;
}

impl RowScales for [f32; PANEL_ROWS] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F32 {
        s.load(self)
    }
}

impl RowScales for [f16; PANEL_ROWS] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F32 {
        s.load_f16(self)
    }
}

/// 16 rows that meet some tokens, a row a lane.
pub(crate) trait TilePanel<K: Int8> {
    /// Its groups. Asserts that whatever belongs to one is there for all of them.
    fn groups(&self) -> usize;

    /// What group `g` adds to the sums of each token.
    fn products<const N: usize>(&self, k: K, x: &[TokenGroups; N], g: usize) -> [<K::Lanes as Simd>::F32; N];

    /// The products of whole rows, from the sums over all groups.
    #[inline(always)]
    fn finish(&self, _: K, sum: <K::Lanes as Simd>::F32) -> <K::Lanes as Simd>::F32 {
        sum
    }
}

/// `dot · (scale · x_scale)`
impl<K: Int8, S: RowScales> TilePanel<K> for Panel<'_, S> {
    #[inline(always)]
    fn groups(&self) -> usize {
        // Known here, no index need be checked in the loop.
        assert_eq!(self.scales.len(), self.values.len());
        self.values.len()
    }

    #[inline(always)]
    fn products<const N: usize>(&self, k: K, x: &[TokenGroups; N], g: usize) -> [<K::Lanes as Simd>::F32; N] {
        let s = k.lanes();
        let dots = k.panel_dots(&self.values[g], x, g);
        let scale = self.scales[g].load(s);
        let mut products = [s.splat(0.0); N];
        for t in 0..N {
            products[t] = s.mul(s.to_f32(dots[t]), s.mul(scale, s.splat(x[t].scales[g])));
        }
        products
    }
}

/// `dot · x_scale`, and all of them times the row's scale.
impl<K: Int8> TilePanel<K> for Int4Panel<'_> {
    #[inline(always)]
    fn groups(&self) -> usize {
        self.nibbles.len()
    }

    #[inline(always)]
    fn products<const N: usize>(&self, k: K, x: &[TokenGroups; N], g: usize) -> [<K::Lanes as Simd>::F32; N] {
        let s = k.lanes();
        let dots = k.int4_dots(self, x, g);
        let mut products = [s.splat(0.0); N];
        for t in 0..N {
            products[t] = s.mul(s.to_f32(dots[t]), s.splat(x[t].scales[g]));
        }
        products
    }

    #[inline(always)]
    fn finish(&self, k: K, sum: <K::Lanes as Simd>::F32) -> <K::Lanes as Simd>::F32 {
        k.lanes().mul(sum, k.lanes().load(self.row_scales))
    }
}

/// What a tile asks for while it multiplies: some cache lines with each group.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    first: *const u8,
    lines_a_group: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// How many bytes of weights ahead of its reading a tile prefetches that is the panel's only one.
const PREFETCH_BYTES: usize = 4096;

impl Ahead {
    /// Nothing.
    pub const NOTHING: Self = Self { first: std::ptr::null(), lines_a_group: 0 };

    /// What tile `tile` of `tiles` asks for, that meets a panel of these `groups`: together they ask for as much as it holds
    /// `distance` groups behind it, and one that is alone for what lies a fixed distance behind.
    pub(super) fn of<G>(groups: &[G], distance: usize, (tile, tiles): (usize, usize)) -> Self {
        let lines = size_of::<G>() / LINE;
        let lines_a_group = lines.div_ceil(tiles);
        let line = tile * lines_a_group;
        if line >= lines {
            return Self::NOTHING;
        }
        let distance = if tiles == 1 { PREFETCH_BYTES } else { distance * size_of::<G>() };
        let first = groups.as_ptr().cast::<u8>().wrapping_add(distance);
        Self { first: first.wrapping_add(LINE * line * groups.len()), lines_a_group }
    }

    /// Asks for what belongs to group `g`.
    #[inline(always)]
    fn ask(self, s: impl Simd, g: usize) {
        let first = self.first.wrapping_add(LINE * self.lines_a_group * g);
        for line in 0..self.lines_a_group {
            s.prefetch(first.wrapping_add(LINE * line));
        }
    }
}

/// Where the products of a panel go: of its rows `lanes` to columns of the output from `column` on.
#[derive(Clone)]
pub(crate) struct Place {
    pub lanes: Range<usize>,
    pub column: usize,
}

/// `acc[t] = finish(acc[t] + Σ_g products(g)[t])`, `g` in ascending order.
#[inline(always)]
pub(crate) fn multiply_tile<K: Int8, P: TilePanel<K>, const N: usize>(
    k: K,
    panel: &P,
    ahead: Ahead,
    x: &[TokenGroups; N],
    acc: &mut [[f32; PANEL_ROWS]; N],
) {
    let (s, groups) = (k.lanes(), panel.groups());
    for x in x {
        assert_eq!((x.values.len(), x.scales.len()), (groups, groups));
        assert_eq!((x.sums.len(), x.outliers.len()), (groups, groups));
        assert_eq!(x.part_sums.len(), groups);
    }
    let mut sums = [s.splat(0.0); N];
    for t in 0..N {
        sums[t] = s.load(&acc[t]);
    }
    for g in 0..groups {
        ahead.ask(s, g);
        let products = panel.products(k, x, g);
        for t in 0..N {
            sums[t] = s.add(sums[t], products[t]);
        }
    }
    for t in 0..N {
        s.store(panel.finish(k, sums[t]), &mut acc[t]);
    }
}

/// The products of some panels, which are `groups` of their rows, with every token; they replace what is in `out`, or are added
/// to it if there are groups before.
///
/// `panel(p, tile, tiles)` is panel `p` for tile `tile` of `tiles`. All panels meet a tile before the next one does.
#[inline(always)]
pub(super) fn multiply_panels<K: Int8, P: TilePanel<K>>(
    k: K,
    panels: Range<usize>,
    groups: Range<usize>,
    x: &Quantized,
    out: &mut MatMut<f32>,
    mut panel: impl FnMut(usize, (usize, usize)) -> (P, Place, Ahead),
) {
    // Tiles of equal size: one of few tokens costs nearly what a full one does.
    let tiles = x.tokens().div_ceil(K::TILE_TOKENS);
    let mut token = 0;
    for tile in 0..tiles {
        let n = (x.tokens() - token).div_ceil(tiles - tile);
        macro_rules! tiles {
            ($($n:literal)*) => {
                match n {
                    $($n if $n <= K::TILE_TOKENS => {
                        let tokens = tokens::<$n>(x, token, &groups);
                        for p in panels.clone() {
                            let (panel, place, ahead) = panel(p, (tile, tiles));
                            add_tile(k, &panel, ahead, &tokens, out, token, &place, groups.start > 0);
                        }
                    })*
                    _ => unreachable!("more tokens than a tile has"),
                }
            };
        }
        tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
        token += n;
    }
}

/// Some groups of tokens `first..first + N`.
#[inline(always)]
pub(crate) fn tokens<'x, const N: usize>(
    x: &Quantized<'x>,
    first: usize,
    groups: &Range<usize>,
) -> [TokenGroups<'x>; N] {
    let mut tokens = [TokenGroups::new(x, first, groups.clone()); N];
    for (i, token) in tokens.iter_mut().enumerate().skip(1) {
        *token = TokenGroups::new(x, first + i, groups.clone());
    }
    tokens
}

/// The products of one panel with tokens `token..token + N`; they replace what is in `out`, or are added to it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a loop's body")]
fn add_tile<K: Int8, P: TilePanel<K>, const N: usize>(
    k: K,
    panel: &P,
    ahead: Ahead,
    tokens: &[TokenGroups; N],
    out: &mut MatMut<f32>,
    token: usize,
    place: &Place,
    adds: bool,
) {
    let Place { lanes, column } = place.clone();
    let columns = column..column + lanes.len();
    let mut acc = [[0.0; PANEL_ROWS]; N];
    if adds {
        for (i, acc) in acc.iter_mut().enumerate() {
            acc[lanes.clone()].copy_from_slice(&out.row(token + i)[columns.clone()]);
        }
    }
    k.tile(panel, ahead, tokens, &mut acc);
    for (i, acc) in acc.iter().enumerate() {
        let row = &mut out.row(token + i)[columns.clone()];
        match (row.first_chunk_mut(), lanes.len()) {
            (Some(whole), PANEL_ROWS) => *whole = *acc,
            _ => row.copy_from_slice(&acc[lanes.clone()]),
        }
    }
}
