//! The hyper-parameters that the keys `<architecture>.*` of a GGUF file give.

use super::Gguf;
use crate::Malformed;
use crate::arch::Config;
use crate::format::source::head_dim;

/// Keys below the architecture's name that say what [`read`] reads, or nothing that changes the computation.
const KNOWN_KEYS: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// The hyper-parameters, without the token ids.
pub fn read(gguf: &Gguf<'_>) -> Result<Config, Malformed> {
    let architecture = gguf.str("general.architecture")?.unwrap_or_default();
    if !matches!(architecture, "llama" | "mistral" | "qwen2" | "qwen3") {
        return Err(Malformed(format!(
            "general.architecture is {architecture:?}: supported are llama, mistral, qwen2 and qwen3"
        )));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    check_keys(gguf, architecture)?;

    let optional = |name: &str| match gguf.integer(&key(name))?.map(usize::try_from) {
        Some(Err(_)) => Err(Malformed(format!("key {} is too large", key(name)))),
        Some(Ok(value)) => Ok(Some(value)),
        None => Ok(None),
    };
    let missing = |name: &str| Malformed(format!("key {} is missing", key(name)));
    let required = |name: &str| optional(name)?.ok_or_else(|| missing(name));
    let hidden_size = required("embedding_length")?;
    let n_heads = required("attention.head_count")?;
    let head_dim = match optional("attention.key_length")? {
        Some(length) => length,
        None => head_dim(hidden_size, n_heads)?,
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = optional(name)?.filter(|&other| other != head_dim) {
            let text = format!("key {} is {other}, not the head's {head_dim}: not supported", key(name));
            return Err(Malformed(text));
        }
    }
    let max_position_embeddings = required("context_length")?;
    // Qwen's configurations name a window and say beside it that it is not used, which GGUF has no key for. llama.cpp and
    // transformers take these models to have none.
    let sliding_window = match architecture.starts_with("qwen") {
        true => None,
        false => optional("attention.sliding_window")?.filter(|&window| window > 0),
    };
    let tensor = |name: &str| gguf.tensors.iter().find(|tensor| tensor.name == name);
    let embedding =
        tensor("token_embd.weight").ok_or_else(|| Malformed("tensor token_embd.weight is missing".into()))?;
    let config = Config {
        architecture: architecture.to_owned(),
        hidden_size,
        intermediate_size: required("feed_forward_length")?,
        n_layers: required("block_count")?,
        n_heads,
        n_kv_heads: optional("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        vocab_size: embedding.shape.first().copied().unwrap_or_default(),
        max_position_embeddings,
        sliding_window,
        rope_theta: gguf.float(&key("rope.freq_base"))?.unwrap_or(10000.0),
        norm_eps: gguf
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))? as f32,
        scaled_rope: tensor("rope_freqs.weight").is_some()
            || linear_rope_scaling(gguf, architecture)?.is_some(),
        qkv_bias: architecture == "qwen2" || tensor("blk.0.attn_q.bias").is_some(),
        o_bias: tensor("blk.0.attn_output.bias").is_some(),
        qk_norm: architecture == "qwen3",
        tie_word_embeddings: tensor("output.weight").is_none(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    config.check()?;
    Ok(config)
}

/// Refuses every key that may change what the model computes and that [`read`] does not read.
fn check_keys(gguf: &Gguf<'_>, architecture: &str) -> Result<(), Malformed> {
    let prefix = format!("{architecture}.");
    let mut unknown: Vec<&str> = gguf
        .key_names()
        .filter(|key| key.strip_prefix(&prefix).is_some_and(|name| !KNOWN_KEYS.contains(&name)))
        .collect();
    unknown.sort_unstable();
    if let Some(key) = unknown.first() {
        return Err(Malformed(format!(
            "key {key} is not part of the {architecture} models that are supported"
        )));
    }
    let key = |name: &str| format!("{prefix}{name}");
    if gguf.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(Malformed("a mixture of experts: not supported".into()));
    }
    if gguf.bool(&key("attention.causal"))? == Some(false) {
        return Err(Malformed("attention is not causal: not supported".into()));
    }
    Ok(())
}

/// What all frequencies of the rotary embedding are divided by.
pub fn linear_rope_scaling(gguf: &Gguf<'_>, architecture: &str) -> Result<Option<f32>, Malformed> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    // A factor of 1, or 0 for "none given", scales nothing.
    let factor = |name: &str| Ok(gguf.float(&key(name))?.filter(|&factor| factor != 1.0 && factor != 0.0));
    match gguf.str(&key("scaling.type"))? {
        Some("none") => return Ok(None),
        None | Some("linear") => {}
        Some(other) => return Err(Malformed(format!("rope scaling of type {other:?} is not supported"))),
    }
    if let Some(factor) = factor("scaling.attn_factor")? {
        return Err(Malformed(format!("rope scaling with an attn_factor of {factor} is not supported")));
    }
    match factor("scaling.factor")?.or(factor("scale_linear")?).map(|factor| factor as f32) {
        Some(factor) if !(factor.is_normal() && factor > 0.0) => {
            Err(Malformed(format!("rope scaling by {factor}: a positive factor is needed")))
        }
        factor => Ok(factor),
    }
}
