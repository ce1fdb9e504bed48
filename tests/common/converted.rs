//! Models made of a source when a test begins.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use torchless::Model;
use torchless::format::convert::{Storage, convert};

/// A source, or a model file stored in another way, as a model. The folder must live as long as the model.
pub fn converted(source: &Path, storage: impl Into<Storage>) -> (TempDir, Arc<Model>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    convert(source, &path, storage, &mut |_| ControlFlow::Continue(())).unwrap();
    let model = Arc::new(Model::open(path).unwrap());
    (folder, model)
}
