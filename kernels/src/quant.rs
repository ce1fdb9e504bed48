//! Int8 in groups of 64: the one place that knows the group size, the scale conventions and the rounding.
//!
//! Two conventions meet here. *Weights* come from a file: the stored scale is `127 / max|w|` of the group, so a
//! weight is `q / scale`, and groups run over the flattened matrix. *Activations* are quantised on the fly: the scale
//! is `max|x| / 127`, an activation is `q * scale`, and groups start anew with each token.

use crate::mat::MatMut;
use std::ops::Range;

/// Values that share a scale.
pub const GROUP: usize = 64;

/// Below this absolute maximum (2⁻¹⁰⁰) a group of activations counts as zeros: its scale would leave the normal range.
pub const TINY: f32 = f32::from_bits(27 << 23);

/// An int8 matrix, row-major, one row an output feature; `w[r][c] = values[r·cols + c] / scales[(r·cols + c) / 64]`.
///
/// Any byte is a legal value, −128 included. A group whose scale is infinite is all zeros whatever its bytes are.
#[derive(Clone, Copy, Debug)]
pub struct QMatrix<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> QMatrix<'a> {
    /// A view of `rows × cols` values and their group scales.
    ///
    /// # Panics
    /// If `values` is not `rows·cols` long or `scales` is not one for each started group of 64.
    pub fn new(values: &'a [i8], scales: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "int8 values for {rows}×{cols}");
        assert_eq!(scales.len(), values.len().div_ceil(GROUP), "scales for {rows}×{cols}");
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

    /// Whether every row starts at a group's start, as all kernels but the scalar one require.
    pub fn is_aligned(&self) -> bool {
        self.cols.is_multiple_of(GROUP)
    }

    /// All values, row after row.
    pub fn values(&self) -> &'a [i8] {
        self.values
    }

    /// The stored scales (`127 / max|w|`), one a group of the flattened matrix.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }
}

/// Quantised activations of some tokens, token after token: read by every int8 matmul.
#[derive(Clone, Copy, Debug)]
pub struct Quantized<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
    tokens: usize,
    cols: usize,
}

impl<'a> Quantized<'a> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups a token, the last of which may be short.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// `[tokens][cols]` values in −127..=127.
    pub fn values(&self) -> &'a [i8] {
        self.values
    }

    /// `[tokens][groups]` scales: an activation is `value * scale`.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// `[tokens][groups]` sums of a group's values, for kernels that work with an offset of 128.
    pub fn sums(&self) -> &'a [i32] {
        self.sums
    }

    /// The values of one token.
    pub fn token_values(&self, token: usize) -> &'a [i8] {
        &self.values[token * self.cols..][..self.cols]
    }

    /// The sums of one token's groups.
    pub fn token_sums(&self, token: usize) -> &'a [i32] {
        &self.sums[token * self.groups()..][..self.groups()]
    }

    /// The scales of one token.
    pub fn token_scales(&self, token: usize) -> &'a [f32] {
        &self.scales[token * self.groups()..][..self.groups()]
    }
}

/// Room for quantised activations, allocated once and filled again for every matmul.
#[derive(Clone, Debug)]
pub struct QuantizedBuf {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    cols: usize,
}

impl QuantizedBuf {
    /// Room for `max_tokens` tokens of `cols` values.
    pub fn new(max_tokens: usize, cols: usize) -> Self {
        let groups = max_tokens * cols.div_ceil(GROUP);
        Self { values: vec![0; max_tokens * cols], scales: vec![0.0; groups], sums: vec![0; groups], cols }
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.values.len() + 4 * self.scales.len() + 4 * self.sums.len()
    }

    /// The first `tokens` tokens, for reading.
    ///
    /// # Panics
    /// If there is not room for so many.
    pub fn view(&self, tokens: usize) -> Quantized<'_> {
        let groups = tokens * self.cols.div_ceil(GROUP);
        Quantized {
            values: &self.values[..tokens * self.cols],
            scales: &self.scales[..groups],
            sums: &self.sums[..groups],
            tokens,
            cols: self.cols,
        }
    }

    /// The first `tokens` tokens, for writing.
    ///
    /// # Panics
    /// If there is not room for so many.
    pub fn view_mut(&mut self, tokens: usize) -> QuantizedMut<'_> {
        let groups = self.cols.div_ceil(GROUP);
        QuantizedMut {
            values: MatMut::new(&mut self.values[..tokens * self.cols], tokens, self.cols),
            scales: MatMut::new(&mut self.scales[..tokens * groups], tokens, groups),
            sums: MatMut::new(&mut self.sums[..tokens * groups], tokens, groups),
        }
    }
}

/// A block of quantised activations to be written: some tokens × some whole groups.
pub struct QuantizedMut<'a> {
    values: MatMut<'a, i8>,
    scales: MatMut<'a, f32>,
    sums: MatMut<'a, i32>,
}

impl<'a> QuantizedMut<'a> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.values.rows()
    }

    /// Values a token in this block.
    pub fn cols(&self) -> usize {
        self.values.cols()
    }

    /// One token's part of the block.
    ///
    /// # Panics
    /// If `token` is out of range.
    pub fn token(&mut self, token: usize) -> QuantizedRow<'_> {
        QuantizedRow {
            values: self.values.row(token),
            scales: self.scales.row(token),
            sums: self.sums.row(token),
        }
    }

    /// Splits the block into the values before column `col` and the rest.
    ///
    /// # Panics
    /// If `col` is not a multiple of 64 or lies outside.
    pub fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col.is_multiple_of(GROUP), "a split inside a group, at {col}");
        let (v0, v1) = self.values.split_cols(col);
        let (s0, s1) = self.scales.split_cols(col / GROUP);
        let (t0, t1) = self.sums.split_cols(col / GROUP);
        (Self { values: v0, scales: s0, sums: t0 }, Self { values: v1, scales: s1, sums: t1 })
    }

    /// Splits the block into the first `token` tokens and the rest.
    ///
    /// # Panics
    /// If `token` is beyond the last.
    pub fn split_tokens(self, token: usize) -> (Self, Self) {
        let (v0, v1) = self.values.split_rows(token);
        let (s0, s1) = self.scales.split_rows(token);
        let (t0, t1) = self.sums.split_rows(token);
        (Self { values: v0, scales: s0, sums: t0 }, Self { values: v1, scales: s1, sums: t1 })
    }
}

/// Where a quantising kernel puts the groups of one token: slices of `n`, `⌈n/64⌉` and `⌈n/64⌉` elements.
pub struct QuantizedRow<'a> {
    /// The values, −127..=127.
    pub values: &'a mut [i8],
    /// One scale a group.
    pub scales: &'a mut [f32],
    /// The sum of each group's values.
    pub sums: &'a mut [i32],
}

impl QuantizedRow<'_> {
    pub(crate) fn assert_shape(&self, len: usize) {
        assert_eq!(self.values.len(), len, "quantised values");
        assert_eq!(self.scales.len(), len.div_ceil(GROUP), "quantised scales");
        assert_eq!(self.sums.len(), len.div_ceil(GROUP), "quantised sums");
    }
}

/// The pieces of `range` (flat positions in a matrix) that lie in one weight group each.
pub(crate) fn group_end(position: usize, range: &Range<usize>) -> usize {
    ((position / GROUP + 1) * GROUP).min(range.end)
}
