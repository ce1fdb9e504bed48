//! Storing the keys and values of a pass.

use std::sync::atomic::Ordering::Relaxed;

use bytemuck::Pod;
use torchless_kernels::CacheElement;

use crate::kv::{Cache, HeadsMut, Int8Cache, Int8HeadsMut};
use crate::model::forward::{LEAST_TOKENS, Pass};
use crate::model::segment::{Segment, tokens_of};
use crate::parallel::fork::fork;

/// The keys and values of the tokens of some sequences.
pub(crate) struct Stored<'a> {
    /// Token `t`'s begin at `t·stride`: the keys of all heads, then their values.
    pub kv: &'a [f32],
    pub stride: usize,
    pub segments: &'a [Segment<'a>],
}

impl Stored<'_> {
    /// Vector `i` of token `t`: the keys of all heads are counted first, then their values.
    fn vector(&self, t: usize, i: usize, head_dim: usize) -> &[f32] {
        &self.kv[t * self.stride + i * head_dim..][..head_dim]
    }

    /// Calls `f(segment, t, position)` for each token.
    fn each(&self, mut f: impl FnMut(&Segment, usize, usize)) {
        for segment in self.segments {
            segment.rows.clone().zip(segment.start..).for_each(|(t, position)| f(segment, t, position));
        }
    }

    /// How many of `all` heads a piece has: all, where there is little to store.
    fn grain(&self, all: usize) -> usize {
        if tokens_of(self.segments) < LEAST_TOKENS { all } else { 1 }
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
            stored.each(|segment, t, position| {
                let place = segment.table.place(position);
                for (i, head) in range.clone().enumerate() {
                    let (key, value) =
                        (stored.vector(t, head, head_dim), stored.vector(t, n + head, head_dim));
                    if heads.store(pass.kernels, i, place, key, value) {
                        segment.overflowed.store(true, Relaxed);
                    }
                }
            });
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
                stored.each(|segment, t, position| {
                    let vector = stored.vector(t, i, head_dim);
                    match i < n {
                        true => head.store_key(pass.kernels, segment.table, position, vector),
                        false => head.store_value(pass.kernels, segment.table, position, vector),
                    }
                });
            }
        });
    }
}
