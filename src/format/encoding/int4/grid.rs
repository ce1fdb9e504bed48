//! The int4 form of weights that lie on the grid of another 4-bit format: 16 even steps of a scale for each 32 columns, and a
//! minimum. They keep their codes, and scale and minimum become whole numbers of 12 bits or more: no second quantisation.

use torchless_kernels::{INT4_LIMIT, PANEL_ROWS};

use super::{Encoded, EncodedRow, Kind, append_panel, begin};

/// Values that share a scale.
pub(crate) const GRID_GROUP: usize = 32;

/// `w = scale · q + offset`, `q` 0..=15.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GridGroup {
    pub q: [u8; GRID_GROUP],
    pub scale: f32,
    pub offset: f32,
}

/// In a grid without a minimum the offset is −8 scales.
const MIDDLE: i8 = 8;

/// So far the rounding of a scale, times 15, may move a weight.
const SLACK: i32 = 16;

/// Appends rows, whole panels of them or the tensor's last, each of `cols / 32` groups. In a grid without a minimum (`Coarse`) every
/// offset must be −8 scales.
pub(crate) fn encode_grid(groups: &[GridGroup], cols: usize, kind: Kind, out: &mut Encoded) {
    let mut codes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    if kind == Kind::Coarse {
        codes = codes.map(|code| code - MIDDLE);
    }
    begin(&codes, out);
    let rows: Vec<_> = groups.chunks(cols / GRID_GROUP).map(|row| encode_row(row, kind)).collect();
    for panel in rows.chunks(PANEL_ROWS) {
        append_panel(panel, kind, cols, out);
    }
}

fn encode_row(groups: &[GridGroup], kind: Kind) -> EncodedRow {
    let largest = |group: &GridGroup| (15.0 * group.scale + group.offset).abs().max(group.offset.abs());
    let row_scale = groups.iter().map(largest).fold(0.0, f32::max) / (INT4_LIMIT - SLACK) as f32;
    // 0 / 0 is none: then it is 0.
    let whole = |value: f32| (value / row_scale).round_ties_even() as i16;
    let mut scales = Vec::with_capacity(groups.len() * 2);
    // The scales of a group of 64 columns, then its minimums.
    for pair in groups.chunks(2) {
        scales.extend(pair.iter().map(|group| whole(group.scale)));
        if kind == Kind::WithMinimum {
            scales.extend(pair.iter().map(|group| whole(-group.offset)));
        }
    }
    EncodedRow { nibbles: groups.iter().flat_map(|group| group.q).collect(), scales, row_scale }
}
