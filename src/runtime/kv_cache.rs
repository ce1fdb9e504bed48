//! Keys and values of the tokens seen so far, in a ring as long as the attention looks back.

use std::ops::Range;

use torchless_kernels::half::f16;
use torchless_kernels::{CacheElement, Kernels};

use crate::Error;
use crate::model::Config;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// Four bytes a value, exact.
    F32,
    /// Two bytes a value.
    F16,
}

/// A cache of either type.
pub(crate) enum KvCache {
    F32(Cache<f32>),
    F16(Cache<f16>),
}

impl KvCache {
    /// Room for the attention of contexts up to `ctx` positions, fed in chunks of up to `chunk` tokens.
    pub fn new(config: &Config, kv: KvType, ctx: usize, chunk: usize) -> Result<Self, Error> {
        Ok(match kv {
            KvType::F32 => Self::F32(Cache::new(config, ctx, chunk)?),
            KvType::F16 => Self::F16(Cache::new(config, ctx, chunk)?),
        })
    }

    /// Bytes the ring takes for contexts up to `ctx` positions.
    pub fn bytes(config: &Config, kv: KvType, ctx: usize) -> usize {
        let size = match kv {
            KvType::F32 => 4,
            KvType::F16 => 2,
        };
        2 * config.n_layers * config.kv_dim() * capacity(config, ctx) * size
    }
}

/// Positions the ring holds: no more than the window, whatever the context.
fn capacity(config: &Config, ctx: usize) -> usize {
    ctx.min(config.sliding_window.unwrap_or(ctx))
}

/// Keys and values of `T`.
///
/// A chunk's own keys and values stand beside the ring until its attention is done: only then may they take the place
/// of positions which the chunk's first tokens still look at.
pub(crate) struct Cache<T> {
    /// `[n_layers][n_kv_heads][capacity][head_dim]`; the position `p` is at `p % capacity`.
    keys: Vec<T>,
    values: Vec<T>,
    /// `[n_kv_heads][chunk][head_dim]`, of the layer being worked on.
    chunk_keys: Vec<T>,
    chunk_values: Vec<T>,
    capacity: usize,
    chunk: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl<T: CacheElement + bytemuck::Zeroable> Cache<T> {
    fn new(config: &Config, ctx: usize, chunk: usize) -> Result<Self, Error> {
        let capacity = capacity(config, ctx);
        let ring = (config.n_layers * config.kv_dim()).checked_mul(capacity);
        let zeroed = |n: Option<usize>| {
            n.and_then(|n| bytemuck::allocation::try_zeroed_vec(n).ok()).ok_or_else(|| {
                Error::Request(format!(
                    "not enough memory for a context of {ctx}: choose a smaller one with --ctx"
                ))
            })
        };
        let chunk_len = Some(config.kv_dim() * chunk);
        Ok(Self {
            keys: zeroed(ring)?,
            values: zeroed(ring)?,
            chunk_keys: zeroed(chunk_len)?,
            chunk_values: zeroed(chunk_len)?,
            capacity,
            chunk,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        })
    }
}

impl<T: CacheElement> Cache<T> {
    /// Puts the keys and values of the chunk's token `token`, `[n_kv_heads][head_dim]` each, beside the ring.
    pub fn stage(&mut self, kernels: Kernels, token: usize, keys: &[f32], values: &[f32]) {
        for head in 0..self.n_kv_heads {
            let (from, to) = (head * self.head_dim, (head * self.chunk + token) * self.head_dim);
            let n = self.head_dim;
            kernels.narrow(&keys[from..][..n], &mut self.chunk_keys[to..][..n]);
            kernels.narrow(&values[from..][..n], &mut self.chunk_values[to..][..n]);
        }
    }

    /// A layer's keys and values as the attention of a staged chunk sees them, whose first token is at `start`.
    pub fn layer(&self, layer: usize, start: usize) -> LayerView<'_, T> {
        let len = self.n_kv_heads * self.capacity * self.head_dim;
        let ring = layer * len..(layer + 1) * len;
        LayerView { cache: self, keys: &self.keys[ring.clone()], values: &self.values[ring], start }
    }

    /// Moves the staged chunk of `tokens` tokens, the first at `start`, into the ring.
    pub fn commit(&mut self, layer: usize, start: usize, tokens: usize) {
        // Of a chunk longer than the ring only the end survives.
        let skip = tokens.saturating_sub(self.capacity);
        for head in 0..self.n_kv_heads {
            let ring = (layer * self.n_kv_heads + head) * self.capacity;
            let staged = head * self.chunk;
            for_each_run(start + skip..start + tokens, self.capacity, |position, slot, n| {
                let from = (staged + position - start) * self.head_dim;
                let to = (ring + slot) * self.head_dim;
                let n = n * self.head_dim;
                self.keys[to..][..n].copy_from_slice(&self.chunk_keys[from..][..n]);
                self.values[to..][..n].copy_from_slice(&self.chunk_values[from..][..n]);
            });
        }
    }
}

/// One layer of a cache, with a chunk staged beside it.
pub(crate) struct LayerView<'a, T> {
    cache: &'a Cache<T>,
    keys: &'a [T],
    values: &'a [T],
    start: usize,
}

impl<T> LayerView<'_, T> {
    /// The position of the staged chunk's first token.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Calls `f(offset in positions, keys, values)` for each stretch of `positions` that lies in one piece in memory,
    /// in ascending order; keys and values are `[stretch][head_dim]`.
    pub fn each_run(&self, kv_head: usize, positions: Range<usize>, mut f: impl FnMut(usize, &[T], &[T])) {
        let Cache { capacity, chunk, head_dim, .. } = *self.cache;
        let border = self.start.clamp(positions.start, positions.end);
        for_each_run(positions.start..border, capacity, |position, slot, n| {
            let run = (kv_head * capacity + slot) * head_dim..(kv_head * capacity + slot + n) * head_dim;
            f(position - positions.start, &self.keys[run.clone()], &self.values[run]);
        });
        if border < positions.end {
            let first = kv_head * chunk + border - self.start;
            let run = first * head_dim..(first + positions.end - border) * head_dim;
            let (keys, values) = (&self.cache.chunk_keys[run.clone()], &self.cache.chunk_values[run]);
            f(border - positions.start, keys, values);
        }
    }
}

/// Calls `f(position, slot, n)` for each stretch of positions that lie one after the other in the ring.
fn for_each_run(positions: Range<usize>, capacity: usize, mut f: impl FnMut(usize, usize, usize)) {
    let mut position = positions.start;
    while position < positions.end {
        let slot = position % capacity;
        let n = (capacity - slot).min(positions.end - position);
        f(position, slot, n);
        position += n;
    }
}
