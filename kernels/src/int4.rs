//! Int4 in panels: 16 rows side by side, each weight a nibble that names one of 16 codes.
//!
//! 64 bytes hold 16 rows × 8 columns, an *oct*: `[row][4]`, columns 0..4 in the low nibbles, 4..8 in the high ones. Eight of
//! them are the 64 columns of a group, which is what meets a group of activations.
//!
//! A weight is an integer times its row's scale, and so a group's dot product is exact in i32 however a kernel comes to it: by
//! codes, by parts of 16 columns, or by the whole weights.

use crate::panels::{PANEL_ROWS, PanelGroup};
use crate::quant::{GROUP, PART, PARTS, QUAD};

/// Columns of an oct.
pub(crate) const OCT: usize = 2 * QUAD;

/// Octs of a group.
pub(crate) const OCTS: usize = GROUP / OCT;

/// 16 rows × 8 columns.
pub(crate) type Oct = [[u8; QUAD]; PANEL_ROWS];

/// One group of 16 rows.
pub(crate) type NibbleGroup = [Oct; OCTS];

/// The largest magnitude of a weight, before its row's scale: with the widest activations the sum of a group stays below 2³¹.
pub const INT4_LIMIT: i32 = 28_672;

/// The distance, at the most, of two codes of a table: four products of so large a number with 127 fit in i16.
pub const CODE_SPAN: i32 = 63;

/// What the codes of 16 rows are multiplied with, as whole numbers, and what is then taken off.
#[derive(Clone, Copy, Debug)]
pub enum Int4Scales<'a> {
    /// A scale for each 16 columns: `[⌈rows/16⌉ · cols/64][4][16]`.
    Fine(&'a [[[i8; PANEL_ROWS]; PARTS]]),
    /// A scale for each 32 columns: `[⌈rows/16⌉ · cols/64][2][16]`.
    Coarse(&'a [[[i16; PANEL_ROWS]; 2]]),
    /// A scale and a minimum for each 32 columns: `[⌈rows/16⌉ · cols/64][2][2][16]`, of a group first the scales.
    WithMinimum(&'a [[[[i16; PANEL_ROWS]; 2]; 2]]),
}

impl Int4Scales<'_> {
    /// Groups of panels.
    fn groups(&self) -> usize {
        match self {
            Self::Fine(scales) => scales.len(),
            Self::Coarse(scales) => scales.len(),
            Self::WithMinimum(scales) => scales.len(),
        }
    }
}

/// The scales of one group of 16 rows, as in [`Int4Scales`].
#[derive(Clone, Copy)]
pub(crate) enum PanelScales<'a> {
    Fine(&'a [[i8; PANEL_ROWS]; PARTS]),
    Coarse(&'a [[i16; PANEL_ROWS]; 2]),
    WithMinimum(&'a [[[i16; PANEL_ROWS]; 2]; 2]),
}

/// An int4 matrix in panels of 16 rows, a row an output feature;
/// `w[r][c] = (scale · codes[nibble] − minimum) · row_scales[r]`.
///
/// Nibbles are `[⌈rows/16⌉][cols/64][8 octs][16 rows][4]`. What lies behind the last row is read and not used.
#[derive(Clone, Copy, Debug)]
pub struct Int4Matrix<'a> {
    codes: Codes,
    nibbles: &'a [NibbleGroup],
    scales: Int4Scales<'a>,
    row_scales: &'a [[f32; PANEL_ROWS]],
    rows: usize,
    cols: usize,
}

impl<'a> Int4Matrix<'a> {
    /// A view of `rows × cols` nibbles and their scales, the rows filled up to a multiple of 16.
    ///
    /// Where `scale · code − minimum` exceeds [`INT4_LIMIT`] products may wrap around, on each CPU in its own way.
    ///
    /// # Panics
    /// If `cols` is not a multiple of 64, codes lie more than [`CODE_SPAN`] apart, or a slice is not as long as these rows and
    /// columns need.
    pub fn new(
        codes: &[i8; 16],
        nibbles: &'a [u8],
        scales: Int4Scales<'a>,
        row_scales: &'a [f32],
        (rows, cols): (usize, usize),
    ) -> Self {
        assert!(cols.is_multiple_of(GROUP), "{cols} columns are no whole groups");
        let least = codes.iter().fold(0, |least, code| least.min(i32::from(*code)));
        assert!(codes.iter().all(|code| i32::from(*code) - least <= CODE_SPAN), "codes {codes:?}");
        let panels = rows.div_ceil(PANEL_ROWS);
        let groups = panels.checked_mul(cols / GROUP);
        let (nibbles, rest) = nibbles.as_chunks().0.as_chunks::<PANEL_ROWS>().0.as_chunks::<OCTS>();
        assert!(rest.is_empty() && Some(nibbles.len()) == groups, "int4 panels of {rows}×{cols}");
        assert_eq!(Some(scales.groups()), groups, "scales of panels of {rows}×{cols}");
        let (row_scales, rest) = row_scales.as_chunks::<PANEL_ROWS>();
        assert!(rest.is_empty() && row_scales.len() == panels, "row scales of panels of {rows}×{cols}");
        Self { codes: Codes::new(codes), nibbles, scales, row_scales, rows, cols }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of a row, scales included.
    pub fn row_bytes(&self) -> usize {
        let a_group = match self.scales {
            Int4Scales::Fine(_) => PARTS,
            Int4Scales::Coarse(_) => 2 * size_of::<i16>(),
            Int4Scales::WithMinimum(_) => 4 * size_of::<i16>(),
        };
        size_of::<f32>() + self.cols / GROUP * (GROUP / 2 + a_group)
    }

    /// `scale · code − minimum`: what the row's scale is multiplied with.
    #[inline(always)]
    pub fn weight(&self, row: usize, col: usize) -> i32 {
        let panel = self.panel(row / PANEL_ROWS);
        let (g, k, r) = (col / GROUP, col % GROUP, row % PANEL_ROWS);
        let byte = panel.nibbles[g][k / OCT][r][k % QUAD];
        let nibble = if k % OCT < QUAD { byte & 15 } else { byte >> 4 };
        let (scales, minimums) = panel.part(g, k / PART);
        i32::from(scales[r]) * i32::from(self.codes.signed[usize::from(nibble)]) - i32::from(minimums[r])
    }

    /// What all weights of a row are multiplied with.
    pub fn row_scale(&self, row: usize) -> f32 {
        self.row_scales[row / PANEL_ROWS][row % PANEL_ROWS]
    }

    /// The groups of panel `panel`.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> Int4Panel<'a> {
        let groups = self.cols / GROUP;
        let first = panel * groups;
        let nibbles = &self.nibbles[first..first + groups];
        Int4Panel {
            codes: self.codes,
            nibbles,
            scales: self.scales,
            first,
            row_scales: &self.row_scales[panel],
        }
    }
}

/// A table of codes, and the same counted from zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    pub signed: [i8; 16],
    /// `signed[i] + zero`, 0..=63.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub unsigned: [u8; 16],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub zero: i16,
}

impl Codes {
    fn new(signed: &[i8; 16]) -> Self {
        let zero = -i16::from(signed.iter().fold(0, |least, code| (*code).min(least)));
        Self { signed: *signed, unsigned: signed.map(|code| (i16::from(code) + zero) as u8), zero }
    }
}

/// All groups of 16 rows.
#[derive(Clone, Copy)]
pub(crate) struct Int4Panel<'a> {
    pub codes: Codes,
    pub nibbles: &'a [NibbleGroup],
    scales: Int4Scales<'a>,
    /// Where the panel's first group is among `scales`.
    first: usize,
    pub row_scales: &'a [f32; PANEL_ROWS],
}

impl<'a> Int4Panel<'a> {
    /// What group `g` is scaled with.
    #[inline(always)]
    pub fn scales(&self, g: usize) -> PanelScales<'a> {
        match self.scales {
            Int4Scales::Fine(scales) => PanelScales::Fine(&scales[self.first + g]),
            Int4Scales::Coarse(scales) => PanelScales::Coarse(&scales[self.first + g]),
            Int4Scales::WithMinimum(scales) => PanelScales::WithMinimum(&scales[self.first + g]),
        }
    }

    /// The scales of part `part` (16 columns) of group `g`, and the minimums: a row a lane.
    #[inline(always)]
    pub fn part(&self, g: usize, part: usize) -> ([i16; PANEL_ROWS], [i16; PANEL_ROWS]) {
        match self.scales(g) {
            PanelScales::Fine(scales) => (scales[part].map(i16::from), [0; PANEL_ROWS]),
            PanelScales::Coarse(scales) => (scales[part / 2], [0; PANEL_ROWS]),
            PanelScales::WithMinimum([scales, minimums]) => (scales[part / 2], minimums[part / 2]),
        }
    }

    /// The codes of group `g`, as int8 panels have their values.
    #[inline(always)]
    pub fn codes_of(&self, g: usize) -> PanelGroup {
        let mut group = [[[0; QUAD]; PANEL_ROWS]; GROUP / QUAD];
        for (quads, oct) in group.as_chunks_mut::<2>().0.iter_mut().zip(&self.nibbles[g]) {
            for (r, bytes) in oct.iter().enumerate() {
                quads[0][r] = bytes.map(|byte| self.codes.signed[usize::from(byte & 15)]);
                quads[1][r] = bytes.map(|byte| self.codes.signed[usize::from(byte >> 4)]);
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_found_in_its_panel() {
        // 18 rows of 128 columns: the second panel holds two.
        let nibble = |row: usize, col: usize| (5 * row + 3 * col + col / 16) % 16;
        let mut nibbles = vec![0; 32 * 128 / 2];
        for (at, byte) in nibbles.iter_mut().enumerate() {
            let (panel, group, oct, r, i) = (at / 1024, at / 512 % 2, at / 64 % 8, at / 4 % 16, at % 4);
            let (row, col) = (16 * panel + r, 64 * group + 8 * oct + i);
            *byte = (nibble(row, col) | nibble(row, col + 4) << 4) as u8;
        }
        let codes = std::array::from_fn(|i| 3 * i as i8 - 20);
        let row_scales: Vec<_> = (0..32u8).map(f32::from).collect();
        // Of 4 groups of panels, by `at`: which, and which of its parts, halves or rows.
        let numbered = |group: usize, part: usize, row: usize| (16 * (4 * group + part) + row) as i16;
        let fine: Vec<[[i8; 16]; 4]> = (0..4)
            .map(|g| std::array::from_fn(|p| std::array::from_fn(|r| (numbered(g, p, r) - 128) as i8)))
            .collect();
        let coarse: Vec<[[i16; 16]; 2]> =
            (0..4).map(|g| std::array::from_fn(|p| std::array::from_fn(|r| numbered(g, p, r)))).collect();
        let with_minimum: Vec<[[[i16; 16]; 2]; 2]> = (0..4)
            .map(|g| {
                [0, 2]
                    .map(|first| std::array::from_fn(|p| std::array::from_fn(|r| numbered(g, first + p, r))))
            })
            .collect();
        for (row, col) in [(0, 0), (0, 127), (5, 20), (15, 63), (16, 64), (17, 4), (17, 36), (17, 100)] {
            let (group, part, r) = (2 * (row / 16) + col / 64, col % 64 / 16, row % 16);
            let code = 3 * nibble(row, col) as i32 - 20;
            let scaled = |scale: i16, minimum: i16| i32::from(scale) * code - i32::from(minimum);
            for (scales, expected) in [
                (Int4Scales::Fine(&fine), scaled(numbered(group, part, r) - 128, 0)),
                (Int4Scales::Coarse(&coarse), scaled(numbered(group, part / 2, r), 0)),
                (
                    Int4Scales::WithMinimum(&with_minimum),
                    scaled(numbered(group, part / 2, r), numbered(group, 2 + part / 2, r)),
                ),
            ] {
                let w = Int4Matrix::new(&codes, &nibbles, scales, &row_scales, (18, 128));
                assert_eq!(w.weight(row, col), expected, "row {row}, column {col} of {scales:?}");
                assert_eq!(w.row_scale(row), row as f32);
            }
        }
    }

    /// A matrix of 16 rows and 64 columns, but for what is said.
    fn matrix(codes: [i8; 16], nibbles: usize, scales: usize, row_scales: usize, cols: usize) {
        let (nibbles, row_scales) = (vec![0; nibbles], vec![0.0; row_scales]);
        let scales = vec![[[0; PANEL_ROWS]; PARTS]; scales];
        Int4Matrix::new(&codes, &nibbles, Int4Scales::Fine(&scales), &row_scales, (16, cols));
    }

    #[test]
    #[should_panic(expected = "100 columns are no whole groups")]
    fn columns_are_whole_groups() {
        matrix([0; 16], 800, 1, 16, 100);
    }

    #[test]
    #[should_panic(expected = "codes [")]
    fn codes_lie_together() {
        let mut codes = [0; 16];
        codes[..2].copy_from_slice(&[-30, 34]);
        matrix(codes, 512, 1, 16, 64);
    }

    #[test]
    #[should_panic(expected = "codes [")]
    fn codes_lie_near_zero() {
        matrix([64; 16], 512, 1, 16, 64);
    }

    #[test]
    #[should_panic(expected = "int4 panels of 16×64")]
    fn nibbles_are_whole_panels() {
        matrix([0; 16], 504, 1, 16, 64);
    }

    #[test]
    #[should_panic(expected = "scales of panels of 16×64")]
    fn every_group_has_scales() {
        matrix([0; 16], 512, 2, 16, 64);
    }

    #[test]
    #[should_panic(expected = "row scales of panels of 16×64")]
    fn every_row_has_a_scale() {
        matrix([0; 16], 512, 1, 15, 64);
    }

    #[test]
    fn the_widest_tables_are_taken() {
        let mut codes = [63; 16];
        codes[3] = 0;
        matrix(codes, 512, 1, 16, 64);
        codes.fill(-63);
        matrix(codes, 512, 1, 16, 64);
    }
}
