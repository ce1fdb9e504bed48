//! Any JSON schema, grammar or regular expression: refused, or a text of that form. Nothing panics, and nothing is waited for
//! longer than the library says.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use torchless::kernels::{Isa, Kernels};
use torchless::runtime::{GenerateOptions, Session, SessionOptions};
use torchless::sampling::{Grammar, Sampling};
use torchless::{Error, Model};

/// A session of a tiny model whose tokens spell any text.
static SESSION: LazyLock<Mutex<Session>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../tests/fixtures/models/llama-int8.bin");
    let model = Arc::new(Model::open(torchless_fuzz::write("model.bin", bytes)).expect("a fixture"));
    let kernels = Kernels::new(Isa::Portable).expect("every CPU has it");
    let options = SessionOptions { ctx: 32, threads: 1, chunk: 4, kernels, ..SessionOptions::new(&model) };
    Mutex::new(Session::new(&model, &options).expect("a small session"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says which kind the rest is.
    let Some((which, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let grammar = match which % 3 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Grammar::Lark(text.to_owned()),
        _ => Grammar::Regex(text.to_owned()),
    };
    let is_json = matches!(grammar, Grammar::JsonSchema(_));
    let options = GenerateOptions {
        max_tokens: 12,
        sampling: Sampling::default().temperature(2.0),
        grammar: Some(grammar),
        ..GenerateOptions::default()
    };
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    session.reset();
    let mut generation = match session.generate(&[1, 5], &options) {
        Ok(generation) => generation,
        Err(error) => {
            assert!(matches!(error, Error::Grammar(_)), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    let failed = generation.by_ref().any(|piece| piece.is_err());
    let generated = generation.finish();
    assert!(generated.complete.is_some());
    if is_json && !failed && generated.complete == Some(true) {
        let text = generated.text.trim();
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text:?} is no JSON");
    }
});
