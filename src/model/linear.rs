//! Products with weights, split over threads by tokens and by output features.

use std::ops::Range;

use torchless_kernels::{Activations, Aligned, Allocator, MatMut, Weight};

use super::forward::Pass;
use crate::format::bin::Tensor;
use crate::parallel::fork::{Split, fork2, grain};
use crate::parallel::threads::PerThread;

/// Bytes of weights that a piece of work reads at the least: two microseconds' worth, several times what handing it over
/// takes.
const PIECE_BYTES: usize = 48 << 10;

/// How many of `n` output features a piece of a product with `w` has: a multiple of `multiple` and of the rows that the
/// weight's kernels take together.
pub(super) fn rows_grain(n: usize, w: &Weight, multiple: usize) -> usize {
    let multiple = multiple.next_multiple_of(w.row_granule());
    grain(n, (PIECE_BYTES / w.row_bytes().max(1)).next_multiple_of(multiple).max(multiple))
}

/// Fewest tokens that a product is split into: each part reads the weights anew.
const PART_TOKENS: usize = 256;

/// Most values of weights that several parts of the tokens read: more would come from memory each time.
const PART_WEIGHTS: usize = 4 << 20;

/// How many of `tokens` a piece of a product with so many values of weights has. Threads that keep to tokens of their own find
/// them in their caches, and do not write into each other's cache lines.
pub(super) fn tokens_grain(tokens: usize, weights: usize) -> usize {
    let most = if weights > PART_WEIGHTS { 1 } else { rayon::current_num_threads() };
    let parts = (tokens / PART_TOKENS).clamp(1, most);
    tokens.div_ceil(parts).next_multiple_of(16).min(tokens)
}

impl Pass<'_> {
    /// `out[t] = (weights[0] · x[t], weights[1] · x[t], …)`: `out` is `[tokens][features of all]`, the features of several
    /// weights side by side, as if they were one.
    pub fn products(&self, weights: &[Tensor], x: Activations, out: MatMut<f32>) {
        let rows = |tensor: &Tensor| tensor.rows_cols().0;
        let (tokens, features) = (out.rows(), out.cols());
        // All have as many columns, since they have one input.
        let Some(first) = weights.first().map(|tensor| self.weight(tensor)) else { return };
        let grain = [tokens_grain(tokens, features * first.cols()), rows_grain(features, &first, 1)];
        let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
        fork2(self.team, out, [0..tokens, 0..features], grain, split, &|out, tokens, features| {
            let x = x.part(tokens);
            let (mut rest, mut before) = (out, 0);
            for tensor in weights {
                let own = before..before + rows(tensor);
                let start = features.start.clamp(own.start, own.end);
                let end = features.end.clamp(own.start, own.end);
                let (part, after) = rest.split_cols(end - start);
                self.product(&self.weight(tensor), start - before..end - before, &x, part);
                (rest, before) = (after, own.end);
            }
        });
    }

    /// `out[t] = w[rows] · x[t]`, on this thread.
    pub(super) fn product(&self, w: &Weight, rows: Range<usize>, x: &Activations, out: MatMut<f32>) {
        if !rows.is_empty() {
            self.kernels.matmul(w, rows, x, out);
        }
    }

    /// Adds `w · x[t]` to the residual stream, by way of what the model has between the two.
    pub(super) fn add_branch(&self, w: &Tensor, norm: Option<&Tensor>, x: Activations, to: Residual) {
        let Residual { x: residual, branch, products } = to;
        let (tokens, features) = (residual.rows(), residual.cols());
        let Some(norm) = norm else { return self.add_product(w, x, residual, products) };
        let branch = &mut branch[..tokens * features];
        self.products(std::slice::from_ref(w), x, MatMut::new(branch, tokens, features));
        let (config, weight) = (self.model.config(), self.model.file.vector(norm));
        self.for_each_token(residual, |t, residual| {
            let mut buffers = products.threads.mine();
            let normed = &mut buffers[0][..features];
            self.kernels.rms_norm(&branch[t * features..][..features], weight, config.norm_eps, normed);
            self.add(residual, normed);
        });
    }

    /// `residual += multiplier · branch`
    fn add(&self, residual: &mut [f32], branch: &mut [f32]) {
        let multiplier = self.model.config().residual_multiplier;
        if multiplier != 1.0 {
            self.kernels.scale(branch, multiplier);
        }
        self.kernels.add(residual, branch);
    }

    /// `residual[t] += w · x[t]`; `residual` is `[tokens][features]`.
    fn add_product(&self, tensor: &Tensor, x: Activations, residual: MatMut<f32>, buffers: &ProductBuffers) {
        let w = self.weight(tensor);
        let (tokens, features) = (residual.rows(), residual.cols());
        let part = tokens_grain(tokens, features * w.cols());
        let grain = [part, rows_grain(features, &w, 1).min(buffers.features(part))];
        let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
        fork2(self.team, residual, [0..tokens, 0..features], grain, split, &|mut residual, tokens, rows| {
            let (x, len) = (x.part(tokens), rows.len());
            let mut buffers = buffers.threads.mine();
            let products = &mut buffers[0][..x.tokens() * len];
            self.product(&w, rows, &x, MatMut::new(products, x.tokens(), len));
            for (t, product) in products.chunks_exact_mut(len).enumerate() {
                self.add(residual.row(t), product);
            }
        });
    }
}

/// The residual stream of some tokens, and where what is added to it is worked out.
pub(super) struct Residual<'a> {
    /// `[tokens][hidden_size]`
    pub x: MatMut<'a, f32>,
    /// As long, where what is added is normalised.
    pub branch: &'a mut [f32],
    pub products: &'a ProductBuffers,
}

/// Where a thread keeps the products of a piece until it has done with them what comes next, while they are still in its
/// cache.
pub(crate) struct ProductBuffers {
    /// Two buffers of `len` values for each thread.
    pub threads: PerThread<[Aligned<f32>; 2]>,
    len: usize,
}

/// Output features that a buffer has room for with a full chunk: with 512 tokens two buffers and the input fit the
/// second-level cache.
const BUFFER_FEATURES: usize = 64;

/// Fewest values a buffer holds.
const LEAST_LEN: usize = 8192;

impl ProductBuffers {
    /// Buffers for chunks of up to `chunk` tokens, and for `hidden_size` values.
    pub fn new(memory: &mut Allocator, chunk: usize, threads: usize, hidden_size: usize) -> Self {
        let len = (BUFFER_FEATURES * chunk).max(LEAST_LEN).max(hidden_size.next_multiple_of(BUFFER_FEATURES));
        Self { threads: PerThread::new(threads, || [memory.aligned(len), memory.aligned(len)]), len }
    }

    /// Output features that a buffer has room for with `tokens` tokens.
    pub fn features(&self, tokens: usize) -> usize {
        self.len / tokens / BUFFER_FEATURES * BUFFER_FEATURES
    }
}

#[cfg(test)]
mod tests {
    use torchless_kernels::{GROUP, QMatrix};

    use super::*;
    use crate::parallel::threads::Threads;

    /// The pieces that tests/common/wide.rs counts on: were they larger, no test would split a product by its rows.
    #[test]
    fn pieces_of_the_wide_test_models() {
        let threads = Threads::new(2).unwrap();
        for (rows, cols, expected) in [(448, 192, 240), (192, 320, 144), (2112, 192, 240), (192, 2112, 32)] {
            let (values, scales) = (vec![0; rows * cols], vec![1.0; rows * cols / GROUP]);
            let w = Weight::Int8(QMatrix::new(&values, &scales, rows, cols));
            assert_eq!(threads.install(|| rows_grain(rows, &w, 1)), expected, "{rows} × {cols}");
        }
    }
}
