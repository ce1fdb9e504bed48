//! A model file as a source: the same model, stored in another way.

use std::fs;
use std::path::{Path, PathBuf};

use approx::assert_abs_diff_eq;
use serde_json::Value;
use torchless::Model;
use torchless::format::convert::{Quant, RowLayout, Storage};

use crate::bin_file::BinFile;
use crate::gguf::write;
use crate::{assert_refused, refusal, try_convert};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

fn relaid(name: &str, storage: impl Into<Storage>) -> BinFile {
    try_convert(&model(name), storage).unwrap().0
}

/// The weights of an int8 tensor in rows of whole groups.
fn of_rows(bin: &BinFile, name: &str) -> Vec<f32> {
    let (values, scales) = bin.int8s(name);
    // A scale of infinity is a group of zeros.
    values.iter().enumerate().map(|(i, q)| f32::from(*q) * (1.0 / scales[i / 64])).collect()
}

fn payload(bin: &BinFile) -> &[u8] {
    &bin.file[8 + u64::from_le_bytes(bin.file[..8].try_into().unwrap()) as usize..]
}

#[test]
fn every_kind_of_older_file_becomes_panels() {
    for name in
        ["mistral-f32.bin", "mistral-int8.bin", "mistral-gate-up.bin", "llama-f32.bin", "llama-int8.bin"]
    {
        let (old, new) = (BinFile::read(&model(name)), relaid(name, Quant::Int8));
        assert_eq!(new.metadata("quant"), "int8_panels");
        for tensor in new.names() {
            assert_eq!(new.shape(tensor), old.shape(tensor), "{tensor}");
            if new.shape(tensor).len() == 1 {
                assert_eq!(new.f32s(tensor), old.f32s(tensor), "{tensor}");
                continue;
            }
            let was_int8 = old.dtype(tensor) == "int8";
            let expected = if was_int8 { of_rows(&old, tensor) } else { old.f32s(tensor) };
            let found = new.panels(tensor);
            let groups = expected.chunks(64).zip(found.chunks(64));
            for (i, (expected, found)) in groups.enumerate() {
                let max = expected.iter().fold(0.0f32, |max, w| max.max(w.abs()));
                let q = |w: &f32| (w / max * 127.0).round();
                // Of 127 steps and no more, each stays what it is, and only the step is rounded to an f16.
                let kept = was_int8 && expected.iter().all(|w| (w / max * 127.0 - q(w)).abs() < 1e-3);
                let most = if kept { 127.0 / 2048.0 } else { 0.57 };
                for (expected, found) in expected.iter().zip(found) {
                    let steps = (expected - found) * 127.0 / max.max(f32::MIN_POSITIVE);
                    assert!(steps.abs() <= most, "{name}, {tensor}, group {i}: {expected} became {found}");
                }
            }
        }
    }
}

#[test]
fn columns_that_are_no_whole_groups_stay_in_rows() {
    let bin = relaid("ragged-f32.bin", Quant::Int8);
    assert_eq!(bin.metadata("quant"), "int8");
    let matrices = bin.names().into_iter().filter(|name| bin.shape(name).len() == 2);
    assert!(matrices.inspect(|name| assert_eq!(bin.dtype(name), "int8", "{name}")).count() > 10);
}

/// `mistral-hf` is the same model as it was published.
#[test]
fn a_source_of_f32_is_as_good_as_what_it_was_made_of() {
    for storage in [
        Quant::Int8.into(),
        Quant::Int8.laid_out(RowLayout::Rows),
        Quant::Int8Proj.into(),
        Quant::Int8Proj.laid_out(RowLayout::Panels),
        Quant::F32.into(),
    ] {
        let (ours, theirs) = (relaid("mistral-f32.bin", storage), relaid("mistral-hf", storage));
        assert_eq!(ours.header["tensors"], theirs.header["tensors"]);
        assert!(payload(&ours) == payload(&theirs), "{storage:?}");
    }
}

#[test]
fn layouts_and_kinds() {
    const PROJ: &str = "model.layers.0.mlp.up_proj.weight";
    const EMBED: &str = "model.embed_tokens.weight";
    for (storage, proj, embed) in [
        (Quant::Int8.into(), "int8_panels", "int8_panels"),
        (Quant::Int8.laid_out(RowLayout::Rows), "int8", "int8"),
        (Quant::Int8Proj.into(), "int8", "f32"),
        (Quant::Int8Proj.laid_out(RowLayout::Panels), "int8_panels", "f32"),
        (Quant::F32.into(), "f32", "f32"),
        (Quant::F32.laid_out(RowLayout::Panels), "f32", "f32"),
    ] {
        let bin = relaid("mistral-int8.bin", storage);
        assert_eq!((bin.dtype(PROJ), bin.dtype(EMBED)), (proj, embed), "{storage:?}");
    }
}

/// What is in panels already is copied: not a value or scale is another. (Rows are not: the reciprocal of a scale is rounded.)
#[test]
fn once_more_is_the_same_file() {
    for storage in [Quant::Int8.into(), Quant::Int8Proj.laid_out(RowLayout::Panels), Quant::F32.into()] {
        let once = relaid("mistral-int8.bin", storage);
        let (_folder, path) = write(&once.file);
        assert!(try_convert(&path, storage).unwrap().0.file == once.file, "{storage:?}");
    }
}

#[test]
fn what_is_not_weights_is_kept() {
    for name in ["mistral-int8.bin", "llama-int8.bin", "ragged-int8.bin"] {
        let old = Model::open(model(name)).unwrap();
        let (_folder, path) = write(&relaid(name, Quant::Int8).file);
        let new = Model::open(path).unwrap();
        assert_eq!(new.config(), old.config());
        let texts = ["the rain said <s> no", "", "é\n"];
        let ids = |model: &Model| texts.map(|text| model.tokenizer().encode(text, Default::default()));
        assert_eq!(ids(&new), ids(&old));
        assert_eq!(format!("{:?}", new.tokenizer().spec()), format!("{:?}", old.tokenizer().spec()));
    }
}

/// A fixture with its header or payload changed.
fn edited(name: &str, change: impl Fn(&mut Value, &mut Vec<u8>)) -> Vec<u8> {
    let bin = BinFile::read(&model(name));
    let (mut header, mut data) = (bin.header.clone(), payload(&bin).to_vec());
    change(&mut header, &mut data);
    let mut header = header.to_string().into_bytes();
    header.resize((8 + header.len()).next_multiple_of(64) - 8, b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

/// Sets weight `at` of a tensor of an f32 file.
fn with_weight(tensor: &str, at: usize, value: f32) -> Vec<u8> {
    edited("mistral-f32.bin", |header, data| {
        let offset = header["tensors"][tensor]["offset"].as_u64().unwrap() as usize + 4 * at;
        data[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    })
}

#[test]
fn weights_that_panels_cannot_hold() {
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    let (_folder, path) = write(&with_weight(UP, 3 * 64 + 5, -8319009.0));
    let message = refusal(&path);
    assert!(message.contains(&format!("tensor {UP} holds -8319009 in row 3")), "{message}");
    assert!(message.contains("8319008: store int8 in rows"), "{message}");
    let (bin, _) = try_convert(&path, Quant::Int8.laid_out(RowLayout::Rows)).unwrap();
    assert_abs_diff_eq!(of_rows(&bin, UP)[3 * 64 + 5], -8319009.0, epsilon = 1.0);
    try_convert(&path, Quant::F32).unwrap();

    let (_folder, path) = write(&with_weight(UP, 3 * 64 + 5, -8319008.0));
    assert_eq!(try_convert(&path, Quant::Int8).unwrap().0.panels(UP)[3 * 64 + 5], -8319008.0);
}

#[test]
fn damaged_files() {
    let (_folder, path) = write(&with_weight("model.norm.weight", 7, f32::INFINITY));
    assert_refused(&path, "tensor model.norm.weight holds inf at row 0, column 7");
    let whole = fs::read(model("mistral-int8.bin")).unwrap();
    let (_folder, path) = write(&whole[..whole.len() - 1]);
    assert_refused(&path, "is it truncated?");
    let (_folder, path) = write(&edited("mistral-f32.bin", |header, _| {
        header["metadata"]["n_layers"] = "1".into();
    }));
    assert_refused(&path, "tensor model.layers.1.input_layernorm.weight: not part of a model");
    // What could be written, and not opened then.
    let (_folder, path) = write(&edited("mistral-f32.bin", |header, data| {
        let factors = serde_json::json!({"dtype": "f32", "shape": [16], "offset": data.len()});
        header["tensors"]["model.rotary_emb.factors"] = factors;
        data.extend([0; 64]);
    }));
    assert_refused(&path, "the rotary embedding's factor 0 is 0");
}
