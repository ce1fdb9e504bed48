//! The int8 matmul, written once around what each instruction set does its own way: the dot products of groups.
//!
//! Few tokens (decode) go through [`gemv`], which reads the weights in the order they lie in memory. Many tokens
//! (prefill) go through [`gemm`], which packs a panel of rows and multiplies it by tile after tile of tokens.

use crate::mat::MatMut;
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::scalar::{self, LANES};
use crate::simd::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows in a packed panel.
pub(crate) const PANEL_ROWS: usize = 32;

/// Groups in a packed panel: 32 rows × 8 groups are 16 KiB of weights, which stay in the first-level cache.
const PANEL_GROUPS: usize = 8;

/// Groups of a row that [`gemv`] takes at once: 16 rows' products are 16 KiB.
const RUN_GROUPS: usize = 256;

/// The 64 values of a group.
pub(crate) type Group = [i8; GROUP];

/// What an instruction set brings to an int8 matmul.
pub(crate) trait Int8: Copy {
    /// Its float lanes.
    type Lanes: Simd;
    /// One group of each row of a panel, in the order the tile reads it.
    type Panel: Copy;

    /// The most tokens that go through [`gemv`] one by one.
    const GEMV_TOKENS: usize;
    /// Tokens in a full tile, at most 6.
    const TILE_TOKENS: usize;
    /// Room for a panel.
    const EMPTY: Self::Panel;

    /// The token of the float lanes.
    fn lanes(self) -> Self::Lanes;

    /// Lane `i`: `Σ_k w[i][k]·x[i][k]`; `sums[i]` is `Σ_k x[i][k]`. Reads `w` from memory for the first time: this is
    /// the place to prefetch what follows it.
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES], sums: &[i32; LANES]) -> <Self::Lanes as Simd>::I32;

    /// Packs one group of each row.
    fn pack(self, rows: &[&Group; PANEL_ROWS], panel: &mut Self::Panel);

    /// `acc[t][r] += dot(panel[g] row r, x[t].values[g]) · (inverse[g][r] · x[t].scales[g])` for each `g` in order.
    fn tile<const N: usize>(
        self,
        panel: &[Self::Panel],
        inverse: &[[f32; PANEL_ROWS]],
        x: &[Block; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    );
}

/// Some consecutive groups of one token.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub values: &'a [Group],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new(x: &Quantized<'a>, token: usize, groups: Range<usize>) -> Self {
        let n = groups.len();
        let values = x.token_values(token).as_chunks().0;
        let scales = &x.token_scales(token)[groups.clone()][..n];
        let sums = &x.token_sums(token)[groups.clone()][..n];
        Self { values: &values[groups][..n], scales, sums }
    }
}

#[inline(always)]
pub(crate) fn matmul_i8<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    if !w.is_aligned() || w.cols() == 0 {
        scalar::matmul_i8(w, rows, x, out);
    } else if x.tokens() <= K::GEMV_TOKENS {
        for t in 0..x.tokens() {
            gemv(k, w, rows.clone(), x, t, out.row(t));
        }
    } else {
        gemm(k, w, rows, x, out);
    }
}

/// One token: 16 rows at a time, each read from its start to its end.
#[inline(always)]
fn gemv<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, token: usize, out: &mut [f32]) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let mut products = [MaybeUninit::uninit(); LANES * RUN_GROUPS];
    for (out, first) in out.chunks_mut(LANES).zip(rows.step_by(LANES)) {
        let n = out.len();
        let mut acc = [0.0; LANES];
        for from in (0..groups).step_by(RUN_GROUPS) {
            let run = from..(from + RUN_GROUPS).min(groups);
            let (x, len) = (Block::new(x, token, run.clone()), run.len());
            let products = &mut products[..n * len];
            // Whole rows lie one after the other and make a single run.
            let runs = if len == groups { 1 } else { n };
            for (i, products) in products.chunks_exact_mut(n * len / runs).enumerate() {
                let start = (first + i) * groups + from;
                let part = start..start + products.len();
                scaled_dots(k, &values[part.clone()], &w.scales()[part], &x, products);
            }
            // SAFETY: the calls have written all of it.
            let products = unsafe { assume_init(products) };
            for g in 0..len {
                for (acc, row) in acc.iter_mut().zip(products.chunks_exact(len)) {
                    *acc += row[g];
                }
            }
        }
        out.copy_from_slice(&acc[..n]);
    }
}

/// # Safety
/// Every element must have been written.
#[inline(always)]
unsafe fn assume_init(x: &[MaybeUninit<f32>]) -> &[f32] {
    // SAFETY: the layouts are the same, and the caller says that the elements are initialised.
    unsafe { &*(std::ptr::from_ref(x) as *const [f32]) }
}

/// `products[i] = dot(w[i], x[i mod n]) · (1/scales[i] · x_scale[i mod n])` with `n` the number of groups in `x`.
#[inline(always)]
fn scaled_dots<K: Int8>(k: K, w: &[Group], scales: &[f32], x: &Block, products: &mut [MaybeUninit<f32>]) {
    let period = x.values.len();
    let (w, w_tail) = w.as_chunks::<LANES>();
    let (scales, scale_tail) = scales.as_chunks::<LANES>();
    let (products, product_tail) = products.as_chunks_mut::<LANES>();
    let mut at = 0;
    for ((w, scale), products) in w.iter().zip(scales).zip(products) {
        *products = sixteen_dots(k, w, scale, x, at).map(MaybeUninit::new);
        at += LANES;
        while at >= period {
            at -= period;
        }
    }
    if !w_tail.is_empty() {
        let mut w = [[0; GROUP]; LANES];
        w[..w_tail.len()].copy_from_slice(w_tail);
        let mut scale = [1.0; LANES];
        scale[..w_tail.len()].copy_from_slice(scale_tail);
        for (product, dot) in product_tail.iter_mut().zip(sixteen_dots(k, &w, &scale, x, at)) {
            product.write(dot);
        }
    }
}

/// The products of 16 groups, the first of which meets `x`'s group `at`; after the last group of `x` comes its first.
#[inline(always)]
fn sixteen_dots<K: Int8>(
    k: K,
    w: &[Group; LANES],
    scale: &[f32; LANES],
    x: &Block,
    at: usize,
) -> [f32; LANES] {
    let s = k.lanes();
    let run = (x.values[at..].first_chunk(), x.scales[at..].first_chunk(), x.sums[at..].first_chunk());
    let (dots, x_scale) = if let (Some(values), Some(scales), Some(sums)) = run {
        (k.dots(w, values, sums), s.load(scales))
    } else {
        let mut wrapped = (at..x.values.len()).chain((0..x.values.len()).cycle());
        let index: [usize; LANES] = std::array::from_fn(|_| wrapped.next().unwrap_or(0));
        let dots = k.dots(w, &index.map(|g| x.values[g]), &index.map(|g| x.sums[g]));
        (dots, s.load(&index.map(|g| x.scales[g])))
    };
    let inverse = s.div(s.splat(1.0), s.load(scale));
    let mut products = [0.0; LANES];
    s.store(s.mul(s.to_f32(dots), s.mul(inverse, x_scale)), &mut products);
    products
}

/// Many tokens: panels of 32 rows × 8 groups are packed and meet every token.
#[inline(always)]
fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let mut panel = [K::EMPTY; PANEL_GROUPS];
    let mut inverse = [[0.0; PANEL_ROWS]; PANEL_GROUPS];
    for first in rows.clone().step_by(PANEL_ROWS) {
        let n = PANEL_ROWS.min(rows.end - first);
        for from in (0..groups).step_by(PANEL_GROUPS) {
            let block = from..(from + PANEL_GROUPS).min(groups);
            let len = block.len();
            for (i, g) in block.clone().enumerate() {
                // A panel that is not full repeats its last row, whose results are then dropped.
                let index = |r: usize| (first + r.min(n - 1)) * groups + g;
                k.pack(&std::array::from_fn(|r| &values[index(r)]), &mut panel[i]);
                inverse[i] = std::array::from_fn(|r| 1.0 / w.scales()[index(r)]);
            }
            let columns = first - rows.start..first - rows.start + n;
            for t in (0..x.tokens()).step_by(K::TILE_TOKENS) {
                let (panel, inverse) = (&panel[..len], &inverse[..len]);
                let args = (k, panel, inverse, x, block.clone(), t);
                match K::TILE_TOKENS.min(x.tokens() - t) {
                    6 if K::TILE_TOKENS >= 6 => tile::<K, 6>(args, &mut out, columns.clone()),
                    5 if K::TILE_TOKENS >= 5 => tile::<K, 5>(args, &mut out, columns.clone()),
                    4 => tile::<K, 4>(args, &mut out, columns.clone()),
                    3 => tile::<K, 3>(args, &mut out, columns.clone()),
                    2 => tile::<K, 2>(args, &mut out, columns.clone()),
                    _ => tile::<K, 1>(args, &mut out, columns.clone()),
                }
            }
        }
    }
}

type TileArgs<'a, K> =
    (K, &'a [<K as Int8>::Panel], &'a [[f32; PANEL_ROWS]], &'a Quantized<'a>, Range<usize>, usize);

/// Adds a panel's product with `N` tokens to `columns` of `out`; the first groups of a row replace what was there.
#[inline(always)]
fn tile<K: Int8, const N: usize>(args: TileArgs<K>, out: &mut MatMut<f32>, columns: Range<usize>) {
    let (k, panel, inverse, x, groups, token) = args;
    let mut acc = [[0.0; PANEL_ROWS]; N];
    if groups.start > 0 {
        for (i, acc) in acc.iter_mut().enumerate() {
            acc[..columns.len()].copy_from_slice(&out.row(token + i)[columns.clone()]);
        }
    }
    let x = std::array::from_fn(|i| Block::new(x, token + i, groups.clone()));
    k.tile(panel, inverse, &x, &mut acc);
    for (i, acc) in acc.iter().enumerate() {
        out.row(token + i)[columns.clone()].copy_from_slice(&acc[..columns.len()]);
    }
}
