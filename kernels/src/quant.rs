//! Int8 in groups of 64: the one place that knows the group size, the scale conventions and the rounding.
//!
//! Two conventions meet here. *Weights* come from a file: the stored scale is `127 / max|w|` of the group, so a
//! weight is `q / scale`, and groups run over the flattened matrix. *Activations* are quantised on the fly: the scale
//! is `max|x| / 127`, an activation is `q * scale`, and groups start anew with each token.
//!
//! The activations of a language model have single channels many times as large as their neighbours (Dettmers et al.
//! 2022), and with one scale such a channel takes the precision of the 63 others. So where the largest quad of a group
//! (4 values side by side) is at least 1.5 times as large as the rest, the rest sets the scale and that quad alone gets
//! 14 bits: an [`Outlier`] record holds what does not fit in its bytes.

use crate::mat::MatMut;
use crate::memory::{Aligned, Allocator};
pub use crate::outlier::Outlier;
use std::ops::Range;

/// Values that share a scale.
pub const GROUP: usize = 64;

/// Values of a group that are summed together beside the whole: so many columns share a scale of [`Int4Matrix`].
///
/// [`Int4Matrix`]: crate::Int4Matrix
pub(crate) const PART: usize = 16;

/// Parts of a group.
pub(crate) const PARTS: usize = GROUP / PART;

/// Values that an [`Outlier`] extends: a quad starts at a multiple of 4 in its group, and a token's last may be short.
pub const QUAD: usize = 4;

/// Below this absolute maximum (2⁻¹⁰⁰) a group of activations counts as zeros: its scale would leave the normal range.
pub(crate) const TINY: f32 = f32::from_bits(27 << 23);

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

    /// `[rows][cols]` values.
    pub fn values(&self) -> &'a [i8] {
        self.values
    }

    /// `[⌈rows·cols / 64⌉]` stored scales (`127 / max|w|`), one a group of the flattened matrix.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }
}

/// From one token's values to the next one's in memory: an odd number of cache lines, or the values that a tile of tokens reads
/// at a time, which lie so far from each other, would all fall into the same few places of the first-level cache.
fn token_stride(cols: usize) -> usize {
    const LINE: usize = 64;
    if cols.is_multiple_of(2 * LINE) { cols + LINE } else { cols }
}

/// Quantised activations of some tokens, token after token: read by every int8 matmul.
#[derive(Clone, Copy, Debug)]
pub struct Quantized<'a> {
    /// `[tokens][stride]`, `cols` of which are used.
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
    part_sums: &'a [[i16; PARTS]],
    outliers: &'a [Outlier],
    tokens: usize,
    cols: usize,
}

impl<'a> Quantized<'a> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens `tokens` only, of the same columns.
    ///
    /// # Panics
    /// If `tokens` reaches beyond the last.
    pub fn part(&self, tokens: Range<usize>) -> Self {
        let groups = tokens.start * self.groups()..tokens.end * self.groups();
        Self {
            values: &self.values[tokens.start * self.stride()..tokens.end * self.stride()],
            scales: &self.scales[groups.clone()],
            sums: &self.sums[groups.clone()],
            part_sums: &self.part_sums[groups.clone()],
            outliers: &self.outliers[groups],
            tokens: tokens.len(),
            cols: self.cols,
        }
    }

    /// Values a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups a token, the last of which may be short.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// From one token's values to the next one's.
    pub(crate) fn stride(&self) -> usize {
        token_stride(self.cols)
    }

    /// `[tokens][stride]` values in −127..=127, an outlier's low part among them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn values(&self) -> &'a [i8] {
        self.values
    }

    /// `[tokens][groups]` scales: an activation is `value * scale`, with its outlier's part `(value + 128·high) * scale`.
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// `[tokens][groups]` sums of a group's values, outliers' high parts included, for kernels that work with an
    /// offset of 128.
    pub fn sums(&self) -> &'a [i32] {
        self.sums
    }

    /// `[tokens][groups]` sums of each 16 of a group's values, without outliers' high parts.
    pub fn part_sums(&self) -> &'a [[i16; PARTS]] {
        self.part_sums
    }

    /// `[tokens][groups]` outliers.
    pub fn outliers(&self) -> &'a [Outlier] {
        self.outliers
    }

    /// `[cols]` values of one token, −127..=127, an outlier's low part among them.
    ///
    /// # Panics
    /// If `token` is out of range, as the four below.
    pub fn token_values(&self, token: usize) -> &'a [i8] {
        &self.values[token * self.stride()..][..self.cols]
    }

    /// `[groups]` sums of one token's groups.
    pub fn token_sums(&self, token: usize) -> &'a [i32] {
        &self.sums[token * self.groups()..][..self.groups()]
    }

    /// `[groups]` sums of each 16 values of one token's groups.
    pub fn token_part_sums(&self, token: usize) -> &'a [[i16; PARTS]] {
        &self.part_sums[token * self.groups()..][..self.groups()]
    }

    /// `[groups]` outliers of one token's groups.
    pub fn token_outliers(&self, token: usize) -> &'a [Outlier] {
        &self.outliers[token * self.groups()..][..self.groups()]
    }

    /// `[groups]` scales of one token's groups.
    pub fn token_scales(&self, token: usize) -> &'a [f32] {
        &self.scales[token * self.groups()..][..self.groups()]
    }
}

/// Room for quantised activations, allocated once and filled again for every matmul.
#[derive(Clone, Debug)]
pub struct QuantizedBuf {
    values: Aligned<i8>,
    scales: Aligned<f32>,
    sums: Aligned<i32>,
    part_sums: Aligned<[i16; PARTS]>,
    outliers: Aligned<Outlier>,
    cols: usize,
}

impl QuantizedBuf {
    /// Room for `max_tokens` tokens of `cols` values.
    pub fn new(memory: &mut Allocator, max_tokens: usize, cols: usize) -> Self {
        let groups = max_tokens * cols.div_ceil(GROUP);
        Self {
            values: memory.aligned(max_tokens * token_stride(cols)),
            scales: memory.aligned(groups),
            sums: memory.aligned(groups),
            part_sums: memory.aligned(groups),
            outliers: memory.aligned(groups),
            cols,
        }
    }

    /// The first `tokens` tokens, for reading.
    ///
    /// # Panics
    /// If there is not room for so many.
    pub fn view(&self, tokens: usize) -> Quantized<'_> {
        let groups = tokens * self.cols.div_ceil(GROUP);
        Quantized {
            values: &self.values[..tokens * token_stride(self.cols)],
            scales: &self.scales[..groups],
            sums: &self.sums[..groups],
            part_sums: &self.part_sums[..groups],
            outliers: &self.outliers[..groups],
            tokens,
            cols: self.cols,
        }
    }

    /// The first `tokens` tokens, for writing.
    ///
    /// # Panics
    /// If there is not room for so many.
    pub fn view_mut(&mut self, tokens: usize) -> QuantizedMut<'_> {
        let (groups, stride) = (self.cols.div_ceil(GROUP), token_stride(self.cols));
        let values = MatMut::new(&mut self.values[..tokens * stride], tokens, stride);
        QuantizedMut {
            values: values.split_cols(self.cols).0,
            scales: MatMut::new(&mut self.scales[..tokens * groups], tokens, groups),
            sums: MatMut::new(&mut self.sums[..tokens * groups], tokens, groups),
            part_sums: MatMut::new(&mut self.part_sums[..tokens * groups], tokens, groups),
            outliers: MatMut::new(&mut self.outliers[..tokens * groups], tokens, groups),
        }
    }
}

/// Quantised activations to be written: some tokens × some whole groups of each.
pub struct QuantizedMut<'a> {
    values: MatMut<'a, i8>,
    scales: MatMut<'a, f32>,
    sums: MatMut<'a, i32>,
    part_sums: MatMut<'a, [i16; PARTS]>,
    outliers: MatMut<'a, Outlier>,
}

impl<'a> QuantizedMut<'a> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.values.rows()
    }

    /// Values of each token that are to be written here.
    pub fn cols(&self) -> usize {
        self.values.cols()
    }

    /// One token's values, scales, sums and outliers.
    ///
    /// # Panics
    /// If `token` is out of range.
    pub fn token(&mut self, token: usize) -> QuantizedRow<'_> {
        QuantizedRow {
            values: self.values.row(token),
            scales: self.scales.row(token),
            sums: self.sums.row(token),
            part_sums: self.part_sums.row(token),
            outliers: self.outliers.row(token),
        }
    }

    /// Splits each token into the values before column `col` and the rest.
    ///
    /// # Panics
    /// If `col` is not a multiple of 64 or lies outside.
    pub fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col.is_multiple_of(GROUP), "a split inside a group, at {col}");
        let (v0, v1) = self.values.split_cols(col);
        let (s0, s1) = self.scales.split_cols(col / GROUP);
        let (t0, t1) = self.sums.split_cols(col / GROUP);
        let (p0, p1) = self.part_sums.split_cols(col / GROUP);
        let (o0, o1) = self.outliers.split_cols(col / GROUP);
        let left = Self { values: v0, scales: s0, sums: t0, part_sums: p0, outliers: o0 };
        (left, Self { values: v1, scales: s1, sums: t1, part_sums: p1, outliers: o1 })
    }

    /// The first `token` tokens, and the rest.
    ///
    /// # Panics
    /// If `token` is beyond the last.
    pub fn split_tokens(self, token: usize) -> (Self, Self) {
        let (v0, v1) = self.values.split_rows(token);
        let (s0, s1) = self.scales.split_rows(token);
        let (t0, t1) = self.sums.split_rows(token);
        let (p0, p1) = self.part_sums.split_rows(token);
        let (o0, o1) = self.outliers.split_rows(token);
        let above = Self { values: v0, scales: s0, sums: t0, part_sums: p0, outliers: o0 };
        (above, Self { values: v1, scales: s1, sums: t1, part_sums: p1, outliers: o1 })
    }
}

/// Where a quantising kernel puts the groups of one token: slices of `n` elements (`values`) and `⌈n/64⌉`.
pub struct QuantizedRow<'a> {
    /// The values, −127..=127.
    pub values: &'a mut [i8],
    /// One scale a group.
    pub scales: &'a mut [f32],
    /// The sum of each group's values, its outlier's high parts included.
    pub sums: &'a mut [i32],
    /// The sums of each 16 of a group's values, without its outlier's high parts.
    pub part_sums: &'a mut [[i16; PARTS]],
    /// Each group's outlier.
    pub outliers: &'a mut [Outlier],
}

impl QuantizedRow<'_> {
    pub(crate) fn assert_shape(&self, len: usize) {
        assert_eq!(self.values.len(), len, "quantised values");
        assert_eq!(self.scales.len(), len.div_ceil(GROUP), "quantised scales");
        assert_eq!(self.sums.len(), len.div_ceil(GROUP), "quantised sums");
        assert_eq!(self.part_sums.len(), len.div_ceil(GROUP), "quantised parts' sums");
        assert_eq!(self.outliers.len(), len.div_ceil(GROUP), "quantised outliers");
    }

    /// Writes what quantising group `g` gave beside its values.
    #[inline(always)]
    pub(crate) fn set(&mut self, g: usize, group: QuantizedGroup) {
        (self.scales[g], self.outliers[g]) = (group.scale, group.outlier);
        (self.sums[g], self.part_sums[g]) = (group.sum, group.part_sums);
    }
}

/// What quantising a group gives beside its values.
pub(crate) struct QuantizedGroup {
    pub scale: f32,
    /// Of all values, whole.
    pub sum: i32,
    /// Of each 16 values, without the outlier's high parts.
    pub part_sums: [i16; PARTS],
    pub outlier: Outlier,
}

impl QuantizedGroup {
    /// A group of zeros.
    #[inline(always)]
    pub fn zeros(scale: f32) -> Self {
        Self { scale, sum: 0, part_sums: [0; PARTS], outlier: Outlier::default() }
    }

    /// `whole_sums` are the sums of each 16 values, whole.
    #[inline(always)]
    pub fn new(scale: f32, whole_sums: [i32; PARTS], outlier: Outlier) -> Self {
        let sum = whole_sums.iter().sum();
        let mut part_sums = whole_sums;
        let high: i32 = outlier.high.into_iter().map(i32::from).sum();
        part_sums[outlier.quad_index() * QUAD / PART] -= 128 * high;
        Self { scale, sum, part_sums: part_sums.map(|sum| sum as i16), outlier }
    }
}

/// Where the group that holds `position` ends, in something that ends at `end`.
pub(crate) fn group_end(position: usize, end: usize) -> usize {
    ((position / GROUP + 1) * GROUP).min(end)
}
