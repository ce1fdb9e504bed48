//! Int4 in panels of 16 rows: a nibble names one of 16 codes, `w ≈ (scale · code − minimum) · row_scale`, scale and minimum whole
//! numbers.
//!
//! Data: `[⌈rows/16⌉][cols/64][8 octs][16 rows][4]`, an oct 8 columns: the first four in the low nibbles, the others in the high
//! ones. Scales: the table of codes in 64 bytes, `[⌈rows/16⌉][16]` row scales in f32, then what [`Kind`] says. Rows behind the
//! last are zeros.

mod feedback;
mod grid;
mod search;

use std::ops::Range;

use torchless_kernels::{CODE_SPAN, GROUP, INT4_LIMIT, Int4Matrix, Int4Scales, PANEL_ROWS, Weight};

use super::{Encoded, Encoding, LARGEST_IN_PANELS, OVERFLOWS, Sizes};
pub(crate) use feedback::{Feedback, encode_with_feedback};
pub(crate) use grid::{GRID_GROUP, GridGroup, encode_grid};
pub(crate) use search::encode_weighted;

/// How the groups of an int4 tensor are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// i8 for each 16 columns: what [`encode_weighted`] makes.
    Fine,
    /// i16 for each 32 columns: grids without a minimum.
    Coarse,
    /// i16 for each 32 columns, and an i16 minimum.
    WithMinimum,
}

impl Kind {
    /// Bytes of the scales of one group of 64 columns and 16 rows.
    fn group_bytes(self) -> usize {
        match self {
            Kind::Fine => 4 * PANEL_ROWS,
            Kind::Coarse => 2 * PANEL_ROWS * size_of::<i16>(),
            Kind::WithMinimum => 4 * PANEL_ROWS * size_of::<i16>(),
        }
    }
}

/// Bytes of 16 rows and 64 columns.
const PANEL_GROUP: usize = PANEL_ROWS * GROUP / 2;

/// Bytes that the table of codes takes: a cache line, of which the last 48 are zero.
const TABLE_BYTES: usize = 64;

/// Bytes of a panel's row scales.
const ROW_SCALES_BYTES: usize = PANEL_ROWS * size_of::<f32>();

pub(super) struct Int4(pub Kind);

impl Encoding for Int4 {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Fine => "int4",
            Kind::Coarse => "int4_by_32",
            Kind::WithMinimum => "int4_by_32_minimum",
        }
    }

    fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, &'static str> {
        if !cols.is_multiple_of(GROUP) {
            return Err("is not of whole groups of 64 columns, as panels are");
        }
        let panels = rows.div_ceil(PANEL_ROWS);
        let groups = panels.checked_mul(cols / GROUP).ok_or(OVERFLOWS)?;
        let data = groups.checked_mul(PANEL_GROUP).ok_or(OVERFLOWS)?;
        let front = panels.checked_mul(ROW_SCALES_BYTES).and_then(|n| n.checked_add(TABLE_BYTES));
        let scales = groups.checked_mul(self.0.group_bytes()).zip(front).and_then(|(a, b)| a.checked_add(b));
        // Aligned as the table is, and a panel's row scales.
        Ok(Sizes {
            data,
            alignment: 64,
            scales: Some(scales.ok_or(OVERFLOWS)?),
            scale: 1,
            scale_alignment: 64,
        })
    }

    fn row_granule(&self, _: usize) -> usize {
        PANEL_ROWS
    }

    /// Int8's, though there is room for more: the search multiplies weights with each other.
    fn largest(&self) -> f32 {
        LARGEST_IN_PANELS
    }

    fn encode(&self, rows: &[f32], cols: usize, out: &mut Encoded) {
        encode_weighted(rows, cols, None, out);
    }

    fn verify(&self, data: &[u8], scales: &[u8], shape: (usize, usize)) -> Result<(), String> {
        let parts = Parts::of(scales, shape);
        let codes = parts.codes;
        let least = codes.iter().fold(0, |least: i32, code| least.min((*code).into()));
        if codes.iter().any(|code| i32::from(*code) - least > CODE_SPAN) {
            return Err(format!("its codes {codes:?} lie more than {CODE_SPAN} apart"));
        }
        if parts.rest_of_table.iter().any(|byte| *byte != 0) {
            return Err("behind its 16 codes is something".to_owned());
        }
        // So small that no weight is infinite. In order of their bits come 0, the positive numbers, infinity, NaNs and all that
        // is negative.
        let largest = f32::MAX / INT4_LIMIT as f32;
        if let Some(row) = parts.row_scales.iter().position(|scale| scale.to_bits() > largest.to_bits()) {
            return Err(format!("the scale of row {row} is {}", parts.row_scales[row]));
        }
        if let Some(group) = self.beyond_limit(&parts) {
            let groups = shape.1 / GROUP;
            let (panel, g) = (group / groups, group % groups);
            let rows = PANEL_ROWS * panel;
            return Err(format!(
                "a weight of rows {rows} to {}, group {g}, is beyond {INT4_LIMIT}",
                rows + 15
            ));
        }
        match self.is_empty_behind(data, &parts, shape) {
            true => Ok(()),
            false => Err(format!("behind its {} rows the last panel is not zero", shape.0)),
        }
    }

    fn weight<'a>(&self, data: &'a [u8], scales: &'a [u8], shape: (usize, usize), _: bool) -> Weight<'a> {
        let parts = Parts::of(scales, shape);
        let scales = match self.0 {
            Kind::Fine => Int4Scales::Fine(bytemuck::cast_slice(parts.scales)),
            Kind::Coarse => Int4Scales::Coarse(bytemuck::cast_slice(parts.scales)),
            Kind::WithMinimum => Int4Scales::WithMinimum(bytemuck::cast_slice(parts.scales)),
        };
        Weight::Int4(Int4Matrix::new(parts.codes, data, scales, parts.row_scales, shape))
    }
}

impl Int4 {
    /// A group of panels that holds a weight of more than [`INT4_LIMIT`] row scales, or could.
    fn beyond_limit(&self, parts: &Parts) -> Option<usize> {
        let extremes = [parts.codes.iter().min(), parts.codes.iter().max()];
        let [least, most] = extremes.map(|code| code.copied().map_or(0, i32::from));
        let beyond = |scale: i16, minimum: i16| {
            let weights = [least, most].map(|code| i32::from(scale) * code - i32::from(minimum));
            weights.iter().any(|weight| weight.abs() > INT4_LIMIT)
        };
        match self.0 {
            // 128 · 128 at the most.
            Kind::Fine => None,
            Kind::Coarse => {
                let groups: &[[i16; 2 * PANEL_ROWS]] = bytemuck::cast_slice(parts.scales);
                groups.iter().position(|scales| scales.iter().any(|scale| beyond(*scale, 0)))
            }
            Kind::WithMinimum => {
                let groups: &[[[i16; 2 * PANEL_ROWS]; 2]] = bytemuck::cast_slice(parts.scales);
                let any = |[scales, minimums]: &[[i16; 2 * PANEL_ROWS]; 2]| {
                    scales.iter().zip(minimums).any(|(scale, minimum)| beyond(*scale, *minimum))
                };
                groups.iter().position(any)
            }
        }
    }

    /// Whether all that belongs to rows behind the last is zero.
    fn is_empty_behind(&self, data: &[u8], parts: &Parts, (rows, cols): (usize, usize)) -> bool {
        let (in_last, groups) = (rows % PANEL_ROWS, cols / GROUP);
        if in_last == 0 {
            return true;
        }
        let width = if self.0 == Kind::Fine { 1 } else { size_of::<i16>() };
        let bytes_behind = |bytes: &[u8], group_bytes: usize, width: usize| {
            let last = &bytes[bytes.len() - groups * group_bytes..];
            last.chunks(PANEL_ROWS * width).all(|rows| rows[in_last * width..].iter().all(|byte| *byte == 0))
        };
        parts.row_scales[rows..].iter().all(|scale| scale.to_bits() == 0)
            && bytes_behind(data, PANEL_GROUP, 4)
            && bytes_behind(parts.scales, self.0.group_bytes(), width)
    }
}

/// What lies among a tensor's scales.
struct Parts<'a> {
    codes: &'a [i8; 16],
    rest_of_table: &'a [u8],
    row_scales: &'a [f32],
    scales: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(scales: &'a [u8], (rows, _): (usize, usize)) -> Self {
        let (table, rest) = scales.split_at(TABLE_BYTES);
        let (row_scales, scales) = rest.split_at(rows.div_ceil(PANEL_ROWS) * ROW_SCALES_BYTES);
        let (codes, rest_of_table) = table.split_at(16);
        Self {
            codes: bytemuck::from_bytes(codes),
            rest_of_table,
            row_scales: bytemuck::cast_slice(row_scales),
            scales,
        }
    }
}

/// One row on its way into a panel.
struct EncodedRow {
    /// One a column.
    nibbles: Vec<u8>,
    /// What belongs to each group of 64 columns, as its kind has it, a row's share.
    scales: Vec<i16>,
    row_scale: f32,
}

/// Appends up to 16 rows as a panel; `table` goes before the first.
fn append_panel(rows: &[EncodedRow], kind: Kind, cols: usize, out: &mut Encoded) {
    let groups = cols / GROUP;
    let per_group = kind.group_bytes() / PANEL_ROWS / if kind == Kind::Fine { 1 } else { 2 };
    for g in 0..groups {
        let mut group = [[[0; 4]; PANEL_ROWS]; GROUP / 8];
        for (r, row) in rows.iter().enumerate() {
            for (oct, nibbles) in group.iter_mut().zip(row.nibbles[g * GROUP..].as_chunks::<8>().0) {
                let (low, high) = nibbles.split_at(4);
                for (byte, (low, high)) in oct[r].iter_mut().zip(low.iter().zip(high)) {
                    *byte = low | high << 4;
                }
            }
        }
        out.data.extend(group.as_flattened().as_flattened());
        for i in 0..per_group {
            for r in 0..PANEL_ROWS {
                let scale = rows.get(r).map_or(0, |row| row.scales[g * per_group + i]);
                match kind {
                    Kind::Fine => out.scales.push(scale as u8),
                    _ => out.scales.extend(scale.to_le_bytes()),
                }
            }
        }
    }
    for r in 0..PANEL_ROWS {
        out.front.extend(rows.get(r).map_or(0.0, |row| row.row_scale).to_le_bytes());
    }
}

/// Appends rows of a tensor that is int4 already: whole panels of them, or the last.
pub(crate) fn copy_panels(
    kind: Kind,
    (data, scales): (&[u8], &[u8]),
    shape: (usize, usize),
    rows: Range<usize>,
    out: &mut Encoded,
) {
    let parts = Parts::of(scales, shape);
    begin(parts.codes, out);
    let (panels, groups) = (rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS), shape.1 / GROUP);
    let of_panels = |bytes: usize| panels.start * bytes..panels.end * bytes;
    out.data.extend(&data[of_panels(groups * PANEL_GROUP)]);
    out.scales.extend(&parts.scales[of_panels(groups * kind.group_bytes())]);
    out.front.extend(bytemuck::cast_slice::<f32, u8>(&parts.row_scales[of_panels(PANEL_ROWS)]));
}

/// Begins a tensor with its table, unless that is done.
fn begin(codes: &[i8; 16], out: &mut Encoded) {
    if out.front.is_empty() {
        out.front.extend(codes.map(|code| code as u8));
        out.front.resize(TABLE_BYTES, 0);
    }
}

#[cfg(test)]
mod tests;
