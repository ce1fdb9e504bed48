//! Tiny random models of every further architecture, as published and as GGUF, against Hugging Face transformers; see
//! `tests/fixtures/models/families.py` for what they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use approx::assert_abs_diff_eq;
use serde_json::Value;
use tempfile::TempDir;
use torchless::format::convert::{Quant, RowLayout, Storage};
use torchless::kv::KvType;
use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::sampling::Sampling;
use torchless_kernels::{Isa, Kernels};

use crate::common::bits::bits;
use crate::common::converted::converted;
use crate::common::family::{FAMILIES, Family, json};
use crate::common::logprobs::logprobs;
use crate::gguf_file::{GgufFile, Tensor, f32_value, str_value, u32_value};

/// What the model must answer, and how it is stored elsewhere.
#[derive(serde::Deserialize)]
struct Answers {
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
    logprobs_of_20: Vec<f64>,
    greedy: Vec<u32>,
    gguf: Option<Gguf>,
}

#[derive(serde::Deserialize)]
struct Gguf {
    architecture: String,
    keys: BTreeMap<String, Value>,
    /// Which tensor each is made of, with the heads whose rows are brought into the interleaved order, and what is added.
    tensors: BTreeMap<String, (String, usize, f32)>,
    vectors: BTreeMap<String, Vec<f32>>,
}

/// The same as llama.cpp's converter would write it.
fn gguf(family: &Family, gguf: &Gguf) -> (TempDir, PathBuf) {
    let Gguf { architecture, keys, tensors, vectors } = gguf;
    let mut file = GgufFile::tiny();
    file.keys.retain(|(key, _)| !key.starts_with("llama."));
    file.set("general.architecture", str_value(architecture));
    for (key, value) in keys {
        let value = match value {
            Value::String(text) => str_value(text),
            Value::Number(n) if n.is_f64() => f32_value(n.as_f64().unwrap() as f32),
            value => u32_value(value.as_u64().unwrap() as u32),
        };
        file.set(&format!("{architecture}.{key}"), value);
    }
    let matrices = tensors.iter().map(|(name, (from, heads, plus))| {
        let (shape, values) = family.tensor(from);
        let values: Vec<f32> = values.iter().map(|value| value + plus).collect();
        let values = if *heads > 0 { interleaved(&values, shape[0] / heads, shape[1]) } else { values };
        (name, shape, values)
    });
    let vectors = vectors.iter().map(|(name, values)| (name, vec![values.len()], values.clone()));
    file.tensors = matrices
        .chain(vectors)
        .map(|(name, shape, values)| Tensor {
            name: name.clone(),
            dims: shape.iter().rev().map(|&n| n as u64).collect(),
            kind: 0,
            offset: None,
            data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    (folder, path)
}

/// The rows of heads in the order in which neighbours are rotated together.
fn interleaved(values: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    let heads = values.chunks_exact(head_dim * cols);
    let row = |head: &[f32], i: usize| head[i * cols..(i + 1) * cols].to_vec();
    heads
        .flat_map(|head| {
            (0..head_dim / 2).flat_map(move |i| [row(head, i), row(head, i + head_dim / 2)].concat())
        })
        .collect()
}

fn assert_as_transformers(source: &Path, answers: &Answers) {
    let (_folder, model) = converted(source, Quant::F32);
    for chunk in [1, 7, 512] {
        let options = SessionOptions { chunk, ..SessionOptions::new(&model) };
        println!("{}, chunks of {chunk}", source.display());
        let short = logprobs(&model, &options, &answers.tokens[..20]);
        assert_abs_diff_eq!(short[..], answers.logprobs_of_20[..], epsilon = 1e-3);
        let found = logprobs(&model, &options, &answers.tokens);
        assert_abs_diff_eq!(found[..], answers.logprobs[..], epsilon = 1e-3);
        let mut session = Session::new(&model, &options).unwrap();
        let (max_tokens, prompt) = (answers.greedy.len(), &answers.tokens[..24]);
        let sampling = Sampling::greedy();
        let generate = GenerateOptions { max_tokens, sampling, ..GenerateOptions::default() };
        let ids: Vec<u32> =
            session.generate(prompt, &generate).unwrap().map(|piece| piece.unwrap().token).collect();
        assert_eq!(ids, answers.greedy);
    }
}

#[test]
fn published_folders_predict_what_transformers_does() {
    for name in FAMILIES {
        println!("{name}");
        let answers = serde_json::from_value(json(name)).unwrap();
        assert_as_transformers(Family::named(name).folder().path(), &answers);
    }
}

#[test]
fn gguf_files_predict_what_transformers_does() {
    let mut count = 0;
    for name in FAMILIES {
        let answers: Answers = serde_json::from_value(json(name)).unwrap();
        if let Some(stored) = &answers.gguf {
            let (_folder, path) = gguf(&Family::named(name), stored);
            println!("{name}");
            assert_as_transformers(&path, &answers);
            count += 1;
        }
    }
    assert_eq!(count, 7);
}

/// With int8 and int4 weights and every kind of cache, on every instruction set this CPU has.
#[test]
fn logits_are_the_same_bits_however_they_are_worked_out() {
    for name in FAMILIES {
        let family = Family::named(name);
        let folder = family.folder();
        for storage in [Storage::from(Quant::Int8), Quant::Int8.laid_out(RowLayout::Rows), Quant::Int4.into()]
        {
            let (_folder, model) = converted(folder.path(), storage);
            for kv in [KvType::F16, KvType::Int8] {
                let mut first = None;
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    let kernels = Kernels::new(isa).unwrap();
                    for (threads, chunk) in [(1, 512), (2, 7), (3, 512), (2, 1)] {
                        let options = SessionOptions { threads, chunk, kernels, kv, ctx: 64 };
                        let found = bits(&model, &options, &family.tokens);
                        let same = *first.get_or_insert_with(|| found.clone()) == found;
                        assert!(
                            same,
                            "{name}, {storage:?}, {kv:?}: {isa}, {threads} threads, chunks of {chunk}"
                        );
                    }
                }
            }
        }
    }
}
