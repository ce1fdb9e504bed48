//! Reading the `.bin` model file: a JSON header, then tensors that are used where they lie in the map.

mod header;
pub(super) mod source;
#[expect(clippy::indexing_slicing, reason = "a JSON value indexed by a name that it lacks is null")]
mod tokenizer;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "sizes that `lay_out` has bounded"
)]
pub(crate) mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use torchless_kernels::Weight;

use self::header::{Header, RawTensor};
pub use super::encoding::Dtype;
use crate::arch::tensors::HEAD;
use crate::arch::{Config, GenerationDefaults};
use crate::format::fs::{check_len, map_file};
use crate::format::{gguf, overlap};
use crate::parallel::spread::try_spread;
use crate::tokenizer::Spec;
use crate::{Error, Malformed};

/// Tensors, and the payload itself, start at multiples of this.
const ALIGNMENT: usize = 64;

/// Headers longer than this are refused. The vocabularies of today take up to 20 MB.
pub(super) const MAX_HEADER: usize = 100_000_000;

/// Where a tensor lies in the file. Made where a file is opened, which has checked it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Range<usize>,
    scales: Range<usize>,
}

impl Tensor {
    /// Hugging Face's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the values are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// `[rows, cols]`, or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes in the file, scales included.
    pub fn bytes(&self) -> usize {
        self.data.len().saturating_add(self.scales.len())
    }

    /// Rows (output features) and columns; a vector is one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        rows_cols(&self.shape)
    }
}

/// Rows and columns of a shape of one or two dimensions; a vector is one row.
fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, cols] => (rows, cols),
        _ => (1, shape.first().copied().unwrap_or(0)),
    }
}

/// An open model file. Tensors are views into the map: nothing is copied.
#[derive(Debug)]
pub struct BinFile {
    path: PathBuf,
    map: Mmap,
    config: Config,
    generation: GenerationDefaults,
    tensors: Vec<Tensor>,
    is_f32: bool,
}

impl BinFile {
    /// Maps `path`, and returns it with what its tokenizer is built from. Checks its header: every tensor lies inside the
    /// payload and over no other, has the size its shape asks for, and only sound scales.
    ///
    /// The file must not change while it is open: one that is truncated ends the process, since its pages are gone.
    ///
    /// # Errors
    /// If the file cannot be mapped, or is damaged; the error names the place.
    pub(crate) fn open(path: &Path) -> Result<(Self, Spec), Error> {
        if path.is_dir() {
            return Err(Error::NotConverted { path: path.to_owned(), what: "a folder" });
        }
        let map = map_file(path)?;
        if map.starts_with(gguf::MAGIC) {
            return Err(Error::NotConverted { path: path.to_owned(), what: "a GGUF file" });
        }
        let at = || Malformed::in_file(path);
        let (header, base) = split(&map).map_err(at())?;
        let Header { config, tokenizer, generation, tensors: raw } = header::parse(header).map_err(at())?;
        let mut tensors = Vec::with_capacity(raw.len());
        for (name, raw) in raw {
            let tensor = place(name, &raw, base, map.len()).map_err(at())?;
            tensors.push(tensor);
        }
        let ranges = |tensor: &Tensor| [tensor.data.clone(), tensor.scales.clone()];
        let ranges = |tensor| ranges(tensor).map(|range| (range, tensor.name()));
        overlap::check(tensors.iter().flat_map(ranges)).map_err(at())?;
        let is_f32 = tensors.iter().all(|t| t.dtype == Dtype::F32);
        let file = Self { path: path.to_owned(), map, config, generation, tensors, is_f32 };
        file.verify().map_err(at())?;
        check_len(path, file.map.len())?;
        Ok((file, tokenizer))
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the model's publisher says that tokens should be chosen.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The whole file as it is mapped, header and all.
    pub fn contents(&self) -> &[u8] {
        &self.map
    }

    /// All tensors, in the header's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors that a model is of. Old exporters also store the rotary frequencies, which follow from rope_theta, and a
    /// head that is the embedding.
    pub(crate) fn own_tensors(&self) -> impl Iterator<Item = &Tensor> {
        let tied = self.config.tie_word_embeddings;
        let follows = move |name: &str| name.ends_with("rotary_emb.inv_freq") || tied && name == HEAD;
        self.tensors.iter().filter(move |tensor| !follows(&tensor.name))
    }

    /// Whether every tensor is f32.
    pub fn is_f32(&self) -> bool {
        self.is_f32
    }

    /// A tensor's values as a matrix; a vector is one row. `tensor` must be one of this file's.
    ///
    /// Where all weights are f32, nobody was promised the same bits: then products may add in any order.
    pub fn weight(&self, tensor: &Tensor) -> Weight<'_> {
        let (data, scales) = self.data_and_scales(tensor);
        tensor.dtype.encoding().weight(data, scales, tensor.rows_cols(), self.is_f32)
    }

    /// An f32 tensor's values. `tensor` must be one of this file's, and f32.
    pub fn vector(&self, tensor: &Tensor) -> &[f32] {
        bytemuck::cast_slice(self.bytes_of(&tensor.data))
    }

    /// A tensor's bytes, and those of its scales. `tensor` must be one of this file's.
    pub(super) fn data_and_scales(&self, tensor: &Tensor) -> (&[u8], &[u8]) {
        (self.bytes_of(&tensor.data), self.bytes_of(&tensor.scales))
    }

    #[expect(clippy::indexing_slicing, reason = "`place` has checked that the range is aligned and inside")]
    fn bytes_of(&self, range: &Range<usize>) -> &[u8] {
        &self.map[range.clone()]
    }

    fn verify(&self) -> Result<(), Malformed> {
        try_spread(self.tensors.iter(), |tensor| {
            let (data, scales) = self.data_and_scales(tensor);
            tensor.dtype.encoding().verify(data, scales, tensor.rows_cols()).map_err(|problem| {
                Malformed(format!("tensor {}: {problem}: the file is damaged", tensor.name))
            })
        })
    }
}

/// The header's JSON, and where the payload starts.
fn split(map: &[u8]) -> Result<(&[u8], usize), Malformed> {
    if map.get(8).is_some_and(|first| *first != b'{') {
        return Err(Malformed("not a torchless .bin file: no JSON header".to_owned()));
    }
    let short = || Malformed(format!("{} bytes, shorter than its header says: is it truncated?", map.len()));
    let size = map.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(short)?;
    let end = usize::try_from(size).ok().and_then(|s| s.checked_add(8)).ok_or_else(short)?;
    let header = map.get(8..end).ok_or_else(short)?;
    if header.len() > MAX_HEADER {
        let size = header.len();
        return Err(Malformed(format!("a header of {size} bytes: up to {MAX_HEADER} are supported")));
    }
    let last = header.iter().rposition(|b| !matches!(b, 0 | b' ' | b'\n'));
    let json = header.get(..=last.unwrap_or(0)).unwrap_or_default();
    Ok((json, end.next_multiple_of(ALIGNMENT)))
}

/// Checks one tensor's entry against the file's length.
fn place(name: String, raw: &RawTensor, base: usize, file_len: usize) -> Result<Tensor, Malformed> {
    let bad = |what: String| Malformed(format!("tensor {name}: {what}"));
    let Some(dtype) = Dtype::named(&raw.dtype) else {
        let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        return Err(bad(format!("unknown dtype {:?}: {} are supported", raw.dtype, known.join(", "))));
    };
    if !matches!(raw.shape.len(), 1 | 2) || raw.shape.contains(&0) {
        return Err(bad(format!(
            "shape {:?}: one or two dimensions, none of them zero, are supported",
            raw.shape
        )));
    }
    let (rows, cols) = rows_cols(&raw.shape);
    let sizes = dtype.encoding().sizes(rows, cols);
    let sizes = sizes.map_err(|problem| bad(format!("shape {:?} {problem}", raw.shape)))?;
    let range = |what: &str, offset: usize, bytes: usize, alignment: usize| {
        let start = base.checked_add(offset);
        let end = start.and_then(|s| s.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len && start.is_multiple_of(alignment) => Ok(start..end),
            (Some(_), Some(end)) if end <= file_len => {
                Err(bad(format!("{what} at offset {offset} is not aligned to {alignment} bytes")))
            }
            _ => Err(bad(format!(
                "{what} at offset {offset}, {bytes} bytes, ends past the file's {file_len}: is it truncated?"
            ))),
        }
    };
    let data = range("data", raw.offset, sizes.data, sizes.alignment)?;
    let scales = match sizes.scales {
        None => 0..0,
        Some(count) => {
            let n = rows.saturating_mul(cols);
            let Some(offset) = raw.scale_offset else {
                return Err(bad(format!("{} without a scale_offset", dtype.name())));
            };
            // Early files count bytes, not scales.
            if let Some(size) = raw.scale_size.filter(|&s| s != count && Some(s) != sizes.scale_bytes()) {
                return Err(bad(format!("scale_size is {size}, but {n} values have {count} scales")));
            }
            let bytes = sizes.scale_bytes().ok_or_else(|| bad("too many scales".to_owned()))?;
            range("scales", offset, bytes, sizes.scale_alignment)?
        }
    };
    Ok(Tensor { name, dtype, shape: raw.shape.clone(), data, scales })
}
