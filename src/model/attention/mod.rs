//! What happens to queries, keys and values between their products and attention.

pub(crate) mod over_cache;

use super::forward::Pass;
use super::weights::Layer;
use crate::arch::MAX_HEAD_DIM;

impl Pass<'_> {
    /// Adds the biases, normalises each query and key head, and rotates them, where the model has these.
    ///
    /// `qkv` is one token's `[q_dim + 2·kv_dim]`; `cos` and `sin` are those of its position.
    pub fn finish_qkv(&self, layer: &Layer, qkv: &mut [f32], cos: &[f32], sin: &[f32]) {
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
        self.kernels.rope(queries_keys, cos, sin);
    }
}
