//! Once a session or a batch is set up, neither a chunk of a prompt nor a decode step allocates, on any thread.

mod common {
    pub mod converted;
    pub mod fixture;
    pub mod hash;
    pub mod long;
    pub mod random;
    pub mod tokens;
    pub mod wide;
}

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;

use common::converted::converted;
use common::long::{long_model, long_model_as};
use common::tokens::tokens;
use common::wide::wide_source;
use torchless::Model;
use torchless::format::convert::{Quant, RowLayout, Storage};
use torchless::kv::KvType;
use torchless::runtime::{Batch, BatchOptions, Feed, Session, SessionOptions};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test: the counts are those of the whole process.
#[test]
fn nothing_is_allocated_after_set_up() {
    let region = Region::new(ALLOCATOR);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert!(region.change().allocations > 0, "allocations are counted");

    // Threads that start or end meanwhile allocate for themselves: those that open a model have ended then, and those of
    // a session live until the end.
    let small =
        ["ragged-int8.bin", "ragged-f32.bin", "mistral-int8.bin", "llama-int4.bin", "llama-int4-by-32.bin"];
    let small = small.map(|file| (file, long_model(file, None)));
    // Its products are split by output rows.
    let wide: [(&str, Storage); 3] = [
        ("wide qwen2 in panels", Quant::Int8.into()),
        ("wide qwen2", Quant::Int8.laid_out(RowLayout::Rows)),
        ("wide qwen2 in int4", Quant::Int4.into()),
    ];
    let wide = wide.map(|(name, storage)| (name, converted(wide_source("qwen2").path(), storage)));
    let wide = wide.iter().map(|(name, (_, model))| (*name, Arc::clone(model)));
    let panels = ("mistral-int8.bin in panels", long_model_as("mistral-int8.bin", None, Quant::Int8));
    let models = small.into_iter().chain([panels]).chain(wide).collect::<Vec<_>>();
    let (mut sessions, mut batches) = (Vec::new(), Vec::new());
    for (file, model) in &models {
        let prompt = tokens(300, model.config().vocab_size);
        for kv in [KvType::F32, KvType::F16, KvType::Int8] {
            for threads in [1, 3] {
                let options =
                    SessionOptions { ctx: 700, chunk: 128, kv, threads, ..SessionOptions::new(model) };
                let mut session = Session::new(model, &options).unwrap();
                let change = session.install(|session| {
                    // `matrixmultiply`, which does the prompts of f32 files, packs what it multiplies on the heap.
                    if model.file().is_f32() {
                        session.feed(&prompt).unwrap();
                    }
                    let region = Region::new(ALLOCATOR);
                    if !model.file().is_f32() {
                        session.feed(&prompt).unwrap();
                    }
                    for token in &prompt {
                        session.feed(&[*token]).unwrap();
                    }
                    region.change()
                });
                let found = (change.allocations, change.reallocations);
                assert_eq!(found, (0, 0), "{file}, {kv:?}, {threads} threads: {change:?}");
                sessions.push(session);
            }
        }
        if !model.file().is_f32() {
            for kv in [KvType::F16, KvType::Int8] {
                batches.push(steps_allocate_nothing(file, model, kv));
            }
        }
    }
}

/// Sequences that come and go, share pages and take those that others have left, a prompt and some tokens in each pass. The batch must
/// outlive the test, as sessions must.
fn steps_allocate_nothing(file: &str, model: &Arc<Model>, kv: KvType) -> Batch {
    let session = SessionOptions { ctx: 320, chunk: 64, kv, threads: 2, ..SessionOptions::new(model) };
    let bytes = 16 * 64 * kv.bytes_a_position(model.config());
    let options = BatchOptions { session, parallel: 4, kv_memory: Some(bytes) };
    let mut batch = Batch::new(model, &options).unwrap();
    let all = tokens(600, model.config().vocab_size);
    let round = |batch: &mut Batch, first: usize| {
        let [one, two, three] = [0; 3].map(|_| batch.add().unwrap());
        let prompt = &all[first..first + 300];
        for other in [two, three] {
            batch.feed(&[Feed { sequence: other, tokens: &all[first..first + 10], logits: true }]).unwrap();
        }
        batch.find(one, prompt);
        while batch.tokens(one).len() < prompt.len() {
            let at = batch.tokens(one).len();
            let next = &prompt[at..prompt.len().min(at + 40)];
            let single = |sequence| Feed { sequence, tokens: &next[..1], logits: true };
            batch
                .feed(&[Feed { sequence: one, tokens: next, logits: true }, single(two), single(three)])
                .unwrap();
        }
        [one, two, three].into_iter().for_each(|sequence| batch.remove(sequence));
    };
    let change = batch.install(|batch| {
        round(batch, 0);
        let region = Region::new(ALLOCATOR);
        (0..20).for_each(|i| round(batch, i * 10 % 200));
        region.change()
    });
    assert_eq!((change.allocations, change.reallocations), (0, 0), "{file}, {kv:?}: {change:?}");
    batch
}
