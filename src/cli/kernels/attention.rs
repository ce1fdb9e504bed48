//! The cases of attention.

use std::array::from_fn;

use half::f16;
use torchless_kernels::{
    Allocator, BLOCK, CacheElement, Int8Keys, Int8KeysMut, Int8Span, Int8Values, Int8ValuesMut, Kernels,
    QuantizedBuf, SPAN, SPAN_BLOCKS, SpanBuffers, SpanQueries, SpanResult,
};

use super::{Case, MakeCase, Task, Unit, floats};

/// Attention of a block in f32 and f16, and of a span in int8.
pub(super) fn cases(cases: &mut Vec<(&'static str, MakeCase)>) {
    // The heads that share keys in decode; a tile of tokens in prefill, which widens the cache first.
    for (queries, head_dim) in [(1, 64), (3, 64), (4, 128), (48, 64)] {
        macro_rules! attn {
            ($name:literal, $element:ty, $kernel:ident) => {
                cases.push(($name, Box::new(move || on_block::<$element>(queries, head_dim, $kernel))))
            };
        }
        attn!("attn_scores_f32", f32, scores);
        attn!("attn_scores_f16", f16, scores);
        attn!("attn_accumulate_f32", f32, accumulate);
        attn!("attn_accumulate_f16", f16, accumulate);
        cases.push(("attn_span_i8", Box::new(move || on_span(queries, head_dim))));
    }
}

/// Some queries of one head, and one block of its keys or values.
struct AttentionTask<T> {
    cache: Vec<T>,
    queries: Vec<f32>,
    scores: Vec<[f32; BLOCK]>,
    out: Vec<f32>,
    kernel: fn(Kernels, &mut AttentionTask<T>),
}

fn on_block<T: CacheElement>(
    queries: usize,
    head_dim: usize,
    kernel: fn(Kernels, &mut AttentionTask<T>),
) -> Case {
    let mut cache = vec![T::default(); BLOCK * head_dim];
    Kernels::detect().narrow(&floats(cache.len(), 1), &mut cache);
    let operations = (queries * cache.len()) as f64;
    // Keys or values, and of each query a vector and its scores.
    let bytes = (size_of_val(&cache[..]) + 4 * queries * (head_dim + BLOCK)) as f64;
    let scores = floats(queries * BLOCK, 2).as_chunks().0.to_vec();
    let (queries_of, out) = (floats(queries * head_dim, 3), vec![0.0; queries * head_dim]);
    let shape = format!("{queries}×{head_dim}×{BLOCK}");
    let task = AttentionTask { cache, queries: queries_of, scores, out, kernel };
    Case { shape, operations, bytes, unit: Unit::MultiplyAdds, task: Box::new(task) }
}

fn scores<T: CacheElement>(kernels: Kernels, task: &mut AttentionTask<T>) {
    kernels.attn_scores(&task.queries, &task.cache, &mut task.scores);
}

fn accumulate<T: CacheElement>(kernels: Kernels, task: &mut AttentionTask<T>) {
    let factors = [[0.5; 2]; 64];
    task.out.fill(0.25);
    kernels.attn_accumulate(&task.scores, 0, &task.cache, &factors[..task.scores.len()], &mut task.out);
}

/// Some queries of one head, and a span of its keys and values in int8.
struct SpanTask {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    quantized: QuantizedBuf,
    buffers: SpanBuffers,
    head_dim: usize,
    output: Vec<f32>,
    sums: Vec<[f32; 2]>,
}

fn on_span(queries: usize, head_dim: usize) -> Case {
    let kernels = Kernels::detect();
    let (key_words, value_words) = (Int8Keys::words(head_dim), Int8Values::words(head_dim));
    let mut task = SpanTask {
        keys: vec![0.0; SPAN_BLOCKS * key_words],
        values: vec![0.0; SPAN_BLOCKS * value_words],
        queries: floats(queries * head_dim, 3),
        quantized: QuantizedBuf::new(&mut Allocator::heap(), queries, head_dim),
        buffers: SpanBuffers::new(&mut Allocator::heap()),
        head_dim,
        output: vec![0.0; queries * head_dim],
        sums: vec![[0.0; 2]; queries],
    };
    let mut narrow = vec![0; head_dim];
    for position in 0..SPAN {
        let (block, position) = (position / BLOCK, position % BLOCK);
        let keys = &mut task.keys[block * key_words..][..key_words];
        Int8KeysMut::new(keys, head_dim).store(kernels, position, &floats(head_dim, 2 * position as u32));
        let scale = kernels.narrow_i8(&floats(head_dim, 2 * position as u32 + 1), &mut narrow);
        let values = &mut task.values[block * value_words..][..value_words];
        Int8ValuesMut::new(values, head_dim).store(position, &narrow, scale);
    }
    for (i, query) in task.queries.chunks(head_dim).enumerate() {
        kernels.quantize(query, task.quantized.view_mut(queries).token(i));
    }
    let operations = (2 * queries * SPAN * head_dim) as f64;
    let bytes = (size_of_val(&task.keys[..]) + size_of_val(&task.values[..]) + 8 * queries * head_dim) as f64;
    let shape = format!("{queries}×{head_dim}×{SPAN}");
    Case { shape, operations, bytes, unit: Unit::MultiplyAdds, task: Box::new(task) }
}

impl Task for SpanTask {
    fn run(&mut self, kernels: Kernels) {
        let (key_words, value_words) = (Int8Keys::words(self.head_dim), Int8Values::words(self.head_dim));
        let keys: [_; SPAN_BLOCKS] =
            from_fn(|i| Int8Keys::new(&self.keys[i * key_words..][..key_words], self.head_dim));
        let values: [_; SPAN_BLOCKS] =
            from_fn(|i| Int8Values::new(&self.values[i * value_words..][..value_words], self.head_dim));
        let queries = self.sums.len();
        kernels.attn_span_i8(
            &SpanQueries { f32: &self.queries, int8: self.quantized.view(queries), softcap: None },
            &Int8Span { keys: &keys, values: &values },
            &[const { 0..SPAN }; 64][..queries],
            &mut self.buffers,
            SpanResult { output: &mut self.output, sums: &mut self.sums },
        );
    }

    fn results(&self) -> Vec<f32> {
        self.sums.as_flattened().iter().chain(&self.output).copied().collect()
    }
}

impl<T: CacheElement> Task for AttentionTask<T> {
    fn run(&mut self, kernels: Kernels) {
        (self.kernel)(kernels, self);
    }

    fn results(&self) -> Vec<f32> {
        self.scores.iter().flatten().chain(&self.out).copied().collect()
    }
}
