//! Encoding and decoding a megabyte: mixed text (the goldens' texts over and over), and one long word.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use torchless::tokenizer::{EncodeOptions, Tokenizer};

#[allow(dead_code)]
#[path = "../tests/fixtures/tokenizer/load.rs"]
mod load;

const MEGABYTE: usize = 1 << 20;

fn tokenizer(c: &mut Criterion) {
    let texts = load::goldens().texts.join("\n");
    let mixed = texts.repeat(MEGABYTE.div_ceil(texts.len()));
    let word = "a".repeat(MEGABYTE);
    for name in ["mistral", "smollm2"] {
        let spec = load::spec(name);
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        group.bench_function("new", |b| {
            b.iter_with_setup(|| spec.clone(), |spec| Tokenizer::new(spec).unwrap())
        });
        let tokenizer = Tokenizer::new(spec).unwrap();
        for (what, text) in [("mixed", &mixed), ("one word", &word)] {
            group.throughput(Throughput::Bytes(text.len() as u64));
            let encode = || tokenizer.encode(black_box(text), EncodeOptions { bos: true, special: true });
            group.bench_function(format!("encode {what}"), |b| b.iter(encode));
            let ids = encode();
            group.bench_function(format!("decode {what}"), |b| b.iter(|| tokenizer.decode(black_box(&ids))));
        }
        group.finish();
    }
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);
