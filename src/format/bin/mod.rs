//! Reading the `.bin` model file: a JSON header, then tensors that are used where they lie in the map.

mod header;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "sizes that `lay_out` has bounded"
)]
pub(crate) mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use torchless_kernels::{F32Matrix, GROUP, QMatrix, Weight};

use self::header::{Header, RawTensor};
use crate::arch::Config;
use crate::format::fs::{check_len, map_file};
use crate::tokenizer::Spec;
use crate::{Error, Malformed};

/// Tensors, and the payload itself, start at multiples of this.
const ALIGNMENT: usize = 64;

/// Headers longer than this are refused. The vocabularies of today take up to 20 MB.
const MAX_HEADER: usize = 100_000_000;

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Four bytes a value.
    F32,
    /// One byte a value, and an f32 scale for each 64 consecutive values of the flattened tensor.
    Int8,
}

impl Dtype {
    /// The name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Int8 => "int8",
        }
    }
}

/// Where a tensor lies in the file. Made by [`BinFile::open`] only, which has checked it.
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
        match self.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.shape.iter().product()),
        }
    }
}

/// An open model file. Tensors are views into the map: nothing is copied.
#[derive(Debug)]
pub struct BinFile {
    path: PathBuf,
    map: Mmap,
    config: Config,
    tensors: Vec<Tensor>,
    is_f32: bool,
}

impl BinFile {
    /// Maps `path`, and returns it with what its tokenizer is built from. Checks its header: every tensor lies inside the payload, has the size its shape asks for, and
    /// only sound scales.
    ///
    /// The file must not change while it is open: one that is truncated ends the process, since its pages are gone.
    ///
    /// # Errors
    /// If the file cannot be mapped, or is damaged; the error names the place.
    pub(crate) fn open(path: &Path) -> Result<(Self, Spec), Error> {
        if path.is_dir() {
            return Err(Error::file(path, "a folder, not a model file: `torchless convert` it first"));
        }
        let map = map_file(path)?;
        let at = || Malformed::in_file(path);
        let (header, base) = split(&map).map_err(at())?;
        let Header { config, tokenizer, tensors: raw } = header::parse(header).map_err(at())?;
        let mut tensors = Vec::with_capacity(raw.len());
        for (name, raw) in raw {
            let tensor = place(name, &raw, base, map.len()).map_err(at())?;
            tensors.push(tensor);
        }
        let is_f32 = tensors.iter().all(|t| t.dtype == Dtype::F32);
        let file = Self { path: path.to_owned(), map, config, tensors, is_f32 };
        file.check_scales().map_err(at())?;
        check_len(path, file.map.len())?;
        Ok((file, tokenizer))
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
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

    /// Whether every tensor is f32.
    pub fn is_f32(&self) -> bool {
        self.is_f32
    }

    /// A tensor's values as a matrix; a vector is one row. `tensor` must be one of this file's.
    ///
    /// Where all weights are f32, nobody was promised the same bits: then products may add in any order.
    #[expect(clippy::indexing_slicing, reason = "`place` has checked the range")]
    pub fn weight(&self, tensor: &Tensor) -> Weight<'_> {
        let (rows, cols) = tensor.rows_cols();
        match tensor.dtype {
            Dtype::F32 => Weight::F32(F32Matrix::new(self.floats(&tensor.data), cols, self.is_f32)),
            Dtype::Int8 => {
                let values = bytemuck::cast_slice(&self.map[tensor.data.clone()]);
                Weight::Int8(QMatrix::new(values, self.floats(&tensor.scales), rows, cols))
            }
        }
    }

    /// An f32 tensor's values. `tensor` must be one of this file's, and f32.
    pub fn vector(&self, tensor: &Tensor) -> &[f32] {
        self.floats(&tensor.data)
    }

    /// `place` has checked that `range` is aligned and inside.
    #[expect(clippy::indexing_slicing, reason = "it is checked")]
    fn floats(&self, range: &Range<usize>) -> &[f32] {
        bytemuck::cast_slice(&self.map[range.clone()])
    }

    /// A scale of zero, a negative one or NaN is damage, and so is one so small that a weight would be infinite.
    fn check_scales(&self) -> Result<(), Malformed> {
        use rayon::prelude::*;
        // 1/scale must be finite: then every product with an int8 value is too.
        let sound = |s: &f32| *s >= f32::MIN_POSITIVE && (*s).recip().is_finite();
        self.tensors.par_iter().try_for_each(|tensor| {
            let scales = self.floats(&tensor.scales);
            match scales.par_chunks(1 << 16).all(|chunk| chunk.iter().all(sound)) {
                true => Ok(()),
                false => {
                    let (g, s) = scales.iter().enumerate().find(|(_, s)| !sound(s)).unwrap_or((0, &0.0));
                    Err(Malformed(format!(
                        "tensor {}: the scale of group {g} is {s}: the file is damaged",
                        tensor.name
                    )))
                }
            }
        })
    }
}

/// The header's JSON, and where the payload starts.
fn split(map: &[u8]) -> Result<(&[u8], usize), Malformed> {
    if map.starts_with(b"GGUF") {
        return Err(Malformed("a GGUF file: `torchless convert` it first".to_owned()));
    }
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
    let dtype = match raw.dtype.as_str() {
        "f32" => Dtype::F32,
        "int8" => Dtype::Int8,
        other => return Err(bad(format!("unknown dtype {other:?}: f32 and int8 are supported"))),
    };
    if !matches!(raw.shape.len(), 1 | 2) || raw.shape.contains(&0) {
        return Err(bad(format!(
            "shape {:?}: one or two dimensions, none of them zero, are supported",
            raw.shape
        )));
    }
    let n = raw.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let n = n.ok_or_else(|| bad(format!("shape {:?} overflows", raw.shape)))?;
    let range = |what: &str, offset: usize, count: usize, size: usize| {
        let start = base.checked_add(offset);
        let end = start.and_then(|s| s.checked_add(count.checked_mul(size)?));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len && start.is_multiple_of(size) => Ok(start..end),
            (Some(_), Some(end)) if end <= file_len => {
                Err(bad(format!("{what} at offset {offset} is not aligned to {size} bytes")))
            }
            _ => Err(bad(format!(
                "{what} at offset {offset}, {count} × {size} bytes, ends past the file's {file_len}: is it truncated?"
            ))),
        }
    };
    let (data, scales) = match dtype {
        Dtype::F32 => (range("data", raw.offset, n, 4)?, 0..0),
        Dtype::Int8 => {
            let groups = n.div_ceil(GROUP);
            let Some(offset) = raw.scale_offset else {
                return Err(bad("int8 without a scale_offset".to_owned()));
            };
            // Early files count bytes, not scales.
            if let Some(size) = raw.scale_size.filter(|&s| s != groups && Some(s) != groups.checked_mul(4)) {
                return Err(bad(format!("scale_size is {size}, but {n} values have {groups} scales")));
            }
            (range("data", raw.offset, n, 1)?, range("scales", offset, groups, 4)?)
        }
    };
    Ok(Tensor { name, dtype, shape: raw.shape.clone(), data, scales })
}
