//! Keys and values of the tokens seen so far, in a ring as long as the attention looks back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytemuck::Pod;
use torchless_kernels::half::f16;
use torchless_kernels::{BLOCK, CacheElement, KEY_LANES};

use super::huge_pages::HugePages;
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
    /// One byte a value, and four for each key and each value of a head.
    Int8,
}

impl KvType {
    /// Bytes the keys and values of one position take, all layers together.
    pub fn bytes_a_position(self, config: &Config) -> usize {
        let vector = match self {
            Self::F32 => 4 * config.head_dim,
            Self::F16 => 2 * config.head_dim,
            Self::Int8 => config.head_dim + size_of::<f32>(),
        };
        2 * config.n_layers * config.n_kv_heads * vector
    }
}

/// A cache of any type.
pub(crate) enum KvCache {
    F32(Cache<f32>),
    F16(Cache<f16>),
    Int8(Cache<i8>),
}

impl KvCache {
    /// Room for the attention of contexts up to `ctx` positions, fed in chunks of up to `chunk` tokens.
    pub fn new(config: &Config, kv: KvType, ctx: usize, chunk: usize) -> Result<Self, Error> {
        Ok(match kv {
            KvType::F32 => Self::F32(Cache::new(config, ctx, chunk)?),
            KvType::F16 => Self::F16(Cache::new(config, ctx, chunk)?),
            KvType::Int8 => Self::Int8(Cache::new(config, ctx, chunk)?),
        })
    }

    /// Bytes [`KvCache::new`] allocates.
    pub fn bytes(config: &Config, kv: KvType, ctx: usize, chunk: usize) -> usize {
        capacity(config, ctx, chunk).saturating_mul(kv.bytes_a_position(config))
    }

    /// Whether a finite key or value was stored as infinite since this was last asked.
    pub fn take_overflowed(&self) -> bool {
        let flag = match self {
            Self::F32(cache) => &cache.overflowed,
            Self::F16(cache) => &cache.overflowed,
            Self::Int8(cache) => &cache.overflowed,
        };
        flag.swap(false, Relaxed)
    }

    /// Positions the ring holds.
    pub fn capacity(&self) -> usize {
        match self {
            Self::F32(cache) => cache.capacity,
            Self::F16(cache) => cache.capacity,
            Self::Int8(cache) => cache.capacity,
        }
    }
}

/// Positions the ring holds, whole blocks of them: with a sliding window no more than the window and a chunk, whose
/// tokens are stored before the first of them looks back.
fn capacity(config: &Config, ctx: usize, chunk: usize) -> usize {
    let reach = config.sliding_window.map_or(ctx, |window| ctx.min(window.saturating_add(chunk)));
    reach.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX / BLOCK * BLOCK)
}

/// Keys and values of `T`; the position `p` is at `p % capacity`.
pub(crate) struct Cache<T> {
    /// `[n_layers][n_kv_heads][capacity / 16][head_dim][16]`
    keys: HugePages<T>,
    /// `[n_layers][n_kv_heads][capacity][head_dim]`
    values: HugePages<T>,
    /// `[n_layers][n_kv_heads][capacity]`, where `T` has scales: what the key or value is to be multiplied by.
    key_scales: HugePages<f32>,
    value_scales: HugePages<f32>,
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
        let scales = if T::SCALED { vectors } else { Some(0) };
        Ok(Self {
            keys: zeroed(len, ctx)?,
            values: zeroed(len, ctx)?,
            key_scales: zeroed(scales, ctx)?,
            value_scales: zeroed(scales, ctx)?,
            capacity,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            overflowed: AtomicBool::new(false),
        })
    }
}

fn zeroed<T: Pod>(len: Option<usize>, ctx: usize) -> Result<HugePages<T>, Error> {
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
        let scales = if T::SCALED { layer * vectors..(layer + 1) * vectors } else { 0..0 };
        HeadsMut {
            keys: &mut self.keys[layer * len..][..len],
            values: &mut self.values[layer * len..][..len],
            key_scales: &mut self.key_scales[scales.clone()],
            value_scales: &mut self.value_scales[scales],
            capacity: self.capacity,
            head_dim: self.head_dim,
            overflowed: &self.overflowed,
        }
    }

    /// Block `block` (of absolute positions, `64·block` the first) of a layer's head.
    pub fn block(&self, layer: usize, kv_head: usize, block: usize) -> KvBlock<'_, T> {
        let first = (layer * self.n_kv_heads + kv_head) * self.capacity + block * BLOCK % self.capacity;
        let elements = first * self.head_dim..(first + BLOCK) * self.head_dim;
        let scales = if T::SCALED { first..first + BLOCK } else { 0..0 };
        KvBlock {
            keys: &self.keys[elements.clone()],
            values: &self.values[elements],
            key_scales: &self.key_scales[scales.clone()],
            value_scales: &self.value_scales[scales],
        }
    }
}

/// 64 positions of one head.
pub(crate) struct KvBlock<'a, T> {
    /// `[4][head_dim][16]`
    pub keys: &'a [T],
    /// `[64][head_dim]`
    pub values: &'a [T],
    /// 64 of them, or none where the elements have no scales.
    pub key_scales: &'a [f32],
    pub value_scales: &'a [f32],
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

    fn bytes<T: Pod + CacheElement>(cache: &Cache<T>) -> usize {
        let Cache { keys, values, key_scales, value_scales, .. } = cache;
        size_of_val(&**keys)
            + size_of_val(&**values)
            + size_of_val(&**key_scales)
            + size_of_val(&**value_scales)
    }

    #[test]
    fn a_cache_takes_the_bytes_that_are_said() {
        let mut config = crate::arch::shape("smollm2-135m").unwrap();
        for window in [None, Some(100)] {
            config.sliding_window = window;
            for kv in [KvType::F32, KvType::F16, KvType::Int8] {
                let found = match KvCache::new(&config, kv, 300, 7).unwrap() {
                    KvCache::F32(cache) => bytes(&cache),
                    KvCache::F16(cache) => bytes(&cache),
                    KvCache::Int8(cache) => bytes(&cache),
                };
                assert_eq!(found, KvCache::bytes(&config, kv, 300, 7), "{kv:?}, window {window:?}");
            }
        }
    }
}
