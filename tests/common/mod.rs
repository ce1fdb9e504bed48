//! Models for contexts longer than the fixtures are made for.

use std::path::Path;
use std::sync::Arc;

use torchless::Model;

/// A fixture with room for 999 positions and, where one is given, another sliding window.
///
/// # Panics
/// If the fixture's header does not say what is to be replaced.
pub fn long_model(file: &str, window: Option<(&str, &str)>) -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(file);
    let mut bytes = std::fs::read(path).unwrap();
    replace(&mut bytes, r#""max_position_embeddings": "256""#, r#""max_position_embeddings": "999""#);
    if let Some((old, new)) = window {
        let setting = |value: &str| format!("\"sliding_window\": \"{value}\"");
        replace(&mut bytes, &setting(old), &setting(new));
    }
    let dir = tempfile::tempdir().unwrap();
    let edited = dir.path().join(file);
    std::fs::write(&edited, bytes).unwrap();
    Arc::new(Model::open(edited).unwrap())
}

/// Replaces a text in the header by one that is as long or shorter.
fn replace(bytes: &mut [u8], old: &str, new: &str) {
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).expect(old);
    bytes[at..at + old.len()].copy_from_slice(format!("{new:len$}", len = old.len()).as_bytes());
}

/// Pseudo-random token ids.
pub fn tokens(n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab_size as u32
    };
    (0..n).map(|_| next()).collect()
}
