//! The tensors of a model: which there are, under which names, of which shapes.

use std::collections::HashMap;

use super::Config;
use crate::Malformed;

/// One `T` for each tensor of a model.
#[derive(Debug)]
pub(crate) struct Tensors<T> {
    /// `[vocab_size, hidden_size]`
    pub embed: T,
    /// `[rotary_dim/2]`: what the frequencies of each of [`Config::ropes`] are divided by (Llama 3.1's scaling and others).
    pub rope_factors: [Option<T>; 3],
    pub layers: Vec<Layer<T>>,
    /// `[hidden_size]`
    pub norm: T,
    /// `[vocab_size, hidden_size]`; the embedding where the two are tied.
    pub head: T,
}

/// One decoder layer's tensors.
#[derive(Debug)]
pub(crate) struct Layer<T> {
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
    /// `[hidden_size]` (Gemma 2)
    pub attn_post_norm: Option<T>,
    /// `[hidden_size]`
    pub mlp_norm: T,
    /// `[intermediate_size, hidden_size]`
    pub gate: T,
    /// `[intermediate_size, hidden_size]`
    pub up: T,
    /// `[hidden_size, intermediate_size]`
    pub down: T,
    /// `[hidden_size]` (Gemma 2)
    pub mlp_post_norm: Option<T>,
}

/// The names that tell which optional tensors a file has.
pub(crate) const ROPE_FACTORS: [&str; 3] =
    ["model.rotary_emb.factors", "model.rotary_emb.window_factors", "model.rotary_emb.long_factors"];
pub(crate) const FIRST_QKV_BIAS: &str = "model.layers.0.self_attn.q_proj.bias";
pub(crate) const FIRST_QK_NORM: &str = "model.layers.0.self_attn.q_norm.weight";
pub(crate) const FIRST_O_BIAS: &str = "model.layers.0.self_attn.o_proj.bias";
pub(crate) const FIRST_POST_NORM: &str = "model.layers.0.post_feedforward_layernorm.weight";
/// The head's name: tied heads have no tensor of their own.
pub(crate) const HEAD: &str = "lm_head.weight";

impl<T: Clone> Tensors<T> {
    /// Calls `make(name, shape)` for every tensor of a model, in the order a forward pass reads them; `[rows, cols]` for
    /// a matrix, `[n]` for a vector.
    ///
    /// # Errors
    /// The first that `make` gives: an absurd number of layers costs nothing.
    pub fn for_each_tensor(
        config: &Config,
        mut make: impl FnMut(&str, &[usize]) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed = make("model.embed_tokens.weight", &[vocab, hidden])?;
        let half = [config.rotary_dim() / 2];
        let mut rope_factors = [const { None }; 3];
        for ((rope, name), factors) in config.ropes().into_iter().zip(ROPE_FACTORS).zip(&mut rope_factors) {
            *factors = rope.filter(|rope| rope.scaled).map(|_| make(name, &half)).transpose()?;
        }
        let layers = (0..config.n_layers)
            .map(|i| Layer::for_each_tensor(config, i, &mut make))
            .collect::<Result<_, _>>()?;
        let norm = make("model.norm.weight", &[hidden])?;
        let head = match config.tie_word_embeddings {
            true => embed.clone(),
            false => make(HEAD, &[vocab, hidden])?,
        };
        Ok(Self { embed, rope_factors, layers, norm, head })
    }

    /// Takes a model's tensors out of those that a file holds, by name; `take(name, tensor)` makes of each what is kept.
    ///
    /// # Errors
    /// If one is missing, has another shape than the configuration asks for, or is left over: what the model would have
    /// computed with a bias, another norm, one more layer would be missing.
    pub fn take_from<S>(
        config: &Config,
        mut found: HashMap<&str, S>,
        shape_of: impl Fn(&S) -> &[usize],
        mut take: impl FnMut(&str, S) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let tensors = Self::for_each_tensor(config, |name, shape| {
            let tensor = found.remove(name).ok_or_else(|| Malformed(format!("tensor {name} is missing")))?;
            match shape_of(&tensor) {
                found if found == shape => take(name, tensor),
                found => Err(Malformed(format!(
                    "tensor {name} has shape {found:?}, but the metadata ask for {shape:?}"
                ))),
            }
        })?;
        match found.keys().min() {
            None => Ok(tensors),
            Some(name) => {
                let what = if name.ends_with(".bias") { "no such biases" } else { "no such tensor" };
                Err(Malformed(format!(
                    "tensor {name}: not part of a model of this kind: its metadata ask for {what}"
                )))
            }
        }
    }
}

impl<T> Layer<T> {
    fn for_each_tensor(
        c: &Config,
        i: usize,
        make: &mut impl FnMut(&str, &[usize]) -> Result<T, Malformed>,
    ) -> Result<Self, Malformed> {
        let (hidden, inter, q, kv) = (c.hidden_size, c.intermediate_size, c.q_dim(), c.kv_dim());
        let mut make = |part: &str, shape: &[usize]| make(&format!("model.layers.{i}.{part}"), shape);
        Ok(Self {
            attn_norm: make("input_layernorm.weight", &[hidden])?,
            qkv: [
                make("self_attn.q_proj.weight", &[q, hidden])?,
                make("self_attn.k_proj.weight", &[kv, hidden])?,
                make("self_attn.v_proj.weight", &[kv, hidden])?,
            ],
            qkv_bias: match c.qkv_bias {
                true => Some([
                    make("self_attn.q_proj.bias", &[q])?,
                    make("self_attn.k_proj.bias", &[kv])?,
                    make("self_attn.v_proj.bias", &[kv])?,
                ]),
                false => None,
            },
            qk_norm: match c.qk_norm {
                true => Some([
                    make("self_attn.q_norm.weight", &[c.head_dim])?,
                    make("self_attn.k_norm.weight", &[c.head_dim])?,
                ]),
                false => None,
            },
            o: make("self_attn.o_proj.weight", &[hidden, q])?,
            o_bias: c.o_bias.then(|| make("self_attn.o_proj.bias", &[hidden])).transpose()?,
            attn_post_norm: c
                .post_norms
                .then(|| make("post_attention_layernorm.weight", &[hidden]))
                .transpose()?,
            mlp_norm: make(&format!("{}.weight", mlp_norm(c)), &[hidden])?,
            gate: make("mlp.gate_proj.weight", &[inter, hidden])?,
            up: make("mlp.up_proj.weight", &[inter, hidden])?,
            down: make("mlp.down_proj.weight", &[hidden, inter])?,
            mlp_post_norm: c
                .post_norms
                .then(|| make("post_feedforward_layernorm.weight", &[hidden]))
                .transpose()?,
        })
    }

    /// All tensors of the layer, in the order a forward pass reads them.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let Self { attn_norm, qkv, qkv_bias, qk_norm, o, o_bias, attn_post_norm, .. } = self;
        let Self { mlp_norm, gate, up, down, mlp_post_norm, .. } = self;
        let biases = qkv_bias.iter().flatten();
        let norms = qk_norm.iter().flatten();
        let attention =
            std::iter::once(attn_norm).chain(qkv).chain(biases).chain(norms).chain([o]).chain(o_bias);
        let mlp = [mlp_norm, gate, up, down].into_iter().chain(mlp_post_norm);
        attention.chain(attn_post_norm).chain(mlp)
    }
}

/// Whether a tensor's rows (of a vector, values) are those of query or key heads, which are rotated.
pub(crate) fn is_rotated(name: &str) -> bool {
    ["q_proj.", "k_proj.", "q_norm.", "k_norm."].iter().any(|part| name.contains(part))
}

/// What the norm before the MLP is called. Where norms stand behind attention and the MLP as well, Llama's name for it is that of the one
/// behind attention.
pub(crate) fn mlp_norm(config: &Config) -> &'static str {
    match config.post_norms {
        true => "pre_feedforward_layernorm",
        false => "post_attention_layernorm",
    }
}
