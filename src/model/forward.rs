//! The forward pass: a chunk of tokens through all layers. Allocates nothing.

use std::ops::{ControlFlow, Range};

use bytemuck::Pod;
use torchless_kernels::{CacheElement, GROUP, Kernels, MatMut, QuantizedMut, QuantizedRow, Team};

use super::Model;
use super::attention::over_cache::Attention;
use super::linear::{Activations, Blocks, Forms, Input, ROWS, matmul, product, rows_grain, tokens_grain};
use super::weights::Layer;
use super::workspace::{LOGIT_ROWS, Scratch};
use crate::format::bin::{Matrix, Tensor};
use crate::kv::{Cache, HeadsMut};
use crate::parallel::fork::{Split, fork, fork2, grain};

/// One model's pass with one set of kernels.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub kernels: Kernels,
    pub team: &'a Team,
}

impl Pass<'_> {
    /// Runs `tokens`, the first of which is at position `start`, through all layers; leaves the residual stream in
    /// `scratch.x` and the keys and values in `cache`. Calls `on_layer` with the number of each layer as it is done, which may
    /// break it off: then `scratch.x` is of no use.
    ///
    /// There must be at least one token and no more than `scratch.chunk`, all in the vocabulary.
    pub fn layers<T: CacheElement + Pod>(
        &self,
        cache: &mut Cache<T>,
        scratch: &mut Scratch,
        tokens: &[u32],
        start: usize,
        on_layer: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> ControlFlow<()> {
        let half = self.model.config().head_dim / 2;
        self.embed(tokens, &mut scratch.x);
        for t in 0..tokens.len() {
            let angles = t * half..(t + 1) * half;
            self.model.rope.angles(start + t, &mut scratch.cos[angles.clone()], &mut scratch.sin[angles]);
        }
        for (i, layer) in self.model.weights.layers.iter().enumerate() {
            self.attention(i, layer, cache, scratch, tokens.len(), start);
            self.mlp(layer, scratch, tokens.len());
            on_layer(i)?;
        }
        ControlFlow::Continue(())
    }

    /// The logits of up to [`LOGIT_ROWS`] tokens of the chunk, from `first` on: `[count][vocab_size]`.
    pub fn logits<'s>(&self, scratch: &'s mut Scratch, first: usize, count: usize) -> &'s [f32] {
        debug_assert!(count <= LOGIT_ROWS);
        let config = self.model.config();
        let Scratch { x, normed, logits, .. } = scratch;
        let x = &x[first * config.hidden_size..][..count * config.hidden_size];
        let head = std::slice::from_ref(&self.model.weights.head);
        self.norm(x, &self.model.weights.norm, normed, Forms::of(head));
        let logits = &mut logits[..count * config.vocab_size];
        let out = MatMut::new(logits, count, config.vocab_size);
        matmul(&self.model.file, head, normed.view(count), self.kernels, self.team, out);
        logits
    }

    /// `x[t] = embedding[tokens[t]]`.
    fn embed(&self, tokens: &[u32], x: &mut [f32]) {
        let hidden = self.model.config().hidden_size;
        let embedding = self.model.file.matrix(&self.model.weights.embed);
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            match embedding {
                Matrix::Int8(w) => self.kernels.dequantize_row(&w, *token as usize, x),
                Matrix::F32 { values, .. } => {
                    x.copy_from_slice(&values[*token as usize * hidden..][..hidden])
                }
            }
        }
    }

    /// RMSNorm of each token of `x`, in the forms that are needed.
    fn norm(&self, x: &[f32], weight: &Tensor, out: &mut Activations, forms: Forms) {
        let (weight, eps) = (self.model.file.vector(weight), self.model.config().norm_eps);
        let hidden = weight.len();
        let tokens = x.len() / hidden;
        if let Some(out) = out.int8.as_mut().filter(|_| forms.int8) {
            each_token_quantized(self.team, out.view_mut(tokens), |t, out| {
                self.kernels.rms_norm_quantize(&x[t * hidden..][..hidden], weight, eps, out);
            });
        }
        if let Some(out) = out.f32.as_mut().filter(|_| forms.f32) {
            each_token(self.team, MatMut::new(&mut out[..x.len()], tokens, hidden), |t, out| {
                self.kernels.rms_norm(&x[t * hidden..][..hidden], weight, eps, out);
            });
        }
    }

    /// `x += o · attention(norm(x))`.
    fn attention<T: CacheElement + Pod>(
        &self,
        i: usize,
        layer: &Layer,
        cache: &mut Cache<T>,
        scratch: &mut Scratch,
        tokens: usize,
        start: usize,
    ) {
        let config = self.model.config();
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let stride = q_dim + 2 * kv_dim;
        let Scratch { x, normed, qkv, cos, sin, heads, heads_quantized, attention, blocks, .. } = scratch;
        let x = &mut x[..tokens * config.hidden_size];

        self.norm(x, &layer.attn_norm, normed, Forms::of(&layer.qkv));
        let qkv = &mut qkv[..tokens * stride];
        let out = MatMut::new(qkv, tokens, stride);
        matmul(&self.model.file, &layer.qkv, normed.view(tokens), self.kernels, self.team, out);

        let half = config.head_dim / 2;
        each_token(self.team, MatMut::new(qkv, tokens, stride), |t, qkv| {
            let angles = t * half..(t + 1) * half;
            self.finish_qkv(layer, qkv, &cos[angles.clone()], &sin[angles]);
        });
        self.store(cache.layer_mut(i), &qkv[q_dim..], stride, tokens, start);
        let heads = &mut heads[..tokens * q_dim];
        Attention {
            kernels: self.kernels,
            team: self.team,
            config,
            cache,
            layer: i,
            start,
            queries: qkv,
            stride,
            buffers: attention,
        }
        .run(MatMut::new(heads, tokens, q_dim));

        if let Some(quantized) = &mut heads_quantized.int8 {
            each_token_quantized(self.team, quantized.view_mut(tokens), |t, out| {
                self.kernels.quantize(&heads[t * q_dim..][..q_dim], out);
            });
        }
        let input = Input { f32: Some(heads), ..heads_quantized.view(tokens) };
        self.add_product(&layer.o, input, x, blocks, tokens);
        if let Some(bias) = &layer.o_bias {
            let bias = self.model.file.vector(bias);
            each_token(self.team, MatMut::new(x, tokens, config.hidden_size), |_, x| {
                self.kernels.add(x, bias)
            });
        }
    }

    /// Puts the keys and values of `tokens` tokens, the first at `start`, into the cache; token `t`'s begin at
    /// `kv[t·stride]`, first the keys of all heads.
    fn store<T: CacheElement + Pod>(
        &self,
        heads: HeadsMut<T>,
        kv: &[f32],
        stride: usize,
        tokens: usize,
        start: usize,
    ) {
        let (head_dim, kv_dim) = (self.model.config().head_dim, self.model.config().kv_dim());
        let all = 0..self.model.config().n_kv_heads;
        let grain = if tokens < TOKENS { all.len() } else { 1 };
        fork(self.team, heads, all, grain, &HeadsMut::split, &|mut heads, range| {
            for t in 0..tokens {
                for (i, head) in range.clone().enumerate() {
                    let key = t * stride + head * head_dim;
                    let (key, value) = (&kv[key..][..head_dim], &kv[key + kv_dim..][..head_dim]);
                    heads.store(self.kernels, i, start + t, key, value);
                }
            }
        });
    }

    /// `x += down · (silu(gate · norm(x)) · (up · norm(x)))`.
    fn mlp(&self, layer: &Layer, scratch: &mut Scratch, tokens: usize) {
        let config = self.model.config();
        let Scratch { x, normed, mlp, blocks, .. } = scratch;
        let x = &mut x[..tokens * config.hidden_size];
        self.norm(x, &layer.mlp_norm, normed, Forms::of([&layer.gate, &layer.up]));
        self.gate_up(layer, normed.view(tokens), mlp, blocks, tokens);
        self.add_product(&layer.down, mlp.view(tokens), x, blocks, tokens);
    }

    /// `mlp = silu(gate · input) · (up · input)`, in the form `down` needs: each thread takes a block of features through
    /// all steps.
    fn gate_up(&self, layer: &Layer, input: Input, mlp: &mut Activations, blocks: &Blocks, tokens: usize) {
        let n = self.model.config().intermediate_size;
        let hidden = self.model.config().hidden_size;
        let part = tokens_grain(tokens, 2 * n * hidden);
        let features = rows_grain(n, hidden, GROUP).min(blocks.features(part));
        let (ranges, grain) = ([0..tokens, 0..n], [part, features]);
        // Calls `f(t, gate, up)` for the `t`-th of `part`.
        let each = |part: Range<usize>, rows: Range<usize>, f: &mut EachGateUp| {
            let (input, tokens) = (input.part(part.clone(), tokens), part.len());
            let (len, mut blocks) = (rows.len(), blocks.threads.mine());
            let [gate, up] = &mut *blocks;
            for (w, out) in [(&layer.gate, &mut *gate), (&layer.up, &mut *up)] {
                let out = MatMut::new(&mut out[..tokens * len], tokens, len);
                product(&self.model.file, w, rows.clone(), input, self.kernels, out);
            }
            let tokens = gate.chunks_exact(len).zip(up.chunks_exact(len)).take(tokens).enumerate();
            tokens.for_each(|(t, (gate, up))| f(t, gate, up));
        };
        let forms = Forms::of([&layer.down]);
        if let Some(out) = mlp.int8.as_mut().filter(|_| forms.int8) {
            let split: [&Split<_>; 2] = [&QuantizedMut::split_tokens, &QuantizedMut::split_cols];
            fork2(self.team, out.view_mut(tokens), ranges, grain, split, &|mut out, part, rows| {
                each(part, rows, &mut |t, gate, up| self.kernels.silu_mul_quantize(gate, up, out.token(t)));
            });
        } else if let Some(out) = mlp.f32.as_mut() {
            let out = MatMut::new(&mut out[..tokens * n], tokens, n);
            let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
            fork2(self.team, out, ranges, grain, split, &|mut out, part, rows| {
                each(part, rows, &mut |t, gate, up| self.kernels.silu_mul(gate, up, out.row(t)));
            });
        }
    }

    /// `x += w · input`, each thread a block of features.
    fn add_product(&self, w: &Tensor, input: Input, x: &mut [f32], blocks: &Blocks, tokens: usize) {
        let hidden = x.len() / tokens;
        let cols = w.rows_cols().1;
        let part = tokens_grain(tokens, hidden * cols);
        let grain = [part, rows_grain(hidden, cols, ROWS).min(blocks.features(part))];
        let (x, ranges) = (MatMut::new(x, tokens, hidden), [0..tokens, 0..hidden]);
        let split: [&Split<_>; 2] = [&MatMut::split_rows, &MatMut::split_cols];
        fork2(self.team, x, ranges, grain, split, &|mut x, part, rows| {
            let (input, tokens) = (input.part(part.clone(), tokens), part.len());
            let (len, mut blocks) = (rows.len(), blocks.threads.mine());
            let product_of = &mut blocks[0][..tokens * len];
            product(&self.model.file, w, rows, input, self.kernels, MatMut::new(product_of, tokens, len));
            for (t, delta) in product_of.chunks_exact(len).enumerate() {
                self.kernels.add(x.row(t), delta);
            }
        });
    }
}

/// Is given a token and its gate and up features.
type EachGateUp<'a> = dyn FnMut(usize, &[f32], &[f32]) + 'a;

/// Calls `f(t, row t)` for each token, in parallel where there are many.
fn each_token(team: &Team, whole: MatMut<f32>, f: impl Fn(usize, &mut [f32]) + Sync) {
    let tokens = 0..whole.rows();
    let grain = grain(tokens.len(), TOKENS);
    fork(team, whole, tokens, grain, &MatMut::split_rows, &|mut part, tokens| {
        for (row, t) in tokens.enumerate() {
            f(t, part.row(row));
        }
    });
}

/// [`each_token`] for quantised activations.
fn each_token_quantized(team: &Team, whole: QuantizedMut, f: impl Fn(usize, QuantizedRow) + Sync) {
    let tokens = 0..whole.tokens();
    let grain = grain(tokens.len(), TOKENS);
    fork(team, whole, tokens, grain, &QuantizedMut::split_tokens, &|mut part, tokens| {
        for (row, t) in tokens.enumerate() {
            f(t, part.token(row));
        }
    });
}

/// Fewest tokens a task is given where the work on each is small.
const TOKENS: usize = 8;
