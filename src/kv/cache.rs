//! Keys and values of the tokens seen so far, in a ring as long as the attention looks back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytemuck::Pod;
use torchless_kernels::half::f16;
use torchless_kernels::{BLOCK, CacheElement, KEY_LANES};

use super::huge_pages::HugePages;
use super::int8::Int8Cache;
use super::store::HeadsMut;
use crate::Error;
use crate::arch::Config;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvType {
    /// Four bytes a value, exact.
    F32,
    /// Two bytes a value.
    F16,
    /// One byte a value, and some for scales. Attention over it is worked out in int8 as well.
    Int8,
}

impl KvType {
    /// Bytes the keys and values of one position take, all layers together.
    pub fn bytes_a_position(self, config: &Config) -> usize {
        let key_and_value = match self {
            Self::F32 => 2 * 4 * config.head_dim,
            Self::F16 => 2 * 2 * config.head_dim,
            Self::Int8 => Int8Cache::bytes_a_position(config.head_dim),
        };
        config.n_layers * config.n_kv_heads * key_and_value
    }
}

/// A cache of any type.
pub(crate) enum KvCache {
    F32(Cache<f32>),
    F16(Cache<f16>),
    Int8(Int8Cache),
}

impl KvCache {
    /// Room for the attention of contexts up to `ctx` positions, fed in chunks of up to `chunk` tokens.
    pub fn new(config: &Config, kv: KvType, ctx: usize, chunk: usize) -> Result<Self, Error> {
        Ok(match kv {
            KvType::F32 => Self::F32(Cache::new(config, ctx, chunk)?),
            KvType::F16 => Self::F16(Cache::new(config, ctx, chunk)?),
            KvType::Int8 => Self::Int8(Int8Cache::new(config, ctx, chunk)?),
        })
    }

    /// Bytes [`KvCache::new`] allocates.
    pub fn bytes(config: &Config, kv: KvType, ctx: usize, chunk: usize) -> usize {
        let chunk = if kv == KvType::Int8 { chunk.saturating_add(BLOCK) } else { chunk };
        capacity(config, ctx, chunk).saturating_mul(kv.bytes_a_position(config))
    }

    /// Whether a finite key or value was stored as infinite since this was last asked.
    pub fn take_overflowed(&self) -> bool {
        match self {
            Self::F32(cache) => cache.overflowed.swap(false, Relaxed),
            Self::F16(cache) => cache.overflowed.swap(false, Relaxed),
            // Whatever is finite has a scale.
            Self::Int8(_) => false,
        }
    }

    /// How many positions have been overwritten by the first `stored`.
    pub fn overwritten(&self, stored: usize) -> usize {
        match self {
            Self::F32(cache) => stored.saturating_sub(cache.capacity),
            Self::F16(cache) => stored.saturating_sub(cache.capacity),
            Self::Int8(cache) => cache.overwritten(stored),
        }
    }
}

/// Positions the ring holds, whole blocks of them: with a sliding window no more than the window and a chunk, whose
/// tokens are stored before the first of them looks back.
pub(super) fn capacity(config: &Config, ctx: usize, chunk: usize) -> usize {
    let reach = config.sliding_window.map_or(ctx, |window| ctx.min(window.saturating_add(chunk)));
    reach.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX / BLOCK * BLOCK)
}

/// Keys and values of `T`; the position `p` is at `p % capacity`.
pub(crate) struct Cache<T> {
    /// `[n_layers][n_kv_heads][capacity / 16][head_dim][16]`
    keys: HugePages<T>,
    /// `[n_layers][n_kv_heads][capacity][head_dim]`
    values: HugePages<T>,
    capacity: usize,
    n_kv_heads: usize,
    head_dim: usize,
    overflowed: AtomicBool,
}

impl<T: CacheElement + Pod> Cache<T> {
    fn new(config: &Config, ctx: usize, chunk: usize) -> Result<Self, Error> {
        let capacity = capacity(config, ctx, chunk);
        let vectors = config.n_layers.checked_mul(config.n_kv_heads).and_then(|n| n.checked_mul(capacity));
        let len = vectors.and_then(|n| n.checked_mul(config.head_dim));
        Ok(Self {
            keys: zeroed(len, ctx)?,
            values: zeroed(len, ctx)?,
            capacity,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            overflowed: AtomicBool::new(false),
        })
    }
}

/// Room for `len` elements of a context of `ctx` positions.
pub(super) fn zeroed<T: Pod>(len: Option<usize>, ctx: usize) -> Result<HugePages<T>, Error> {
    len.and_then(HugePages::zeroed).ok_or_else(|| Error::OutOfMemory {
        ctx,
        problem: "does not fit in memory: choose a smaller one".to_owned(),
    })
}

impl<T: CacheElement + Pod> Cache<T> {
    /// The heads of one layer, for writing.
    pub fn layer_mut(&mut self, layer: usize) -> HeadsMut<'_, T> {
        let vectors = self.n_kv_heads * self.capacity;
        let len = vectors * self.head_dim;
        HeadsMut {
            keys: &mut self.keys[layer * len..][..len],
            values: &mut self.values[layer * len..][..len],
            capacity: self.capacity,
            head_dim: self.head_dim,
            overflowed: &self.overflowed,
        }
    }

    /// Block `block` (of absolute positions, `64·block` the first) of a layer's head.
    pub fn block(&self, layer: usize, kv_head: usize, block: usize) -> KvBlock<'_, T> {
        let first = (layer * self.n_kv_heads + kv_head) * self.capacity + block * BLOCK % self.capacity;
        let elements = first * self.head_dim..(first + BLOCK) * self.head_dim;
        KvBlock { keys: &self.keys[elements.clone()], values: &self.values[elements] }
    }
}

/// 64 positions of one head.
pub(crate) struct KvBlock<'a, T> {
    /// `[4][head_dim][16]`
    pub keys: &'a [T],
    /// `[64][head_dim]`
    pub values: &'a [T],
}

impl<'a, T> KvBlock<'a, T> {
    /// The keys of the first `positions` positions, and of those beside them: `[⌈positions / 16⌉][head_dim][16]`.
    pub fn keys_before(&self, positions: usize) -> &'a [T] {
        &self.keys[..self.keys.len() / BLOCK * positions.next_multiple_of(KEY_LANES)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_takes_the_bytes_that_are_said() {
        let mut config = crate::arch::shape("smollm2-135m").unwrap();
        for window in [None, Some(100)] {
            config.sliding_window = window;
            for kv in [KvType::F32, KvType::F16, KvType::Int8] {
                let found = match KvCache::new(&config, kv, 300, 7).unwrap() {
                    KvCache::F32(Cache { keys, values, .. }) => size_of_val(&*keys) + size_of_val(&*values),
                    KvCache::F16(Cache { keys, values, .. }) => size_of_val(&*keys) + size_of_val(&*values),
                    KvCache::Int8(cache) => cache.bytes(),
                };
                assert_eq!(found, KvCache::bytes(&config, kv, 300, 7), "{kv:?}, window {window:?}");
            }
        }
    }
}
