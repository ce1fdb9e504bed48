//! Many tokens: rows are packed into panels, and each panel meets every token, a tile at a time.

use super::{Group, Int8, TokenGroups, assume_init};
use crate::mat::MatMut;
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::simd::Simd;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows in a panel.
pub(crate) const GEMM_PANEL_ROWS: usize = 32;

/// The most groups of each row in a panel: 32 rows × 32 groups are 64 KiB of weights, which stay in the second-level cache.
const GEMM_PANEL_GROUPS: usize = 32;

/// The most tokens for which the next panel is prefetched while this one is packed. While so few are multiplied it would
/// not have come.
const PREFETCH_WHILE_PACKING_TOKENS: usize = 32;

/// A panel: 32 rows × some groups, `[group][row]`.
struct Panel<'a, P> {
    /// Which groups of a row these are.
    groups: Range<usize>,
    packed: &'a [P],
    /// The weights' scales, 1 over what is stored.
    inverse: &'a [[f32; GEMM_PANEL_ROWS]],
}

/// `out[t][i] = w[rows.start + i] · x[t]`: panels of 32 rows × up to 32 groups are packed, and each meets every token.
#[inline(always)]
pub(crate) fn gemm<K: Int8>(k: K, w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    let values = w.values().as_chunks::<GROUP>().0;
    let mut packed = [const { MaybeUninit::uninit() }; GEMM_PANEL_GROUPS];
    let mut inverse = [[0.0; GEMM_PANEL_ROWS]; GEMM_PANEL_GROUPS];
    let prefetch_while_packing = x.tokens() <= PREFETCH_WHILE_PACKING_TOKENS;
    for first in rows.clone().step_by(GEMM_PANEL_ROWS) {
        let n = GEMM_PANEL_ROWS.min(rows.end - first);
        let columns = first - rows.start..first - rows.start + n;
        for from in (0..groups).step_by(GEMM_PANEL_GROUPS) {
            let panel_groups = from..(from + GEMM_PANEL_GROUPS).min(groups);
            let next = match panel_groups.end < groups {
                true => (first, panel_groups.end),
                false => (first + GEMM_PANEL_ROWS, 0),
            };
            let prefetch =
                |row| prefetch_groups(k.lanes(), values, groups, GEMM_PANEL_GROUPS, (next.0 + row, next.1));
            // How many rows of the next panel have been prefetched.
            let mut prefetched = 0;
            for (i, g) in panel_groups.clone().enumerate() {
                if prefetch_while_packing {
                    let until = (i + 1) * GEMM_PANEL_ROWS / panel_groups.len();
                    (prefetched..until).for_each(prefetch);
                    prefetched = until;
                }
                let group_of = group_of_rows(w, first..rows.end, g, &mut inverse[i]);
                k.pack(&group_of, &mut packed[i]);
                inverse[i].iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            }
            // SAFETY: these have just been packed.
            let packed = unsafe { assume_init(&packed[..panel_groups.len()]) };
            let inverse = &inverse[..panel_groups.len()];
            let panel = Panel { groups: panel_groups, packed, inverse };
            let rows_a_tile = GEMM_PANEL_ROWS.div_ceil(x.tokens().div_ceil(K::TILE_TOKENS));
            for t in (0..x.tokens()).step_by(K::TILE_TOKENS) {
                let until = (prefetched + rows_a_tile).min(GEMM_PANEL_ROWS);
                (prefetched..until).for_each(prefetch);
                prefetched = until;
                match K::TILE_TOKENS.min(x.tokens() - t) {
                    6 if K::TILE_TOKENS >= 6 => add_tile::<K, 6>(k, &panel, x, t, &mut out, &columns),
                    5 if K::TILE_TOKENS >= 5 => add_tile::<K, 5>(k, &panel, x, t, &mut out, &columns),
                    4 => add_tile::<K, 4>(k, &panel, x, t, &mut out, &columns),
                    3 => add_tile::<K, 3>(k, &panel, x, t, &mut out, &columns),
                    2 => add_tile::<K, 2>(k, &panel, x, t, &mut out, &columns),
                    _ => add_tile::<K, 1>(k, &panel, x, t, &mut out, &columns),
                }
            }
        }
    }
}

/// Group `g` of each of the first `N` of `rows`, and into `scales` its stored scale. Where there are fewer rows the last
/// is repeated, and the results are then dropped.
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

/// Adds a panel's products with tokens `token..token + N` to `columns` of `out`; the first groups of a row replace what
/// was there.
#[inline(always)]
fn add_tile<K: Int8, const N: usize>(
    k: K,
    panel: &Panel<K::PanelGroup>,
    x: &Quantized,
    token: usize,
    out: &mut MatMut<f32>,
    columns: &Range<usize>,
) {
    let mut acc = [[0.0; GEMM_PANEL_ROWS]; N];
    if panel.groups.start > 0 {
        for (i, acc) in acc.iter_mut().enumerate() {
            let row = &out.row(token + i)[columns.clone()];
            match row.first_chunk() {
                Some(full) => *acc = *full,
                None => acc[..row.len()].copy_from_slice(row),
            }
        }
    }
    let mut tokens = [TokenGroups::new(x, token, panel.groups.clone()); N];
    for (i, groups) in tokens.iter_mut().enumerate().skip(1) {
        *groups = TokenGroups::new(x, token + i, panel.groups.clone());
    }
    k.tile(panel.packed, panel.inverse, &tokens, &mut acc);
    for (i, acc) in acc.iter().enumerate() {
        let row = &mut out.row(token + i)[columns.clone()];
        match row.first_chunk_mut() {
            Some(full) => *full = *acc,
            None => row.copy_from_slice(&acc[..row.len()]),
        }
    }
}
