//! Models for contexts longer than the fixtures are made for.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use torchless::Model;
use torchless::format::convert::Storage;

use super::converted::converted;
use super::fixture::fixture;

/// A fixture with room for 999 positions and, where one is given, another sliding window.
///
/// # Panics
/// If the fixture's header does not say what is to be replaced.
pub fn long_model(file: &str, window: Option<(&str, &str)>) -> Arc<Model> {
    let (_folder, path) = edited(file, window);
    Arc::new(Model::open(path).unwrap())
}

/// The same, stored in another way.
pub fn long_model_as(file: &str, window: Option<(&str, &str)>, storage: impl Into<Storage>) -> Arc<Model> {
    let (_folder, path) = edited(file, window);
    converted(&path, storage).1
}

fn edited(file: &str, window: Option<(&str, &str)>) -> (TempDir, PathBuf) {
    let mut bytes = std::fs::read(fixture(file)).unwrap();
    replace(&mut bytes, r#""max_position_embeddings": "256""#, r#""max_position_embeddings": "999""#);
    if let Some((old, new)) = window {
        let setting = |value: &str| format!("\"sliding_window\": \"{value}\"");
        replace(&mut bytes, &setting(old), &setting(new));
    }
    let dir = tempfile::tempdir().unwrap();
    let edited = dir.path().join(file);
    std::fs::write(&edited, bytes).unwrap();
    (dir, edited)
}

/// Replaces a text in the header by one that is as long or shorter.
fn replace(bytes: &mut [u8], old: &str, new: &str) {
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).expect(old);
    bytes[at..at + old.len()].copy_from_slice(format!("{new:len$}", len = old.len()).as_bytes());
}
