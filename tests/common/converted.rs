//! Models made of a source when a test begins.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use torchless::Model;
use torchless::format::convert::{Quant, convert};

/// A Hugging Face folder or GGUF file as a model. The folder must live as long as the model.
pub fn converted(source: &Path, quant: Quant) -> (TempDir, Arc<Model>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    convert(source, &path, quant, &mut |_| ControlFlow::Continue(())).unwrap();
    let model = Arc::new(Model::open(path).unwrap());
    (folder, model)
}
