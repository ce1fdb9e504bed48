//! A model to convert, whatever file it comes from: configuration, tokenizer, and tensors under Hugging Face's names.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use memmap2::Mmap;
use torchless_kernels::Kernels;

use crate::Malformed;
use crate::arch::tensors::Tensors;
use crate::arch::{Config, GenerationDefaults};
use crate::format::bin::{BinFile, Tensor};
use crate::format::dequant::SourceType;
use crate::format::encoding::int4::{self, GRID_GROUP, GridGroup, encode_grid};
use crate::format::encoding::{Dtype, Encoded};
use crate::tokenizer::Spec;

/// A model as its source file describes it. Nothing of the weights has been read yet.
pub struct Source {
    /// The hyper-parameters.
    pub config: Config,
    /// The tokenizer.
    pub tokenizer: Spec,
    /// How tokens should be chosen.
    pub generation: GenerationDefaults,
    /// Every tensor the source holds, by Hugging Face's name.
    pub tensors: HashMap<String, SourceTensor>,
    /// The files that it was read from.
    pub files: Vec<PathBuf>,
    /// What the user should know about the conversion, one line each.
    pub notes: Vec<String>,
}

impl Source {
    /// The tensors of the model, in the order a forward pass reads them.
    ///
    /// # Errors
    /// As [`Tensors::take_from`].
    pub fn take_tensors(&mut self) -> Result<Vec<(String, SourceTensor)>, Malformed> {
        let found = std::mem::take(&mut self.tensors);
        let found = found.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut ordered = Vec::new();
        Tensors::take_from(
            &self.config,
            found,
            |tensor: &&SourceTensor| tensor.shape(),
            |name, tensor| {
                ordered.push((name.to_owned(), tensor.clone()));
                Ok(())
            },
        )?;
        Ok(ordered)
    }
}

/// Where a tensor's rows are.
#[derive(Clone)]
enum Rows {
    /// In a range of a mapped file, each of so many bytes.
    Encoded {
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        encoding: SourceType,
        row_bytes: usize,
    },
    /// In a model file of our own.
    OfFile(Arc<BinFile>, Tensor),
}

/// How many bits a source holds a tensor's values in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Four, on a grid that this format of ours has too.
    Grid(Dtype),
    /// Five to eight.
    FiveToEight,
    /// More, or fewer.
    Wide,
}

/// The width of a head where the source does not give it.
pub fn head_dim(hidden_size: usize, n_heads: usize) -> Result<usize, Malformed> {
    match hidden_size.checked_div(n_heads) {
        Some(head_dim) if hidden_size.is_multiple_of(n_heads) => Ok(head_dim),
        _ => Err(Malformed(format!("{n_heads} heads do not divide a width of {hidden_size}"))),
    }
}

/// One tensor of a source: where its rows are, and how to read them.
#[derive(Clone)]
pub struct SourceTensor {
    rows: Rows,
    shape: Vec<usize>,
    /// Where a head's rows (of a vector, values) are, if not one after the other.
    order: Option<HeadOrder>,
    /// Its values are one less than they are used.
    plus_one: bool,
    /// What its values are multiplied by.
    scales: Option<Arc<BlockScales>>,
}

/// A number that the values of each block of a matrix are multiplied by.
#[derive(Debug, Clone)]
pub struct BlockScales {
    /// `[blocks down][blocks across]`
    pub values: Vec<f32>,
    /// Rows and columns of a block.
    pub block: [usize; 2],
    /// Blocks across.
    pub across: usize,
    /// The row of the blocks that is the matrix's first.
    pub first_row: usize,
}

impl BlockScales {
    /// Multiplies row `row`.
    fn multiply(&self, row: usize, values: &mut [f32]) {
        let [rows, cols] = self.block;
        let down = self.first_row.saturating_add(row).checked_div(rows).unwrap_or(0);
        let scales = self.values.get(down.saturating_mul(self.across)..).unwrap_or_default();
        for (values, scale) in values.chunks_mut(cols.max(1)).zip(scales) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// In which order the rows of each head are stored. Here row i is rotated with row i + head_dim/2.
#[derive(Debug, Clone, Copy)]
pub enum HeadOrder {
    /// Rows 2i and 2i+1 are rotated together.
    Interleaved { head_dim: usize },
    /// Row i is rotated with row i + rotary_dim/2, and what follows these is not rotated.
    Partial { head_dim: usize, rotary_dim: usize },
}

impl HeadOrder {
    /// Where row `row` lies.
    ///
    /// For interleaved rows llama.cpp's converter reshapes them to (heads, 2, head_dim/2) and swaps the last two; this is its inverse.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "rows of a tensor that is in memory, and heads of 2 at least"
    )]
    fn stored(self, row: usize) -> usize {
        let (HeadOrder::Interleaved { head_dim } | HeadOrder::Partial { head_dim, .. }) = self;
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
        let stored = match self {
            HeadOrder::Interleaved { .. } => 2 * i + half,
            HeadOrder::Partial { rotary_dim, .. } => match i.checked_sub(rotary_dim / 2) {
                None => half * (rotary_dim / 2) + i,
                Some(i) => rotary_dim + half * ((head_dim - rotary_dim) / 2) + i,
            },
        };
        head * head_dim + stored
    }
}

impl SourceTensor {
    /// A tensor of `shape` (`[rows, cols]`, or `[n]`: one row) that fills `range` of `map`.
    ///
    /// # Errors
    /// When the range is not in the map or not exactly as long as the shape needs.
    pub fn new(
        map: Arc<Mmap>,
        range: Range<usize>,
        encoding: SourceType,
        shape: Vec<usize>,
    ) -> Result<Self, Malformed> {
        let (rows, cols) = match shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(Malformed(format!("has shape {shape:?}, not one or two dimensions"))),
        };
        let Some(row_bytes) = encoding.bytes(cols) else {
            return Err(Malformed(format!(
                "has rows of {cols} values, not whole blocks of {} as {encoding:?} needs",
                encoding.block_len()
            )));
        };
        if row_bytes.checked_mul(rows) != Some(range.len()) || map.get(range.clone()).is_none() {
            return Err(Malformed(format!(
                "of shape {shape:?} ({encoding:?}) does not fit the bytes {range:?} of a file of {}",
                map.len()
            )));
        }
        let rows = Rows::Encoded { bytes: map, range, encoding, row_bytes };
        Ok(Self { rows, shape, order: None, plus_one: false, scales: None })
    }

    /// A vector of these values.
    pub fn of(values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (range, row_bytes, encoding) = (0..bytes.len(), bytes.len(), SourceType::F32);
        let rows = Rows::Encoded { bytes: Arc::new(bytes), range, encoding, row_bytes };
        Self { rows, shape: vec![values.len()], order: None, plus_one: false, scales: None }
    }

    /// A tensor of a model file.
    pub fn of_file(file: &Arc<BinFile>, tensor: &Tensor) -> Self {
        let shape = tensor.shape().to_vec();
        Self {
            rows: Rows::OfFile(Arc::clone(file), tensor.clone()),
            shape,
            order: None,
            plus_one: false,
            scales: None,
        }
    }

    /// The same tensor, known to hold the rows (of a vector, the values) of its heads in this order.
    pub fn ordered(self, order: HeadOrder) -> Self {
        Self { order: Some(order), ..self }
    }

    /// The same tensor, known to hold values that are one less than they are used.
    pub fn plus_one(self) -> Self {
        Self { plus_one: true, ..self }
    }

    /// A matrix that holds several, one after the other: each with its name behind `stem`, and its rows.
    ///
    /// # Errors
    /// When it is no matrix, or has other rows than these together.
    pub fn cut(&self, stem: &str, parts: &[(&str, usize)]) -> Result<Vec<(String, Self)>, Malformed> {
        let rows = parts.iter().fold(0, |all: usize, (_, rows)| all.saturating_add(*rows));
        if self.shape.len() != 2 || self.shape.first() != Some(&rows) {
            return Err(Malformed(format!("has shape {:?}: {rows} rows are expected", self.shape)));
        }
        let part = |first: &mut usize, (name, rows): &(&str, usize)| {
            let range = *first..first.saturating_add(*rows);
            *first = range.end;
            Some((format!("{stem}{name}"), self.rows(range)))
        };
        Ok(parts.iter().scan(0, part).collect())
    }

    /// The same tensor, its values multiplied by these.
    pub fn scaled(self, scales: BlockScales) -> Self {
        Self { scales: Some(Arc::new(scales)), ..self }
    }

    /// Whether its values make no sense without scales.
    pub fn needs_scales(&self) -> bool {
        matches!(self.rows, Rows::Encoded { encoding: SourceType::F8E4M3, .. }) && self.scales.is_none()
    }

    /// Some rows of a matrix that was read from a file and is in no other order.
    ///
    /// # Panics
    /// When there are no such rows.
    #[expect(clippy::arithmetic_side_effects, reason = "documented")]
    fn rows(&self, rows: Range<usize>) -> Self {
        let mut part = self.clone();
        if let (Rows::Encoded { range, row_bytes, .. }, [all, _]) = (&mut part.rows, &mut part.shape[..]) {
            assert!(rows.end <= *all, "rows {rows:?} of {all}");
            *range = range.start + rows.start * *row_bytes..range.start + rows.end * *row_bytes;
            *all = rows.len();
            if let Some(scales) = &mut part.scales {
                Arc::make_mut(scales).first_row += rows.start;
            }
        }
        part
    }

    /// `[rows, cols]`, or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it is of a model file of our own.
    pub fn is_of_file(&self) -> bool {
        matches!(self.rows, Rows::OfFile(..))
    }

    /// How many bits its values are held in.
    pub fn held(&self) -> Held {
        match &self.rows {
            Rows::Encoded { encoding, .. } if self.shape.len() == 2 => encoding.held(),
            Rows::OfFile(_, tensor) if tensor.dtype().int4().is_some() => Held::Grid(tensor.dtype()),
            Rows::Encoded { .. } | Rows::OfFile(..) => Held::Wide,
        }
    }

    /// Appends rows of a tensor that is [`Held::Grid`] to `out`, on their grid: whole panels of them, or the last.
    ///
    /// # Errors
    /// When a scale or a minimum is a NaN or an infinity.
    ///
    /// # Panics
    /// When there are no such rows.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "`new` has checked the range"
    )]
    pub(super) fn encode_grid(
        &self,
        rows: Range<usize>,
        dtype: Dtype,
        out: &mut Encoded,
    ) -> Result<(), Malformed> {
        let Some(kind) = dtype.int4() else { return Ok(()) };
        let cols = self.shape.last().copied().unwrap_or(0);
        if let Rows::OfFile(file, tensor) = &self.rows {
            let (data, scales) = file.data_and_scales(tensor);
            int4::copy_panels(kind, (data, scales), tensor.rows_cols(), rows, out);
            return Ok(());
        }
        let (first, in_row) = (rows.start, cols / GRID_GROUP);
        let mut groups = Vec::with_capacity(rows.len() * in_row);
        for row in rows {
            let Rows::Encoded { bytes, range, encoding, row_bytes } = &self.rows else { continue };
            let bytes = &(**bytes).as_ref()[range.clone()][self.stored(row) * row_bytes..][..*row_bytes];
            encoding.grid(bytes, &mut groups);
        }
        let finite = |group: &GridGroup| group.scale.is_finite() && group.offset.is_finite();
        if let Some(at) = groups.iter().position(|group| !finite(group)) {
            let GridGroup { scale, offset, .. } = groups[at];
            let (row, col) = (first + at / in_row, at % in_row * GRID_GROUP);
            let value = if scale.is_finite() { offset } else { scale };
            return Err(Malformed(format!("holds {value} at row {row}, column {col}")));
        }
        encode_grid(&groups, cols, kind, out);
        Ok(())
    }

    /// Where row `row` lies among those that are stored.
    fn stored(&self, row: usize) -> usize {
        match self.order {
            Some(order) if self.shape.len() == 2 => order.stored(row),
            _ => row,
        }
    }

    /// Reads row `row` (0 for a one-dimensional tensor) into `out`, which must be one row long.
    ///
    /// # Errors
    /// When the row holds a NaN or an infinity.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "`new` has checked the range"
    )]
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), Malformed> {
        let stored = self.stored(row);
        match &self.rows {
            Rows::Encoded { bytes, range, encoding, row_bytes } => {
                let bytes = &(**bytes).as_ref()[range.clone()][stored * row_bytes..][..*row_bytes];
                encoding.decode(bytes, out);
            }
            Rows::OfFile(file, tensor) => Kernels::detect().weight_row(&file.weight(tensor), stored, out),
        }
        if let Some(scales) = &self.scales {
            scales.multiply(stored, out);
        }
        if let (Some(order), [_]) = (self.order, &self.shape[..]) {
            let stored = out.to_vec();
            (0..).zip(&mut *out).for_each(|(i, value)| *value = stored[order.stored(i)]);
        }
        if self.plus_one {
            out.iter_mut().for_each(|value| *value += 1.0);
        }
        match out.iter().position(|value| !value.is_finite()) {
            Some(col) => Err(Malformed(format!("holds {} at row {row}, column {col}", out[col]))),
            None => Ok(()),
        }
    }
}
