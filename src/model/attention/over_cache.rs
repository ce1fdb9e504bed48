//! Attention of some tokens of one sequence over the cache, which holds their own keys and values already.
//!
//! The keys a query may look at are walked in spans of 256 *absolute* positions. Each span is worked out by itself (its
//! maximum, its sum, its weighted values: how, depends on the cache) and joined to what the spans before it gave, in ascending
//! order (online softmax: Milakov & Gimelshein 2018). Neither the threads nor where a chunk begins change a bit.

use std::ops::Range;

use torchless_kernels::{Aligned, Allocator, GROUP, Kernels, QuantizedBuf, SPAN, scalar};

use super::float::FloatTile;
use super::int8::Int8Tile;
use crate::arch::{Config, Temperature};
use crate::model::segment::Segment;

/// Queries of a full tile.
const TILE_QUERIES: usize = 64;

/// The attention of one layer's heads over one sequence.
pub(crate) struct OverCache<'a, C> {
    pub kernels: Kernels,
    pub config: &'a Config,
    pub cache: &'a C,
    pub layer: usize,
    /// Of this layer.
    pub window: Option<usize>,
    /// Whose tokens these are.
    pub segment: &'a Segment<'a>,
    /// `[tokens][stride]`, whose first `q_dim` values are the queries.
    pub queries: &'a [f32],
    pub stride: usize,
}

/// Some queries.
pub(crate) struct Queries {
    /// `[n][query_cols]`: multiplied by the model's scale.
    pub f32: Aligned<f32>,
    /// The same.
    pub int8: QuantizedBuf,
}

impl Queries {
    /// Room for `n`.
    pub fn new(memory: &mut Allocator, n: usize, head_dim: usize) -> Self {
        let cols = head_dim.next_multiple_of(GROUP);
        Self { f32: memory.aligned(n * cols), int8: QuantizedBuf::new(memory, n, cols) }
    }
}

/// Some tokens' queries of the heads of one head of keys.
pub(crate) struct TileQueries<'a> {
    pub kv_head: usize,
    pub tokens: Range<usize>,
    /// Token after token, the first of which is the `first`-th.
    pub queries: &'a Queries,
    pub first: usize,
}

/// The running maximum and sum of a softmax.
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    pub max: f32,
    pub sum: f32,
}

impl Softmax {
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Joins what comes next; returns what the two outputs are to be multiplied by.
    pub fn join(&mut self, next: Self) -> [f32; 2] {
        let (max, factors) = match next.max > self.max {
            true => (next.max, [scalar::exp(self.max - next.max), 1.0]),
            false => (self.max, [1.0, scalar::exp(next.max - self.max)]),
        };
        *self = Self { max, sum: self.sum * factors[0] + next.sum * factors[1] };
        factors
    }
}

impl Default for Softmax {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// A thread's buffers for up to `n` queries: [`tile_queries`].
pub(crate) struct Buffers {
    queries: Queries,
    pub tile: Tile,
}

impl Buffers {
    pub fn new(memory: &mut Allocator, config: &Config) -> Self {
        let n = tile_queries(config);
        let queries = Queries::new(memory, n, config.head_dim);
        Self { queries, tile: Tile::new(memory, n, config.head_dim) }
    }
}

/// What is worked out for some queries.
pub(crate) struct Tile {
    /// `[n][head_dim]`
    output: Aligned<f32>,
    /// `[n]`
    sums: Aligned<Softmax>,
    /// `[n][head_dim]`: of one span.
    pub span_output: Aligned<f32>,
    /// `[n]`: of one span.
    pub span_sums: Aligned<Softmax>,
    pub float: FloatTile,
    pub int8: Int8Tile,
}

/// Queries that a tile has room for: whole tokens.
pub(crate) fn tile_queries(config: &Config) -> usize {
    let per_token = config.queries_per_kv_head();
    TILE_QUERIES.max(per_token) / per_token * per_token
}

impl Tile {
    fn new(memory: &mut Allocator, n: usize, head_dim: usize) -> Self {
        Self {
            output: memory.aligned(n * head_dim),
            sums: memory.aligned(n),
            span_output: memory.aligned(n * head_dim),
            span_sums: memory.aligned(n),
            float: FloatTile::new(memory, n, head_dim),
            int8: Int8Tile::new(memory, n),
        }
    }
}

/// A cache whose keys and values can meet the queries of a tile, a span at a time.
pub(crate) trait Spans: Sized + Sync {
    /// Values from one query's start to the next one's.
    fn query_cols(head_dim: usize) -> usize;

    /// Puts queries that are loaded into other forms, if there are any.
    fn convert_queries(over: &OverCache<Self>, queries: &mut Queries, which: Range<usize>);

    /// What the blocks of one span give some tokens and the heads of one head of keys, whose queries are those from `first` on:
    /// puts it into the tile's `span_output` and `span_sums`.
    fn attend_span(over: &OverCache<Self>, of: &TileQueries, span: usize, tile: &mut Tile);
}

impl<C: Spans> OverCache<'_, C> {
    /// The positions that token `token` of the sequence's may look at.
    pub fn visible(&self, token: usize) -> Range<usize> {
        let end = self.segment.start + token + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// The spans that some tokens may look into.
    pub fn spans_of(&self, tokens: Range<usize>) -> Range<usize> {
        let (first, last) = (self.visible(tokens.start), self.visible(tokens.end - 1));
        first.start / SPAN..last.end.div_ceil(SPAN)
    }

    /// Some tokens and the heads of one head of keys; calls `write(token, heads)` with each token's result.
    pub fn attend_tile(
        &self,
        kv_head: usize,
        tokens: Range<usize>,
        buffers: &mut Buffers,
        mut write: impl FnMut(usize, &[f32]),
    ) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let Buffers { queries, tile } = buffers;
        self.load(kv_head..kv_head + 1, tokens.clone(), queries, 0);
        tile.output.fill(0.0);
        tile.sums.fill(Softmax::EMPTY);
        for span in self.spans_of(tokens.clone()) {
            let of = TileQueries { kv_head, tokens: tokens.clone(), queries, first: 0 };
            C::attend_span(self, &of, span, tile);
            for (i, token) in tokens.clone().enumerate() {
                if !overlap(&self.visible(token), span * SPAN, SPAN).is_empty() {
                    for query in i * per_token..(i + 1) * per_token {
                        let [old, new] = tile.sums[query].join(tile.span_sums[query]);
                        let features = query * head_dim..(query + 1) * head_dim;
                        let (all, span) = (&mut tile.output[features.clone()], &tile.span_output[features]);
                        self.kernels.attn_merge(all, old, span, new);
                    }
                }
            }
        }
        let outputs = tile.output.chunks_exact_mut(head_dim).zip(&*tile.sums);
        outputs.for_each(|(out, softmax)| self.kernels.scale(out, 1.0 / softmax.sum));
        for (token, heads) in tokens.zip(tile.output.chunks_exact(per_token * head_dim)) {
            write(token, heads);
        }
    }

    /// Loads the queries of some tokens, of the heads of some heads of keys, from the `first`-th on: head after head, and of each token
    /// after token.
    pub fn load(&self, kv_heads: Range<usize>, tokens: Range<usize>, queries: &mut Queries, first: usize) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let (cols, scale) = (C::query_cols(head_dim), self.config.attention_scale());
        let mut rows = queries.f32[first * cols..].chunks_exact_mut(cols);
        let n = kv_heads.len() * tokens.len() * per_token;
        for kv_head in kv_heads {
            for token in tokens.clone() {
                let grown = |t: Temperature| scale * t.at(self.segment.start + token);
                let scale = self.config.attention_temperature.map_or(scale, grown);
                let heads = &self.queries[token * self.stride + kv_head * per_token * head_dim..];
                for (head, row) in heads.chunks_exact(head_dim).take(per_token).zip(&mut rows) {
                    row[..head_dim].copy_from_slice(head);
                    self.kernels.scale(&mut row[..head_dim], scale);
                }
            }
        }
        C::convert_queries(self, queries, first..first + n);
    }

    /// The positions, within the span, that some tokens may look at.
    pub fn seen_by(&self, tokens: Range<usize>, span: usize) -> Range<usize> {
        let (first, last) = (self.visible(tokens.start), self.visible(tokens.end - 1));
        overlap(&(first.start..last.end), span * SPAN, SPAN)
    }
}

/// The part of `positions` that lies in the `len` positions from `start` on.
pub(super) fn overlap(positions: &Range<usize>, start: usize, len: usize) -> Range<usize> {
    positions.start.max(start)..positions.end.min(start + len).max(positions.start.max(start))
}
