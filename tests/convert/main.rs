//! Conversion to `.bin`: against values made by numpy and the `gguf` package, and with everything that can be wrong
//! with a source. The fixtures come from `tests/fixtures/convert/make.py`.

mod bin_file;
mod families;
mod gguf;
mod gguf_file;
mod hf;
mod int4;
mod relaid;
mod shipped;
mod tokenizer;
mod written;

#[path = "../common"]
mod common {
    pub mod bits;
    pub mod converted;
    pub mod family;
    pub mod fixture;
    pub mod hash;
    pub mod logprobs;
    pub mod random;
}

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use torchless::Error;
use torchless::format::convert::{Quant, Report, Storage, convert};

use bin_file::BinFile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert").join(name)
}

/// Converts into a folder of its own.
fn try_convert(src: &Path, storage: impl Into<Storage>) -> Result<(BinFile, Report), Error> {
    let folder = tempfile::tempdir().unwrap();
    let dst = folder.path().join("model.bin");
    let result = convert(src, &dst, storage, &mut |_| ControlFlow::Continue(()));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    match result {
        Ok(report) => {
            assert_eq!(left, ["model.bin"], "nothing but the result is left");
            let bin = BinFile::read(&dst);
            assert_eq!(bin.file.len() as u64, report.bytes);
            Ok((bin, report))
        }
        Err(error) => {
            assert!(left.is_empty(), "a failure leaves {left:?}");
            Err(error)
        }
    }
}

/// The message of a conversion that must fail, checked to be one line that names the source.
fn refusal(src: &Path) -> String {
    match try_convert(src, Quant::Int8) {
        Ok(_) => panic!("{} was converted", src.display()),
        Err(error) => {
            let message = error.to_string();
            assert_eq!(message.lines().count(), 1, "not one line: {message:?}");
            assert!(message.starts_with(src.to_str().unwrap()), "does not name the source: {message}");
            message
        }
    }
}

fn assert_refused(src: &Path, expected: &str) {
    let message = refusal(src);
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}
