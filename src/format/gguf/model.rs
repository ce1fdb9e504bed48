//! What the keys and tensors of a GGUF file of the `llama` and `qwen` architectures mean.

use std::collections::HashMap;
use std::sync::Arc;

use memmap2::Mmap;

use super::Gguf;
use crate::Malformed;
use crate::arch::Config;
use crate::arch::tensors::ROPE_FACTORS;
use crate::format::source::{Source, SourceTensor, head_dim};
use crate::tokenizer::{Kind, Spec, merges_from_scores};

/// Opens a mapped GGUF file.
///
/// # Errors
/// When the file is damaged, or not a model of an architecture that is supported.
pub fn open(map: Mmap) -> Result<Source, Malformed> {
    let map = Arc::new(map);
    let gguf = Gguf::parse(&map)?;
    if let Some(parts @ 2..) = gguf.integer("split.count")? {
        return Err(Malformed(format!(
            "one of {parts} parts of a model: join them first, with llama.cpp's llama-gguf-split --merge"
        )));
    }
    let config = config(&gguf)?;
    let tokenizer = tokenizer(&gguf, config.vocab_size)?;
    let mut tensors = tensors(&gguf, &map, &config)?;
    if let Some(factor) = linear_rope_scaling(&gguf, &config.architecture)? {
        let factors = SourceTensor::of(&vec![factor; config.head_dim / 2]);
        if tensors.insert(ROPE_FACTORS.to_owned(), factors).is_some() {
            return Err(Malformed(
                "rope scaling by rope_freqs.weight and a factor at once: not supported".into(),
            ));
        }
    }
    Ok(Source {
        config: Config {
            bos_token_id: tokenizer.bos_token_id,
            eos_token_ids: tokenizer.eos_token_ids.clone(),
            ..config
        },
        tokenizer,
        tensors,
        files: Vec::new(),
        notes: Vec::new(),
    })
}

/// Keys below the architecture's name that say what [`config`] reads, or nothing that changes the computation.
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
fn config(gguf: &Gguf<'_>) -> Result<Config, Malformed> {
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

/// Refuses every key that may change what the model computes and that [`config`] does not read.
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
fn linear_rope_scaling(gguf: &Gguf<'_>, architecture: &str) -> Result<Option<f32>, Malformed> {
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

/// The tensors under Hugging Face's names; those without one keep theirs, to be refused by it.
fn tensors(
    gguf: &Gguf<'_>,
    map: &Arc<Mmap>,
    config: &Config,
) -> Result<HashMap<String, SourceTensor>, Malformed> {
    // llama.cpp rotates neighbours in Llama's heads and halves in Qwen's.
    let interleaved = matches!(config.architecture.as_str(), "llama" | "mistral");
    let mut tensors = HashMap::new();
    for info in &gguf.tensors {
        let tensor = SourceTensor::new(map.clone(), info.range.clone(), info.encoding, info.shape.clone())
            .map_err(|problem| Malformed(format!("tensor {} {problem}", info.name)))?;
        let name = hugging_face_name(info.name);
        let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
        let tensor = if rotated && interleaved { tensor.interleaved(config.head_dim) } else { tensor };
        if tensors.insert(name, tensor).is_some() {
            return Err(Malformed(format!("tensor {} occurs twice", info.name)));
        }
    }
    Ok(tensors)
}

/// Hugging Face's name for the tensor GGUF calls `name`.
fn hugging_face_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        "rope_freqs.weight" => return ROPE_FACTORS.to_owned(),
        _ => {}
    }
    let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let renamed = in_layer.and_then(|(layer, name)| {
        let (name, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let name = match name {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{name}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

// Values of tokenizer.ggml.token_type.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

fn tokenizer(gguf: &Gguf<'_>, vocab_size: usize) -> Result<Spec, Malformed> {
    let missing = |key: &str| Malformed(format!("key {key} is missing"));
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if tokens.len() > vocab_size {
        return Err(Malformed(format!(
            "{} tokens, but the embedding has only {vocab_size} rows",
            tokens.len()
        )));
    }
    let types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(Malformed(format!("{} tokens but {} token types", tokens.len(), types.len())));
    }
    let mut spec = match gguf.str("tokenizer.ggml.model")? {
        Some("llama") => sentencepiece(gguf, &tokens, &types)?,
        Some("gpt2") => byte_level(gguf)?,
        other => {
            let model = other.unwrap_or("missing");
            return Err(Malformed(format!(
                "tokenizer.ggml.model is {model}: only llama (SentencePiece BPE) and gpt2 (byte-level BPE) are supported"
            )));
        }
    };
    for ((id, token), kind) in (0u32..).zip(tokens).zip(types) {
        // Converters fill the holes of a byte-level vocabulary with unused tokens of made-up names.
        if kind == UNUSED && spec.kind == Kind::ByteLevel {
            continue;
        }
        if kind == CONTROL || kind == UNKNOWN {
            spec.special_tokens.push((token.clone(), id));
        } else if kind == USER_DEFINED {
            spec.added_tokens.push((token.clone(), id));
        }
        spec.vocab.push((token, id));
    }
    spec.bos_token_id = token_id(gguf, "tokenizer.ggml.bos_token_id", vocab_size)?;
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = token_id(gguf, key, vocab_size)?
            && !spec.eos_token_ids.contains(&id)
        {
            spec.eos_token_ids.push(id);
        }
    }
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?;
    // Where the file does not say: what these models' own tokenizers do, and llama.cpp with them.
    let by_default =
        spec.kind == Kind::Metaspace || matches!(spec.pre.as_deref(), Some("llama-bpe" | "tekken"));
    spec.add_bos = Some(add_bos.unwrap_or(by_default));
    spec.chat_template = gguf.str("tokenizer.chat_template")?.map(str::to_owned);
    Ok(spec)
}

fn token_id(gguf: &Gguf<'_>, key: &str, vocab_size: usize) -> Result<Option<u32>, Malformed> {
    match gguf.integer(key)? {
        Some(id) if id >= vocab_size as u64 => {
            Err(Malformed(format!("key {key} is {id}, but there are only {vocab_size} tokens")))
        }
        Some(id) => Ok(u32::try_from(id).ok()),
        None => Ok(None),
    }
}

/// A SentencePiece BPE tokenizer, whose merges follow from the pieces' scores.
fn sentencepiece(gguf: &Gguf<'_>, tokens: &[String], types: &[i64]) -> Result<Spec, Malformed> {
    if gguf.bool("tokenizer.ggml.add_space_prefix")? == Some(false) {
        return Err(Malformed(
            "tokenizer.ggml.add_space_prefix is false: a SentencePiece tokenizer without it is not supported"
                .into(),
        ));
    }
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    if scores.len() != tokens.len() {
        return Err(Malformed(format!("{} tokens but {} scores", tokens.len(), scores.len())));
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(Malformed(format!("key {key} holds a NaN")));
    }
    // Merging never makes a control, unknown, added or byte token.
    let mergeable = |kind: i64| matches!(kind, NORMAL | UNUSED);
    let (pieces, scores): (Vec<String>, Vec<f32>) = tokens
        .iter()
        .zip(scores)
        .zip(types)
        .filter(|&(_, &kind)| mergeable(kind))
        .map(|((token, score), _)| (token.clone(), score))
        .unzip();
    let (merges, equal_merges) = merges_from_scores(&pieces, &scores)?;
    Ok(Spec { kind: Kind::Metaspace, merges, equal_merges, ..Spec::default() })
}

/// A byte-level BPE tokenizer.
fn byte_level(gguf: &Gguf<'_>) -> Result<Spec, Malformed> {
    let pre = match gguf.str("tokenizer.ggml.pre")? {
        Some(pre @ ("gpt-2" | "smollm" | "llama-bpe" | "qwen2" | "tekken")) => pre,
        Some("llama3" | "llama-v3") => "llama-bpe",
        other => {
            let pre = other.unwrap_or("missing");
            return Err(Malformed(format!(
                "tokenizer.ggml.pre is {pre}: only gpt-2, smollm, llama-bpe, qwen2 and tekken are supported"
            )));
        }
    };
    let key = "tokenizer.ggml.merges";
    let merges = gguf.strings(key)?.ok_or_else(|| Malformed(format!("key {key} is missing")))?;
    let split = |merge: String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(Malformed(format!("{key}: {merge:?} is not two pieces"))),
    };
    Ok(Spec {
        kind: Kind::ByteLevel,
        pre: Some(pre.to_owned()),
        // Nothing in the file says so, but Qwen's own tokenizer does it.
        nfc: pre == "qwen2",
        merges: merges.into_iter().map(split).collect::<Result<_, _>>()?,
        ..Spec::default()
    })
}
