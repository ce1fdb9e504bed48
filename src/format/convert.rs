//! Converting a Hugging Face folder, a GGUF file or another `.bin` model file to a `.bin` model file.
//!
//! Tensor by tensor and a block of rows at a time: the source is memory-mapped and neither the model nor one of its
//! large tensors is ever in memory as a whole.

use std::fs;
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arch::rope::Rope;
use crate::arch::tensors::ROPE_FACTORS;
use crate::format::bin::writer::{BinWriter, Layout, TensorInfo};
use crate::format::encoding::int4::{Feedback, encode_weighted, encode_with_feedback};
use crate::format::encoding::{Dtype, Encoded};
use crate::format::fs::{AtomicFile, map_file};
use crate::format::plan::Planned;
pub use crate::format::plan::{Bits, Quant, RowLayout, Storage};
use crate::format::source::{Held, Source, SourceTensor};
use crate::format::{bin, gguf, hf, importance};
use crate::tokenizer::Tokenizer;
use crate::{Error, Malformed};

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
        for (name, factors) in tensors.iter().filter(|(name, _)| ROPE_FACTORS.contains(&name.as_str())) {
            let mut values = vec![0.0; factors.shape().iter().product()];
            factors
                .read_row(0, &mut values)
                .map_err(|problem| Error::file(src, format!("tensor {name} {problem}")))?;
            Rope::new(&source.config, &source.config.rope, Some(&values)).map_err(Malformed::in_file(src))?;
        }
        Ok(Self { src: src.to_owned(), source, tensors, tokenizer })
    }

    /// Whether the source is a model file already.
    pub fn is_model_file(&self) -> bool {
        self.tensors.first().is_some_and(|(_, tensor)| tensor.is_of_file())
    }

    /// The files that it is read from, also those that would be if they were there.
    pub fn files(&self) -> &[PathBuf] {
        &self.source.files
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
    pub fn write(
        &self,
        dst: &Path,
        storage: impl Into<Storage>,
        progress: &mut OnProgress,
    ) -> Result<Report, Error> {
        self.write_with(dst, storage.into(), &mut |_| Ok(None), progress)
    }

    /// Whether any matrix would be rounded to four bits.
    pub(crate) fn rounds_to_int4(&self, storage: Storage) -> bool {
        let mut rounded = self.plan(storage).into_iter().zip(&self.tensors);
        rounded.any(|(dtype, (_, tensor))| dtype == Dtype::Int4 && tensor.held() != Held::Grid(dtype))
    }

    /// The format of each tensor.
    fn plan(&self, storage: Storage) -> Vec<Dtype> {
        let tensors = self.tensors.iter();
        let planned =
            tensors.map(|(name, tensor)| Planned { name, shape: tensor.shape(), held: tensor.held() });
        storage.plan(&planned.collect::<Vec<_>>())
    }

    /// [`Convertible::write`]; matrices that `feedback` has something for become int4 with it.
    #[expect(clippy::indexing_slicing, reason = "`write` asks for the tensors it is given")]
    pub(crate) fn write_with(
        &self,
        dst: &Path,
        storage: Storage,
        feedback: &mut FeedbackOf,
        progress: &mut OnProgress,
    ) -> Result<Report, Error> {
        let Self { src, source, tensors, .. } = self;
        let Source { config, tokenizer, generation, notes, files, .. } = source;
        let dtypes = self.plan(storage);
        let infos = tensors.iter().zip(&dtypes).map(|((name, tensor), dtype)| TensorInfo {
            name: name.clone(),
            shape: tensor.shape().to_vec(),
            dtype: *dtype,
        });
        let infos: Vec<_> = infos.collect();
        let layout = Layout::new(config, tokenizer, generation, &infos).map_err(Malformed::in_file(src))?;
        let file = AtomicFile::create(dst, files)?;
        check_beside(src, dst)?;
        let mut weighed = None;
        let mut values = Vec::new();
        let encode = |index: usize, rows: Range<usize>, out: &mut Encoded| {
            let ((name, tensor), dtype) = (&tensors[index], dtypes[index]);
            let problem = |problem| Error::file(src, format!("tensor {name} {problem}"));
            if tensor.held() == Held::Grid(dtype) {
                return tensor.encode_grid(rows, dtype, out).map_err(problem);
            }
            if dtype == Dtype::Int4 && weighed.as_ref().is_none_or(|(of, _)| *of != index) {
                let weights = match feedback(name)? {
                    Some(feedback) => Weights::Feedback(feedback),
                    None => Weights::Importance(self.importance(name).map_err(problem)?),
                };
                weighed = Some((index, weights));
            }
            self.read_rows(index, rows, dtype, &mut values)?;
            let cols = tensor.shape().last().copied().unwrap_or(0);
            match &weighed {
                Some((of, Weights::Feedback(feedback))) if *of == index => {
                    encode_with_feedback(&values, feedback, out);
                }
                Some((of, Weights::Importance(importance))) if *of == index => {
                    encode_weighted(&values, cols, importance.as_deref(), out);
                }
                _ => dtype.encoding().encode(&values, cols, out),
            }
            Ok(())
        };
        let report = write(layout, &infos, file, encode, progress)?;
        Ok(Report { notes: notes.clone(), ..report })
    }

    /// What the errors of a matrix's columns weigh, as far as other weights tell.
    fn importance(&self, name: &str) -> Result<Option<Vec<f32>>, Malformed> {
        let find = |name: &str| self.tensors.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor);
        importance::of_columns(&self.source.config, name, &find)
    }

    /// Reads some rows of a tensor that is to be stored as `dtype`.
    #[expect(clippy::indexing_slicing, reason = "`write` asks for the tensors it is given")]
    fn read_rows(
        &self,
        index: usize,
        rows: Range<usize>,
        dtype: Dtype,
        values: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let (name, tensor) = &self.tensors[index];
        let cols = tensor.shape().last().copied().unwrap_or(0);
        let largest = dtype.encoding().largest();
        values.clear();
        values.resize(rows.len().saturating_mul(cols), 0.0);
        for (row, out) in rows.zip(values.chunks_mut(cols)) {
            let problem = |problem| Error::file(&self.src, format!("tensor {name} {problem}"));
            tensor.read_row(row, out).map_err(problem)?;
            if let Some(&value) = out.iter().find(|value| value.abs() > largest) {
                let (path, tensor) = (self.src.clone(), name.clone());
                return Err(Error::BeyondPanels { path, tensor, row, value, largest });
            }
        }
        Ok(())
    }
}

/// What is known of a matrix's activations: gives, for its name, how errors in its columns go together.
pub(crate) type FeedbackOf<'a> = dyn FnMut(&str) -> Result<Option<Arc<Feedback>>, Error> + 'a;

/// What the errors of a matrix's columns weigh.
enum Weights {
    Feedback(Arc<Feedback>),
    Importance(Option<Vec<f32>>),
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
        return gguf::open(src, map);
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

/// Writes `file` as laid out for `tensors`; `encode(tensor, rows, out)` appends the encoded form of rows that follow each other.
pub(crate) fn write(
    layout: Layout,
    tensors: &[TensorInfo],
    file: AtomicFile,
    mut encode: impl FnMut(usize, Range<usize>, &mut Encoded) -> Result<(), Error>,
    progress: &mut OnProgress,
) -> Result<Report, Error> {
    let (bytes, total) = (layout.file_bytes(), layout.tensor_bytes());
    let mut writer = BinWriter::new(file, layout)?;
    let mut done = 0;
    for (index, TensorInfo { name, .. }) in tensors.iter().enumerate() {
        let encode = |rows, out: &mut Encoded| encode(index, rows, out);
        writer.write_tensor(encode, |bytes| {
            done = u64::saturating_add(done, bytes);
            report(progress, Progress { step: name, done, total })
        })?;
    }
    writer.finish()?;
    Ok(Report { tensors: tensors.len(), bytes, notes: Vec::new() })
}
