//! Weights in panels: each panel meets every token, straight from where it lies.

use super::Int8;
use super::tile::{Ahead, Place, multiply_panel};
use crate::mat::MatMut;
use crate::panels::{PANEL_ROWS, PanelMatrix};
use crate::quant::Quantized;
use std::ops::Range;

/// `out[t][i] = w[rows.start + i] · x[t]`
#[inline(always)]
pub(crate) fn matmul_panels<K: Int8>(
    k: K,
    w: &PanelMatrix,
    rows: Range<usize>,
    x: &Quantized,
    mut out: MatMut<f32>,
) {
    for p in rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS) {
        let first = p * PANEL_ROWS;
        let own = rows.start.max(first)..rows.end.min(first + PANEL_ROWS);
        let place = Place { lanes: own.start - first..own.end - first, column: own.start - rows.start };
        let panel = w.panel(p);
        let (at, groups) = (panel.values.as_ptr(), w.groups());
        let ahead = |tile, tiles| Ahead::of(at, groups, tile, tiles);
        multiply_panel(k, &panel, 0..groups, x, &mut out, &place, ahead);
    }
}
