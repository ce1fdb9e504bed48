//! Converting a Hugging Face folder, a GGUF file or another `.bin` model file to a `.bin` model file.
//!
//! Tensor by tensor and a block of rows at a time: the source is memory-mapped and neither the model nor one of its
//! large tensors is ever in memory as a whole.

use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use torchless_kernels::GROUP;

use crate::arch::Config;
use crate::arch::rope::Rope;
use crate::arch::tensors::ROPE_FACTORS;
use crate::format::bin::writer::{BinWriter, Layout, TensorInfo};
use crate::format::encoding::Dtype;
use crate::format::fs::{AtomicFile, map_file};
use crate::format::source::{Source, SourceTensor};
use crate::format::{bin, gguf, hf};
use crate::tokenizer::{Spec, Tokenizer};
use crate::{Error, Malformed};

/// Which tensors become int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Quant {
    /// Every matrix, the embedding and the head included. Norms stay f32.
    #[default]
    Int8,
    /// Only `mlp.gate_proj` and `mlp.up_proj`, which is what the original readers can read.
    Int8Proj,
    /// None.
    F32,
}

impl FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "int8" => Ok(Self::Int8),
            "int8-proj" => Ok(Self::Int8Proj),
            "f32" => Ok(Self::F32),
            _ => Err(format!("{name:?} is not one of int8, int8-proj, f32")),
        }
    }
}

impl Quant {
    fn is_int8(self, name: &str, shape: &[usize]) -> bool {
        match self {
            Self::Int8 => shape.len() == 2,
            Self::Int8Proj => {
                name.ends_with(".mlp.gate_proj.weight") || name.ends_with(".mlp.up_proj.weight")
            }
            Self::F32 => false,
        }
    }

    /// These tensors in this layout.
    pub fn laid_out(self, layout: RowLayout) -> Storage {
        Storage { quant: self, layout }
    }
}

/// How the rows of an int8 matrix lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowLayout {
    /// 16 side by side, as the kernels read them. Matrices whose columns are no multiple of 64 lie in rows.
    Panels,
    /// One after the other, which is what the original readers can read.
    Rows,
}

impl FromStr for RowLayout {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "panels" => Ok(Self::Panels),
            "rows" => Ok(Self::Rows),
            _ => Err(format!("{name:?} is not one of panels, rows")),
        }
    }
}

/// How a model is stored: which tensors become int8, and how these lie in the file.
///
/// Of a [`Quant`] alone: in panels, but for [`Quant::Int8Proj`], which is for readers that know rows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    quant: Quant,
    layout: RowLayout,
}

impl From<Quant> for Storage {
    fn from(quant: Quant) -> Self {
        quant.laid_out(if quant == Quant::Int8Proj { RowLayout::Rows } else { RowLayout::Panels })
    }
}

impl Storage {
    fn dtype(self, name: &str, shape: &[usize]) -> Dtype {
        let whole_groups = shape.last().is_some_and(|cols| cols.is_multiple_of(GROUP));
        match self.layout {
            _ if !self.quant.is_int8(name, shape) => Dtype::F32,
            RowLayout::Panels if whole_groups => Dtype::Int8Panels,
            RowLayout::Panels | RowLayout::Rows => Dtype::Int8,
        }
    }
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done: a verb, or the name of a tensor.
    pub step: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 when not known.
    pub total: u64,
}

/// Is told how far an operation has come, and can break it off: then what was begun is removed, and the operation
/// returns [`Error::Interrupted`].
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Calls `progress`; an error if it breaks off.
pub(crate) fn report(progress: &mut OnProgress, at: Progress<'_>) -> Result<(), Error> {
    match progress(at) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Number of tensors.
    pub tensors: usize,
    /// Size of the file.
    pub bytes: u64,
    /// What the user should know about the conversion, one line each.
    pub notes: Vec<String>,
}

/// Converts `src`, a Hugging Face folder, a GGUF file or a `.bin` model file (told apart by content), to the `.bin` model
/// file `dst`: both steps of a [`Convertible`].
///
/// # Errors
/// As [`Convertible::open`] and [`Convertible::write`].
pub fn convert(
    src: &Path,
    dst: &Path,
    storage: impl Into<Storage>,
    progress: &mut OnProgress,
) -> Result<Report, Error> {
    Convertible::open(src)?.write(dst, storage, progress)
}

/// A model that can be converted, as far as that shows without reading its weights.
pub struct Convertible {
    src: PathBuf,
    source: Source,
    /// In the order a forward pass reads them.
    tensors: Vec<(String, SourceTensor)>,
    tokenizer: Tokenizer,
}

impl Convertible {
    /// Opens a Hugging Face folder, a GGUF file or a `.bin` model file, told apart by content.
    ///
    /// # Errors
    /// When it is not a model that is supported, or is damaged.
    pub fn open(src: &Path) -> Result<Self, Error> {
        let mut source = open(src)?;
        // What could not be opened is not written.
        let tokenizer = Tokenizer::new(source.tokenizer.clone()).map_err(Malformed::in_file(src))?;
        let tensors = source.take_tensors().map_err(Malformed::in_file(src))?;
        if let Some((name, factors)) = tensors.iter().find(|(name, _)| name == ROPE_FACTORS) {
            let mut values = vec![0.0; factors.shape().iter().product()];
            factors
                .read_row(0, &mut values)
                .map_err(|problem| Error::file(src, format!("tensor {name} {problem}")))?;
            Rope::new(source.config.rope_theta, source.config.head_dim, Some(&values))
                .map_err(Malformed::in_file(src))?;
        }
        Ok(Self { src: src.to_owned(), source, tensors, tokenizer })
    }

    /// The tokenizer that the model file will have.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Writes the `.bin` model file `dst`.
    ///
    /// `dst` is replaced if it exists, and only by a complete file: the result is written beside it under a temporary name
    /// and renamed. `progress` is called after every block of rows.
    ///
    /// # Errors
    /// When a weight is a NaN, an infinity, or too large for its storage; when `dst` cannot be written, is a file of the source,
    /// or lies in its folder and is no model file; when `progress` breaks off. Then `dst` is as it was.
    #[expect(clippy::indexing_slicing, reason = "`write` asks for the tensors it is given")]
    pub fn write(
        &self,
        dst: &Path,
        storage: impl Into<Storage>,
        progress: &mut OnProgress,
    ) -> Result<Report, Error> {
        let Self { src, source, tensors, .. } = self;
        let storage = storage.into();
        let shapes: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect();
        let read_row = |index: usize, row, out: &mut [f32]| {
            let (name, tensor) = &tensors[index];
            let problem = |problem| Error::file(src, format!("tensor {name} {problem}"));
            tensor.read_row(row, out).map_err(problem)?;
            let largest = storage.dtype(name, tensor.shape()).encoding().largest();
            match out.iter().find(|value| value.abs() > largest) {
                Some(&value) => {
                    Err(Error::BeyondPanels { path: src.clone(), tensor: name.clone(), row, value, largest })
                }
                None => Ok(()),
            }
        };
        let Source { config, tokenizer, notes, files, .. } = source;
        let layout = layout(config, tokenizer, &shapes, storage).map_err(Malformed::in_file(src))?;
        let file = AtomicFile::create(dst, files)?;
        check_beside(src, dst)?;
        let report = write(layout, &shapes, file, read_row, progress)?;
        Ok(Report { notes: notes.clone(), ..report })
    }
}

/// Refuses to replace what a model's folder holds besides what is read of it: it may not be had again.
fn check_beside(src: &Path, dst: &Path) -> Result<(), Error> {
    let (Ok(folder), Ok(replaced)) = (src.canonicalize(), dst.canonicalize()) else { return Ok(()) };
    if !folder.is_dir() || !replaced.starts_with(&folder) || is_model_file(&replaced) {
        return Ok(());
    }
    Err(Error::file(dst, "is no model file, and lies in the folder that is converted: give another name"))
}

/// Whether a file seems to be a model file of ours, or has nothing in it.
fn is_model_file(path: &Path) -> bool {
    let is_safetensors = path.extension().is_some_and(|ending| ending == "safetensors");
    let mut beginning = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(9).read_to_end(&mut beginning));
    read.is_ok() && !is_safetensors && (beginning.is_empty() || beginning.get(8) == Some(&b'{'))
}

/// Opens a source: a folder is Hugging Face's, a file is GGUF or a model file already.
fn open(src: &Path) -> Result<Source, Error> {
    if fs::metadata(src).map_err(Error::io(src))?.is_dir() {
        return hf::open(src);
    }
    let map = map_file(src)?;
    if map.starts_with(gguf::MAGIC) {
        let source = gguf::open(map).map_err(Malformed::in_file(src))?;
        return Ok(Source { files: vec![src.to_owned()], ..source });
    }
    let what = if map.get(8) == Some(&b'{') {
        if safetensors::SafeTensors::read_metadata(&map).is_err() {
            return bin::source::open(src);
        }
        "a safetensors file, whose config.json and tokenizer.json lie in the folder it belongs to"
    } else if map.starts_with(b"PK") {
        "a zip archive (a PyTorch checkpoint is one, and not supported)"
    } else {
        "neither GGUF nor anything else that can be converted"
    };
    Err(Error::file(src, format!("{what}: give a GGUF file, a Hugging Face folder or a .bin model file")))
}

/// The file for tensors of these names and shapes.
pub(crate) fn layout(
    config: &Config,
    tokenizer: &Spec,
    tensors: &[(String, Vec<usize>)],
    storage: Storage,
) -> Result<Layout, Malformed> {
    let info = |(name, shape): &(String, Vec<usize>)| TensorInfo {
        name: name.clone(),
        shape: shape.clone(),
        dtype: storage.dtype(name, shape),
    };
    Layout::new(config, tokenizer, &tensors.iter().map(info).collect::<Vec<_>>())
}

/// Writes `file` as laid out for `tensors`, whose rows `read_row(tensor, row, out)` delivers.
pub(crate) fn write(
    layout: Layout,
    tensors: &[(String, Vec<usize>)],
    file: AtomicFile,
    mut read_row: impl FnMut(usize, usize, &mut [f32]) -> Result<(), Error>,
    progress: &mut OnProgress,
) -> Result<Report, Error> {
    let (bytes, total) = (layout.file_bytes(), layout.tensor_bytes());
    let mut writer = BinWriter::new(file, layout)?;
    let mut done = 0;
    for (index, (name, _)) in tensors.iter().enumerate() {
        let read_row = |row, out: &mut [f32]| read_row(index, row, out);
        writer.write_tensor(read_row, |bytes| {
            done = u64::saturating_add(done, bytes);
            report(progress, Progress { step: name, done, total })
        })?;
    }
    writer.finish()?;
    Ok(Report { tensors: tensors.len(), bytes, notes: Vec::new() })
}
