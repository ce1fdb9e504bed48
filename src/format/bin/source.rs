//! A `.bin` file as a source: to store its weights in another way.

use std::path::Path;
use std::sync::Arc;

use super::BinFile;
use crate::Error;
use crate::format::source::{Source, SourceTensor};

/// Opens a model file.
///
/// # Errors
/// As [`BinFile::open`].
pub fn open(path: &Path) -> Result<Source, Error> {
    let (file, tokenizer) = BinFile::open(path)?;
    let file = Arc::new(file);
    let tensor = |tensor: &super::Tensor| (tensor.name.clone(), SourceTensor::of_file(&file, tensor));
    Ok(Source {
        config: file.config.clone(),
        tokenizer,
        generation: *file.generation(),
        tensors: file.own_tensors().map(tensor).collect(),
        files: vec![path.to_owned()],
        notes: Vec::new(),
    })
}
