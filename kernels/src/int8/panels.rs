//! Weights in panels: they meet every token straight from where they lie.

use super::Int8;
use super::tile::{Ahead, Place, TilePanel, multiply_panels};
use crate::int4::Int4Matrix;
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelMatrix};
use crate::quant::{GROUP, Quantized};
use std::ops::Range;

/// Bytes of panels, at the most, that meet a tile of tokens one after the other, if these are more than one: they stay in the
/// second-level cache from one tile to the next, and the tile's tokens in the first while the panels go by.
const STRIP_BYTES: usize = 96 << 10;

/// `out[t][i] = w[rows.start + i] · x[t]`
#[inline(always)]
pub(crate) fn matmul_panels<K: Int8>(
    k: K,
    w: &PanelMatrix,
    rows: Range<usize>,
    x: &Quantized,
    out: MatMut<f32>,
) {
    let panel = |p| {
        let panel = w.panel(p);
        (panel, panel.values)
    };
    multiply_strips(k, panel, rows, x, out);
}

/// `out[t][i] = w[rows.start + i] · x[t]`
#[inline(always)]
pub(crate) fn matmul_int4<K: Int8>(
    k: K,
    w: &Int4Matrix,
    rows: Range<usize>,
    x: &Quantized,
    out: MatMut<f32>,
) {
    let panel = |p| {
        let panel = w.panel(p);
        (panel, panel.nibbles)
    };
    multiply_strips(k, panel, rows, x, out);
}

/// `panel(p)` is panel `p`, and its groups as they lie in memory.
#[inline(always)]
fn multiply_strips<'w, K: Int8, P: TilePanel<K>, G: 'w>(
    k: K,
    panel: impl Fn(usize) -> (P, &'w [G]),
    rows: Range<usize>,
    x: &Quantized,
    mut out: MatMut<f32>,
) {
    let (panels, groups) = (rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS), x.cols() / GROUP);
    let strip_panels = (STRIP_BYTES / (groups * size_of::<G>()).max(1)).max(1);
    for first in panels.clone().step_by(strip_panels) {
        let strip = first..(first + strip_panels).min(panels.end);
        multiply_panels(k, strip, 0..groups, x, &mut out, |p, tile| {
            let ((panel, values), first) = (panel(p), p * PANEL_ROWS);
            let own = rows.start.max(first)..rows.end.min(first + PANEL_ROWS);
            let place = Place { lanes: own.start - first..own.end - first, column: own.start - rows.start };
            (panel, place, Ahead::of(values, strip_panels * groups, tile))
        });
    }
}
