//! The logits are the same bits on every instruction set, at every number of threads and in chunks of any size.
//!
//! Contexts reach over several of the spans that attention is divided into, with a sliding window and without.

mod common;

use common::{long_model, tokens};
use std::sync::Arc;
use torchless::Model;
use torchless::kv::KvType;
use torchless::runtime::{Session, SessionOptions};
use torchless_kernels::{Isa, Kernels};

/// The bits of all logits of a sequence.
fn bits(model: &Arc<Model>, options: &SessionOptions, tokens: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut session = Session::new(model, options).unwrap();
    session.score(tokens, |_, logits| bits.extend(logits.iter().map(|l| l.to_bits()))).unwrap();
    bits
}

fn assert_reproducible(model: &Arc<Model>, n: usize) {
    let tokens = tokens(n, model.config().vocab_size);
    for kv in [KvType::F32, KvType::F16, KvType::Int8] {
        let mut expected = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::new(isa).unwrap();
            for threads in [1, 2, 3, 5] {
                for chunk in [1, 7, 64, n] {
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
}

#[test]
fn without_a_window() {
    assert_reproducible(&long_model("llama-int8.bin", None), 600);
}

#[test]
fn with_a_window_of_several_spans() {
    assert_reproducible(&long_model("ragged-int8.bin", Some(("4096", "300"))), 700);
}

#[test]
fn with_a_window_inside_a_block() {
    assert_reproducible(&long_model("mistral-int8.bin", None), 330);
}

/// What is left of a sequence after going back is what would be there had the rest never been fed.
#[test]
fn going_back_leaves_no_trace() {
    for (file, window) in [("llama-int8.bin", None), ("ragged-int8.bin", Some(("4096", "300")))] {
        let model = long_model(file, window);
        let tokens = tokens(620, model.config().vocab_size);
        for kv in [KvType::F32, KvType::F16, KvType::Int8] {
            let options = SessionOptions { ctx: 700, kv, chunk: 64, ..SessionOptions::new(&model) };
            let mut straight = Session::new(&model, &options).unwrap();
            let expected = straight.feed(&tokens).unwrap().to_vec();

            let mut session = Session::new(&model, &options).unwrap();
            session.feed(&tokens[..600]).unwrap();
            session.feed(&tokens[..40]).unwrap();
            session.truncate(590).unwrap();
            assert_eq!(session.position(), 590);
            assert_eq!(session.feed(&tokens[590..]).unwrap(), expected, "{file}, {kv:?}");
        }
    }
}

/// A window's ring forgets: going back further than it reaches is refused, and leaves the session as it was.
#[test]
fn going_back_behind_the_ring_is_refused() {
    let model = long_model("mistral-int8.bin", None);
    let options = SessionOptions { ctx: 700, chunk: 16, ..SessionOptions::new(&model) };
    let mut session = Session::new(&model, &options).unwrap();
    let tokens = tokens(500, model.config().vocab_size);
    session.feed(&tokens).unwrap();
    assert!(session.truncate(501).is_err());
    assert!(session.truncate(300).is_err());
    assert_eq!(session.position(), 500);
    // Truncated step by step, it remembers how much was overwritten.
    session.truncate(480).unwrap();
    assert!(session.truncate(440).is_err());
    session.reset();
    assert_eq!(session.position(), 0);
    session.feed(&tokens[..10]).unwrap();
    session.truncate(3).unwrap();
}
