//! The attention half of a layer: `x += o · attention(rotated queries, keys, values of norm(x))`.

mod float;
mod int8;
mod layer;
mod over_cache;
mod store;

use torchless_kernels::MatMut;

pub(crate) use layer::AttentionBuffers;
use layer::LayerAttention;
use over_cache::Spans;
use store::{Store, Stored};

use super::forward::{Pass, Site};
use super::linear::Residual;
use super::segment::{Segment, tokens_of};
use super::weights::Layer;
use super::workspace::{Angles, Workspace};
use crate::arch::MAX_HEAD_DIM;

/// A cache that a layer's attention can store to and look at.
pub(crate) trait LayerCache: Store + Spans {}

impl<C: Store + Spans> LayerCache for C {}

impl Pass<'_> {
    /// The attention half of the `i`-th layer, for the workspace's tokens, which are those of `segments`.
    pub(super) fn attention<C: LayerCache>(
        &self,
        i: usize,
        layer: &Layer,
        cache: &mut C,
        workspace: &mut Workspace,
        segments: &[Segment],
    ) {
        let tokens = tokens_of(segments);
        let config = self.model.config();
        let (hidden, q_dim) = (config.hidden_size, config.q_dim());
        let stride = q_dim + 2 * config.kv_dim();
        let Workspace { x, normed, qkv, angles, heads, attention_buffers, products, branch, .. } = workspace;
        let x = &mut x[..tokens * hidden];

        self.norm(x, &layer.attn_norm, normed.view_mut(tokens, self.model.formats(&layer.qkv)));
        self.show(Site::Qkv, &normed.view(tokens));
        let qkv = &mut qkv[..tokens * stride];
        self.products(&layer.qkv, normed.view(tokens), MatMut::new(qkv, tokens, stride));

        let half = config.head_dim / 2;
        let angles = config.rope_of(i).map(|layers| &angles[layers as usize]);
        self.for_each_token(MatMut::new(qkv, tokens, stride), |t, qkv| {
            self.finish_qkv(layer, qkv);
            if let Some(Angles { cos, sin }) = angles {
                let angles = t * half..(t + 1) * half;
                let queries_keys = &mut qkv[..q_dim + config.kv_dim()];
                self.kernels.rope(queries_keys, &cos[angles.clone()], &sin[angles]);
            }
        });
        cache.store(self, i, &Stored { kv: &qkv[q_dim..], stride, segments });
        let attention = LayerAttention {
            kernels: self.kernels,
            team: self.team,
            config,
            cache,
            layer: i,
            segments,
            queries: qkv,
            stride,
            buffers: attention_buffers,
        };
        attention.run(MatMut::new(heads.f32_mut(tokens), tokens, q_dim));

        let (values, others) = heads.f32_and_others(tokens);
        self.fill_each_token(values, others, |x, out| self.kernels.convert(x, out));
        self.show(Site::O, &heads.view(tokens));
        let residual = Residual { x: MatMut::new(x, tokens, hidden), branch, products };
        self.add_branch(&layer.o, layer.attn_post_norm.as_ref(), heads.view(tokens), residual);
        if let Some(bias) = &layer.o_bias {
            let bias = self.model.file.vector(bias);
            self.for_each_token(MatMut::new(x, tokens, hidden), |_, x| self.kernels.add(x, bias));
        }
    }

    /// Adds the biases and normalises each query and key head, where the model has these.
    ///
    /// `qkv` is one token's `[q_dim + 2·kv_dim]`.
    fn finish_qkv(&self, layer: &Layer, qkv: &mut [f32]) {
        let (file, config) = (&self.model.file, self.model.config());
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        if let Some(biases) = &layer.qkv_bias {
            let mut rest = &mut *qkv;
            for bias in biases.iter().map(|bias| file.vector(bias)) {
                let (part, after) = rest.split_at_mut(bias.len());
                self.kernels.add(part, bias);
                rest = after;
            }
        }
        let (queries_keys, _) = qkv.split_at_mut(q_dim + kv_dim);
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            let (queries, keys) = queries_keys.split_at_mut(q_dim);
            for (heads, norm) in [(queries, q_norm), (keys, k_norm)] {
                let weight = file.vector(norm);
                let mut raw = [0.0; MAX_HEAD_DIM];
                let raw = &mut raw[..config.head_dim];
                for head in heads.chunks_exact_mut(config.head_dim) {
                    raw.copy_from_slice(head);
                    self.kernels.rms_norm(raw, weight, config.norm_eps, head);
                }
            }
        }
    }
}
