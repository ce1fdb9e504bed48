//! Keys and values of the tokens seen so far, in a ring as long as the attention looks back.

use bytemuck::Pod;
use torchless_kernels::half::f16;
use torchless_kernels::{BLOCK, CacheElement, Kernels};

use super::huge_pages::HugePages;
use crate::Error;
use crate::arch::Config;
use crate::arch::MAX_HEAD_DIM;

/// Positions whose keys lie side by side.
const COLUMNS: usize = 16;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        capacity(config, ctx, chunk) * kv.bytes_a_position(config)
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
    reach.next_multiple_of(BLOCK)
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
}

impl<T: CacheElement + Pod> Cache<T> {
    fn new(config: &Config, ctx: usize, chunk: usize) -> Result<Self, Error> {
        let capacity = capacity(config, ctx, chunk);
        let vectors = (config.n_layers * config.n_kv_heads).checked_mul(capacity);
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
        })
    }
}

fn zeroed<T: Pod>(len: Option<usize>, ctx: usize) -> Result<HugePages<T>, Error> {
    len.and_then(HugePages::zeroed).ok_or_else(|| {
        Error::Request(format!("not enough memory for a context of {ctx}: choose a smaller one with --ctx"))
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

/// Some heads of one layer, for writing.
pub(crate) struct HeadsMut<'a, T> {
    keys: &'a mut [T],
    values: &'a mut [T],
    key_scales: &'a mut [f32],
    value_scales: &'a mut [f32],
    capacity: usize,
    head_dim: usize,
}

impl<'a, T: CacheElement> HeadsMut<'a, T> {
    /// Splits off the first `heads` heads.
    pub fn split(self, heads: usize) -> (Self, Self) {
        let Self { capacity, head_dim, .. } = self;
        let vectors = heads * capacity;
        let (k0, k1) = self.keys.split_at_mut(vectors * head_dim);
        let (v0, v1) = self.values.split_at_mut(vectors * head_dim);
        let scales = if T::SCALED { vectors } else { 0 };
        let (s0, s1) = self.key_scales.split_at_mut(scales);
        let (t0, t1) = self.value_scales.split_at_mut(scales);
        let first = Self { keys: k0, values: v0, key_scales: s0, value_scales: t0, capacity, head_dim };
        (first, Self { keys: k1, values: v1, key_scales: s1, value_scales: t1, capacity, head_dim })
    }

    /// Stores the key and the value, `head_dim` values each, that head `head` of these has at `position`.
    pub fn store(&mut self, kernels: Kernels, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let head_dim = self.head_dim;
        let at = head * self.capacity + position % self.capacity;
        let value_scale = kernels.narrow(value, &mut self.values[at * head_dim..][..head_dim]);
        let mut narrow = [T::default(); MAX_HEAD_DIM];
        let narrow = &mut narrow[..head_dim];
        let key_scale = kernels.narrow(key, narrow);
        let (column, lane) = (at / COLUMNS, at % COLUMNS);
        let columns = &mut self.keys[column * COLUMNS * head_dim..][..COLUMNS * head_dim];
        for (k, lanes) in narrow.iter().zip(columns.as_chunks_mut::<COLUMNS>().0) {
            lanes[lane] = *k;
        }
        if T::SCALED {
            (self.key_scales[at], self.value_scales[at]) = (key_scale, value_scale);
        }
    }
}
