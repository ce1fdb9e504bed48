//! What Hugging Face makes of conversations: `tests/fixtures/chat/make.py`.

use std::fmt::Debug;
use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use torchless::Error;

/// A conversation as a template has it, or why it has none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rendered {
    Text(String),
    Error(String),
}

impl Rendered {
    /// Compares `found` with it; `what` was rendered.
    ///
    /// # Panics
    /// If they differ.
    pub fn check(&self, found: Result<String, Error>, what: impl Debug) {
        match (found, self) {
            (Ok(text), Self::Text(golden)) => assert_eq!(&text, golden, "{what:?}"),
            (Err(error), Self::Error(golden)) => assert!(error.to_string().contains(golden), "{error}"),
            (result, golden) => panic!("{what:?} gives {result:?} instead of {golden:?}"),
        }
    }
}

/// The goldens, or what a test needs of them.
pub fn goldens<T: DeserializeOwned>() -> T {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let file = std::fs::File::open(folder.join("goldens.json.gz")).unwrap();
    serde_json::from_reader(GzDecoder::new(file)).unwrap()
}
