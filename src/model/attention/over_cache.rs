//! Attention of a chunk of tokens over the cache, which holds the chunk's own keys and values already.
//!
//! The keys a query may look at are walked in spans of 256 *absolute* positions. Each span is worked out by itself (its
//! maximum, its sum, its weighted values: how, depends on the cache) and joined to what the spans before it gave, in ascending
//! order (online softmax: Milakov & Gimelshein 2018). Neither the threads nor where a chunk begins change a bit.
//!
//! Work is done in tiles: a few tokens, all the heads that share a head of keys. A single token (decode) has few tiles,
//! so there the spans are worked out in parallel too.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use torchless_kernels::{Aligned, Allocator, GROUP, Kernels, MatMut, QuantizedBuf, SPAN, Team, scalar};

use super::float::FloatTile;
use super::int8::Int8Tile;
use crate::arch::Config;
use crate::parallel::fork::{Split, fork, fork2, grain};
use crate::parallel::threads::PerThread;

/// Queries of a full tile.
const TILE_QUERIES: usize = 64;

/// Tiles for each thread at the least, smaller ones if need be: the later ones look at more than the earlier ones.
const TILES_A_THREAD: usize = 4;

/// The attention of one layer's heads over one chunk.
pub(crate) struct OverCache<'a, C> {
    pub kernels: Kernels,
    pub team: &'a Team,
    pub config: &'a Config,
    pub cache: &'a C,
    pub layer: usize,
    /// The position of the chunk's first token.
    pub start: usize,
    /// `[tokens][stride]`, whose first `q_dim` values are the queries.
    pub queries: &'a [f32],
    pub stride: usize,
    pub buffers: &'a AttentionBuffers,
}

/// What attention writes to beside its output.
pub(crate) struct AttentionBuffers {
    threads: PerThread<Buffers>,
    one_token: Mutex<SpanResults>,
}

/// Some queries.
pub(crate) struct Queries {
    /// `[n][query_cols]`: multiplied by `1/√head_dim`.
    pub f32: Aligned<f32>,
    /// The same.
    pub int8: QuantizedBuf,
}

impl Queries {
    /// Room for `n`.
    fn new(memory: &mut Allocator, n: usize, head_dim: usize) -> Self {
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

/// What each span of a context gives a single token.
struct SpanResults {
    /// `[n_kv_heads][queries_per_kv_head]`
    queries: Queries,
    /// `[n_kv_heads][spans][queries_per_kv_head][head_dim]`
    outputs: Aligned<f32>,
    /// `[n_kv_heads][spans][queries_per_kv_head]`
    sums: Aligned<Softmax>,
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
struct Buffers {
    queries: Queries,
    tile: Tile,
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
fn tile_queries(config: &Config) -> usize {
    let per_token = config.queries_per_kv_head();
    TILE_QUERIES.max(per_token) / per_token * per_token
}

impl AttentionBuffers {
    /// Buffers for contexts of up to `ctx` positions and `threads` threads.
    pub fn new(memory: &mut Allocator, config: &Config, ctx: usize, threads: usize) -> Self {
        let most_spans = ctx.div_ceil(SPAN) + 1;
        let outputs = memory.aligned(config.n_heads * most_spans * config.head_dim);
        let queries = Queries::new(memory, config.n_heads, config.head_dim);
        let one_token = SpanResults { queries, outputs, sums: memory.aligned(config.n_heads * most_spans) };
        let n = tile_queries(config);
        let threads = PerThread::new(threads, || Buffers {
            queries: Queries::new(memory, n, config.head_dim),
            tile: Tile::new(memory, n, config.head_dim),
        });
        Self { threads, one_token: one_token.into() }
    }
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
    fn convert_queries(over: &OverCache<Self>, queries: &mut Queries, n: usize);

    /// What the blocks of one span give some tokens and the heads of one head of keys, whose queries are those from `first` on:
    /// puts it into the tile's `span_output` and `span_sums`.
    fn attend_span(over: &OverCache<Self>, of: &TileQueries, span: usize, tile: &mut Tile);
}

impl<C: Spans> OverCache<'_, C> {
    /// Fills `out`, `[tokens][n_heads·head_dim]`.
    pub fn run(&self, mut out: MatMut<f32>) {
        let spans = self.spans_of(0..1);
        if out.rows() == 1 && spans.len() > 1 {
            return self.attend_one_token(spans, out.row(0));
        }
        let per_token = self.config.queries_per_kv_head();
        let width = per_token * self.config.head_dim;
        let tiles = (TILES_A_THREAD * self.team.members() / self.config.n_kv_heads).max(1);
        let tokens = out.rows().div_ceil(tiles).min(tile_queries(self.config) / per_token);
        let (ranges, grain) = ([0..out.cols(), 0..out.rows()], [width, tokens]);
        let split: [&Split<_>; 2] = [&MatMut::split_cols, &MatMut::split_rows];
        fork2(self.team, out, ranges, grain, split, &|mut out, features, tokens| {
            let first = tokens.start;
            self.attend_tile(features.start / width, tokens, |token, heads| {
                out.row(token - first).copy_from_slice(heads);
            });
        });
    }

    /// The positions that token `token` of the chunk may look at.
    pub fn visible(&self, token: usize) -> Range<usize> {
        let end = self.start + token + 1;
        end.saturating_sub(self.config.sliding_window.unwrap_or(end))..end
    }

    /// The spans that some tokens may look into.
    fn spans_of(&self, tokens: Range<usize>) -> Range<usize> {
        let (first, last) = (self.visible(tokens.start), self.visible(tokens.end - 1));
        first.start / SPAN..last.end.div_ceil(SPAN)
    }

    /// Some tokens and the heads of one head of keys; calls `write(token, heads)` with each token's result.
    fn attend_tile(&self, kv_head: usize, tokens: Range<usize>, mut write: impl FnMut(usize, &[f32])) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let mut guard = self.buffers.threads.mine();
        let Buffers { queries, tile } = &mut *guard;
        self.load(kv_head..kv_head + 1, tokens.clone(), queries);
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

    /// A single token: its spans one by one in parallel, then joined.
    fn attend_one_token(&self, spans: Range<usize>, out: &mut [f32]) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let units = self.config.n_kv_heads * spans.len();
        let mut guard = self.buffers.one_token.lock().unwrap_or_else(PoisonError::into_inner);
        let SpanResults { queries, outputs, sums } = &mut *guard;
        self.load(0..self.config.n_kv_heads, 0..1, queries);
        let queries = &*queries;
        let outputs = MatMut::new(&mut outputs[..units * per_token * head_dim], units, per_token * head_dim);
        let whole = (outputs, MatMut::new(&mut sums[..units * per_token], units, per_token));
        fork(self.team, whole, 0..units, grain(units, 1), &split_rows, &|(mut outputs, mut sums), units| {
            let tile = &mut self.buffers.threads.mine().tile;
            for (row, unit) in units.enumerate() {
                let (kv_head, span) = (unit / spans.len(), spans.start + unit % spans.len());
                let of = TileQueries { kv_head, tokens: 0..1, queries, first: kv_head * per_token };
                C::attend_span(self, &of, span, tile);
                outputs.row(row).copy_from_slice(&tile.span_output[..per_token * head_dim]);
                sums.row(row).copy_from_slice(&tile.span_sums[..per_token]);
            }
        });
        let SpanResults { outputs, sums, .. } = &*guard;
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            out.fill(0.0);
            let mut softmax = Softmax::EMPTY;
            for unit in head / per_token * spans.len()..(head / per_token + 1) * spans.len() {
                let query = unit * per_token + head % per_token;
                let [old, new] = softmax.join(sums[query]);
                self.kernels.attn_merge(out, old, &outputs[query * head_dim..][..head_dim], new);
            }
            self.kernels.scale(out, 1.0 / softmax.sum);
        }
    }

    /// Loads the queries of some tokens, of the heads of some heads of keys: head after head, and of each token after token.
    fn load(&self, kv_heads: Range<usize>, tokens: Range<usize>, queries: &mut Queries) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut rows = queries.f32.chunks_exact_mut(C::query_cols(head_dim));
        let n = kv_heads.len() * tokens.len() * per_token;
        for kv_head in kv_heads {
            for token in tokens.clone() {
                let heads = &self.queries[token * self.stride + kv_head * per_token * head_dim..];
                for (head, row) in heads.chunks_exact(head_dim).take(per_token).zip(&mut rows) {
                    row[..head_dim].copy_from_slice(head);
                    self.kernels.scale(&mut row[..head_dim], scale);
                }
            }
        }
        C::convert_queries(self, queries, n);
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

type Rows<'a> = (MatMut<'a, f32>, MatMut<'a, Softmax>);

fn split_rows((outputs, sums): Rows, n: usize) -> (Rows, Rows) {
    let ((a, b), (c, d)) = (outputs.split_rows(n), sums.split_rows(n));
    ((a, c), (b, d))
}
