//! Attention of a chunk of tokens over the cache, which holds the chunk's own keys and values already.
//!
//! The keys a query may look at are walked in blocks of 64 *absolute* positions. Each block is worked out by itself (its
//! maximum, its sum, its weighted values) and joined to what the blocks before it gave, in ascending order (online
//! softmax: Milakov & Gimelshein 2018); so are the four blocks of a span, and then the spans. Neither the threads nor
//! where a chunk begins change a bit.
//!
//! Work is done in tiles: a few tokens, all the heads that share a head of keys. A single token (decode) has few tiles,
//! so there the spans are worked out in parallel too.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;
use torchless_kernels::{Aligned, Allocator, BLOCK, CacheElement, Kernels, MatMut, Team, scalar};

use crate::arch::Config;
use crate::kv::{Cache, KvBlock};
use crate::parallel::fork::{Split, fork, fork2, grain};
use crate::parallel::threads::PerThread;

/// Positions of four blocks.
const SPAN: usize = 4 * BLOCK;

/// Queries of a full tile.
const TILE_QUERIES: usize = 64;

/// Tiles for each thread at the least, smaller ones if need be: the later ones look at more than the earlier ones.
const TILES_A_THREAD: usize = 4;

/// Fewest queries for which a block's keys and values are widened once instead of by every four of them.
const MIN_QUERIES_TO_WIDEN: usize = 5;

/// The attention of one layer's heads over one chunk.
pub(super) struct OverCache<'a, T> {
    pub kernels: Kernels,
    pub team: &'a Team,
    pub config: &'a Config,
    pub cache: &'a Cache<T>,
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
    tiles: PerThread<Tile>,
    one_token: Mutex<SpanResults>,
}

/// What each span of a context gives a single token.
struct SpanResults {
    /// `[n_kv_heads][spans][queries_per_kv_head][head_dim]`
    outputs: Aligned<f32>,
    /// `[n_kv_heads][spans][queries_per_kv_head]`
    sums: Aligned<Softmax>,
}

/// The running maximum and sum of a softmax.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Joins what comes next; returns what the two outputs are to be multiplied by.
    fn join(&mut self, next: Self) -> [f32; 2] {
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

/// A thread's buffers; `n` is [`tile_queries`].
struct Tile {
    /// `[n][head_dim]`: multiplied by `1/√head_dim`.
    queries: Aligned<f32>,
    /// `[n][head_dim]`
    output: Aligned<f32>,
    /// `[n]`
    sums: Aligned<Softmax>,
    /// `[n][head_dim]`: of one span.
    span_output: Aligned<f32>,
    /// `[n]`: of one span.
    span_sums: Aligned<Softmax>,
    /// `[n][BLOCK]`
    scores: Aligned<f32>,
    /// `[n]`
    factors: Aligned<[f32; 2]>,
    /// `[BLOCK / 16][head_dim][16]`: a block's keys in f32.
    keys: Aligned<f32>,
    /// `[BLOCK][head_dim]`: a block's values in f32.
    values: Aligned<f32>,
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
        let one_token = SpanResults { outputs, sums: memory.aligned(config.n_heads * most_spans) };
        Self { tiles: PerThread::new(threads, || Tile::new(memory, config)), one_token: one_token.into() }
    }
}

impl Tile {
    fn new(memory: &mut Allocator, config: &Config) -> Self {
        let (n, head_dim) = (tile_queries(config), config.head_dim);
        Self {
            queries: memory.aligned(n * head_dim),
            output: memory.aligned(n * head_dim),
            sums: memory.aligned(n),
            span_output: memory.aligned(n * head_dim),
            span_sums: memory.aligned(n),
            scores: memory.aligned(n * BLOCK),
            factors: memory.aligned(n),
            keys: memory.aligned(BLOCK * head_dim),
            values: memory.aligned(BLOCK * head_dim),
        }
    }
}

impl<T: CacheElement + Pod> OverCache<'_, T> {
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
    fn visible(&self, token: usize) -> Range<usize> {
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
        let mut guard = self.buffers.tiles.mine();
        let tile = &mut *guard;
        self.load_queries(kv_head, tokens.clone(), tile);
        tile.output.fill(0.0);
        tile.sums.fill(Softmax::EMPTY);
        for span in self.spans_of(tokens.clone()) {
            self.attend_span(kv_head, tokens.clone(), span, tile);
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
        let SpanResults { outputs, sums } = &mut *guard;
        let outputs = MatMut::new(&mut outputs[..units * per_token * head_dim], units, per_token * head_dim);
        let whole = (outputs, MatMut::new(&mut sums[..units * per_token], units, per_token));
        fork(self.team, whole, 0..units, grain(units, 1), &split_rows, &|(mut outputs, mut sums), units| {
            let mut tile = self.buffers.tiles.mine();
            for (row, unit) in units.enumerate() {
                let (kv_head, span) = (unit / spans.len(), spans.start + unit % spans.len());
                self.load_queries(kv_head, 0..1, &mut tile);
                self.attend_span(kv_head, 0..1, span, &mut tile);
                outputs.row(row).copy_from_slice(&tile.span_output[..per_token * head_dim]);
                sums.row(row).copy_from_slice(&tile.span_sums[..per_token]);
            }
        });
        let SpanResults { outputs, sums } = &*guard;
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

    fn load_queries(&self, kv_head: usize, tokens: Range<usize>, tile: &mut Tile) {
        let width = self.config.queries_per_kv_head() * self.config.head_dim;
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        for (token, queries) in tokens.zip(tile.queries.chunks_exact_mut(width)) {
            queries.copy_from_slice(&self.queries[token * self.stride + kv_head * width..][..width]);
            self.kernels.scale(queries, scale);
        }
    }

    /// What the blocks of one span give the queries of a tile.
    fn attend_span(&self, kv_head: usize, tokens: Range<usize>, span: usize, tile: &mut Tile) {
        let n = tokens.len() * self.config.queries_per_kv_head();
        tile.span_output[..n * self.config.head_dim].fill(0.0);
        tile.span_sums[..n].fill(Softmax::EMPTY);
        let (first, last) = (self.visible(tokens.start), self.visible(tokens.end - 1));
        let positions = overlap(&(first.start..last.end), span * SPAN, SPAN);
        for block in positions.start / BLOCK..positions.end.div_ceil(BLOCK) {
            // The tokens that may look into this block are neighbours.
            let from = (block * BLOCK).saturating_sub(self.start).max(tokens.start);
            let window = self.config.sliding_window.unwrap_or(usize::MAX);
            let beyond = ((block + 1) * BLOCK - 1).saturating_add(window).saturating_sub(self.start);
            let to = beyond.min(tokens.end);
            if from >= to {
                continue;
            }
            let cached = self.cache.block(self.layer, kv_head, block);
            self.attend_block(&cached, block, from - tokens.start, from..to, tile);
        }
    }

    /// What one block gives `tokens`, the first of which is the `at`-th of the tile.
    fn attend_block(
        &self,
        cached: &KvBlock<T>,
        block: usize,
        at: usize,
        tokens: Range<usize>,
        tile: &mut Tile,
    ) {
        let (head_dim, per_token) = (self.config.head_dim, self.config.queries_per_kv_head());
        let Tile { queries, span_output, span_sums, scores, factors, keys, values, .. } = tile;
        let n = tokens.len() * per_token;
        let queries = &queries[at * per_token * head_dim..][..n * head_dim];
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
            let scores = &mut scores[seen.clone()];
            if T::SCALED {
                self.kernels.mul(scores, &cached.key_scales[seen.clone()]);
            }
            let (max, sum) = self.kernels.softmax_block(scores);
            if T::SCALED {
                self.kernels.mul(scores, &cached.value_scales[seen]);
            }
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

/// The part of `positions` that lies in the `len` positions from `start` on.
fn overlap(positions: &Range<usize>, start: usize, len: usize) -> Range<usize> {
    positions.start.max(start)..positions.end.min(start + len).max(positions.start.max(start))
}

type Rows<'a> = (MatMut<'a, f32>, MatMut<'a, Softmax>);

fn split_rows((outputs, sums): Rows, n: usize) -> (Rows, Rows) {
    let ((a, b), (c, d)) = (outputs.split_rows(n), sums.split_rows(n));
    ((a, c), (b, d))
}
