//! The logits are the same bits on every instruction set, at every number of threads and in chunks of any size.
//!
//! Contexts reach over several of the spans that attention is divided into, with a sliding window and without; and the
//! products of larger models are split by their output rows.

mod common {
    pub mod bits;
    pub mod converted;
    pub mod fixture;
    pub mod hash;
    pub mod long;
    pub mod random;
    pub mod tokens;
    pub mod wide;
}

use common::bits::bits;
use common::converted::converted;
use common::long::{long_model, long_model_as};
use common::tokens::tokens;
use common::wide::wide_source;
use std::sync::Arc;
use torchless::Model;
use torchless::format::convert::{Quant, RowLayout, Storage};
use torchless::kv::KvType;
use torchless::runtime::SessionOptions;
use torchless_kernels::{Isa, Kernels};

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Int8];

/// Numbers of threads, and sizes of chunks of a sequence of `n` tokens: each at least once, or every pair of them where
/// `TORCHLESS_EXHAUSTIVE` asks for it, as the gate does.
fn threads_and_chunks(n: usize) -> Vec<(usize, usize)> {
    match std::env::var_os("TORCHLESS_EXHAUSTIVE") {
        Some(_) => {
            [1, 2, 3, 5].into_iter().flat_map(|threads| [1, 7, 64, n].map(|chunk| (threads, chunk))).collect()
        }
        None => vec![(1, n), (2, 1), (3, 7), (5, 64), (2, n)],
    }
}

fn assert_reproducible(model: &Arc<Model>, n: usize, kv_types: &[KvType]) {
    let tokens = tokens(n, model.config().vocab_size);
    for &kv in kv_types {
        let mut expected = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::new(isa).unwrap();
            for (threads, chunk) in threads_and_chunks(n) {
                let options = SessionOptions { ctx: n, kv, threads, chunk, kernels };
                let found = bits(model, &options, &tokens);
                let expected = expected.get_or_insert_with(|| found.clone());
                assert!(
                    found == *expected,
                    "{isa}, {threads} threads, chunks of {chunk}, {kv:?} differs from the first"
                );
            }
        }
    }
}

#[test]
fn without_a_window() {
    assert_reproducible(&long_model("llama-int8.bin", None), 600, &KV_TYPES);
}

#[test]
fn with_a_window_of_several_spans() {
    assert_reproducible(&long_model("ragged-int8.bin", Some(("4096", "300"))), 700, &KV_TYPES);
}

#[test]
fn with_a_window_inside_a_block() {
    assert_reproducible(&long_model("mistral-int8.bin", None), 330, &KV_TYPES);
}

#[test]
fn in_panels() {
    assert_reproducible(&long_model_as("mistral-int8.bin", None, Quant::Int8), 330, &KV_TYPES);
}

/// Int4 as the search makes it, beside int8; and files whose every matrix is int4, the embedding and the head included.
#[test]
fn in_int4() {
    assert_reproducible(&long_model_as("mistral-int8.bin", None, Quant::Int4), 330, &[KvType::F16]);
    for file in ["llama-int4.bin", "llama-int4-by-32.bin"] {
        assert_reproducible(&long_model(file, None), 330, &[KvType::F16]);
    }
}

/// Every product is split by its output rows, of one token, of some, and of all.
#[test]
fn with_products_split_by_rows() {
    let (panels, rows) = (Storage::from(Quant::Int8), Quant::Int8.laid_out(RowLayout::Rows));
    let some = Quant::Int8Proj.laid_out(RowLayout::Panels);
    let int4 = Storage::from(Quant::Int4);
    for (name, storage) in [
        ("qwen2", panels),
        ("qwen2", rows),
        ("qwen2", some),
        ("qwen2", int4),
        ("qwen3", panels),
        ("qwen3", int4),
    ] {
        let (_folder, model) = converted(wide_source(name).path(), storage);
        assert_reproducible(&model, 35, &[KvType::F16]);
    }
}

/// A chunk of 512 tokens and more is split by tokens too, and each part by output rows.
#[test]
fn with_products_split_by_tokens_and_rows() {
    let (panels, rows) = (Storage::from(Quant::Int8), Quant::Int8.laid_out(RowLayout::Rows));
    for storage in [panels, rows, Quant::Int4.into()] {
        let (_folder, model) = converted(wide_source("qwen2").path(), storage);
        let tokens = tokens(530, model.config().vocab_size);
        let of = |threads, chunk| {
            let options = SessionOptions { threads, chunk, ..SessionOptions::new(&model) };
            bits(&model, &options, &tokens)
        };
        let expected = of(1, 100);
        for threads in [1, 2, 3, 5] {
            assert!(of(threads, tokens.len()) == expected, "{storage:?}, {threads} threads");
        }
    }
}
