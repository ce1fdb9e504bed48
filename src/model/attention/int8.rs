//! Attention over the int8 cache: the queries are quantised, and a whole span meets them in one kernel.

use std::array;
use std::ops::Range;

use torchless_kernels::{
    Aligned, Allocator, BLOCK, GROUP, Int8Span, SPAN, SPAN_BLOCKS, SpanBuffers, SpanQueries, SpanResult,
};

use super::over_cache::{OverCache, Queries, Softmax, Spans, Tile, TileQueries, overlap};
use crate::kv::Int8Cache;

/// A tile's buffers.
pub(crate) struct Int8Tile {
    /// `[n]`: the positions of a span that a query may look at.
    seen: Aligned<Range<usize>>,
    /// `[n]`
    sums: Aligned<[f32; 2]>,
    buffers: SpanBuffers,
}

impl Int8Tile {
    /// For tiles of up to `n` queries.
    pub fn new(memory: &mut Allocator, n: usize) -> Self {
        Self { seen: memory.aligned(n), sums: memory.aligned(n), buffers: SpanBuffers::new(memory) }
    }
}

impl Spans for Int8Cache {
    fn query_cols(head_dim: usize) -> usize {
        head_dim.next_multiple_of(GROUP)
    }

    fn convert_queries(over: &OverCache<Self>, queries: &mut Queries, which: Range<usize>) {
        let cols = Self::query_cols(over.config.head_dim);
        let mut quantized = queries.int8.view_mut(which.end);
        for i in which {
            over.kernels.quantize(&queries.f32[i * cols..][..cols], quantized.token(i));
        }
    }

    fn attend_span(over: &OverCache<Self>, of: &TileQueries, span: usize, tile: &mut Tile) {
        let (head_dim, per_token) = (over.config.head_dim, over.config.queries_per_kv_head());
        let tokens = of.tokens.clone();
        let n = tokens.len() * per_token;
        let Int8Tile { seen, sums, buffers } = &mut tile.int8;
        let used = over.seen_by(tokens.clone(), span);
        let (first, end) = (used.start / BLOCK, used.end.div_ceil(BLOCK));
        for (token, seen) in tokens.zip(seen.chunks_exact_mut(per_token)) {
            let range = overlap(&over.visible(token), span * SPAN, SPAN);
            let start = first * BLOCK;
            seen.fill(if range.is_empty() { 0..0 } else { range.start - start..range.end - start });
        }
        let page = |i: usize| over.segment.table.page((first + i).min(end - 1));
        let block = |i: usize| over.cache.block(over.layer, of.kv_head, page(i));
        let blocks: [_; SPAN_BLOCKS] = array::from_fn(block);
        let (keys, values) = (blocks.map(|(keys, _)| keys), blocks.map(|(_, values)| values));
        let span = Int8Span { keys: &keys[..end - first], values: &values[..end - first] };
        let cols = Self::query_cols(head_dim);
        let queries = SpanQueries {
            f32: &of.queries.f32[of.first * cols..][..n * cols],
            int8: of.queries.int8.view(of.first + n).part(of.first..of.first + n),
            softcap: over.config.attn_logit_softcapping,
        };
        let result = SpanResult { output: &mut tile.span_output[..n * head_dim], sums: &mut sums[..n] };
        over.kernels.attn_span_i8(&queries, &span, &seen[..n], buffers, result);
        for (softmax, [max, sum]) in tile.span_sums.iter_mut().zip(&sums[..n]) {
            *softmax = Softmax { max: *max, sum: *sum };
        }
    }
}
