//! Attention over keys and values in f32 or f16. A block of 64 positions is worked out by itself and joined to those before it, in
//! ascending order, as the spans are.

use std::ops::Range;

use bytemuck::Pod;
use torchless_kernels::{Aligned, Allocator, BLOCK, CacheElement};

use super::over_cache::{OverCache, Queries, Softmax, Spans, Tile, TileQueries, overlap};
use crate::kv::{Cache, KvBlock};

/// Fewest queries for which a block's keys and values are widened once instead of by every four of them.
const MIN_QUERIES_TO_WIDEN: usize = 5;

/// A tile's buffers.
pub(crate) struct FloatTile {
    /// `[n][BLOCK]`
    scores: Aligned<f32>,
    /// `[n]`
    factors: Aligned<[f32; 2]>,
    /// `[BLOCK / 16][head_dim][16]`: a block's keys in f32.
    keys: Aligned<f32>,
    /// `[BLOCK][head_dim]`: a block's values in f32.
    values: Aligned<f32>,
}

impl FloatTile {
    /// For tiles of up to `n` queries.
    pub fn new(memory: &mut Allocator, n: usize, head_dim: usize) -> Self {
        Self {
            scores: memory.aligned(n * BLOCK),
            factors: memory.aligned(n),
            keys: memory.aligned(BLOCK * head_dim),
            values: memory.aligned(BLOCK * head_dim),
        }
    }
}

impl<T: CacheElement + Pod> Spans for Cache<T> {
    fn query_cols(head_dim: usize) -> usize {
        head_dim
    }

    fn convert_queries(_: &OverCache<Self>, _: &mut Queries, _: Range<usize>) {}

    fn attend_span(over: &OverCache<Self>, of: &TileQueries, span: usize, tile: &mut Tile) {
        let tokens = of.tokens.clone();
        let n = tokens.len() * over.config.queries_per_kv_head();
        tile.span_output[..n * over.config.head_dim].fill(0.0);
        tile.span_sums[..n].fill(Softmax::EMPTY);
        let positions = over.seen_by(tokens.clone(), span);
        for block in positions.start / BLOCK..positions.end.div_ceil(BLOCK) {
            // The tokens that may look into this block are neighbours.
            let from = (block * BLOCK).saturating_sub(over.segment.start).max(tokens.start);
            let window = over.window.unwrap_or(usize::MAX);
            let beyond = ((block + 1) * BLOCK - 1).saturating_add(window).saturating_sub(over.segment.start);
            let to = beyond.min(tokens.end);
            if from >= to {
                continue;
            }
            let cached = over.cache.block(over.layer, of.kv_head, over.segment.table.page(block));
            over.attend_block(&cached, block, of, from..to, tile);
        }
    }
}

impl<T: CacheElement + Pod> OverCache<'_, Cache<T>> {
    /// What one block gives `tokens`, some of the tile's.
    fn attend_block(
        &self,
        cached: &KvBlock<T>,
        block: usize,
        of: &TileQueries,
        tokens: Range<usize>,
        tile: &mut Tile,
    ) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let Tile { span_output, span_sums, float, .. } = tile;
        let FloatTile { scores, factors, keys, values } = float;
        let n = tokens.len() * per_token;
        let at = tokens.start - of.tokens.start;
        let queries = &of.queries.f32[(of.first + at * per_token) * head_dim..][..n * head_dim];
        let output = &mut span_output[at * per_token * head_dim..][..n * head_dim];
        let sums = &mut span_sums[at * per_token..][..n];
        let (scores, factors) = (&mut scores.as_chunks_mut().0[..n], &mut factors[..n]);
        let seen = |token| {
            let seen = overlap(&self.visible(token), block * BLOCK, BLOCK);
            seen.start - block * BLOCK..seen.end - block * BLOCK
        };
        let (first, last) = (seen(tokens.start), seen(tokens.end - 1));

        let seen_keys = cached.keys_before(last.end);
        if n >= MIN_QUERIES_TO_WIDEN {
            let keys = &mut keys[..seen_keys.len()];
            self.kernels.widen(seen_keys, keys);
            self.kernels.attn_scores(queries, keys, scores);
        } else {
            self.kernels.attn_scores(queries, seen_keys, scores);
        }
        for (i, scores) in scores.iter_mut().enumerate() {
            let seen = seen(tokens.start + i / per_token);
            let scores = &mut scores[seen];
            if let Some(cap) = self.config.attn_logit_softcapping {
                self.kernels.softcap(scores, cap);
            }
            let (max, sum) = self.kernels.softmax_block(scores);
            factors[i] = sums[i].join(Softmax { max, sum });
        }
        if n >= MIN_QUERIES_TO_WIDEN {
            let used = first.start * head_dim..last.end * head_dim;
            self.kernels.widen(&cached.values[used.clone()], &mut values[used]);
        }
        // Queries that look at the same positions go together; what a query may not look at must not touch it even
        // as a product with 0, which a value that is not finite would spoil.
        let together = if first == last { tokens.len() } else { 1 };
        let queries = scores.chunks(together * per_token).zip(factors.chunks(together * per_token));
        let outputs = output.chunks_mut(together * per_token * head_dim);
        for (i, ((scores, factors), output)) in queries.zip(outputs).enumerate() {
            let seen = seen(tokens.start + i * together);
            let used = seen.start * head_dim..seen.end * head_dim;
            if n >= MIN_QUERIES_TO_WIDEN {
                self.kernels.attn_accumulate(scores, seen.start, &values[used], factors, output);
            } else {
                self.kernels.attn_accumulate(scores, seen.start, &cached.values[used], factors, output);
            }
        }
    }
}
