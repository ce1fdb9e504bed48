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
    codes: [i8; 16],
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
        Self { codes: *codes, nibbles, scales, row_scales, rows, cols }
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
        i32::from(scales[r]) * i32::from(self.codes[usize::from(nibble)]) - i32::from(minimums[r])
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
            codes: Codes::new(&self.codes),
            nibbles,
            scales: self.scales,
            first,
            row_scales: &self.row_scales[panel],
        }
    }
}

/// A table of codes, and the same counted from zero.
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    pub signed: [i8; 16],
    /// `signed[i] + zero`, 0..=63.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub unsigned: [u8; 16],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub zero: i16,
}

impl Codes {
    #[inline(always)]
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
