//! The int8 matmul, written once around what each instruction set does its own way: the dot products of groups.
//!
//! Few tokens (decode) go through [`gemv`], which reads the weights in the order they lie in memory. Many tokens
//! (prefill) go through [`gemm`], which packs a panel of rows and multiplies it by tile after tile of tokens.

use crate::mat::MatMut;
use crate::quant::{GROUP, Outlier, QMatrix, Quantized};
use crate::scalar::{self, LANES};
use crate::simd::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows in a packed panel.
pub(crate) const PANEL_ROWS: usize = 32;

/// Groups in a packed panel: 32 rows × 32 groups are 64 KiB of weights, which stay in the second-level cache.
const PANEL_GROUPS: usize = 32;

/// Groups of a row that [`gemv`] takes at once: 16 rows' products are 16 KiB.
const RUN_GROUPS: usize = 256;

/// The 64 values of a group.
pub(crate) type Group = [i8; GROUP];

/// What an instruction set brings to an int8 matmul.
///
/// # Safety
/// [`Int8::pack`] must initialise the panel.
pub(crate) unsafe trait Int8: Copy {
    /// Its float lanes.
    type Lanes: Simd;
    /// One group of each row of a panel, in the order the tile reads it.
    type Panel: Copy;

    /// The most tokens that go through [`gemv`] one by one.
    const GEMV_TOKENS: usize;
    /// Tokens in a full tile, at most 6.
    const TILE_TOKENS: usize;
    /// The token of the float lanes.
    fn lanes(self) -> Self::Lanes;

    /// Lane `i`: `Σ_k w[i][k]·x[i][k]`, `x` with its outliers. Reads `w` from memory for the first time: this is the
    /// place to prefetch what follows it.
    fn dots(self, w: &[Group; LANES], x: &Sixteen) -> <Self::Lanes as Simd>::I32;

    /// `acc[r] += rows[r·n + g]` for each `g < n` in order; `rows` is `[16][n]`.
    #[inline(always)]
    fn sum_rows(self, rows: &[f32], n: usize, acc: &mut [f32; LANES]) {
        for g in 0..n {
            for (acc, row) in acc.iter_mut().zip(rows.chunks_exact(n)) {
                *acc += row[g];
            }
        }
    }

    /// Asks for a group that is needed soon.
    #[inline(always)]
    fn prefetch(self, _: &Group) {}

    /// Packs one group of each row: initialises `panel`.
    fn pack(self, rows: &[&Group; PANEL_ROWS], panel: &mut MaybeUninit<Self::Panel>);

    /// `acc[t][r] += dot(panel[g] row r, x[t].values[g]) · (inverse[g][r] · x[t].scales[g])` for each `g` in order.
    fn tile<const N: usize>(
        self,
        panel: &[Self::Panel],
        inverse: &[[f32; PANEL_ROWS]],
        x: &[Block; N],
        acc: &mut [[f32; PANEL_ROWS]; N],
    );
}

/// Sixteen consecutive groups of one token, their scales aside.
pub(crate) struct Sixteen<'a> {
    pub values: &'a [Group; LANES],
    /// For those who add 128 to the weights.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sums: &'a [i32; LANES],
    pub outliers: &'a [Outlier; LANES],
}

/// Some consecutive groups of one token.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub values: &'a [Group],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
    pub outliers: &'a [Outlier],
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new(x: &Quantized<'a>, token: usize, groups: Range<usize>) -> Self {
        let whole = Self {
            values: x.token_values(token).as_chunks().0,
            scales: x.token_scales(token),
            sums: x.token_sums(token),
            outliers: x.token_outliers(token),
        };
        whole.part(groups)
    }

    #[inline(always)]
    fn part(self, groups: Range<usize>) -> Self {
        Self {
            values: &self.values[groups.clone()],
            scales: &self.scales[groups.clone()],
            sums: &self.sums[groups.clone()],
            outliers: &self.outliers[groups],
        }
    }
}

#[inline(always)]
pub(crate) fn matmul_i8<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    if !w.is_aligned() || w.cols() == 0 {
        scalar::matmul_i8(w, rows, x, out);
    } else if x.tokens() <= K::GEMV_TOKENS {
        // The second token finds the rows in the cache.
        for first in rows.clone().step_by(PANEL_ROWS) {
            let panel = first..(first + PANEL_ROWS).min(rows.end);
            for t in 0..x.tokens() {
                let out = &mut out.row(t)[panel.start - rows.start..panel.end - rows.start];
                gemv(k, w, panel.clone(), x, t, out);
            }
        }
    } else {
        gemm(k, w, rows, x, out);
    }
}

/// One token: 16 rows at a time, each read from its start to its end.
#[inline(always)]
fn gemv<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, token: usize, out: &mut [f32]) {
    let groups = w.cols() / GROUP;
    let whole = Block::new(x, token, 0..groups);
    if groups <= RUN_GROUPS {
        // Whole rows lie one after the other and make a single run.
        let mut room = Extended::EMPTY;
        let x = room.extend(whole);
        for (out, first) in out.chunks_mut(LANES).zip(rows.step_by(LANES)) {
            let mut acc = [0.0; LANES];
            sixteen_rows(k, w, first * groups, groups, &x, groups, out.len(), &mut acc);
            out.copy_from_slice(&acc[..out.len()]);
        }
    } else {
        for (out, first) in out.chunks_mut(LANES).zip(rows.step_by(LANES)) {
            let mut acc = [0.0; LANES];
            for from in (0..groups).step_by(RUN_GROUPS) {
                let run = from..(from + RUN_GROUPS).min(groups);
                let x = whole.part(run.clone());
                sixteen_rows(k, w, first * groups + from, groups, &x, run.len(), out.len(), &mut acc);
            }
            out.copy_from_slice(&acc[..out.len()]);
        }
    }
}

/// Adds to `acc[r]`, in order, the scaled products of `period` groups of each of `n ≤ 16` rows, which begin at group
/// `start` of the matrix and are `stride` groups apart.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a step of gemv, not an interface")]
fn sixteen_rows<K: Int8>(
    k: K,
    w: &QMatrix,
    start: usize,
    stride: usize,
    x: &Block,
    period: usize,
    n: usize,
    acc: &mut [f32; LANES],
) {
    let values = w.values().as_chunks::<GROUP>().0;
    let mut products = [MaybeUninit::uninit(); LANES * RUN_GROUPS];
    let products = &mut products[..n * period];
    let runs = if stride == period { 1 } else { n };
    for (i, products) in products.chunks_exact_mut(n * period / runs).enumerate() {
        let run = start + i * stride..start + i * stride + products.len();
        scaled_dots(k, &values[run.clone()], &w.scales()[run], x, period, products);
    }
    // SAFETY: the calls have written all of it.
    let products = unsafe { assume_init(products) };
    if n == LANES {
        k.sum_rows(products, period, acc);
    } else {
        for (acc, row) in acc.iter_mut().zip(products.chunks_exact(period)) {
            for product in row {
                *acc += product;
            }
        }
    }
}

/// The most groups that [`Extended`] repeats.
const SHORT: usize = 32;

/// A short token followed by its beginning, so that 16 groups can be read from any of its groups on.
struct Extended {
    values: [Group; SHORT + LANES],
    scales: [f32; SHORT + LANES],
    sums: [i32; SHORT + LANES],
    outliers: [Outlier; SHORT + LANES],
}

impl Extended {
    const EMPTY: Self = Self {
        values: [[0; GROUP]; SHORT + LANES],
        scales: [0.0; SHORT + LANES],
        sums: [0; SHORT + LANES],
        outliers: [Outlier { high: [0; 4], quad: 0 }; SHORT + LANES],
    };

    #[inline(always)]
    fn extend<'a>(&'a mut self, x: Block<'a>) -> Block<'a> {
        let period = x.values.len();
        if period > SHORT || period.is_multiple_of(LANES) {
            return x;
        }
        let len = period + LANES - 1;
        for i in 0..len {
            let g = i % period;
            (self.values[i], self.scales[i]) = (x.values[g], x.scales[g]);
            (self.sums[i], self.outliers[i]) = (x.sums[g], x.outliers[g]);
        }
        Block {
            values: &self.values[..len],
            scales: &self.scales[..len],
            sums: &self.sums[..len],
            outliers: &self.outliers[..len],
        }
    }
}

/// `products[i] = dot(w[i], x[i mod period]) · (1/scales[i] · x_scale[i mod period])`.
#[inline(always)]
fn scaled_dots<K: Int8>(
    k: K,
    w: &[Group],
    scales: &[f32],
    x: &Block,
    period: usize,
    products: &mut [MaybeUninit<f32>],
) {
    let (w, w_tail) = w.as_chunks::<LANES>();
    let (scales, scale_tail) = scales.as_chunks::<LANES>();
    let (products, product_tail) = products.as_chunks_mut::<LANES>();
    let mut at = 0;
    for ((w, scale), products) in w.iter().zip(scales).zip(products) {
        *products = sixteen_dots(k, w, scale, x, at, period).map(MaybeUninit::new);
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
        for (product, dot) in product_tail.iter_mut().zip(sixteen_dots(k, &w, &scale, x, at, period)) {
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
    period: usize,
) -> [f32; LANES] {
    let s = k.lanes();
    let run = (x.values[at..].first_chunk(), x.sums[at..].first_chunk(), x.outliers[at..].first_chunk());
    let (dots, x_scale) = if let ((Some(values), Some(sums), Some(outliers)), Some(scales)) =
        (run, x.scales[at..].first_chunk())
    {
        (k.dots(w, &Sixteen { values, sums, outliers }), s.load(scales))
    } else {
        let (mut values, mut sums, mut scales) = ([[0; GROUP]; LANES], [0; LANES], [0.0; LANES]);
        let mut outliers = [Outlier::default(); LANES];
        for i in 0..LANES {
            let g = (at + i) % period;
            (values[i], scales[i], sums[i], outliers[i]) =
                (x.values[g], x.scales[g], x.sums[g], x.outliers[g]);
        }
        let x = Sixteen { values: &values, sums: &sums, outliers: &outliers };
        (k.dots(w, &x), s.load(&scales))
    };
    let inverse = s.div(s.splat(1.0), s.load(scale));
    let mut products = [0.0; LANES];
    s.store(s.mul(s.to_f32(dots), s.mul(inverse, x_scale)), &mut products);
    products
}

/// Whether any of some groups has an outlier.
#[inline(always)]
pub(crate) fn any_outlier<'a>(outliers: impl IntoIterator<Item = &'a Outlier>) -> bool {
    // Without a branch for each.
    outliers.into_iter().fold(0, |any, outlier| any | outlier.high_bits()) != 0
}

/// Many tokens: panels of 32 rows × up to 32 groups are packed, and each meets every token.
#[inline(always)]
fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let mut panel = [const { MaybeUninit::uninit() }; PANEL_GROUPS];
    let mut inverse = [[0.0; PANEL_ROWS]; PANEL_GROUPS];
    for first in rows.clone().step_by(PANEL_ROWS) {
        let n = PANEL_ROWS.min(rows.end - first);
        let columns = first - rows.start..first - rows.start + n;
        for from in (0..groups).step_by(PANEL_GROUPS) {
            let block = from..(from + PANEL_GROUPS).min(groups);
            for (i, g) in block.clone().enumerate() {
                // A panel that is not full repeats its last row, whose results are then dropped.
                let index = |r: usize| (first + r.min(n - 1)) * groups + g;
                k.pack(&std::array::from_fn(|r| &values[index(r)]), &mut panel[i]);
                inverse[i] = std::array::from_fn(|r| 1.0 / w.scales()[index(r)]);
            }
            // SAFETY: these have just been packed.
            let panel = unsafe { assume_init(&panel[..block.len()]) };
            let next = if block.end < groups { (first, block.end) } else { (first + PANEL_ROWS, 0) };
            let mut ahead = block_groups(values, groups, next);
            let share = (PANEL_ROWS * PANEL_GROUPS).div_ceil(x.tokens().div_ceil(K::TILE_TOKENS));
            for t in (0..x.tokens()).step_by(K::TILE_TOKENS) {
                ahead.by_ref().take(share).for_each(|group| k.prefetch(group));
                let args = (k, panel, &inverse[..block.len()], x, block.clone(), t);
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

/// # Safety
/// Every element must have been written.
#[inline(always)]
unsafe fn assume_init<T>(x: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: the layouts are the same, and the caller says that the elements are initialised.
    unsafe { &*(std::ptr::from_ref(x) as *const [T]) }
}

/// The groups of the 32 × 32 block at `(row, group)` that lie in the matrix, row by row.
#[inline(always)]
fn block_groups(
    values: &[Group],
    groups: usize,
    (row, group): (usize, usize),
) -> impl Iterator<Item = &Group> {
    let len = PANEL_GROUPS.min(groups - group);
    let rows = values.chunks_exact(groups).skip(row).take(PANEL_ROWS);
    rows.flat_map(move |row| &row[group..group + len])
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
            let row = &out.row(token + i)[columns.clone()];
            match row.first_chunk() {
                Some(full) => *acc = *full,
                None => acc[..row.len()].copy_from_slice(row),
            }
        }
    }
    let x = std::array::from_fn(|i| Block::new(x, token + i, groups.clone()));
    k.tile(panel, inverse, &x, &mut acc);
    for (i, acc) in acc.iter().enumerate() {
        let row = &mut out.row(token + i)[columns.clone()];
        match row.first_chunk_mut() {
            Some(full) => *full = *acc,
            None => row.copy_from_slice(&acc[..row.len()]),
        }
    }
}
