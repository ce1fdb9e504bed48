//! Calibrating: a text that runs through a model decides how its matrices are rounded.

mod common {
    pub mod fixture;
    pub mod hash;
    pub mod random;
    pub mod wide;
}

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::fixture::fixture;
use common::wide::wide_source;
use torchless::calibrate;
use torchless::format::bin::Dtype;
use torchless::format::convert::{Convertible, Quant};
use torchless::perplexity::Divergence;
use torchless::runtime::{Session, SessionOptions};
use torchless::{Error, Model};

const CTX: usize = 128;

fn english() -> String {
    std::fs::read_to_string(fixture("../english.txt")).unwrap()
}

fn calibrated(src: &Path, dst: &Path, text: &str) -> Result<(), Error> {
    let model = Convertible::open(src)?;
    calibrate::convert(src, &model, dst, Quant::Int4, text, &mut |_| ControlFlow::Continue(())).map(drop)
}

fn plain(src: &Path, dst: &Path, quant: Quant) {
    let model = Convertible::open(src).unwrap();
    model.write(dst, quant, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// How far a model file is from another on a text, in nats a token.
fn divergence(file: &Path, against: &Path, text: &str) -> f64 {
    let open = |path: &Path| Arc::new(Model::open(path).unwrap());
    let (model, against) = (open(file), open(against));
    let tokens = model.tokenizer().encode(text, Default::default());
    let [mut one, mut other] = [&model, &against].map(|model| {
        let options = SessionOptions { ctx: CTX, threads: 2, ..SessionOptions::new(model) };
        Session::new(model, &options).unwrap()
    });
    Divergence::measure(&mut one, &mut other, &tokens, None, |_| ()).unwrap().kl_mean()
}

#[test]
fn a_text_helps_on_another_one() {
    let (source, out) = (wide_source("qwen2"), tempfile::tempdir().unwrap());
    let path = |name: &str| out.path().join(name);
    let text = english();
    let half = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let (calibration, other) = text.split_at(half);
    plain(source.path(), &path("f32.bin"), Quant::F32);
    plain(source.path(), &path("plain.bin"), Quant::Int4);
    // What a killed one would have left.
    std::fs::create_dir(path(".calibrated.bin.calibration.abc123.partial")).unwrap();
    calibrated(source.path(), &path("calibrated.bin"), calibration).unwrap();
    let [plain, with] =
        ["plain.bin", "calibrated.bin"].map(|name| divergence(&path(name), &path("f32.bin"), other));
    assert!(with < 0.9 * plain, "{with} calibrated, {plain} without");
    // The model that ran is gone, and so is the other.
    let mut left: Vec<_> =
        std::fs::read_dir(out.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["calibrated.bin", "f32.bin", "plain.bin"]);
}

/// A model file runs itself. Which matrices are int4 does not depend on the text.
#[test]
fn a_model_file_is_calibrated_as_it_is() {
    let (source, out) = (wide_source("qwen3"), tempfile::tempdir().unwrap());
    let path = |name: &str| out.path().join(name);
    plain(source.path(), &path("f32.bin"), Quant::F32);
    plain(&path("f32.bin"), &path("plain.bin"), Quant::Int4);
    calibrated(&path("f32.bin"), &path("calibrated.bin"), &english()).unwrap();
    let [plain, with] = ["plain.bin", "calibrated.bin"].map(|name| Model::open(path(name)).unwrap());
    let dtypes = |model: &Model| -> Vec<_> {
        model.file().tensors().iter().map(|tensor| (tensor.name().to_owned(), tensor.dtype())).collect()
    };
    assert_eq!(dtypes(&plain), dtypes(&with));
    assert!(dtypes(&with).iter().any(|(_, dtype)| *dtype == Dtype::Int4));
    assert!(plain.file().contents() != with.file().contents());
    // The same text rounds the same way.
    calibrated(&path("f32.bin"), &path("again.bin"), &english()).unwrap();
    assert!(Model::open(path("again.bin")).unwrap().file().contents() == with.file().contents());
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let (source, out) = (wide_source("qwen3"), tempfile::tempdir().unwrap());
    let error = calibrated(source.path(), &out.path().join("out.bin"), "Too short.").unwrap_err().to_string();
    assert!(error.contains("256 are needed") && !error.contains('\n'), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

/// What has its four bits already keeps them.
#[test]
fn what_is_int4_already_is_not_calibrated() {
    let (source, out) = (wide_source("qwen3"), tempfile::tempdir().unwrap());
    let [once, twice] = ["once.bin", "twice.bin"].map(|name| out.path().join(name));
    plain(source.path(), &once, Quant::Int4);
    let error = calibrated(&once, &twice, &english()).unwrap_err().to_string();
    assert!(error.contains("no matrix that would be rounded") && !twice.exists(), "{error}");
    plain(&once, &twice, Quant::Auto);
    assert!(std::fs::read(&once).unwrap() == std::fs::read(&twice).unwrap(), "copied as it is");
}
