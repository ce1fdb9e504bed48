//! Models of more architectures, converted from what is published and from GGUF, against Hugging Face transformers; see
//! `tests/fixtures/models/architectures.py` for how they were made.

mod common {
    pub mod bits;
    pub mod converted;
    pub mod fixture;
    pub mod hash;
    pub mod hashed_bits;
    pub mod logprobs;
}

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use approx::assert_abs_diff_eq;
use torchless::Model;
use torchless::format::convert::{Quant, RowLayout, convert};
use torchless::runtime::SessionOptions;
use torchless_kernels::{Isa, Kernels};

use common::bits::bits;
use common::converted::converted;
use common::fixture::fixture;
use common::hashed_bits::hash;
use common::logprobs::logprobs;

#[derive(serde::Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
}

fn goldens() -> BTreeMap<String, Golden> {
    let goldens: BTreeMap<_, _> =
        serde_json::from_str(&std::fs::read_to_string(fixture("architectures.json")).unwrap()).unwrap();
    assert_eq!(goldens.len(), 4);
    goldens
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    for (name, golden) in goldens() {
        for source in [format!("{name}-hf"), format!("{name}.gguf")] {
            let (_folder, model) = converted(&fixture(&source), Quant::F32);
            for chunk in [1, 7, 512] {
                let options = SessionOptions { chunk, ..SessionOptions::new(&model) };
                println!("{source}, chunks of {chunk}");
                let found = logprobs(&model, &options, &golden.tokens);
                assert_abs_diff_eq!(found[..], golden.logprobs[..], epsilon = 1e-4);
            }
        }
    }
}

/// On any CPU. These are the engine's own word; `tests/int8.rs` compares the same models with a reference.
const HASHES: [(&str, RowLayout, u64); 5] = [
    ("llama-bias", RowLayout::Rows, 0x93eb86e479900d),
    ("llama3", RowLayout::Rows, 0x84ef6e74a489c166),
    ("qwen2", RowLayout::Rows, 0x1ed4160c6b0aa5ed),
    ("qwen3", RowLayout::Rows, 0xc67b1148acdd276b),
    // The only one with whole groups of 64 columns.
    ("llama3", RowLayout::Panels, 0xcdb379298de007c1),
];

#[test]
fn int8_logits_are_the_same_bits_however_they_are_worked_out() {
    let goldens = goldens();
    for (name, layout, expected) in HASHES {
        let tokens = &goldens[name].tokens;
        let (_folder, model) = converted(&fixture(&format!("{name}-hf")), Quant::Int8.laid_out(layout));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::new(isa).unwrap();
            for (threads, chunk) in [(1, 512), (1, 1), (2, 7), (3, 512)] {
                let options = SessionOptions { threads, chunk, kernels, ..SessionOptions::new(&model) };
                // The logits after the last token are left out.
                let hash = hash(&bits(&model, &options, &tokens[..tokens.len() - 1]));
                assert_eq!(
                    hash, expected,
                    "{name}, {layout:?}: {hash:#x} ({isa}, {threads} threads, chunks of {chunk})"
                );
            }
        }
    }
}

/// A Qwen GGUF says that there is a window where the configuration says that it is not used.
#[test]
fn a_window_that_qwen_does_not_use_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, path) = (folder.path().join("qwen2.gguf"), folder.path().join("model.bin"));
    let mut gguf = std::fs::read(fixture("qwen2.gguf")).unwrap();
    let n_keys = u64::from_le_bytes(gguf[16..24].try_into().unwrap());
    // The second key makes it 64 bytes, so that the tensors stay aligned.
    let key = |name: &str| {
        [&(name.len() as u64).to_le_bytes()[..], name.as_bytes(), &[4, 0, 0, 0, 8, 0, 0, 0]].concat()
    };
    gguf.splice(24..24, [key("qwen2.attention.sliding_window"), key("ab")].concat());
    gguf[16..24].copy_from_slice(&(n_keys + 2).to_le_bytes());
    std::fs::write(&source, gguf).unwrap();
    convert(&source, &path, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(Model::open(path).unwrap().config().sliding_window, None);
}
