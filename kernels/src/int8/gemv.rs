//! One token: the weights are read from the first to the last, 16 groups at a time, straight across the ends of rows.

use super::{Group, Int8, TokenGroups, any_outlier, assume_init};
use crate::quant::{GROUP, Outlier, QMatrix, Quantized};
use crate::scalar::LANES;
use crate::simd::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// How many bytes of weights ahead of its reading [`multiply_run`] prefetches into the second-level cache: TRIED.md has
/// other distances.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const PREFETCH_BYTES: usize = 16384;

/// How many scales ahead it prefetches: one cache line of scales belongs to 16 lines of weights.
const PREFETCH_SCALES: usize = 256;

/// The most groups of a row for which a [`WrappedToken`] has room: 8 KiB of values.
const WRAPPED_GROUPS: usize = 128;

/// 16 consecutive groups of one token.
#[derive(Clone, Copy)]
pub(crate) struct GroupsX16<'a> {
    values: &'a [Group; LANES],
    scales: &'a [f32; LANES],
    /// Of the groups' values, for those who add 128 to the weights.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sums: &'a [i32; LANES],
    /// Unless the token has none.
    pub outliers: Option<&'a [Outlier; LANES]>,
}

/// `out[i] = w[rows.start + i] · x[token]`, for rows of at least 16 groups in all.
#[inline(always)]
pub(super) fn gemv<K: Int8>(
    k: K,
    w: &QMatrix,
    rows: Range<usize>,
    x: &Quantized,
    token: usize,
    out: &mut [f32],
) {
    let groups = w.cols() / GROUP;
    let x = TokenGroups::new(x, token, 0..groups);
    let has_outliers = any_outlier(x.outliers);
    let mut wrapped = WrappedToken::UNINIT;
    let x = wrapped.wrap(x);
    let all = rows.start * groups..rows.end * groups;
    let (values, scales) = (&w.values().as_chunks().0[all.clone()], &w.scales()[all]);
    // All rows make a single run, unless 16 groups of x could not be read from any of them on.
    let single_run = x.values.len() > groups || groups.is_multiple_of(LANES);
    let run_rows = if single_run { rows.len() } else { 1 };
    let runs = values.chunks_exact(run_rows * groups).zip(scales.chunks_exact(run_rows * groups));
    for ((values, scales), out) in runs.zip(out.chunks_exact_mut(run_rows)) {
        k.multiply_run(&Run { values, scales, x, groups, has_outliers }, out);
    }
}

/// Some whole rows, 16 groups or more in all, and the token they meet.
pub(crate) struct Run<'a> {
    values: &'a [Group],
    scales: &'a [f32],
    /// A [`WrappedToken`]'s, if there are several rows and they are no multiples of 16 groups.
    x: TokenGroups<'a>,
    /// Groups of a row.
    groups: usize,
    /// Whether any group of the token has an outlier.
    has_outliers: bool,
}

impl<'a> Run<'a> {
    /// Groups `first..first + 16` of the token.
    #[inline(always)]
    fn token_groups(&self, first: usize) -> GroupsX16<'a> {
        let TokenGroups { values, scales, sums, outliers, .. } = self.x;
        let (Some(values), Some(scales)) = (values[first..].first_chunk(), scales[first..].first_chunk())
        else {
            unreachable!("the token is wrapped")
        };
        let (Some(sums), Some(outliers)) = (sums[first..].first_chunk(), outliers[first..].first_chunk())
        else {
            unreachable!("the token is wrapped")
        };
        GroupsX16 { values, scales, sums, outliers: self.has_outliers.then_some(outliers) }
    }
}

/// `out[i]`: the product of row `i` of a run with its token.
///
/// Three steps overlap, so that none waits for the one before: while 16 groups are multiplied, those before are corrected
/// (which reads some of them again: by now they are in the cache) and scaled, and those before these are summed.
#[inline(always)]
pub(crate) fn multiply_run<K: Int8>(k: K, run: &Run, out: &mut [f32]) {
    let s = k.lanes();
    let (w, rest) = run.values.as_chunks();
    let (scales, _) = run.scales.as_chunks();
    let mut sums = RowSums { out: out.iter_mut(), groups: run.groups, groups_left: run.groups, sum: 0.0 };
    let mut products = [0.0; LANES];
    let mut x = run.token_groups(0);
    let mut dots = k.dots(&w[0], x.values);
    // The column, in groups, at which the next 16 begin.
    let mut column = 0;
    for (i, (this, scales)) in w.iter().zip(scales).enumerate() {
        column += LANES;
        while column >= run.groups {
            column -= run.groups;
        }
        let (this_x, this_dots) = (x, dots);
        if let Some(next) = w.get(i + 1) {
            x = run.token_groups(column);
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
        let x = run.token_groups((run.values.len() - LANES) % run.groups);
        let dots = k.correct(k.dots(last, x.values), last, &x);
        s.store(scale(k, dots, scales, &x), &mut products);
        sums.add(&products[LANES - rest.len()..]);
    }
}

/// 16 groups' products, a group a lane: `dots · (1/scale · x_scale)`.
#[inline(always)]
fn scale<K: Int8>(
    k: K,
    dots: <K::Lanes as Simd>::I32,
    scales: &[f32; LANES],
    x: &GroupsX16,
) -> <K::Lanes as Simd>::F32 {
    let s = k.lanes();
    s.prefetch(scales.as_ptr().wrapping_add(PREFETCH_SCALES));
    let inverse = s.div(s.splat(1.0), s.load(scales));
    s.mul(s.to_f32(dots), s.mul(inverse, s.load(x.scales)))
}

/// Sums products row by row, groups in ascending order.
struct RowSums<'a> {
    out: std::slice::IterMut<'a, f32>,
    /// Groups of a row.
    groups: usize,
    /// Groups of the present row that are still to come.
    groups_left: usize,
    sum: f32,
}

impl RowSums<'_> {
    /// Adds the products of the groups that come next.
    #[inline(always)]
    fn add(&mut self, products: &[f32]) {
        if products.len() == LANES && self.groups_left >= LANES {
            products.iter().for_each(|product| self.sum += product);
            self.count(LANES);
        } else {
            for product in products {
                self.sum += product;
                self.count(1);
            }
        }
    }

    /// Counts groups that were added; a row's last ends it.
    #[inline(always)]
    fn count(&mut self, groups: usize) {
        self.groups_left -= groups;
        if self.groups_left == 0 {
            if let Some(out) = self.out.next() {
                *out = self.sum;
            }
            (self.groups_left, self.sum) = (self.groups, 0.0);
        }
    }
}

/// Room for up to 128 groups of a token followed by the first 15 of them, so that 16 can be read from any of them on.
struct WrappedToken {
    values: [MaybeUninit<Group>; WRAPPED_GROUPS + LANES],
    scales: [MaybeUninit<f32>; WRAPPED_GROUPS + LANES],
    sums: [MaybeUninit<i32>; WRAPPED_GROUPS + LANES],
    outliers: [MaybeUninit<Outlier>; WRAPPED_GROUPS + LANES],
}

impl WrappedToken {
    const UNINIT: Self = Self {
        values: [const { MaybeUninit::uninit() }; WRAPPED_GROUPS + LANES],
        scales: [const { MaybeUninit::uninit() }; WRAPPED_GROUPS + LANES],
        sums: [const { MaybeUninit::uninit() }; WRAPPED_GROUPS + LANES],
        outliers: [const { MaybeUninit::uninit() }; WRAPPED_GROUPS + LANES],
    };

    /// `x` wrapped; or `x` as it is, if it is a multiple of 16 groups, or longer than there is room for.
    #[inline(always)]
    fn wrap<'a>(&'a mut self, x: TokenGroups<'a>) -> TokenGroups<'a> {
        if x.values.len().is_multiple_of(LANES) || x.values.len() > WRAPPED_GROUPS {
            return x;
        }
        TokenGroups {
            values: wrap(x.values, &mut self.values),
            scales: wrap(x.scales, &mut self.scales),
            sums: wrap(x.sums, &mut self.sums),
            part_sums: &[],
            outliers: wrap(x.outliers, &mut self.outliers),
        }
    }
}

/// `x`, then its elements again from the first on, 15 of them.
#[inline(always)]
fn wrap<'a, T: Copy>(x: &[T], room: &'a mut [MaybeUninit<T>; WRAPPED_GROUPS + LANES]) -> &'a [T] {
    let room = &mut room[..x.len() + LANES - 1];
    for room in room.chunks_mut(x.len()) {
        for (room, x) in room.iter_mut().zip(x) {
            room.write(*x);
        }
    }
    // SAFETY: no chunk is longer than `x`, so each has been written.
    unsafe { assume_init(room) }
}
