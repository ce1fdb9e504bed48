//! Keys and values of the tokens seen so far, in pages of 64 positions that any sequence may use.

use bytemuck::Pod;
use torchless_kernels::half::f16;
use torchless_kernels::{BLOCK, CacheElement, KEY_LANES};

use super::huge_pages::HugePages;
use super::int8::Int8Cache;
use super::store::HeadsMut;
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
    /// `pages` pages; nothing where they do not fit in memory.
    pub fn new(config: &Config, kv: KvType, pages: usize) -> Option<Self> {
        Some(match kv {
            KvType::F32 => Self::F32(Cache::new(config, pages)?),
            KvType::F16 => Self::F16(Cache::new(config, pages)?),
            KvType::Int8 => Self::Int8(Int8Cache::new(config, pages)?),
        })
    }
}

/// Keys and values of `T`; the position `p` of a sequence is at [`PageTable::place`](super::PageTable::place).
pub(crate) struct Cache<T> {
    /// `[n_layers][n_kv_heads][pages][4][head_dim][16]`
    keys: HugePages<T>,
    /// `[n_layers][n_kv_heads][pages][64][head_dim]`
    values: HugePages<T>,
    pages: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl<T: CacheElement + Pod> Cache<T> {
    fn new(config: &Config, pages: usize) -> Option<Self> {
        let blocks = config.n_layers.checked_mul(config.n_kv_heads)?.checked_mul(pages)?;
        let len = blocks.checked_mul(BLOCK)?.checked_mul(config.head_dim)?;
        Some(Self {
            keys: HugePages::zeroed(len)?,
            values: HugePages::zeroed(len)?,
            pages,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        })
    }

    /// The heads of one layer, for writing.
    pub fn layer_mut(&mut self, layer: usize) -> HeadsMut<'_, T> {
        let len = self.n_kv_heads * self.pages * BLOCK * self.head_dim;
        HeadsMut {
            keys: &mut self.keys[layer * len..][..len],
            values: &mut self.values[layer * len..][..len],
            positions: self.pages * BLOCK,
            head_dim: self.head_dim,
        }
    }

    /// A page of a layer's head.
    pub fn block(&self, layer: usize, kv_head: usize, page: usize) -> KvBlock<'_, T> {
        let first = ((layer * self.n_kv_heads + kv_head) * self.pages + page) * BLOCK;
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
        let config = crate::arch::shape("smollm2-135m").unwrap();
        for kv in [KvType::F32, KvType::F16, KvType::Int8] {
            let found = match KvCache::new(&config, kv, 5).unwrap() {
                KvCache::F32(Cache { keys, values, .. }) => size_of_val(&*keys) + size_of_val(&*values),
                KvCache::F16(Cache { keys, values, .. }) => size_of_val(&*keys) + size_of_val(&*values),
                KvCache::Int8(cache) => cache.bytes(),
            };
            assert_eq!(found, kv.bytes_a_position(&config) * 5 * BLOCK, "{kv:?}");
        }
    }
}
