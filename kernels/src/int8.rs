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

/// Bytes of rows that stay in the second-level cache from one token to the next.
const CACHED_BYTES: usize = 128 << 10;

/// Groups in a packed panel: 32 rows × 32 groups are 64 KiB of weights, which stay in the second-level cache.
const PANEL_GROUPS: usize = 32;

/// Rows of up to so many groups, 8 KiB, are [`Extended`].
const EXTENDED_GROUPS: usize = 128;

/// How far ahead of [`gemv`] the second-level cache is asked to run, in bytes: see DESIGN.md.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const PREFETCH: usize = 16384;

/// How many scales ahead it asks for these: one cache line of them belongs to 16 of weights.
const SCALES_AHEAD: usize = 256;

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

    /// Lane `i`: `Σ_k w[i][k]·x[i][k]`, or what [`Int8::correct`] makes that of. Reads `w` from memory for the first time:
    /// this is the place to ask for what lies [`PREFETCH`] bytes behind.
    fn dots(self, w: &[Group; LANES], x: &[Group; LANES]) -> <Self::Lanes as Simd>::I32;

    /// Takes off from `dots` what was added to each weight, and adds what the outliers of `x` add.
    fn correct(
        self,
        dots: <Self::Lanes as Simd>::I32,
        w: &[Group; LANES],
        x: &Sixteen,
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

/// Sixteen consecutive groups of one token.
#[derive(Clone, Copy)]
pub(crate) struct Sixteen<'a> {
    values: &'a [Group; LANES],
    scales: &'a [f32; LANES],
    /// For those who add 128 to the weights.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sums: &'a [i32; LANES],
    /// Unless the token has none.
    pub outliers: Option<&'a [Outlier; LANES]>,
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
    // A vector is 16 groups.
    let least = LANES.div_ceil((w.cols() / GROUP).max(1));
    if !w.is_aligned() || w.cols() == 0 || x.tokens() <= K::GEMV_TOKENS && rows.len() < least {
        scalar::matmul_i8(w, rows, x, out);
    } else if x.tokens() <= K::GEMV_TOKENS {
        let panel_rows = match x.tokens() {
            1 => rows.len(),
            // The second token finds the rows in the cache.
            _ => (CACHED_BYTES / w.cols()).next_multiple_of(PANEL_ROWS),
        };
        for first in rows.clone().step_by(panel_rows) {
            let end = (first + panel_rows).min(rows.end);
            let panel = first.min(end - least)..end;
            for t in 0..x.tokens() {
                let out = &mut out.row(t)[panel.start - rows.start..panel.end - rows.start];
                gemv(k, w, panel.clone(), x, t, out);
            }
        }
    } else {
        k.gemm(w, rows, x, out);
    }
}

/// One token and rows of at least 16 groups in all, which are read from the first to the last.
#[inline(always)]
fn gemv<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, token: usize, out: &mut [f32]) {
    let groups = w.cols() / GROUP;
    let x = Block::new(x, token, 0..groups);
    let outliers = any_outlier(x.outliers);
    let mut extended = Extended::ROOM;
    let x = extended.extend(x);
    let all = rows.start * groups..rows.end * groups;
    let (values, scales) = (&w.values().as_chunks().0[all.clone()], &w.scales()[all]);
    // All rows make a single run, unless 16 groups of x could not be read from any of them on.
    let together = x.values.len() > groups || groups.is_multiple_of(LANES);
    let n = if together { rows.len() } else { 1 };
    let runs = values.chunks_exact(n * groups).zip(scales.chunks_exact(n * groups));
    for ((values, scales), out) in runs.zip(out.chunks_exact_mut(n)) {
        k.multiply_run(&Run { values, scales, x, groups, outliers }, out);
    }
}

/// Some whole rows, 16 groups or more, and the token they meet.
pub(crate) struct Run<'a> {
    values: &'a [Group],
    scales: &'a [f32],
    /// Of several rows that are no multiples of 16 groups: [`Extended`].
    x: Block<'a>,
    /// Groups of a row.
    groups: usize,
    /// Whether the token has any.
    outliers: bool,
}

impl<'a> Run<'a> {
    /// Sixteen groups of the token from `at` on.
    #[inline(always)]
    fn sixteen(&self, at: usize) -> Sixteen<'a> {
        let Block { values, scales, sums, outliers } = self.x;
        let (Some(values), Some(scales)) = (values[at..].first_chunk(), scales[at..].first_chunk()) else {
            unreachable!("the token is extended")
        };
        let (Some(sums), Some(outliers)) = (sums[at..].first_chunk(), outliers[at..].first_chunk()) else {
            unreachable!("the token is extended")
        };
        Sixteen { values, scales, sums, outliers: self.outliers.then_some(outliers) }
    }
}

/// The products of a run's rows with its token, 16 groups at a time, straight across the ends of rows.
///
/// Three steps overlap, so that none waits for the one before: while 16 groups are multiplied, those before are corrected
/// (which reads some of them again: by now they are in the cache) and scaled, and those before these are summed.
#[inline(always)]
pub(crate) fn multiply_run<K: Int8>(k: K, run: &Run, out: &mut [f32]) {
    let s = k.lanes();
    let (w, rest) = run.values.as_chunks();
    let (scales, _) = run.scales.as_chunks();
    let mut sums = RowSums { out: out.iter_mut(), groups: run.groups, left: run.groups, sum: 0.0 };
    let mut products = [0.0; LANES];
    let mut x = run.sixteen(0);
    let mut dots = k.dots(&w[0], x.values);
    let mut at = 0;
    for (i, (this, scales)) in w.iter().zip(scales).enumerate() {
        at += LANES;
        while at >= run.groups {
            at -= run.groups;
        }
        let (this_x, this_dots) = (x, dots);
        if let Some(next) = w.get(i + 1) {
            x = run.sixteen(at);
            dots = k.dots(next, x.values);
        }
        let scaled = scale(k, k.correct(this_dots, this, &this_x), scales, &this_x);
        if i > 0 {
            sums.add(&products);
        }
        s.store(scaled, &mut products);
    }
    sums.add(&products);
    if let (false, Some(last), Some(scales)) =
        (rest.is_empty(), run.values.last_chunk(), run.scales.last_chunk())
    {
        // Fewer are left: the last 16, some once more.
        let x = run.sixteen((run.values.len() - LANES) % run.groups);
        let dots = k.correct(k.dots(last, x.values), last, &x);
        s.store(scale(k, dots, scales, &x), &mut products);
        sums.add(&products[LANES - rest.len()..]);
    }
}

/// `dots · (1/scale · x_scale)`
#[inline(always)]
fn scale<K: Int8>(
    k: K,
    dots: <K::Lanes as Simd>::I32,
    scales: &[f32; LANES],
    x: &Sixteen,
) -> <K::Lanes as Simd>::F32 {
    let s = k.lanes();
    s.prefetch(scales.as_ptr().wrapping_add(SCALES_AHEAD));
    let inverse = s.div(s.splat(1.0), s.load(scales));
    s.mul(s.to_f32(dots), s.mul(inverse, s.load(x.scales)))
}

/// Sums products row by row, groups in ascending order.
struct RowSums<'a> {
    out: std::slice::IterMut<'a, f32>,
    groups: usize,
    /// Groups of the row that are still to come.
    left: usize,
    sum: f32,
}

impl RowSums<'_> {
    /// Adds the products that come next.
    #[inline(always)]
    fn add(&mut self, products: &[f32]) {
        if products.len() == LANES && self.left >= LANES {
            products.iter().for_each(|product| self.sum += product);
            self.finish(LANES);
        } else {
            for product in products {
                self.sum += product;
                self.finish(1);
            }
        }
    }

    /// Counts groups that were added; a row's last ends it.
    #[inline(always)]
    fn finish(&mut self, groups: usize) {
        self.left -= groups;
        if self.left == 0 {
            if let Some(out) = self.out.next() {
                *out = self.sum;
            }
            (self.left, self.sum) = (self.groups, 0.0);
        }
    }
}

/// Some groups of a token followed by the first of them, so that 16 can be read from any of them on.
struct Extended {
    values: [MaybeUninit<Group>; EXTENDED_GROUPS + LANES],
    scales: [MaybeUninit<f32>; EXTENDED_GROUPS + LANES],
    sums: [MaybeUninit<i32>; EXTENDED_GROUPS + LANES],
    outliers: [MaybeUninit<Outlier>; EXTENDED_GROUPS + LANES],
}

impl Extended {
    const ROOM: Self = Self {
        values: [const { MaybeUninit::uninit() }; EXTENDED_GROUPS + LANES],
        scales: [const { MaybeUninit::uninit() }; EXTENDED_GROUPS + LANES],
        sums: [const { MaybeUninit::uninit() }; EXTENDED_GROUPS + LANES],
        outliers: [const { MaybeUninit::uninit() }; EXTENDED_GROUPS + LANES],
    };

    #[inline(always)]
    fn extend<'a>(&'a mut self, x: Block<'a>) -> Block<'a> {
        if x.values.len().is_multiple_of(LANES) || x.values.len() > EXTENDED_GROUPS {
            return x;
        }
        Block {
            values: repeat(x.values, &mut self.values),
            scales: repeat(x.scales, &mut self.scales),
            sums: repeat(x.sums, &mut self.sums),
            outliers: repeat(x.outliers, &mut self.outliers),
        }
    }
}

/// `x`, then its elements again from the first on, 15 of them.
#[inline(always)]
fn repeat<'a, T: Copy>(x: &[T], room: &'a mut [MaybeUninit<T>; EXTENDED_GROUPS + LANES]) -> &'a [T] {
    let room = &mut room[..x.len() + LANES - 1];
    for room in room.chunks_mut(x.len()) {
        for (room, x) in room.iter_mut().zip(x) {
            room.write(*x);
        }
    }
    // SAFETY: no chunk is longer than `x`, so each has been written.
    unsafe { assume_init(room) }
}

/// Whether any of some groups has an outlier.
#[inline(always)]
pub(crate) fn any_outlier<'a>(outliers: impl IntoIterator<Item = &'a Outlier>) -> bool {
    // Without a branch for each.
    outliers.into_iter().fold(0, |any, outlier| any | outlier.high_bits()) != 0
}

/// Most tokens that are done with a panel before the next one has come, if it is asked for only then.
const EARLY_TOKENS: usize = 32;

/// Many tokens: panels of 32 rows × up to 32 groups are packed, and each meets every token.
#[inline(always)]
pub(crate) fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let mut panel = [const { MaybeUninit::uninit() }; PANEL_GROUPS];
    let mut inverse = [[0.0; PANEL_ROWS]; PANEL_GROUPS];
    let early = x.tokens() <= EARLY_TOKENS;
    for first in rows.clone().step_by(PANEL_ROWS) {
        let n = PANEL_ROWS.min(rows.end - first);
        let columns = first - rows.start..first - rows.start + n;
        for from in (0..groups).step_by(PANEL_GROUPS) {
            let block = from..(from + PANEL_GROUPS).min(groups);
            let next = if block.end < groups { (first, block.end) } else { (first + PANEL_ROWS, 0) };
            let ask = |row| prefetch_block(k.lanes(), values, groups, PANEL_GROUPS, (next.0 + row, next.1));
            let mut ahead = 0;
            for (i, g) in block.clone().enumerate() {
                if early {
                    let until = (i + 1) * PANEL_ROWS / block.len();
                    (ahead..until).for_each(ask);
                    ahead = until;
                }
                let group_of = group_of_rows(w, first..rows.end, g, &mut inverse[i]);
                k.pack(&group_of, &mut panel[i]);
                inverse[i].iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            }
            // SAFETY: these have just been packed.
            let panel = unsafe { assume_init(&panel[..block.len()]) };
            let share = PANEL_ROWS.div_ceil(x.tokens().div_ceil(K::TILE_TOKENS));
            for t in (0..x.tokens()).step_by(K::TILE_TOKENS) {
                let until = (ahead + share).min(PANEL_ROWS);
                (ahead..until).for_each(ask);
                ahead = until;
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

/// Group `g` of each of the first `N` of `rows`, and its stored scale. Where there are fewer the last row is repeated, and
/// the results are then dropped.
#[inline(always)]
pub(crate) fn group_of_rows<'a, const N: usize>(
    w: &QMatrix<'a>,
    rows: Range<usize>,
    g: usize,
    scales: &mut [f32; N],
) -> [&'a Group; N] {
    let (groups, values) = (w.cols() / GROUP, w.values().as_chunks().0);
    // A loop, since the closures of `array::from_fn` would be called one by one.
    let mut group_of = [&values[0]; N];
    for (r, (group, scale)) in group_of.iter_mut().zip(scales).enumerate() {
        let index = (rows.start + r).min(rows.end - 1) * groups + g;
        (*group, *scale) = (&values[index], w.scales()[index]);
    }
    group_of
}

/// # Safety
/// Every element must have been written.
#[inline(always)]
unsafe fn assume_init<T>(x: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: the layouts are the same, and the caller says that the elements are initialised.
    unsafe { &*(std::ptr::from_ref(x) as *const [T]) }
}

/// Asks for up to `len` groups from `(row, group)` on, those that lie in the row; none behind the matrix.
#[inline(always)]
pub(crate) fn prefetch_block(
    s: impl Simd,
    values: &[Group],
    groups: usize,
    len: usize,
    (row, group): (usize, usize),
) {
    let start = row * groups + group;
    for group in values.get(start..start + len.min(groups - group)).unwrap_or(&[]) {
        s.prefetch(group);
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
            let row = &out.row(token + i)[columns.clone()];
            match row.first_chunk() {
                Some(full) => *acc = *full,
                None => acc[..row.len()].copy_from_slice(row),
            }
        }
    }
    let mut blocks = [Block::new(x, token, groups.clone()); N];
    for (i, block) in blocks.iter_mut().enumerate().skip(1) {
        *block = Block::new(x, token + i, groups.clone());
    }
    k.tile(panel, inverse, &blocks, &mut acc);
    for (i, acc) in acc.iter().enumerate() {
        let row = &mut out.row(token + i)[columns.clone()];
        match row.first_chunk_mut() {
            Some(full) => *full = *acc,
            None => row.copy_from_slice(&acc[..row.len()]),
        }
    }
}
