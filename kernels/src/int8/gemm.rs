//! Many tokens and weights in rows: 16 rows at a time are packed into a panel, which then meets every token.

use super::tile::{Ahead, Place, multiply_panels};
use super::{Group, Int8, assume_init};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, Panel, PanelGroup};
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::simd::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The most groups of each row that are packed together: 64 KiB of weights, which stay in the second-level cache.
const PACKED_GROUPS: usize = 64;

/// The most tokens for which the next panel is prefetched while this one is packed. While so few are multiplied it would
/// not have come.
const PREFETCH_WHILE_PACKING_TOKENS: usize = 32;

/// Room for a panel of up to `GROUPS` groups, and its scales.
pub(crate) struct Packed<const GROUPS: usize> {
    values: [MaybeUninit<PanelGroup>; GROUPS],
    /// 1 over what is stored.
    scales: [[f32; PANEL_ROWS]; GROUPS],
}

impl<const GROUPS: usize> Packed<GROUPS> {
    /// Not packed yet.
    pub const fn new() -> Self {
        Self { values: [const { MaybeUninit::uninit() }; GROUPS], scales: [[0.0; PANEL_ROWS]; GROUPS] }
    }

    /// Packs `groups` of the first 16 of `rows` into places `at..`; of fewer the last is repeated, and the results are then
    /// dropped. Calls `between` after each group.
    #[inline(always)]
    pub fn pack<K: Int8>(
        &mut self,
        k: K,
        w: &QMatrix,
        rows: Range<usize>,
        groups: Range<usize>,
        at: usize,
        mut between: impl FnMut(usize),
    ) {
        for (i, g) in groups.enumerate() {
            let scales = &mut self.scales[at + i];
            let group_of = group_of_rows(w, rows.clone(), g, scales);
            k.pack(&group_of, &mut self.values[at + i]);
            scales.iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            between(i);
        }
    }

    /// What lies in some places.
    ///
    /// # Safety
    /// They must have been packed.
    #[inline(always)]
    pub unsafe fn panel(&self, places: Range<usize>) -> Panel<'_, [f32; PANEL_ROWS]> {
        // SAFETY: the caller vouches for it.
        let values = unsafe { assume_init(&self.values[places.clone()]) };
        Panel { values, scales: &self.scales[places] }
    }
}

/// `out[t][i] = w[rows.start + i] · x[t]`: panels of 16 rows × up to 64 groups are packed, several where the rows are short, and
/// each meets every token.
#[inline(always)]
pub(crate) fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let strip_rows = PANEL_ROWS * (PACKED_GROUPS / groups).max(1);
    let mut packed = Packed::<PACKED_GROUPS>::new();
    let prefetch_while_packing = x.tokens() <= PREFETCH_WHILE_PACKING_TOKENS;
    for first in rows.clone().step_by(strip_rows) {
        let strip = first..(first + strip_rows).min(rows.end);
        let panels = 0..strip.len().div_ceil(PANEL_ROWS);
        for from in (0..groups).step_by(PACKED_GROUPS) {
            let panel_groups = from..(from + PACKED_GROUPS).min(groups);
            let next = match panel_groups.end < groups {
                true => (first, panel_groups.end),
                false => (first + strip_rows, 0),
            };
            let prefetch =
                |row| prefetch_groups(k.lanes(), values, groups, PACKED_GROUPS, (next.0 + row, next.1));
            // How many rows of the next strip have been prefetched.
            let mut prefetched = 0;
            let mut prefetch_until = |until: usize| {
                (prefetched..until.min(strip_rows)).for_each(prefetch);
                prefetched = prefetched.max(until);
            };
            let n = panel_groups.len();
            for p in panels.clone() {
                let rows = first + p * PANEL_ROWS..strip.end;
                packed.pack(k, w, rows, panel_groups.clone(), p * n, |i| {
                    if prefetch_while_packing {
                        prefetch_until(PANEL_ROWS * p + PANEL_ROWS * (i + 1) / n);
                    }
                });
            }
            multiply_panels(k, panels.clone(), panel_groups, x, &mut out, |p, (tile, tiles)| {
                prefetch_until((tile + 1) * strip_rows.div_ceil(tiles));
                // SAFETY: these have just been packed.
                let panel = unsafe { packed.panel(p * n..(p + 1) * n) };
                let lanes = 0..PANEL_ROWS.min(strip.len() - p * PANEL_ROWS);
                let column = first - rows.start + p * PANEL_ROWS;
                (panel, Place { lanes, column }, Ahead::NOTHING)
            });
        }
    }
}

/// Group `g` of each of the first 16 of `rows`, and into `scales` its stored scale. Where there are fewer rows the last is
/// repeated.
#[inline(always)]
fn group_of_rows<'a>(
    w: &QMatrix<'a>,
    rows: Range<usize>,
    g: usize,
    scales: &mut [f32; PANEL_ROWS],
) -> [&'a Group; PANEL_ROWS] {
    let (groups, values) = (w.cols() / GROUP, w.values().as_chunks().0);
    // A loop, since the closures of `array::from_fn` would be called one by one.
    let mut group_of = [&values[0]; PANEL_ROWS];
    for (r, (group, scale)) in group_of.iter_mut().zip(scales).enumerate() {
        let index = (rows.start + r).min(rows.end - 1) * groups + g;
        (*group, *scale) = (&values[index], w.scales()[index]);
    }
    group_of
}

/// Prefetches up to `len` groups from `(row, group)` on, those that lie in the row; none behind the matrix.
#[inline(always)]
pub(crate) fn prefetch_groups(
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
