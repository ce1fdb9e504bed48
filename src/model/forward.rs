//! The forward pass: a chunk of tokens through all layers. Allocates nothing.

use torchless_kernels::{CacheElement, Kernels, MatMut, QuantizedMut, QuantizedRow};

use super::Model;
use super::attention::Attention;
use super::fork::{fork, grain};
use super::linear::{Activations, Forms, Input, ROWS, matmul, product};
use super::weights::Layer;
use crate::format::bin::{Matrix, Tensor};
use crate::runtime::kv_cache::Cache;
use crate::runtime::scratch::{LOGIT_ROWS, Scratch};

/// One model's pass with one set of kernels.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub kernels: Kernels,
}

impl Pass<'_> {
    /// Runs `tokens`, the first of which is at position `start`, through all layers; leaves the residual stream in
    /// `scratch.x` and the keys and values in `cache`. Calls `on_layer` with the number of each layer as it is done.
    ///
    /// There must be at least one token and no more than `scratch.chunk`, all in the vocabulary.
    pub fn layers<T: CacheElement>(
        &self,
        cache: &mut Cache<T>,
        scratch: &mut Scratch,
        tokens: &[u32],
        start: usize,
        on_layer: &mut (dyn FnMut(usize) + Send),
    ) {
        let half = self.model.config().head_dim / 2;
        self.embed(tokens, &mut scratch.x);
        for t in 0..tokens.len() {
            let angles = t * half..(t + 1) * half;
            self.model.rope.angles(start + t, &mut scratch.cos[angles.clone()], &mut scratch.sin[angles]);
        }
        for (i, layer) in self.model.weights.layers.iter().enumerate() {
            self.attention(i, layer, cache, scratch, tokens.len(), start);
            self.mlp(layer, scratch, tokens.len());
            on_layer(i);
        }
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
        matmul(&self.model.file, head, normed.view(count), self.kernels, out);
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
            each_token_quantized(out.view_mut(tokens), |t, out| {
                self.kernels.rms_norm_quantize(&x[t * hidden..][..hidden], weight, eps, out);
            });
        }
        if let Some(out) = out.f32.as_mut().filter(|_| forms.f32) {
            each_token(MatMut::new(&mut out[..x.len()], tokens, hidden), |t, out| {
                self.kernels.rms_norm(&x[t * hidden..][..hidden], weight, eps, out);
            });
        }
    }

    /// `x += o · attention(norm(x))`.
    fn attention<T: CacheElement>(
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
        let Scratch { x, normed, qkv, cos, sin, heads, heads_quantized, delta, .. } = scratch;
        let x = &mut x[..tokens * config.hidden_size];

        self.norm(x, &layer.attn_norm, normed, Forms::of(&layer.qkv));
        let qkv = &mut qkv[..tokens * stride];
        let out = MatMut::new(qkv, tokens, stride);
        matmul(&self.model.file, &layer.qkv, normed.view(tokens), self.kernels, out);

        let half = config.head_dim / 2;
        each_token(MatMut::new(qkv, tokens, stride), |t, qkv| {
            let angles = t * half..(t + 1) * half;
            self.finish_qkv(layer, qkv, &cos[angles.clone()], &sin[angles]);
        });
        for (t, qkv) in qkv.chunks_exact(stride).enumerate() {
            let (keys, values) = qkv[q_dim..].split_at(kv_dim);
            cache.stage(self.kernels, t, keys, values);
        }
        let heads = &mut heads[..tokens * q_dim];
        let view = cache.layer(i, start);
        Attention { kernels: self.kernels, config, cache: view, queries: qkv, stride }
            .run(MatMut::new(heads, tokens, q_dim));
        cache.commit(i, start, tokens);

        if let Some(quantized) = &mut heads_quantized.int8 {
            each_token_quantized(quantized.view_mut(tokens), |t, out| {
                self.kernels.quantize(&heads[t * q_dim..][..q_dim], out);
            });
        }
        let input = Input { f32: Some(heads), ..heads_quantized.view(tokens) };
        self.add_product(&layer.o, input, delta, x, tokens);
        if let Some(bias) = &layer.o_bias {
            let bias = self.model.file.vector(bias);
            each_token(MatMut::new(x, tokens, config.hidden_size), |_, x| self.kernels.add(x, bias));
        }
    }

    /// `x += down · (silu(gate · norm(x)) · (up · norm(x)))`.
    fn mlp(&self, layer: &Layer, scratch: &mut Scratch, tokens: usize) {
        let config = self.model.config();
        let Scratch { x, normed, gate, up, mlp, delta, .. } = scratch;
        let x = &mut x[..tokens * config.hidden_size];
        self.norm(x, &layer.mlp_norm, normed, Forms::of([&layer.gate, &layer.up]));
        self.gate_up(layer, normed.view(tokens), gate, up, mlp, tokens);
        self.add_product(&layer.down, mlp.view(tokens), delta, x, tokens);
    }

    /// `mlp = silu(gate · input) · (up · input)`, in the form `down` needs: each thread takes some features through all steps.
    fn gate_up(
        &self,
        layer: &Layer,
        input: Input,
        gate: &mut [f32],
        up: &mut [f32],
        mlp: &mut Activations,
        tokens: usize,
    ) {
        let n = self.model.config().intermediate_size;
        let matrix = |v| MatMut::new(v, tokens, n);
        let gate_up = (matrix(&mut gate[..tokens * n]), matrix(&mut up[..tokens * n]));
        let products = |gate: &mut MatMut<f32>, up: &mut MatMut<f32>, rows: &std::ops::Range<usize>| {
            product(&self.model.file, &layer.gate, rows.clone(), input, self.kernels, gate.reborrow());
            product(&self.model.file, &layer.up, rows.clone(), input, self.kernels, up.reborrow());
        };
        let forms = Forms::of([&layer.down]);
        if let Some(out) = mlp.int8.as_mut().filter(|_| forms.int8) {
            let whole = (gate_up, out.view_mut(tokens));
            fork(whole, 0..n, grain(n, ROWS), &split_mlp_int8, &|((mut gate, mut up), mut out), rows| {
                products(&mut gate, &mut up, &rows);
                for t in 0..tokens {
                    self.kernels.silu_mul_quantize(gate.row(t), up.row(t), out.token(t));
                }
            });
        } else if let Some(out) = mlp.f32.as_mut() {
            let whole = (gate_up, matrix(&mut out[..tokens * n]));
            fork(whole, 0..n, grain(n, ROWS), &split_mlp_f32, &|((mut gate, mut up), mut out), rows| {
                products(&mut gate, &mut up, &rows);
                for t in 0..tokens {
                    self.kernels.silu_mul(gate.row(t), up.row(t), out.row(t));
                }
            });
        }
    }

    /// `x += w · input`.
    fn add_product(&self, w: &Tensor, input: Input, delta: &mut [f32], x: &mut [f32], tokens: usize) {
        let hidden = x.len() / tokens;
        let delta = &mut delta[..x.len()];
        let out = MatMut::new(delta, tokens, hidden);
        matmul(&self.model.file, std::slice::from_ref(w), input, self.kernels, out);
        each_token(MatMut::new(x, tokens, hidden), |t, x| {
            self.kernels.add(x, &delta[t * hidden..][..hidden]);
        });
    }
}

/// Gate and up features, a block of each.
type GateUp<'a> = (MatMut<'a, f32>, MatMut<'a, f32>);

fn split_gate_up((gate, up): GateUp, n: usize) -> (GateUp, GateUp) {
    let ((g0, g1), (u0, u1)) = (gate.split_cols(n), up.split_cols(n));
    ((g0, u0), (g1, u1))
}

type MlpInt8<'a> = (GateUp<'a>, QuantizedMut<'a>);

fn split_mlp_int8((gate_up, out): MlpInt8, n: usize) -> (MlpInt8, MlpInt8) {
    let ((a, b), (c, d)) = (split_gate_up(gate_up, n), out.split_cols(n));
    ((a, c), (b, d))
}

type MlpF32<'a> = (GateUp<'a>, MatMut<'a, f32>);

fn split_mlp_f32((gate_up, out): MlpF32, n: usize) -> (MlpF32, MlpF32) {
    let ((a, b), (c, d)) = (split_gate_up(gate_up, n), out.split_cols(n));
    ((a, c), (b, d))
}

/// Calls `f(t, row t)` for each token, in parallel where there are many.
fn each_token(whole: MatMut<f32>, f: impl Fn(usize, &mut [f32]) + Sync) {
    let tokens = 0..whole.rows();
    let grain = grain(tokens.len(), TOKENS);
    fork(whole, tokens, grain, &MatMut::split_rows, &|mut part, tokens| {
        for (row, t) in tokens.enumerate() {
            f(t, part.row(row));
        }
    });
}

/// [`each_token`] for quantised activations.
fn each_token_quantized(whole: QuantizedMut, f: impl Fn(usize, QuantizedRow) + Sync) {
    let tokens = 0..whole.tokens();
    let grain = grain(tokens.len(), TOKENS);
    fork(whole, tokens, grain, &QuantizedMut::split_tokens, &|mut part, tokens| {
        for (row, t) in tokens.enumerate() {
            f(t, part.token(row));
        }
    });
}

/// Fewest tokens a task is given where the work on each is small.
const TOKENS: usize = 8;
