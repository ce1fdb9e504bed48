//! Once a session is set up, neither a chunk of a prompt nor a decode step allocates, on any thread.

mod common {
    pub mod converted;
    pub mod fixture;
    pub mod hash;
    pub mod long;
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
use torchless::format::convert::{Quant, RowLayout, Storage};
use torchless::kv::KvType;
use torchless::runtime::{Session, SessionOptions};

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
    let mut sessions = Vec::new();
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
    }
}
