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

/// Groups of a row that [`gemv`] takes at once: the products of twice 16 rows, 16 KiB, stay in the first-level cache.
const RUN_GROUPS: usize = 128;

/// How far ahead of [`gemv`] the second-level cache is asked to run, in bytes: see DESIGN.md.
const PREFETCH: usize = 16384;

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

    /// Lane `i`: `Σ_k w[i][k]·x[i][k]`, `x` with its outliers. Reads `w` from memory for the first time: this is the
    /// place to prefetch what follows it.
    fn dots(self, w: &[Group; LANES], x: &Sixteen) -> <Self::Lanes as Simd>::I32;

    /// [`gemm`], in a function of its own: a single token should not pay for its stack.
    #[inline(always)]
    fn gemm(self, w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
        gemm(self, w, rows, x, out);
    }

    /// [`scaled_dots`], in a function of its own: its registers are its own too.
    #[inline(always)]
    fn scaled_dots(self, run: &Run, products: &mut [[MaybeUninit<f32>; LANES]]) {
        scaled_dots(self, run, products);
    }

    /// `acc[r] += rows[r·n + g]` for 16 groups `g ≥ from` in order, or as many as there are; `rows` is `[16][n]`.
    #[inline(always)]
    fn sum_rows(self, rows: &[f32], n: usize, from: usize, acc: &mut [f32; LANES]) {
        for g in from..n.min(from + LANES) {
            for (acc, row) in acc.iter_mut().zip(rows.chunks_exact(n)) {
                *acc += row[g];
            }
        }
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

/// Sixteen consecutive groups of one token, their scales aside.
pub(crate) struct Sixteen<'a> {
    pub values: &'a [Group; LANES],
    /// For those who add 128 to the weights.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sums: &'a [i32; LANES],
    /// Unless the token has none.
    pub outliers: Option<&'a [Outlier; LANES]>,
    /// How many bytes behind a weight that is read those lie that are to be prefetched.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub ahead: usize,
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
    if !w.is_aligned() || w.cols() == 0 || x.tokens() <= K::GEMV_TOKENS && rows.len() < LANES {
        scalar::matmul_i8(w, rows, x, out);
    } else if x.tokens() <= K::GEMV_TOKENS {
        let panel_rows = match x.tokens() {
            1 => rows.len(),
            // The second token finds the rows in the cache.
            _ => (CACHED_BYTES / w.cols()).next_multiple_of(PANEL_ROWS),
        };
        for first in rows.clone().step_by(panel_rows) {
            let end = (first + panel_rows).min(rows.end);
            let panel = first.min(end - LANES)..end;
            for t in 0..x.tokens() {
                let out = &mut out.row(t)[panel.start - rows.start..panel.end - rows.start];
                gemv(k, w, panel.clone(), x, t, out);
            }
        }
    } else {
        k.gemm(w, rows, x, out);
    }
}

/// One token: 16 rows at a time, each read from its start to its end. The products of 16 rows are summed while the next
/// are multiplied: reading does not pause, and the products are in the cache, not on their way.
#[inline(always)]
fn gemv<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, token: usize, out: &mut [f32]) {
    let groups = w.cols() / GROUP;
    let x = Block::new(x, token, 0..groups);
    let outliers = any_outlier(x.outliers);
    let mut extended = Extended::ROOM;
    // Of long rows the same part of the next one comes next.
    let ahead = if groups > RUN_GROUPS { w.cols() } else { PREFETCH };
    let x = Token { x: extended.extend(x), groups, outliers, ahead };
    let all = Run { values: w.values().as_chunks().0, scales: w.scales(), x: &x, x_at: 0 };
    let mut room = [Products([MaybeUninit::uninit(); LANES * RUN_GROUPS]); 2];
    let [products, summed] = &mut room;
    let mut products = products;
    let mut sums =
        Sums { products: summed, part: Part { row: 0, from: 0, len: 0 }, at: 0, acc: [0.0; LANES] };
    let mut part = Some(Part { row: 0, from: 0, len: run_len(groups) });
    while let Some(this) = part {
        multiply(k, rows.start, &this, &all, products, &mut sums);
        sums.finish(k, out);
        part = this.next(groups, rows.len());
        // SAFETY: the call has written the products of `this`.
        products = unsafe { sums.start(products, this) };
    }
    sums.finish(k, out);
}

/// Some groups of 16 rows.
struct Part {
    /// The first of the rows, counted from the first that [`gemv`] is asked for.
    row: usize,
    from: usize,
    len: usize,
}

impl Part {
    /// What to multiply next: the rest of the rows, or the next 16. If fewer are left, the last 16: some once more.
    #[inline(always)]
    fn next(&self, groups: usize, rows: usize) -> Option<Self> {
        let Self { row, from, len } = *self;
        if from + len < groups {
            return Some(Self { row, from: from + len, len: run_len(groups - from - len) });
        }
        let row = (row + LANES).min(rows - LANES);
        (row > self.row).then(|| Self { row, from: 0, len: run_len(groups) })
    }
}

/// How many of the `left` groups of a row to take at once: all of them, or so many that 16 or more are left.
#[inline(always)]
fn run_len(left: usize) -> usize {
    match left - left.min(RUN_GROUPS) {
        0 => left,
        1..LANES => RUN_GROUPS - LANES,
        LANES.. => RUN_GROUPS,
    }
}

/// `[16][len]` scaled products of a part.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Products([MaybeUninit<f32>; LANES * RUN_GROUPS]);

/// The row sums of a part, while they are made.
struct Sums<'a> {
    /// Those of `part` are written.
    products: &'a mut Products,
    part: Part,
    /// How many of the part's groups are summed.
    at: usize,
    acc: [f32; LANES],
}

impl<'a> Sums<'a> {
    /// Takes up the next part and gives back the last one's products.
    ///
    /// # Safety
    /// The products of `part` must have been written.
    #[inline(always)]
    unsafe fn start(&mut self, products: &'a mut Products, part: Part) -> &'a mut Products {
        if part.from == 0 {
            self.acc = [0.0; LANES];
        }
        (self.part, self.at) = (part, 0);
        std::mem::replace(&mut self.products, products)
    }

    /// Sums 16 groups, if so many are left.
    #[inline(always)]
    fn step<K: Int8>(&mut self, k: K) {
        let len = self.part.len;
        if self.at < len {
            // SAFETY: `start` was promised that these are written.
            let products = unsafe { assume_init(&self.products.0[..LANES * len]) };
            k.sum_rows(products, len, self.at, &mut self.acc);
            self.at += LANES;
        }
    }

    /// Sums what is left.
    #[inline(always)]
    fn finish<K: Int8>(&mut self, k: K, out: &mut [f32]) {
        while self.at < self.part.len {
            self.step(k);
        }
        out[self.part.row..][..LANES].copy_from_slice(&self.acc);
    }
}

/// Some groups of a token followed by the first of them, so that 16 can be read from any of them on.
struct Extended {
    values: [MaybeUninit<Group>; RUN_GROUPS + LANES],
    scales: [MaybeUninit<f32>; RUN_GROUPS + LANES],
    sums: [MaybeUninit<i32>; RUN_GROUPS + LANES],
    outliers: [MaybeUninit<Outlier>; RUN_GROUPS + LANES],
}

impl Extended {
    const ROOM: Self = Self {
        values: [const { MaybeUninit::uninit() }; RUN_GROUPS + LANES],
        scales: [const { MaybeUninit::uninit() }; RUN_GROUPS + LANES],
        sums: [const { MaybeUninit::uninit() }; RUN_GROUPS + LANES],
        outliers: [const { MaybeUninit::uninit() }; RUN_GROUPS + LANES],
    };

    #[inline(always)]
    fn extend<'a>(&'a mut self, x: Block<'a>) -> Block<'a> {
        // Of a longer one parts of rows are read.
        if x.values.len().is_multiple_of(LANES) || x.values.len() > RUN_GROUPS {
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
fn repeat<'a, T: Copy>(x: &[T], room: &'a mut [MaybeUninit<T>; RUN_GROUPS + LANES]) -> &'a [T] {
    let room = &mut room[..x.len() + LANES - 1];
    for room in room.chunks_mut(x.len()) {
        for (room, x) in room.iter_mut().zip(x) {
            room.write(*x);
        }
    }
    // SAFETY: no chunk is longer than `x`, so each has been written.
    unsafe { assume_init(room) }
}

/// The products of a part. In between, `sums` takes its steps.
#[inline(always)]
fn multiply<K: Int8>(k: K, first: usize, part: &Part, all: &Run, products: &mut Products, sums: &mut Sums) {
    let groups = all.x.groups;
    let Part { row, from, len } = *part;
    // Whole rows lie one after the other and make a single run.
    let run_len = if len == groups { LANES * len } else { len };
    for (run, products) in products.0[..LANES * len].chunks_exact_mut(run_len).enumerate() {
        let run = all.from((first + row + run) * groups + from, run_len, from);
        for at in (0..run_len).step_by(LANES * LANES) {
            let len = (run_len - at).min(LANES * LANES) / LANES * LANES;
            k.scaled_dots(&run.from(at, len, from + at), products[at..].as_chunks_mut().0);
            sums.step(k);
        }
        if !run_len.is_multiple_of(LANES) {
            // The end of a part of a row: some groups once more.
            let at = run_len - LANES;
            k.scaled_dots(&run.from(at, LANES, from + at), products[at..].as_chunks_mut().0);
        }
    }
}

/// Some consecutive groups of a matrix and what they meet.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    values: &'a [Group],
    scales: &'a [f32],
    x: &'a Token<'a>,
    /// The group of `x` that the first meets. After the last comes the first again.
    x_at: usize,
}

impl Run<'_> {
    #[inline(always)]
    fn from(&self, at: usize, len: usize, x_at: usize) -> Self {
        Self {
            values: &self.values[at..][..len],
            scales: &self.scales[at..][..len],
            x_at: x_at % self.x.groups,
            ..*self
        }
    }
}

/// A token that is [`Extended`].
struct Token<'a> {
    x: Block<'a>,
    groups: usize,
    /// Whether it has any.
    outliers: bool,
    ahead: usize,
}

impl<'a> Token<'a> {
    /// Sixteen groups from `at` on, and their scales.
    #[inline(always)]
    fn sixteen(&self, at: usize) -> (Sixteen<'a>, &'a [f32; LANES]) {
        let Block { values, scales, sums, outliers } = self.x;
        let (Some(values), Some(scales)) = (values[at..].first_chunk(), scales[at..].first_chunk()) else {
            unreachable!("the token is extended")
        };
        let (Some(sums), Some(outliers)) = (sums[at..].first_chunk(), outliers[at..].first_chunk()) else {
            unreachable!("the token is extended")
        };
        let outliers = self.outliers.then_some(outliers);
        (Sixteen { values, sums, outliers, ahead: self.ahead }, scales)
    }
}

/// `dot(w, x) · (1/scale · x_scale)` of each group of a run, 16 at a time.
#[inline(always)]
pub(crate) fn scaled_dots<K: Int8>(k: K, run: &Run, products: &mut [[MaybeUninit<f32>; LANES]]) {
    let s = k.lanes();
    let mut at = run.x_at;
    let sixteens = run.values.as_chunks().0.iter().zip(run.scales.as_chunks().0);
    for ((w, scales), products) in sixteens.zip(products) {
        let (x, x_scale) = run.x.sixteen(at);
        s.prefetch(scales.as_ptr().wrapping_add(SCALES_AHEAD));
        let inverse = s.div(s.splat(1.0), s.load(scales));
        let scaled = s.mul(s.to_f32(k.dots(w, &x)), s.mul(inverse, s.load(x_scale)));
        // SAFETY: 16 floats, to be written.
        s.store(scaled, unsafe { &mut *products.as_mut_ptr().cast() });
        at += LANES;
        while at >= run.x.groups {
            at -= run.x.groups;
        }
    }
}

/// Whether any of some groups has an outlier.
#[inline(always)]
pub(crate) fn any_outlier<'a>(outliers: impl IntoIterator<Item = &'a Outlier>) -> bool {
    // Without a branch for each.
    outliers.into_iter().fold(0, |any, outlier| any | outlier.high_bits()) != 0
}

/// Many tokens: panels of 32 rows × up to 32 groups are packed, and each meets every token.
#[inline(always)]
pub(crate) fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
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
                // Loops, since the closures of `array::from_fn` would be called one by one.
                let mut group_of = [&values[0]; PANEL_ROWS];
                for (r, (group, scale)) in group_of.iter_mut().zip(&mut inverse[i]).enumerate() {
                    // A panel that is not full repeats its last row, whose results are then dropped.
                    let index = (first + r.min(n - 1)) * groups + g;
                    (*group, *scale) = (&values[index], w.scales()[index]);
                }
                k.pack(&group_of, &mut panel[i]);
                inverse[i].iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            }
            // SAFETY: these have just been packed.
            let panel = unsafe { assume_init(&panel[..block.len()]) };
            let next = if block.end < groups { (first, block.end) } else { (first + PANEL_ROWS, 0) };
            let share = PANEL_ROWS.div_ceil(x.tokens().div_ceil(K::TILE_TOKENS));
            let mut ahead = 0;
            for t in (0..x.tokens()).step_by(K::TILE_TOKENS) {
                for row in ahead..(ahead + share).min(PANEL_ROWS) {
                    for group in block_row(values, groups, (next.0 + row, next.1)) {
                        k.lanes().prefetch(group);
                    }
                }
                ahead += share;
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

/// Up to 32 groups from `(row, group)` on, those that lie in the row; none behind the matrix.
#[inline(always)]
fn block_row(values: &[Group], groups: usize, (row, group): (usize, usize)) -> &[Group] {
    let len = PANEL_GROUPS.min(groups - group);
    let start = row * groups + group;
    values.get(start..start + len).unwrap_or(&[])
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
