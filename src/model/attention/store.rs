//! Storing a chunk's keys and values.

use bytemuck::Pod;
use torchless_kernels::CacheElement;

use crate::kv::{Cache, HeadsMut, Int8Cache, Int8HeadsMut};
use crate::model::forward::{LEAST_TOKENS, Pass};
use crate::parallel::fork::fork;

/// The keys and values of `tokens` tokens, the first at position `start`.
pub(crate) struct Stored<'a> {
    /// Token `t`'s begin at `t·stride`: the keys of all heads, then their values.
    pub kv: &'a [f32],
    pub stride: usize,
    pub tokens: usize,
    pub start: usize,
}

impl Stored<'_> {
    /// Vector `i` of token `t`: the keys of all heads are counted first, then their values.
    fn vector(&self, t: usize, i: usize, head_dim: usize) -> &[f32] {
        &self.kv[t * self.stride + i * head_dim..][..head_dim]
    }

    /// How many of `all` heads a piece has: all, where there is little to store.
    fn grain(&self, all: usize) -> usize {
        if self.tokens < LEAST_TOKENS { all } else { 1 }
    }
}

/// A cache that keys and values can be put into.
pub(crate) trait Store {
    /// Puts them into layer `layer`, on all threads.
    fn store(&mut self, pass: &Pass, layer: usize, stored: &Stored);
}

impl<T: CacheElement + Pod> Store for Cache<T> {
    fn store(&mut self, pass: &Pass, layer: usize, stored: &Stored) {
        let (head_dim, n) = (pass.model.config().head_dim, pass.model.config().n_kv_heads);
        let heads = self.layer_mut(layer);
        fork(pass.team, heads, 0..n, stored.grain(n), &HeadsMut::split, &|mut heads, range| {
            for t in 0..stored.tokens {
                for (i, head) in range.clone().enumerate() {
                    let (key, value) =
                        (stored.vector(t, head, head_dim), stored.vector(t, n + head, head_dim));
                    heads.store(pass.kernels, i, stored.start + t, key, value);
                }
            }
        });
    }
}

impl Store for Int8Cache {
    fn store(&mut self, pass: &Pass, layer: usize, stored: &Stored) {
        let (head_dim, n) = (pass.model.config().head_dim, pass.model.config().n_kv_heads);
        let heads = self.layer_mut(layer);
        let grain = stored.grain(2 * n);
        fork(pass.team, heads, 0..2 * n, grain, &Int8HeadsMut::split, &|mut heads, range| {
            for i in range {
                let (mut head, rest) = heads.split(1);
                heads = rest;
                for t in 0..stored.tokens {
                    let (position, vector) = (stored.start + t, stored.vector(t, i, head_dim));
                    match i < n {
                        true => head.store_key(pass.kernels, position, vector),
                        false => head.store_value(pass.kernels, position, vector),
                    }
                }
            }
        });
    }
}
