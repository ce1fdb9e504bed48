//! Log-probabilities and greedy continuations against Hugging Face transformers, on the tiny models of
//! `tests/fixtures/models` (see its README for what each covers and how the numbers came about).

mod common {
    pub mod bits;
    pub mod converted;
    pub mod family;
    pub mod fixture;
    pub mod hash;
    pub mod hashed_bits;
    pub mod logprobs;
    pub mod model;
    pub mod random;
    pub mod tokens;
    pub mod wide;
}

use std::ops::ControlFlow;
use std::sync::Arc;

use approx::assert_abs_diff_eq;
use torchless::Model;
use torchless::format::convert::{Quant, RowLayout};
use torchless::kv::KvType;
use torchless::runtime::{GenerateOptions, Session, SessionOptions, generate};
use torchless::sampling::Sampling;
use torchless_kernels::{Isa, Kernels};

use common::bits::bits;
use common::converted::converted;
use common::family::{FAMILIES, Family};
use common::fixture::fixture;
use common::hashed_bits::hash;
use common::logprobs::logprobs;
use common::model::model;
use common::tokens::tokens;
use common::wide::wide_source;

#[derive(serde::Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
    prompt: String,
    prompt_tokens: Vec<u32>,
    greedy: Vec<u32>,
}

fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

const MODELS: [&str; 3] = ["mistral", "llama", "ragged"];

#[test]
fn f32_log_probabilities_are_those_of_transformers() {
    for name in MODELS {
        let (golden, model) = (golden(name), model(&format!("{name}-f32.bin")));
        let options = SessionOptions::new(&model);
        // One token at a time, in chunks that end within the window, and all at once.
        for chunk in [1, 7, 512] {
            let found = logprobs(&model, &SessionOptions { chunk, ..options.clone() }, &golden.tokens);
            println!("{name}, chunks of {chunk}");
            assert_abs_diff_eq!(found[..], golden.logprobs[..], epsilon = 1e-3);
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in MODELS {
        let (golden, model) = (golden(name), model(&format!("{name}-f32.bin")));
        assert_eq!(
            model.tokenizer().encode(&golden.prompt, Default::default()),
            golden.prompt_tokens,
            "{name}"
        );
        let options = GenerateOptions {
            max_tokens: golden.greedy.len(),
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let mut session = Session::new(&model, &SessionOptions::new(&model)).unwrap();
        let found =
            generate(&mut session, &golden.prompt_tokens, &options, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found.tokens, golden.greedy, "{name}");
    }
}

/// On any CPU: whoever changes what the kernels compute finds these changed, and writes down the new ones.
const HASHES: [(&str, &str, u64); 6] = [
    ("mistral", "mistral-int8.bin", 0xf2efc0503b7fcb3d),
    ("mistral", "mistral-gate-up.bin", 0x31363193bb7f6f58),
    ("llama", "llama-int8.bin", 0x2149bb329e892ee1),
    ("ragged", "ragged-int8.bin", 0x8730e6d96a8a2713),
    ("llama", "llama-int4.bin", 0xc48d156a31d88ed2),
    ("llama", "llama-int4-by-32.bin", 0x81d2dc2bd6ed4332),
];

#[test]
fn int8_and_int4_logits_are_the_same_bits_however_they_are_worked_out() {
    for (name, file, expected) in HASHES {
        let (golden, model) = (golden(name), model(file));
        let ways = [(1, 512), (1, 1), (1, 7), (2, 512), (3, 5), (5, 64)];
        assert_hash(file, &model, &golden.tokens, &ways, expected);
    }
}

/// The same files, re-laid: every matrix as int8, those of whole groups in panels.
const PANEL_HASHES: [(&str, &str, u64); 3] = [
    ("mistral", "mistral-int8.bin", 0x7dcc6ca2f263908a),
    ("mistral", "mistral-gate-up.bin", 0x5f3c414f5e4a7ba1),
    ("llama", "llama-int8.bin", 0x2a064329d3114300),
];

#[test]
fn logits_of_panels_are_the_same_bits_however_they_are_worked_out() {
    for (name, file, expected) in PANEL_HASHES {
        let (_folder, model) = converted(&fixture(file), Quant::Int8);
        let ways = [(1, 512), (1, 1), (1, 7), (2, 512), (3, 5), (5, 64)];
        assert_hash(&format!("{file} in panels"), &model, &golden(name).tokens, &ways, expected);
    }
}

/// The logits' hash of `tokens`, with each instruction set and each number of threads and chunk size.
/// Over int8 keys and values, of several blocks: of models with a window, without one, and with heads that fill no group.
const INT8_CACHE_HASHES: [(&str, u64); 3] = [
    ("mistral-int8.bin", 0xbb4fb57345566557),
    ("llama-int8.bin", 0xeff55343028d2f66),
    ("ragged-int8.bin", 0x189b7f17a325fac4),
];

#[test]
fn logits_over_int8_keys_and_values_are_the_same_bits_however_they_are_worked_out() {
    for (file, expected) in INT8_CACHE_HASHES {
        let model = model(file);
        let options = SessionOptions { kv: KvType::Int8, ..SessionOptions::new(&model) };
        let tokens = tokens(options.ctx.min(200), model.config().vocab_size);
        assert_hash_of(file, &model, &options, &tokens, &[(1, 512), (1, 7), (2, 1), (3, 64)], expected);
    }
}

/// Of the models of `families.py` with int8 weights and keys.
const FAMILY_HASHES: [u64; 10] = [
    0x4452376b681aa4f3,
    0x81fd2d7bc9cadea9,
    0xe2e3951a15d09ada,
    0x0151c698ab458040,
    0x9d67b1f728b6c518,
    0x2fd6d98d914ee6fb,
    0x6b4fda140e49f4b4,
    0xf9ec8c1284eaadec,
    0x344a585f5c346537,
    0x2e0797a95da768a2,
];

#[test]
fn logits_of_every_architecture_are_the_same_bits() {
    let mut wrong = 0;
    for (name, expected) in FAMILIES.into_iter().zip(FAMILY_HASHES) {
        let family = Family::named(name);
        let (_folder, model) = converted(family.folder().path(), Quant::Int8);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::new(isa).unwrap();
            let options = SessionOptions { kv: KvType::Int8, kernels, threads: 2, chunk: 7, ctx: 64 };
            let hash = hash(&bits(&model, &options, &family.tokens));
            println!("{name}: {hash:#018x} ({isa})");
            wrong += usize::from(hash != expected);
        }
    }
    assert_eq!(wrong, 0, "hashes that are not those written down");
}

fn assert_hash(name: &str, model: &Arc<Model>, tokens: &[u32], ways: &[(usize, usize)], expected: u64) {
    assert_hash_of(name, model, &SessionOptions::new(model), tokens, ways, expected);
}

fn assert_hash_of(
    name: &str,
    model: &Arc<Model>,
    options: &SessionOptions,
    tokens: &[u32],
    ways: &[(usize, usize)],
    expected: u64,
) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let kernels = Kernels::new(isa).unwrap();
        for &(threads, chunk) in ways {
            let options = SessionOptions { threads, chunk, kernels, ..options.clone() };
            let found = hash(&bits(model, &options, tokens));
            println!("{name}: {found:#018x} ({isa}, {threads} threads, chunks of {chunk})");
            assert_eq!(found, expected, "{name}: {isa}, {threads} threads, chunks of {chunk}");
        }
    }
}

/// Models whose products are split by output rows and whose columns are multiples of 64, so that no product goes to the
/// scalar reference; in `down_proj` of `qwen2` they are more than a panel's.
const WIDE_HASHES: [(&str, Quant, RowLayout, u64); 8] = [
    ("qwen2", Quant::Int8, RowLayout::Rows, 0x87477299df5fb9ce),
    ("qwen2", Quant::Int8Proj, RowLayout::Rows, 0x57d40f498cab3815),
    ("qwen3", Quant::Int8, RowLayout::Rows, 0xd8c7c9581b24ac15),
    ("qwen2", Quant::Int8, RowLayout::Panels, 0x4021555985678f60),
    ("qwen2", Quant::Int8Proj, RowLayout::Panels, 0x1942ea56578a0cb2),
    ("qwen3", Quant::Int8, RowLayout::Panels, 0xfd8e94469fed3527),
    // What the search finds is the same everywhere, too.
    ("qwen2", Quant::Int4, RowLayout::Panels, 0xcda87bf5eab8c44b),
    ("qwen3", Quant::Int4, RowLayout::Panels, 0x4388c96996c16839),
];

#[test]
fn wide_logits_are_the_same_bits_however_they_are_worked_out() {
    for (name, quant, layout, expected) in WIDE_HASHES {
        let (_folder, model) = converted(wide_source(name).path(), quant.laid_out(layout));
        let tokens = tokens(29, model.config().vocab_size);
        // Token by token, in chunks too small for a GEMM, and all at once.
        let ways = [(1, 1), (1, 512), (2, 3), (2, 512), (3, 1), (5, 512)];
        assert_hash(&format!("wide {name}, {quant:?}, {layout:?}"), &model, &tokens, &ways, expected);
    }
}
