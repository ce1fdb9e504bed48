//! What the keys and tensors of a GGUF file of the `llama` architecture mean.

use std::collections::HashMap;
use std::sync::Arc;

use memmap2::Mmap;

use super::Gguf;
use crate::Malformed;
use crate::format::source::{Source, Tensor, added_tokens_note, check_config, head_dim};
use crate::model::Config;
use crate::tokenizer::{Kind, Spec, spm};

/// Opens a mapped GGUF file.
///
/// # Errors
/// When the file is damaged, or not a model of the plain Llama or Mistral design.
pub fn open(map: Mmap) -> Result<Source, Malformed> {
    let map = Arc::new(map);
    let gguf = Gguf::parse(&map)?;
    if let Some(parts @ 2..) = gguf.integer("split.count")? {
        return Err(Malformed(format!(
            "one of {parts} parts of a model: join them first, with llama.cpp's llama-gguf-split --merge"
        )));
    }
    let config = config(&gguf)?;
    let (tokenizer, notes) = tokenizer(&gguf, config.vocab_size)?;
    let tensors = tensors(&gguf, &map, config.head_dim)?;
    Ok(Source {
        config: Config {
            bos_token_id: tokenizer.bos_token_id,
            eos_token_ids: tokenizer.eos_token_ids.clone(),
            ..config
        },
        tokenizer,
        tensors,
        notes,
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
    if !matches!(architecture, "llama" | "mistral") {
        return Err(Malformed(format!(
            "general.architecture is {architecture:?}: only llama and mistral are supported"
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
        max_position_embeddings: required("context_length")?,
        sliding_window: optional("attention.sliding_window")?.filter(|&window| window > 0),
        rope_theta: gguf.float(&key("rope.freq_base"))?.unwrap_or(10000.0),
        norm_eps: gguf
            .float(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))? as f32,
        tie_word_embeddings: tensor("output.weight").is_none(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    };
    check_config(&config)?;
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
            "key {key} is not part of the Mistral and Llama models that are supported"
        )));
    }
    let key = |name: &str| format!("{prefix}{name}");
    if gguf.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(Malformed("a mixture of experts: not supported".into()));
    }
    if gguf.bool(&key("attention.causal"))? == Some(false) {
        return Err(Malformed("attention is not causal: not supported".into()));
    }
    let scaling = gguf.str(&key("rope.scaling.type"))?;
    // "linear" with a factor of 1, or 0 for "none given", scales nothing.
    let mut scales = !matches!(scaling, None | Some("none" | "linear"));
    if scaling != Some("none") {
        for name in ["rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"] {
            scales |= gguf.float(&key(name))?.is_some_and(|factor| factor != 1.0 && factor != 0.0);
        }
    }
    if scales {
        return Err(Malformed(format!("rope scaling ({}) is not supported", scaling.unwrap_or("linear"))));
    }
    Ok(())
}

/// The tensors under Hugging Face's names; those without one keep theirs, to be refused by it.
fn tensors(gguf: &Gguf<'_>, map: &Arc<Mmap>, head_dim: usize) -> Result<HashMap<String, Tensor>, Malformed> {
    let mut tensors = HashMap::new();
    for info in &gguf.tensors {
        if info.name == "rope_freqs.weight" {
            return Err(Malformed("tensor rope_freqs.weight: rope scaling (llama3) is not supported".into()));
        }
        let tensor = Tensor::new(map.clone(), info.range.clone(), info.encoding, info.shape.clone())
            .map_err(|problem| Malformed(format!("tensor {} {problem}", info.name)))?;
        let name = hugging_face_name(info.name);
        let rotated = name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight");
        let tensor = if rotated { tensor.interleaved(head_dim) } else { tensor };
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
        _ => {}
    }
    let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let renamed = in_layer.and_then(|(layer, name)| {
        let name = match name.strip_suffix(".weight")? {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{name}.weight"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

// Values of tokenizer.ggml.token_type.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The tokenizer, and what the user should know about it.
fn tokenizer(gguf: &Gguf<'_>, vocab_size: usize) -> Result<(Spec, Vec<String>), Malformed> {
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
    let mut notes = Vec::new();
    let user_defined = types.iter().filter(|&&kind| kind == USER_DEFINED).count();
    if user_defined > 0 {
        notes.push(added_tokens_note(user_defined));
    }
    for ((id, token), kind) in (0u32..).zip(tokens).zip(types) {
        // Converters fill the holes of a byte-level vocabulary with unused tokens of made-up names.
        if kind == UNUSED && spec.kind == Kind::ByteLevel {
            continue;
        }
        if kind == CONTROL || kind == UNKNOWN {
            spec.special_tokens.push((token.clone(), id));
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
    spec.add_bos = Some(add_bos.unwrap_or(spec.kind == Kind::Metaspace));
    spec.chat_template = gguf.str("tokenizer.chat_template")?.map(str::to_owned);
    Ok((spec, notes))
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
    // Merging never makes a control, unknown or byte token.
    let mergeable = |kind: i64| matches!(kind, NORMAL | USER_DEFINED | UNUSED);
    let (pieces, scores): (Vec<String>, Vec<f32>) = tokens
        .iter()
        .zip(scores)
        .zip(types)
        .filter(|&(_, &kind)| mergeable(kind))
        .map(|((token, score), _)| (token.clone(), score))
        .unzip();
    Ok(Spec { kind: Kind::Metaspace, merges: spm::merges_from_scores(&pieces, &scores), ..Spec::default() })
}

/// A byte-level BPE tokenizer.
fn byte_level(gguf: &Gguf<'_>) -> Result<Spec, Malformed> {
    let pre = match gguf.str("tokenizer.ggml.pre")? {
        Some(pre @ ("gpt-2" | "smollm" | "llama-bpe" | "qwen2")) => pre,
        Some("llama3" | "llama-v3") => "llama-bpe",
        other => {
            let pre = other.unwrap_or("missing");
            return Err(Malformed(format!(
                "tokenizer.ggml.pre is {pre}: only gpt-2, smollm, llama-bpe and qwen2 are supported"
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
        merges: merges.into_iter().map(split).collect::<Result<_, _>>()?,
        ..Spec::default()
    })
}
