//! What people name a model by.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::hub::Reference;
use crate::Error;
use crate::format::fs::folder_of;

/// What a model is named by: told apart by its first bytes, so that a model file costs nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A model file, or at least nothing that could be converted: it opens, or says what it is.
    ModelFile(PathBuf),
    /// A GGUF file or a folder (perhaps by the name of its weights), which are converted; or nothing at all.
    Source(PathBuf),
    /// A model on the hub.
    Hub(Reference),
}

impl Named {
    /// Looks at a path, or at `hf:org/name`.
    ///
    /// # Errors
    /// When it begins with `hf:` and goes on otherwise.
    pub fn of(name: &Path) -> Result<Self, Error> {
        if let Some(text) = name.to_str().filter(|text| text.starts_with(Reference::PREFIX)) {
            return text.parse().map(Self::Hub);
        }
        // Weights are of use with what is beside them.
        let folder = folder_of(name);
        if name.extension().is_some_and(|ending| ending == "safetensors")
            && folder.join("config.json").is_file()
        {
            return Ok(Self::Source(folder.into()));
        }
        let is_source = match fs::metadata(name) {
            Ok(found) if found.is_file() => is_gguf(name),
            Ok(found) => found.is_dir(),
            Err(_) => true,
        };
        Ok(if is_source { Self::Source(name.into()) } else { Self::ModelFile(name.into()) })
    }
}

/// Whether a file begins as GGUF does.
fn is_gguf(path: &Path) -> bool {
    let mut beginning = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut beginning));
    read.is_ok() && beginning == *b"GGUF"
}
