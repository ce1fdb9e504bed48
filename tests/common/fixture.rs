//! The files of `tests/fixtures/models`.

use std::path::{Path, PathBuf};

/// The path of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}
