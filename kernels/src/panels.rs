//! Int8 in panels: a matrix as the kernels read it, 16 rows side by side.
//!
//! The values of 16 rows and 64 columns, a *panel group*, lie together, quad by quad: `[quad][row][4]`. 64 bytes are four
//! columns of 16 rows, which is one register of AVX-512, two of AVX2, four of NEON, and 16 of them are a tile of AMX. A lane is
//! a row, so nothing is ever added across lanes, and a thread reads one stream from the first byte to the last.

use crate::half::f16;
use crate::quant::{GROUP, QUAD};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Quads of a group.
pub(crate) const QUADS: usize = GROUP / QUAD;

/// One group of 16 rows, `[quad][row][4]`.
pub(crate) type PanelGroup = [[[i8; QUAD]; PANEL_ROWS]; QUADS];

/// An int8 matrix in panels of 16 rows, a row an output feature; `w = q · scale`.
///
/// Values are `[⌈rows/16⌉][cols/64][16 quads][16 rows][4]`, scales `[⌈rows/16⌉][cols/64][16 rows]`. Any byte is a legal value,
/// −128 included. What lies behind the last row is read and not used.
#[derive(Clone, Copy, Debug)]
pub struct PanelMatrix<'a> {
    values: &'a [PanelGroup],
    scales: &'a [[f16; PANEL_ROWS]],
    rows: usize,
    cols: usize,
}

impl<'a> PanelMatrix<'a> {
    /// A view of `rows × cols` values and their scales, the rows filled up to a multiple of 16.
    ///
    /// # Panics
    /// If `cols` is not a multiple of 64, or `values` or `scales` are not as long as these rows and columns need.
    pub fn new(values: &'a [i8], scales: &'a [f16], rows: usize, cols: usize) -> Self {
        assert!(cols.is_multiple_of(GROUP), "{cols} columns are no whole groups");
        let groups = rows.div_ceil(PANEL_ROWS).checked_mul(cols / GROUP);
        let (values, rest) = values.as_chunks().0.as_chunks::<PANEL_ROWS>().0.as_chunks::<QUADS>();
        assert!(rest.is_empty() && Some(values.len()) == groups, "int8 panels of {rows}×{cols}");
        let (scales, rest) = scales.as_chunks::<PANEL_ROWS>();
        assert!(rest.is_empty() && Some(scales.len()) == groups, "scales of panels of {rows}×{cols}");
        Self { values, scales, rows, cols }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups of a row.
    pub(crate) fn groups(&self) -> usize {
        self.cols / GROUP
    }

    /// The groups of panel `panel`.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> Panel<'a, [f16; PANEL_ROWS]> {
        let groups = panel * self.groups()..(panel + 1) * self.groups();
        Panel { values: &self.values[groups.clone()], scales: &self.scales[groups] }
    }

    /// Group `g` of a row, and its scale.
    #[inline(always)]
    pub(crate) fn group(&self, row: usize, g: usize) -> ([i8; GROUP], f16) {
        self.panel(row / PANEL_ROWS).group(row % PANEL_ROWS, g)
    }
}

/// Some consecutive groups of 16 rows.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a, S> {
    pub values: &'a [PanelGroup],
    /// Of each group the 16 rows' scales, with which its values are multiplied.
    pub scales: &'a [S],
}

impl<S: Copy> Panel<'_, [S; PANEL_ROWS]> {
    /// Group `g` of one of the 16 rows, and its scale.
    #[inline(always)]
    pub(crate) fn group(&self, row: usize, g: usize) -> ([i8; GROUP], S) {
        let mut group = [0; GROUP];
        for (to, quad) in group.as_chunks_mut().0.iter_mut().zip(&self.values[g]) {
            *to = quad[row];
        }
        (group, self.scales[g][row])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_in_its_panel() {
        // 18 rows of 128 columns: the second panel holds two.
        let mut values = vec![0; 32 * 128];
        for (at, value) in values.iter_mut().enumerate() {
            let (panel, group, quad, row, i) = (at / 2048, at / 1024 % 2, at / 64 % 16, at / 4 % 16, at % 4);
            *value = (31 * (16 * panel + row) + 7 * (64 * group + 4 * quad + i)) as i8;
        }
        let scales: Vec<_> = (0..64).map(|i| f16::from_f32(i as f32)).collect();
        let w = PanelMatrix::new(&values, &scales, 18, 128);
        for (row, g) in [(0, 0), (0, 1), (5, 1), (15, 0), (16, 1), (17, 0)] {
            let (group, scale) = w.group(row, g);
            for (k, value) in group.into_iter().enumerate() {
                assert_eq!(value, (31 * row + 7 * (64 * g + k)) as i8, "row {row}, column {}", 64 * g + k);
            }
            assert_eq!(scale.to_f32(), (32 * (row / 16) + 16 * g + row % 16) as f32);
        }
    }

    #[test]
    #[should_panic(expected = "no whole groups")]
    fn columns_are_whole_groups() {
        PanelMatrix::new(&[0; 1600], &[f16::ZERO; 16], 16, 100);
    }
}
