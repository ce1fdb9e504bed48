//! Log-probabilities and greedy continuations against Hugging Face transformers, on the tiny models of
//! `tests/fixtures/models` (see its README for what each covers and how the numbers came about).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use torchless::Model;
use torchless::runtime::{GenerateOptions, generate};
use torchless::runtime::{Session, SessionOptions};
use torchless::sampling::Sampling;
use torchless::sampling::log_probability;
use torchless_kernels::{Isa, Kernels};

#[derive(serde::Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
    prompt: String,
    prompt_tokens: Vec<u32>,
    greedy: Vec<u32>,
    int8: BTreeMap<String, Int8>,
}

/// A float64 model of an int8 file: with exact activations, and the error that rounding them per 64 values brings.
#[derive(serde::Deserialize)]
struct Int8 {
    exact_activations: Vec<f64>,
    mean_error: f64,
    max_error: f64,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(file: &str) -> Arc<Model> {
    Arc::new(Model::open(fixture(file)).unwrap())
}

fn logprobs(model: &Arc<Model>, options: &SessionOptions, tokens: &[u32]) -> Vec<f64> {
    let mut out = Vec::new();
    let mut session = Session::new(model, options).unwrap();
    session
        .score(tokens, |i, logits| {
            if let Some(&next) = tokens.get(i + 1) {
                out.push(log_probability(logits, next));
            }
        })
        .unwrap();
    out
}

/// Mean and largest difference.
fn errors(a: &[f64], b: &[f64]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let differences = || a.iter().zip(b).map(|(a, b)| (a - b).abs());
    (differences().sum::<f64>() / a.len() as f64, differences().fold(0.0, f64::max))
}

const MODELS: [&str; 3] = ["mistral", "llama", "ragged"];

#[test]
fn f32_log_probabilities_are_those_of_transformers() {
    for name in MODELS {
        let (golden, model) = (golden(name), open(&format!("{name}-f32.bin")));
        let options = SessionOptions::new(&model);
        // One token at a time, in chunks that end within the window, and all at once.
        for chunk in [1, 7, 512] {
            let found = logprobs(&model, &SessionOptions { chunk, ..options.clone() }, &golden.tokens);
            let (_, max) = errors(&found, &golden.logprobs);
            assert!(max < 1e-3, "{name}, chunk {chunk}: off by {max}");
        }
    }
}

#[test]
fn int8_is_as_near_as_int8_can_be() {
    for name in MODELS {
        let golden = golden(name);
        for (file, expected) in &golden.int8 {
            let model = open(file);
            let found = logprobs(&model, &SessionOptions::new(&model), &golden.tokens);
            let (mean, max) = errors(&found, &expected.exact_activations);
            assert!(
                mean < 1.5 * expected.mean_error,
                "{file}: mean {mean}, {} expected",
                expected.mean_error
            );
            assert!(max < 2.0 * expected.max_error, "{file}: max {max}, {} expected", expected.max_error);
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in MODELS {
        let (golden, model) = (golden(name), open(&format!("{name}-f32.bin")));
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

/// All logits' bits of a sequence, for every way of working them out.
fn bits(model: &Arc<Model>, options: &SessionOptions, tokens: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut session = Session::new(model, options).unwrap();
    session.score(tokens, |_, logits| bits.extend(logits.iter().map(|l| l.to_bits()))).unwrap();
    bits
}

/// FNV-1a of the bits.
fn hash(bits: &[u32]) -> u64 {
    let bytes = bits.iter().flat_map(|b| b.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// On any CPU: whoever changes what the kernels compute finds these changed, and writes down the new ones.
const HASHES: [(&str, &str, u64); 4] = [
    ("mistral", "mistral-int8.bin", 0xf2efc0503b7fcb3d),
    ("mistral", "mistral-gate-up.bin", 0x31363193bb7f6f58),
    ("llama", "llama-int8.bin", 0x2149bb329e892ee1),
    ("ragged", "ragged-int8.bin", 0x8730e6d96a8a2713),
];

#[test]
fn int8_logits_are_the_same_bits_however_they_are_worked_out() {
    for (name, file, expected) in HASHES {
        let (golden, model) = (golden(name), open(file));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::new(isa).unwrap();
            for (threads, chunk) in [(1, 512), (1, 1), (1, 7), (2, 512), (3, 5), (5, 64)] {
                let options = SessionOptions { threads, chunk, kernels, ..SessionOptions::new(&model) };
                let found = hash(&bits(&model, &options, &golden.tokens));
                println!("{file}: {found:#018x} ({isa}, {threads} threads, chunks of {chunk})");
                assert_eq!(found, expected, "{file}: {isa}, {threads} threads, chunks of {chunk}");
            }
        }
    }
}
