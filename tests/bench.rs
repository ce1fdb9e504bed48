//! Measuring speed: what is counted, and that nothing is timed that was not asked for.

mod common {
    pub mod fixture;
    pub mod model;
}

use std::ops::ControlFlow;

use torchless::bench::bandwidth::{memory_bandwidth, read};
use torchless::bench::{Test, measure};
use torchless::kv::KvType;
use torchless::runtime::SessionOptions;

use common::model::model;

fn test(prompt: usize, generate: usize, depth: usize) -> Test {
    Test { prompt, generate, depth }
}

#[test]
fn tests_are_named_as_llama_bench_names_them() {
    let names = [test(512, 0, 0), test(0, 128, 0), test(0, 128, 4096), test(8, 4, 2)].map(|t| t.to_string());
    assert_eq!(names, ["pp512", "tg128", "tg128 @ d4096", "pp8+tg4 @ d2"]);
}

#[test]
fn a_test_reads_weights_once_a_pass_and_what_is_in_sight_of_keys_and_values() {
    // Window 16; a position takes 2 layers × 2 heads of 32 × 2 bytes, keys and values.
    let model = model("mistral-int8.bin");
    let options = SessionOptions { kv: KvType::F16, chunk: 8, threads: 1, ..SessionOptions::new(&model) };
    let (position, token) = (2 * 2 * 2 * 32 * 2, model.bytes_a_token());
    let tensor = |name| model.file().tensors().iter().find(|t| t.name() == name).unwrap().bytes();
    let head = tensor("model.embed_tokens.weight"); // tied
    let bytes = |t: Test| t.bytes(&model, &options);
    assert_eq!(bytes(test(0, 1, 0)), token + position);
    assert_eq!(bytes(test(0, 3, 4)), 3 * token + (5 + 6 + 7) * position);
    assert_eq!(bytes(test(0, 2, 15)), 2 * token + 2 * 16 * position);
    // Chunks of 8, 8 and 4: the head is read for the last only, and the last sees from position 1 on.
    assert_eq!(bytes(test(20, 0, 0)), 3 * token - 2 * head + (8 + 16 + 19) * position);
    assert_eq!(bytes(test(8, 2, 0)), 3 * token + (8 + 9 + 10) * position);
}

#[test]
fn every_run_is_reported_and_can_be_the_last() {
    let model = model("mistral-int8.bin");
    let options = SessionOptions { threads: 1, chunk: 4, ..SessionOptions::new(&model) };
    // After 5 tokens the ring still holds those before them, after 62 it has lost some: they are fed again.
    for test in [test(2, 3, 0), test(2, 3, 10), test(2, 60, 20)] {
        let mut runs = 0;
        let result = measure(&model, &options, test, 3, || {
            runs += 1;
            ControlFlow::Continue(())
        });
        let rates = result.unwrap().tokens_per_s;
        assert_eq!((runs, rates.len()), (4, 3));
        assert!(rates.iter().all(|&rate| rate > 0.0 && rate.is_finite()));
    }
    let broken_off = measure(&model, &options, test(2, 0, 0), 3, || ControlFlow::Break(()));
    assert!(matches!(broken_off, Err(torchless::Error::Interrupted)));
    for impossible in [test(0, 0, 1), test(usize::MAX, 1, 1)] {
        assert!(measure(&model, &options, impossible, 1, || ControlFlow::Continue(())).is_err());
    }
}

#[test]
fn every_byte_is_read() {
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
    for n in [0, 1, 127, 128, 129, 1000] {
        let (sum, mut changed) = (read(&bytes[..n]), bytes[..n].to_vec());
        for i in 0..n {
            changed[i] ^= 1;
            assert_ne!(read(&changed), sum, "byte {i} of {n}");
            changed[i] ^= 1;
        }
    }
    assert!(memory_bandwidth(&model("llama-f32.bin"), 2).unwrap() > 1e6);
}
