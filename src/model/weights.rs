//! The tensors of a model: which there are, of which shapes, and which of them is which weight.

use std::collections::HashMap;

use crate::Malformed;
use crate::format::bin::{BinFile, Dtype, Tensor};
use crate::model::Config;

/// All weights: as places in a file, or as whatever [`Weights::gather`] is told to make of each.
#[derive(Debug)]
pub(crate) struct Weights<T = Tensor> {
    /// `[vocab_size, hidden_size]`
    pub embed: T,
    /// `[head_dim/2]`: what the rotary embedding's frequencies are divided by (Llama 3.1's scaling and others).
    pub rope_factors: Option<T>,
    pub layers: Vec<Layer<T>>,
    /// `[hidden_size]`
    pub norm: T,
    /// `[vocab_size, hidden_size]`; the embedding where the two are tied.
    pub head: T,
}

/// One decoder layer's weights.
#[derive(Debug)]
pub(crate) struct Layer<T = Tensor> {
    /// `[hidden_size]`
    pub attn_norm: T,
    /// `[q_dim, hidden_size]`, `[kv_dim, hidden_size]`, `[kv_dim, hidden_size]`
    pub qkv: [T; 3],
    /// `[q_dim]`, `[kv_dim]`, `[kv_dim]` (Qwen 2)
    pub qkv_bias: Option<[T; 3]>,
    /// `[head_dim]` each, of every query and of every key head (Qwen 3)
    pub qk_norm: Option<[T; 2]>,
    /// `[hidden_size, q_dim]`
    pub o: T,
    /// `[hidden_size]`
    pub o_bias: Option<T>,
    /// `[hidden_size]`
    pub mlp_norm: T,
    /// `[intermediate_size, hidden_size]`
    pub gate: T,
    /// `[intermediate_size, hidden_size]`
    pub up: T,
    /// `[hidden_size, intermediate_size]`
    pub down: T,
}

/// The names that tell which optional tensors a file has.
pub(crate) const ROPE_FACTORS: &str = "model.rotary_emb.factors";
pub(crate) const FIRST_QKV_BIAS: &str = "model.layers.0.self_attn.q_proj.bias";
pub(crate) const FIRST_QK_NORM: &str = "model.layers.0.self_attn.q_norm.weight";
pub(crate) const FIRST_O_BIAS: &str = "model.layers.0.self_attn.o_proj.bias";

impl<T: Clone> Weights<T> {
    /// Calls `take(name, shape)` for every tensor of a model, in the order a forward pass reads them; `[rows, cols]` for
    /// a matrix, `[n]` for a vector. Stops at the first error, so that an absurd number of layers costs nothing.
    pub fn gather(
        config: &Config,
        mut take: impl FnMut(&str, &[usize]) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed = take("model.embed_tokens.weight", &[vocab, hidden])?;
        let half = [config.head_dim / 2];
        let rope_factors = config.scaled_rope.then(|| take(ROPE_FACTORS, &half)).transpose()?;
        let layers =
            (0..config.n_layers).map(|i| Layer::gather(config, i, &mut take)).collect::<Result<_, _>>()?;
        let norm = take("model.norm.weight", &[hidden])?;
        let head = match config.tie_word_embeddings {
            true => embed.clone(),
            false => take("lm_head.weight", &[vocab, hidden])?,
        };
        Ok(Self { embed, rope_factors, layers, norm, head })
    }
}

impl<T> Layer<T> {
    fn gather(
        c: &Config,
        i: usize,
        take: &mut impl FnMut(&str, &[usize]) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let (hidden, inter, q, kv) = (c.hidden_size, c.intermediate_size, c.q_dim(), c.kv_dim());
        let mut take = |part: &str, shape: &[usize]| take(&format!("model.layers.{i}.{part}"), shape);
        Ok(Self {
            attn_norm: take("input_layernorm.weight", &[hidden])?,
            qkv: [
                take("self_attn.q_proj.weight", &[q, hidden])?,
                take("self_attn.k_proj.weight", &[kv, hidden])?,
                take("self_attn.v_proj.weight", &[kv, hidden])?,
            ],
            qkv_bias: match c.qkv_bias {
                true => Some([
                    take("self_attn.q_proj.bias", &[q])?,
                    take("self_attn.k_proj.bias", &[kv])?,
                    take("self_attn.v_proj.bias", &[kv])?,
                ]),
                false => None,
            },
            qk_norm: match c.qk_norm {
                true => Some([
                    take("self_attn.q_norm.weight", &[c.head_dim])?,
                    take("self_attn.k_norm.weight", &[c.head_dim])?,
                ]),
                false => None,
            },
            o: take("self_attn.o_proj.weight", &[hidden, q])?,
            o_bias: c.o_bias.then(|| take("self_attn.o_proj.bias", &[hidden])).transpose()?,
            mlp_norm: take("post_attention_layernorm.weight", &[hidden])?,
            gate: take("mlp.gate_proj.weight", &[inter, hidden])?,
            up: take("mlp.up_proj.weight", &[inter, hidden])?,
            down: take("mlp.down_proj.weight", &[hidden, inter])?,
        })
    }
}

impl Weights {
    /// Finds every weight of `file`.
    pub fn find(file: &BinFile) -> Result<Self, Malformed> {
        let mut rest: HashMap<_, _> = file.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
        let weights = Self::gather(&file.config, |name, shape| {
            let tensor = rest.remove(name).ok_or_else(|| Malformed(format!("tensor {name} is missing")))?;
            if tensor.shape != shape {
                return Err(Malformed(format!(
                    "tensor {name}: shape {:?}, but the metadata ask for {shape:?}",
                    tensor.shape
                )));
            }
            if shape.len() == 1 && tensor.dtype != Dtype::F32 {
                return Err(Malformed(format!("tensor {name}: a vector must be f32")));
            }
            Ok(tensor.clone())
        })?;
        if file.config.tie_word_embeddings {
            rest.remove("lm_head.weight");
        }
        // A tensor nobody asked for (a bias, another norm, one more layer) would change what the model computes.
        match rest.keys().filter(|name| !name.ends_with("rotary_emb.inv_freq")).min() {
            None => Ok(weights),
            Some(name) => Err(Malformed(format!(
                "tensor {name}: not part of a model of this kind, as described by the metadata"
            ))),
        }
    }
}
