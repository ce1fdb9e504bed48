//! Attention of a chunk of tokens over the cache and over itself.
//!
//! The keys a query may look at are walked in blocks of [`BLOCK`] *absolute* positions. Each block is worked out by
//! itself (its maximum, its sum, its weighted values) and then joined to what the blocks before it gave, in ascending
//! order (online softmax: Milakov & Gimelshein 2018). So neither the threads nor where a chunk begins change a bit.

use torchless_kernels::{CacheElement, Kernels, MatMut, scalar};

use super::config::{Config, MAX_HEAD_DIM};
use super::fork::{fork, grain};
use crate::runtime::kv_cache::LayerView;

/// Positions a block of keys spans.
const BLOCK: usize = 64;

/// Fewest queries of one head a task is given.
const TOKENS: usize = 16;

/// The attention of one layer over one chunk.
pub(crate) struct Attention<'a, T> {
    pub kernels: Kernels,
    pub config: &'a Config,
    /// This layer's keys and values, the chunk's own included.
    pub cache: LayerView<'a, T>,
    /// `[tokens][stride]`, whose first `q_dim` values are the queries.
    pub queries: &'a [f32],
    pub stride: usize,
}

impl<T: CacheElement> Attention<'_, T> {
    /// Fills `out`, `[tokens][n_heads·head_dim]`, in parallel over heads and tokens.
    pub fn run(&self, out: MatMut<f32>) {
        let head_dim = self.config.head_dim;
        let features = 0..out.cols();
        fork(out, features, head_dim, &MatMut::split_cols, &|out, features| {
            let (head, tokens) = (features.start / head_dim, 0..out.rows());
            let grain = grain(tokens.len(), TOKENS);
            fork(out, tokens, grain, &MatMut::split_rows, &|mut out, tokens| {
                for (row, token) in tokens.enumerate() {
                    self.attend(head, token, out.row(row));
                }
            });
        });
    }

    /// One query: `out` receives `softmax(q·K / √head_dim) · V` over the positions it may look at.
    fn attend(&self, head: usize, token: usize, out: &mut [f32]) {
        let head_dim = out.len();
        let kv_head = head / (self.config.n_heads / self.config.n_kv_heads);
        let query = &self.queries[token * self.stride + head * head_dim..][..head_dim];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let end = self.cache.start() + token + 1;
        let first = end.saturating_sub(self.config.sliding_window.unwrap_or(end));

        let (mut scores, mut block_out) = ([0.0; BLOCK], [0.0; MAX_HEAD_DIM]);
        let block_out = &mut block_out[..head_dim];
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        out.fill(0.0);
        for block in first / BLOCK..end.div_ceil(BLOCK) {
            let positions = first.max(block * BLOCK)..end.min((block + 1) * BLOCK);
            let scores = &mut scores[..positions.len()];
            self.cache.each_run(kv_head, positions.clone(), |at, keys, _| {
                let scores = &mut scores[at..][..keys.len() / head_dim];
                self.kernels.attn_scores(query, keys, scale, scores);
            });
            let (block_max, block_sum) = self.kernels.softmax_block(scores);
            block_out.fill(0.0);
            self.cache.each_run(kv_head, positions, |at, _, values| {
                self.kernels.attn_accumulate(&scores[at..][..values.len() / head_dim], values, block_out);
            });
            let new_max = if max > block_max { max } else { block_max };
            let (old, new) = (scalar::exp(max - new_max), scalar::exp(block_max - new_max));
            self.kernels.attn_merge(out, old, block_out, new);
            (max, sum) = (new_max, sum * old + block_sum * new);
        }
        self.kernels.scale(out, 1.0 / sum);
    }
}
